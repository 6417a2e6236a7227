"""CUHK01 (Li et al., ACCV 2012): 971 people, two images in each of two views, 10 random 485/486 splits."""

import re
from pathlib import Path

from pydantic import Field

from trainables.data.readers.folders import (
    Layout,
    Options,
    differences,
    image_names,
    random_halves,
    some,
    split_by_people,
    still,
    within,
)
from trainables.data.tracklet import DataError, DataSet

EXPECTED = "expected campus/0001001.png to 0001004.png: person (4 digits), image (001 and 002 are one view)"
NAME = re.compile(r"(?P<identity>\d{4})(?P<image>00[1-4])\.\w+")
PUBLISHED = {"people": 971, "images": 3884}


class Cuhk01Options(Options):
    """What a user may choose about CUHK01."""

    seed: int = Field(0, ge=0, description="seed of the 10 random splits")


def recognise(folder: Path) -> bool:
    """Whether a folder shows a mark of CUHK01."""
    return within(folder, "campus").is_dir()


def read(folder: Path, name: str, options: Cuhk01Options) -> DataSet:
    """Read every image; the first view is probe, the second gallery."""
    campus = within(folder, "campus")
    tracklets = []
    views: dict[str, set[str]] = {}
    for image in image_names(campus, EXPECTED):
        match = NAME.fullmatch(image)
        if match is None:
            raise DataError(f"{campus / image}: no name of CUHK01; {EXPECTED}")
        view = "1" if match["image"] in ("001", "002") else "2"
        views.setdefault(match["identity"], set()).add(view)
        tracklets.append(still(match["identity"], view, campus / image))
    one_view = [person for person, seen in views.items() if len(seen) == 1]
    if one_view:
        raise DataError(
            f"{campus}: {some(one_view)} in one view only; expected images 001-002 and 003-004 of each person"
            " (half unpacked?)"
        )
    if len(views) < 2:
        raise DataError(f"{campus}: {len(views)} person; expected at least 2 to split into train and test")
    splits = tuple(
        split_by_people(tracklets, train, test, lambda t: t.camera == "1")
        for train, test in random_halves(sorted(views), 10, options.seed)
    )
    found = {"people": len(views), "images": len(tracklets)}
    notes = (*differences(found, PUBLISHED), f"the set has no split list: 10 random, seed {options.seed}")
    return DataSet(name, "image", tuple(tracklets), splits, notes)


LAYOUT = Layout("cuhk01", "image", EXPECTED, Cuhk01Options, recognise, read)
