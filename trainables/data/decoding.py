"""One frame reference in, one RGB image out; a damaged file is named, never repaired."""

import io
import re

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.tracklet import DataError, Frame

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
CELL = re.compile(r"(?P<variable>\w+)\{(?P<outer>\d+)\}\{(?P<row>\d+),(?P<column>\d+)\}")
"""A ``Frame.key`` is MATLAB's own expression, ``labeled{1}{12,3}``: HDF5 is slow at naming objects."""


def decode(frame: Frame) -> NDArray[np.uint8]:
    """Decode one frame as uint8 RGB ``[height, width, 3]``.

    Raises:
        DataError: the file is missing, unreadable, cut short or no image. The line names the file.
    """
    return _decode_file(frame) if frame.key is None else _decode_object(frame, frame.key)


def _decode_file(frame: Frame) -> NDArray[np.uint8]:
    if not frame.path.is_file():  # a pipe would be read for ever
        raise DataError(f"{frame.path}: no such file; expected an image file")
    try:
        encoded = frame.path.read_bytes()
    except OSError as error:
        raise DataError(f"{frame.path}: cannot be read ({error.strerror}); expected an image file") from error
    # libjpeg only warns about a tail of zeros (an unfinished copy): Pillow would return grey pixels for it.
    if encoded.startswith(JPEG_START) and JPEG_END not in encoded:
        raise DataError(f"{frame.path}: cut short (JPEG without its end marker); expected a whole image")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own message for an unidentified file is the address of its buffer.
        reason = "no known image format" if "cannot identify" in str(error) else error
        raise DataError(f"{frame.path}: damaged or cut short ({reason}); expected a whole image") from error


def _decode_object(frame: Frame, key: str) -> NDArray[np.uint8]:
    expected = "expected a uint8 image [3, width, height] as MATLAB v7.3 stores it"
    address = CELL.fullmatch(key)
    if address is None:
        raise DataError(f"{frame.path}: {key!r} addresses no object; expected the form variable{{1}}{{2,3}}")
    variable = address["variable"]
    outer, row, column = (int(address[part]) - 1 for part in ("outer", "row", "column"))
    try:
        with h5py.File(frame.path, "r") as file:
            # MATLAB is column-major: HDF5 sees the axes of every cell and of [height, width, 3] reversed.
            stored = file[file[file[variable][0, outer]][column, row]]
            if stored.ndim != 3 or stored.shape[0] != 3 or stored.dtype != np.uint8:
                raise DataError(f"{frame.path}, {key}: {stored.dtype} {list(stored.shape)}; {expected}")
            return np.ascontiguousarray(stored[()].transpose(2, 1, 0))
    except (OSError, KeyError, RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{frame.path}, {key}: cannot be read ({error}); {expected}") from error
