"""Functions of several readers: sorted listings, MATLAB files, comparison of counts, splits."""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.data.tracklet import Frame, Split, Tracklet
from trainables.errors import DataError

# Errors of scipy's parser for a truncated file: it has no check for one.
DAMAGED_MATLAB_FILE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
    zlib.error,
)
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
OTHER_IMAGES = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".mp4", ".avi", ".mov"})
"""Suffixes of images and videos that are not read, and must not be missed silently."""


def within(folder: Path, child: str) -> Path:
    """Return ``folder/child``, or ``folder`` itself if the user named the inner folder."""
    return folder if folder.name == child and not (folder / child).is_dir() else folder / child


def is_content(name: str) -> bool:
    """Return whether a folder belongs to the set, and not to a Mac or a network storage."""
    return name[0] != "." and name not in ("@eaDir", "__MACOSX")


def subfolders(folder: Path, missing: str) -> list[str]:
    """Return the names of the folders in ``folder``, sorted.

    Raises:
        DataError: there are none; the message ends with ``missing``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {missing}")
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and is_content(child.name))
    if not names:
        raise DataError(f"{folder}: holds no folders; {missing}")
    return names


def image_names(folder: Path, missing: str) -> list[str]:
    """Return the names of the image files in ``folder``, sorted.

    Raises:
        DataError: there are none, or other images than can be read; the message ends with ``missing``.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {missing}")
    files = [child for child in folder.iterdir() if child.name[0] != "."]
    names = sorted(child.name for child in files if child.suffix.lower() in IMAGE_SUFFIXES)
    if unread := sorted(child.name for child in files if child.suffix.lower() in OTHER_IMAGES):
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder / unread[0]}: this format is not read, only {suffixes}; {missing}")
    if not names:
        folders = sorted(child.name for child in files if child.is_dir())
        hint = f", but folders such as {folders[0]}; move their images up" if folders else ""
        raise DataError(f"{folder}: holds no images{hint}; {missing}")
    return names


def by_numbers(name: str) -> tuple[list[str | int], str]:
    """Return the key that sorts names by the numbers in them: 2.jpg is before 10.jpg.

    >>> sorted(["10.jpg", "9.jpg", "009b.jpg"], key=by_numbers)
    ['9.jpg', '009b.jpg', '10.jpg']
    """
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def sequence(identity: str, camera: str, folder: Path) -> Tracklet:
    """Return the tracklet whose frames are the images of ``folder``, in the order of their numbers."""
    names = sorted(image_names(folder, "expected one image per frame"), key=by_numbers)
    return Tracklet(identity, camera, tuple(Frame(folder / name) for name in names))


def still(identity: str, camera: str, path: Path, key: str | None = None) -> Tracklet:
    """Return one image as a tracklet of length 1."""
    return Tracklet(identity, camera, (Frame(path, key),))


def matlab_variable(path: Path, variable: str) -> NDArray[Any]:
    """Return one variable of a MATLAB file older than v7.3.

    Raises:
        DataError: the file is missing or damaged, or lacks the variable.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the MATLAB file that comes with the set")
    import scipy.io  # takes longer to import than most of this package, and few sets need it

    try:
        content: dict[str, Any] = scipy.io.loadmat(path)
    except (*DAMAGED_MATLAB_FILE, scipy.io.matlab.MatReadError) as error:
        raise DataError(
            f"{path}: not a readable MATLAB file ({error}); expected variable {variable!r}"
        ) from error
    if variable not in content:
        present = ", ".join(repr(name) for name in content if not name.startswith("__")) or "nothing"
        raise DataError(f"{path}: no variable {variable!r}; the file has {present}")
    return np.asarray(content[variable])


def matlab_integers(path: Path, variable: str) -> NDArray[np.int64]:
    """Return one variable of whole numbers, which MATLAB often stores as floating point.

    Raises:
        DataError: as in `matlab_variable`, or the values are not whole numbers.
    """
    values = matlab_variable(path, variable)
    if values.dtype.kind not in "iuf" or not np.array_equal(values, np.trunc(values)):
        raise DataError(f"{path}: {variable} is not an array of whole numbers ({values.dtype})")
    return values.astype(np.int64)


def some(names: Iterable[str]) -> str:
    """Return up to three names and their number: ``person_0001, person_0002, person_0003, ... (12)``."""
    ordered = list(names)
    return ", ".join(ordered[:3]) + (f", ... ({len(ordered)})" if len(ordered) > 3 else "")


def differences(counts: Mapping[str, int], published: Mapping[str, int]) -> tuple[str, ...]:
    """Return one note for each count that differs from the published one."""
    return tuple(
        f"{counts[unit]:,} {unit}, published: {count:,}"
        for unit, count in published.items()
        if counts[unit] != count
    )


def random_halves(identities: Sequence[str], count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Return ``count`` random ``(train, test)`` halves drawn from ``seed``; an odd identity is in test."""
    half = len(identities) // 2
    orders = [np.random.default_rng([seed, number]).permutation(len(identities)) for number in range(count)]
    return [
        (sorted(identities[i] for i in order[:half]), sorted(identities[i] for i in order[half:]))
        for order in orders
    ]


def split_by_identity(
    tracklets: Sequence[Tracklet],
    train: Iterable[str],
    test: Iterable[str],
    probe: Callable[[Tracklet], bool],
) -> Split:
    """Return the split of these identities; tracklets of ``test`` are queries if ``probe``, else gallery."""
    train, test = set(train), set(test)
    tested = [(i, probe(tracklet)) for i, tracklet in enumerate(tracklets) if tracklet.identity in test]
    return Split(
        train=tuple(i for i, tracklet in enumerate(tracklets) if tracklet.identity in train),
        query=tuple(i for i, queries in tested if queries),
        gallery=tuple(i for i, queries in tested if not queries),
    )


def train_on_all(tracklets: Sequence[Tracklet]) -> tuple[Split, ...]:
    """Return the only split of a set without a protocol: all tracklets train, none is tested."""
    return (Split(train=tuple(range(len(tracklets))), query=(), gallery=()),)
