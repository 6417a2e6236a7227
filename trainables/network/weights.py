"""Initial weights of an encoder, read from a local safetensors file.

The file contains the tensors of an encoder's ``layers`` under the same names; a classifier's are ignored. Or
it is the ``weights.safetensors`` of an exported model, of which only the encoder is read.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .components import nearest
from .encoders import Encoder

_NAMED = 3
_COLOURS = 3
_IN_A_MODEL = "encoder.layers."
"""Start of the names of the encoder's tensors in an exported model."""


def check_weights(encoder: Encoder, path: Path) -> None:
    """Check that the file holds every tensor of ``encoder.layers`` and no other. Only its header is read.

    Raises:
        ValueError: tensors are missing, unexpected or of other shapes, or the file cannot be read.
    """
    expected = {name: list(value.shape) for name, value in encoder.layers.state_dict().items()}
    shapes = _of_encoder(_shapes(path.expanduser()), expected)
    missing = [
        f"{name} {shape}"
        for name, shape in expected.items()
        # Files from before PyTorch 0.4.1 lack the count of batches, which is not needed here.
        if name not in shapes and not name.endswith("num_batches_tracked")
    ]
    mismatches = [
        f"{name} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape and not _is_stem_of_colours(shapes[name], shape)
    ]
    unexpected = [
        f"{name} {shape}"
        for name, shape in shapes.items()
        if name not in expected and not name.startswith(encoder.heads)
    ]
    faults = [
        f"{verb} {_first(names)}"
        for verb, names in (("lacks", missing), ("has", mismatches), ("has the unexpected", unexpected))
        if names
    ]
    if faults:
        raise ValueError(f"{path} does not hold the tensors of the encoder: it {'; it '.join(faults)}")


def load_weights(encoder: Encoder, path: Path) -> None:
    """Load the tensors of ``encoder.layers`` from the file.

    Weights for three input channels are loaded into those of RGB; the optical flow's start at zero.

    Raises:
        ValueError: as in `check_weights`.
    """
    check_weights(encoder, path)
    weights = _of_encoder(load_file(path.expanduser()), encoder.layers.state_dict())
    with torch.no_grad():
        for name, parameter in encoder.layers.state_dict().items():
            if name not in weights:
                continue
            if parameter.shape != weights[name].shape:
                parameter.zero_()
                parameter = parameter[:, :_COLOURS]
            parameter.copy_(weights[name])


def _is_stem_of_colours(shape: list[int], own: list[int]) -> bool:
    """Return whether ``own`` is the shape of a convolution of RGB and flow, and ``shape`` of RGB alone."""
    return len(own) == 4 and own[1] == _COLOURS + 2 and shape == [own[0], _COLOURS, *own[2:]]


def _shapes(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        names = [file.name for file in path.parent.glob("*.safetensors")]
        match = nearest(path.name, names)
        hint = f"; did you mean {match!r}?" if match else ""
        raise ValueError(f"{path}: there is no such file{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: list(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _of_encoder(tensors: dict[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """Return the encoder's tensors of an exported model by the expected names; else all tensors."""
    if tensors.keys() & expected:
        return tensors
    own = {
        name.removeprefix(_IN_A_MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(_IN_A_MODEL)
    }
    return own or tensors


def _first(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
