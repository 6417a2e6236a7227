"""Images as the network sees them: decoded to upright RGB, and resized. Nothing is read from disk or network.

An exported model contains this module, so that it sees the pixels that training saw.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_FEWEST_PIXELS = 8
"""Least height and width of a picture of a person."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


class _UnknownRangeError(ValueError):
    """The pixels of an image have no known range."""


def check_size(image: Image.Image) -> None:
    """Raise ValueError for an image that is too small to show a person."""
    if min(image.size) < _FEWEST_PIXELS:
        raise ValueError(
            f"{image.height} x {image.width} pixels; expected at least {_FEWEST_PIXELS} x {_FEWEST_PIXELS}"
        )


def decode(
    encoded: bytes, formats: tuple[str, ...] | None = None, most_pixels: int | None = None
) -> Image.Image:
    """Decode an image file as RGB. A damaged file is an error, never repaired.

    Args:
        encoded: content of the file.
        formats: formats to accept, as Pillow names them; all of them by default.
        most_pixels: largest number of pixels to accept, which is checked before any is decoded.

    Raises:
        ValueError: the content is not an image, damaged, of another format, or too large.
    """
    # libjpeg only warns about a tail of zeros (an unfinished copy), and Pillow returns grey pixels for it.
    if encoded.startswith(_JPEG_START) and _JPEG_END not in encoded:
        raise ValueError("truncated (JPEG without its end marker)")
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            height, width = image.height, image.width
            if most_pixels is None or height * width <= most_pixels:
                return _upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large ({error})") from error
    except (_UnknownRangeError, MemoryError):
        raise
    except Exception as error:  # for damaged files, Pillow's parsers raise many kinds
        # Pillow's message for an unidentified file only gives the address of its buffer.
        reason = "unknown image format" if "cannot identify" in str(error) else error or type(error).__name__
        raise ValueError(f"damaged or truncated ({reason})") from error
    raise ValueError(f"too large ({height:,} x {width:,}, more than {most_pixels:,} pixels)")


def resize(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Resize an RGB image to uint8 ``[height, width, 3]``."""
    # Pillow scales its bilinear filter with the reduction, so that downsizing does not alias.
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits for each of three channels, turned as its EXIF record says."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise _UnknownRangeError(f"{image.mode}: pixels of 32 bits, whose range is not known")
    image.load()  # a damaged picture is an error here, a damaged record below is not
    if image.mode.startswith("I"):  # of 16 bits; Pillow would cut the values off at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif (turn := _UPRIGHT.get(_orientation(image))) is not None:
        # ImageOps.exif_transpose also rewrites the record, and fails at other entries that are damaged.
        image = image.transpose(turn)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1, upright, where its record is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow's parser raises many kinds; the pixels may be sound
        return 1
