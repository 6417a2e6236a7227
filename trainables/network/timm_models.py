"""Models of the optional `timm` package as frame encoders.

They are built without pretrained weights: nothing is downloaded.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .components import nearest, one_line


def check_name(name: str) -> None:
    """Check that timm is installed and has a model of this name.

    Raises:
        ValueError: it is not or has not; the error names the nearest model.
    """
    names = _timm().list_models()
    if name in names:
        return
    match = nearest(name, names, cutoff=0)
    hint = f"; did you mean 'timm/{match}'?" if match else ""
    raise ValueError(f"timm has no model {name!r}{hint}")


def create(name: str, channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """Return the model without pooling and classifier, and the number of channels of its maps.

    Raises:
        ValueError: the model outputs no map for frames of this size.
    """
    timm = _timm()
    config = timm.models.get_pretrained_cfg(name)
    # Models with a grid of positions are built for one size; the others do not accept the argument.
    size = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", in_chans=channels, **size
        )
        with torch.no_grad():
            maps = as_map(model, model.eval()(torch.zeros(1, channels, height, width)))
    except Exception as error:  # models raise errors of many types for unsuitable arguments
        reason = one_line(error)
        raise ValueError(
            f"timm/{name} outputs no map for frames of {height} x {width} (height x width): {reason}; choose"
            " another model, or change data.height and data.width"
        ) from error
    return model.train(), maps.shape[1]


def as_map(model: Any, outputs: Tensor) -> Tensor:
    """Return the outputs of ``model`` as ``[frame, channels, rows, columns]``.

    Tokens without a position, such as the class token, are dropped.

    Raises:
        ValueError: the outputs have no rows and columns.
    """
    if outputs.ndim == 4:
        return outputs.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else outputs
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if outputs.ndim == 3 and grid is not None:
        tokens = outputs[:, getattr(model, "num_prefix_tokens", 0) :]
        if tokens.shape[1] == grid[0] * grid[1]:
            return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    raise ValueError(f"its output {list(outputs.shape)} has no rows and columns")


def heads(model: Any) -> tuple[str, ...]:
    """Return the name prefixes of the classifier's tensors, which `create` leaves out."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return tuple(f"{name.partition('.')[0]}." for name in names)


def colours(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of RGB in 0..1 that the model's published weights expect."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def _timm() -> ModuleType:
    """Import timm; raise a ValueError that says how to install it if that fails."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise ValueError("models of timm need the package timm; run: pip install timm") from error
        raise ValueError(f"timm needs the package {error.name}; run: pip install timm") from error
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch version
        raise ValueError(f"timm cannot be imported: {error}; to repair it run: pip install timm") from error
    return timm  # type: ignore[no-any-return]
