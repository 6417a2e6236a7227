"""Decoding of a frame reference as an RGB image. A damaged file is an error, never repaired."""

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from trainables.data.tracklet import Frame
from trainables.errors import DataError

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
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
        raise DataError(f"{frame.path}: no such file; expected an image file")
    try:
        encoded = frame.path.read_bytes()
    except OSError as error:
        raise DataError(f"{frame.path}: cannot be read ({error.strerror}); expected an image file") from error
    # libjpeg only warns about a tail of zeros (an unfinished copy), and Pillow returns grey pixels for it.
    if encoded.startswith(JPEG_START) and JPEG_END not in encoded:
        raise DataError(f"{frame.path}: truncated (JPEG without its end marker); expected a complete image")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return _upright_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's message for an unidentified file only gives the address of its buffer.
        reason = "unknown image format" if "cannot identify" in str(error) else error
        raise DataError(f"{frame.path}: damaged or truncated ({reason}); expected an image file") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits for each of three channels, turned as its EXIF record says."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"{image.mode}: pixels of 32 bits, whose range is not known")
    if image.mode.startswith("I"):  # of 16 bits; Pillow would cut the values off at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


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
