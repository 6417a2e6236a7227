"""Models of the `timm` package as frame encoders; it is needed only where one of them is named.

They are made without weights of their own: nothing is downloaded.
"""

import difflib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest name, unless timm is there and has a model of this name."""
    known = _timm().list_models()
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    hint = f"; did you mean 'timm/{nearest[0]}'?" if nearest else ""
    raise ValueError(f"timm has no model {name!r}{hint}")


def create(name: str, channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """The model without pooling and classifier, and the channels of its maps.

    Raises ValueError when it gives no map of frames of this size.
    """
    timm = _timm()
    published = timm.models.get_pretrained_cfg(name)
    # Models with a grid of positions are made for one size; the others do not know the argument.
    size = {"img_size": (height, width)} if published is not None and published.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", in_chans=channels, **size
        )
        with torch.no_grad():
            maps = as_map(model, model.eval()(torch.zeros(1, channels, height, width)))
    except Exception as error:  # whatever such a model thinks of the arguments
        reason = " ".join(str(error).split())
        raise ValueError(
            f"timm/{name} gives no map of frames of {height} x {width} (height x width): {reason}; choose"
            " another model, or another data.height and data.width"
        ) from error
    return model.train(), maps.shape[1]


def as_map(model: Any, outputs: Tensor) -> Tensor:
    """What ``model`` gives as ``[frame, channels, rows, columns]``; ValueError when it has no rows.

    Tokens lose those that stand for no place, such as the class token.
    """
    if outputs.ndim == 4:
        return outputs.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else outputs
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if outputs.ndim == 3 and grid is not None:
        places = outputs[:, getattr(model, "num_prefix_tokens", 0) :]
        if places.shape[1] == grid[0] * grid[1]:
            return places.transpose(1, 2).reshape(len(places), -1, *grid)
    raise ValueError(f"its output {list(outputs.shape)} has no rows and columns")


def heads(model: Any) -> tuple[str, ...]:
    """How the names of tensors begin that the model has with a classifier, and not as made by `create`."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return tuple(f"{name.partition('.')[0]}." for name in names)


def colours(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..1 that the model's published weights were trained with."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def _timm() -> ModuleType:
    """The package; ValueError says how to install it."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise ValueError("models of timm need that package: pip install timm") from error
        raise ValueError(f"timm lacks {error.name}, which comes with: pip install timm") from error
    except (ImportError, RuntimeError) as error:  # the latter from torchvision beside another PyTorch
        raise ValueError(f"timm cannot be imported: {error}; pip install timm mends it") from error
    return timm  # type: ignore[no-any-return]
