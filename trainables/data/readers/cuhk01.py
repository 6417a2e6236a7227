"""CUHK01 (Li et al., ACCV 2012): 971 identities, two images in each of two views, 10 random splits."""

import re
from pathlib import Path

from pydantic import Field

from trainables.components import Options
from trainables.data.readers.folders import (
    differences,
    image_names,
    random_halves,
    some,
    split_by_identity,
    still,
    within,
)
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DataSet
from trainables.errors import DataError

EXPECTED = "expected campus/0001001.png to 0001004.png: identity (4 digits), image (001 and 002 are one view)"
NAME = re.compile(r"(?P<identity>\d{4})(?P<image>00[1-4])\.\w+")
PUBLISHED = {"identities": 971, "images": 3884}


class Cuhk01Options(Options):
    """Options of CUHK01."""

    seed: int = Field(0, ge=0, description="seed of the 10 random splits")


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like CUHK01."""
    return within(folder, "campus").is_dir()


def read(folder: Path, name: str, options: Cuhk01Options) -> DataSet:
    """Read every image; the first view is the query side, the second the gallery."""
    campus = within(folder, "campus")
    tracklets = []
    views: dict[str, set[str]] = {}
    for image in image_names(campus, EXPECTED):
        match = NAME.fullmatch(image)
        if match is None:
            raise DataError(f"{campus / image}: not a valid image name; {EXPECTED}")
        view = "1" if match["image"] in ("001", "002") else "2"
        views.setdefault(match["identity"], set()).add(view)
        tracklets.append(still(match["identity"], view, campus / image))
    one_view = [identity for identity, seen in views.items() if len(seen) == 1]
    if one_view:
        raise DataError(
            f"{campus}: {some(one_view)} in one view only; expected images 001-002 and 003-004 of each"
            " identity (partly unpacked?)"
        )
    if len(views) < 2:
        raise DataError(f"{campus}: {len(views)} identity; expected at least 2, for training and for testing")
    splits = tuple(
        split_by_identity(tracklets, train, test, lambda t: t.camera == "1")
        for train, test in random_halves(sorted(views), 10, options.seed)
    )
    counts = {"identities": len(views), "images": len(tracklets)}
    notes = (
        *differences(counts, PUBLISHED),
        f"no official splits: 10 random ones with seed {options.seed}",
    )
    return DataSet(name, "image", tuple(tracklets), splits, notes)


class Cuhk01Reader(Reader):
    """Reader of CUHK01."""

    kind = "image"
    expected = EXPECTED
    licence = RESEARCH
    Options = Cuhk01Options
    recognise = staticmethod(recognise)
    read = staticmethod(read)
