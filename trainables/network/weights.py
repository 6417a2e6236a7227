"""Weights that a training starts from: a safetensors file that the user names, and nothing else.

The tensors are those of an encoder's ``layers`` by its own names; those of a classifier are passed over.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .encoders import Encoder

_NAMED = 3
_COLOURS = 3


def check_weights(encoder: Encoder, path: Path) -> None:
    """Raise ValueError, in one line, unless the file holds every tensor of ``encoder.layers`` and no other.

    Reads the file's header alone.
    """
    own = {name: list(value.shape) for name, value in encoder.layers.state_dict().items()}
    found = _shapes(path.expanduser())
    missing = [
        f"{name} {shape}"
        for name, shape in own.items()
        # Files from before PyTorch 0.4.1 do not count batches, and nothing that we do needs the count.
        if name not in found and not name.endswith("num_batches_tracked")
    ]
    other = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in own.items()
        if name in found and found[name] != shape and not _is_stem_of_colours(found[name], shape)
    ]
    unknown = [
        f"{name} {shape}"
        for name, shape in found.items()
        if name not in own and not name.startswith(encoder.heads)
    ]
    faults = [
        f"{what} {_first(names)}"
        for what, names in (("lacks", missing), ("has", other), ("has beside them", unknown))
        if names
    ]
    if faults:
        raise ValueError(f"{path} does not hold the tensors of the encoder: it {'; it '.join(faults)}")


def load_weights(encoder: Encoder, path: Path) -> None:
    """Fill ``encoder.layers`` from the file; raises ValueError as `check_weights` does.

    Weights of three input channels fill those of RGB, and the channels of optical flow start at zero.
    """
    check_weights(encoder, path)
    found = load_file(path.expanduser())
    with torch.no_grad():
        for name, own in encoder.layers.state_dict().items():
            if name not in found:
                continue
            if own.shape != found[name].shape:
                own.zero_()
                own = own[:, :_COLOURS]
            own.copy_(found[name])


def _is_stem_of_colours(found: list[int], own: list[int]) -> bool:
    """Whether shapes are of one convolution that sees RGB alone, and optical flow as well."""
    return len(own) == 4 and own[1] == _COLOURS + 2 and found == [own[0], _COLOURS, *own[2:]]


def _shapes(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        names = [file.name for file in path.parent.glob("*.safetensors")]
        nearest = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{path}: there is no such file{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
