"""Market-1501 (Zheng et al., ICCV 2015): six cameras, detected boxes, junk and distractors in the gallery."""

import re
from pathlib import Path

from trainables.components import Options
from trainables.data.readers.folders import differences, image_names, still
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Split, Tracklet
from trainables.errors import DataError

EXPECTED = (
    "expected bounding_box_train/0002_c1s1_000451_03.jpg and the same under bounding_box_test and query"
)
PARTS = ("bounding_box_train", "query", "bounding_box_test")
NAME = re.compile(r"(?P<identity>\d{4}|-1)_c(?P<camera>\d)s\d_\d+_\d+(\.jpg)?\.\w+")
SPECIAL = {"-1": JUNK, "0000": DISTRACTOR}
PUBLISHED = {"training identities": 751, "training images": 12936, "queries": 3368, "gallery images": 19732}


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like Market-1501."""
    return any((folder / part).is_dir() for part in ("bounding_box_train", "bounding_box_test"))


def read(folder: Path, name: str, options: Options) -> DataSet:
    """Read the three parts; junk and distractors stay in the gallery, as identities JUNK and DISTRACTOR."""
    train, query, gallery = (read_part(folder / part) for part in PARTS)
    train = [tracklet for tracklet in train if tracklet.identity not in (JUNK, DISTRACTOR)]
    first_gallery = len(train) + len(query)
    split = Split(
        train=tuple(range(len(train))),
        query=tuple(range(len(train), first_gallery)),
        gallery=tuple(range(first_gallery, first_gallery + len(gallery))),
    )
    counts = {
        "training identities": len({tracklet.identity for tracklet in train}),
        "training images": len(train),
        "queries": len(query),
        "gallery images": len(gallery),
    }
    return DataSet(name, "image", (*train, *query, *gallery), (split,), differences(counts, PUBLISHED))


def read_part(folder: Path) -> list[Tracklet]:
    """Read every image of one part, in order of name."""
    part = []
    for name in image_names(folder, EXPECTED):
        match = NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{folder / name}: not a valid image name; expected one like 0002_c1s1_000451_03.jpg"
            )
        identity = SPECIAL.get(match["identity"], match["identity"])
        part.append(still(identity, match["camera"], folder / name))
    return part


class Market1501Reader(Reader):
    """Reader of Market-1501."""

    kind = "image"
    expected = EXPECTED
    licence = RESEARCH
    recognise = staticmethod(recognise)
    read = staticmethod(read)
