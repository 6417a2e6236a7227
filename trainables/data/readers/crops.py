"""Crops without labels: a plain folder of images, or of folders of images, to be embedded or searched."""

import os
from pathlib import Path

from trainables.data.readers.folders import (
    IMAGE_SUFFIXES,
    OTHER_IMAGES,
    by_numbers,
    image_names,
    is_content,
    sequence,
    still,
)
from trainables.data.tracklet import DataSet, Tracklet
from trainables.errors import DataError

UNKNOWN = ""
"""Identity and camera of a crop."""
EXPECTED = "expected a folder of images, or of folders of images"


def read_crops(folder: Path) -> DataSet:
    """Read crops: an image directly in ``folder`` is a tracklet, and so is every folder of images below it.

    Raises:
        DataError: the folder has no images.
    """
    root = folder.expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{folder}: {'a file' if root.exists() else 'no such folder'}; {EXPECTED}")
    tracklets: list[Tracklet] = []
    for path, folders, files in os.walk(root):
        folders[:] = sorted(filter(is_content, folders), key=by_numbers)
        suffixes = {Path(name).suffix.lower() for name in files if name[0] != "."}
        if not suffixes & (IMAGE_SUFFIXES | OTHER_IMAGES):
            continue
        if Path(path) == root:
            names = sorted(image_names(root, EXPECTED), key=by_numbers)
            tracklets += [still(UNKNOWN, UNKNOWN, root / name) for name in names]
        else:
            tracklets.append(sequence(UNKNOWN, UNKNOWN, Path(path)))
    if not tracklets:
        raise DataError(f"{folder}: holds no images; {EXPECTED}")
    return DataSet(root.name, "sequence", tuple(tracklets), ())
