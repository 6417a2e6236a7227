"""Decoding of a frame reference as an RGB image. A damaged file is an error, never repaired."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.tracklet import Frame
from trainables.errors import DataError
from trainables.network import images

CELL = re.compile(r"(?P<variable>\w+)\{(?P<outer>\d+)\}\{(?P<row>\d+),(?P<column>\d+)\}")
"""Form of a ``Frame.key``: a MATLAB expression such as ``labeled{1}{12,3}``, as HDF5 names objects slowly."""


def decode(frame: Frame) -> NDArray[np.uint8]:
    """Decode one frame as uint8 RGB ``[height, width, 3]``; see `decode_image`."""
    return np.array(decode_image(frame))


def decode_image(frame: Frame) -> Image.Image:
    """Decode one frame as an RGB image.

    Raises:
        DataError: the file is missing, unreadable, truncated or not an image; the error names the file.
    """
    return _decode_file(frame) if frame.key is None else _decode_object(frame, frame.key)


def _decode_file(frame: Frame) -> Image.Image:
    if not frame.path.is_file():  # reading a pipe would block
        raise DataError(f"{frame.path}: {_why_no_file(frame.path)}; expected an image file")
    try:
        encoded = frame.path.read_bytes()
    except OSError as error:
        raise DataError(f"{frame.path}: cannot be read ({error.strerror}); expected an image file") from error
    try:
        return images.decode(encoded)
    except ValueError as error:
        raise DataError(f"{frame.path}: {error}; expected a complete image file") from error


def _why_no_file(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is no file"
    return "not a regular file" if path.exists() else "no such file"


def _decode_object(frame: Frame, key: str) -> Image.Image:
    import h5py  # only this form of CUHK03 needs it

    expected = "expected a uint8 image [3, width, height] as MATLAB v7.3 stores it"
    address = CELL.fullmatch(key)
    if address is None:
        raise DataError(f"{frame.path}: {key!r} is not a valid key; expected the form variable{{1}}{{2,3}}")
    variable = address["variable"]
    outer, row, column = (int(address[part]) - 1 for part in ("outer", "row", "column"))
    try:
        with h5py.File(frame.path, "r") as file:
            # MATLAB is column-major: in HDF5 the axes of every cell and of [height, width, 3] are reversed.
            image = file[file[file[variable][0, outer]][column, row]]
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
                raise DataError(f"{frame.path}, {key}: {image.dtype} {list(image.shape)}; {expected}")
            return Image.fromarray(np.ascontiguousarray(image[()].transpose(2, 1, 0)))
    except (OSError, KeyError, RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{frame.path}, {key}: cannot be read ({error}); {expected}") from error
