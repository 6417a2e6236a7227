"""MARS (Zheng et al., ECCV 2016): six cameras, several tracklets per identity from detector and tracker."""

import re
from collections import defaultdict
from pathlib import Path

from trainables.components import Options
from trainables.data.readers.folders import differences, matlab_integers, some
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Frame, Split, Tracklet
from trainables.errors import DataError

EXPECTED = (
    "expected bbox_train/0001/0001C1T0001F001.jpg, the same under bbox_test, and info/ with train_name.txt,"
    " test_name.txt, tracks_train_info.mat, tracks_test_info.mat and query_IDX.mat"
)
NAME = re.compile(r"(?P<identity>\d{4}|00-1)C(?P<camera>\d)T\d{4}F\d{3,}\.\w+")
SPECIAL = {"00-1": JUNK, "0000": DISTRACTOR}
PUBLISHED = {"training identities": 625, "training tracklets": 8298, "test tracklets": 12180, "queries": 1980}


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like MARS."""
    marks = ("bbox_train", "bbox_test", "info/tracks_train_info.mat", "info/query_IDX.mat")
    return any((folder / mark).exists() for mark in marks)


def read(folder: Path, name: str, options: Options) -> DataSet:
    """Read every track of both parts.

    The gallery of the only split is the official one: all test tracks, with queries, junk and distractors.
    `trainables.evaluation.scoring.score_by_protocol` scores it by both conventions.
    """
    info = folder / "info"
    for child in ("bbox_train", "bbox_test", "info"):
        if not (folder / child).is_dir():
            raise DataError(f"{folder}: no folder {child}; {EXPECTED}")
    train = read_part(folder / "bbox_train", info, "train")
    test = read_part(folder / "bbox_test", info, "test")

    rows = matlab_integers(info / "query_IDX.mat", "query_IDX").ravel()
    if not rows.size or rows.min() < 1 or rows.max() > len(test):
        span = f"ranges from {rows.min()} to {rows.max()}" if rows.size else "is empty"
        raise DataError(
            f"{info / 'query_IDX.mat'}: query_IDX {span}; expected 1 to {len(test)}, the test tracks"
        )
    queries = tuple(len(train) + row - 1 for row in rows.tolist())
    split = Split(
        train=tuple(range(len(train))),
        query=queries,
        gallery=tuple(range(len(train), len(train) + len(test))),
    )
    counts = {
        "training identities": len({tracklet.identity for tracklet in train}),
        "training tracklets": len(train),
        "test tracklets": len(test),
        "queries": len(queries),
    }
    return DataSet(name, "sequence", (*train, *test), (split,), differences(counts, PUBLISHED), "mars")


def read_part(boxes: Path, info: Path, part: str) -> list[Tracklet]:
    """Read the tracks of ``part``: rows (first, last, identity, camera), 1-based and inclusive."""
    names_path = info / f"{part}_name.txt"
    if not names_path.is_file():
        raise DataError(f"{names_path}: no such file; {EXPECTED}")
    names = names_path.read_text(encoding="utf-8-sig", errors="replace").split()
    check_files(boxes, names, names_path)

    path = info / f"tracks_{part}_info.mat"
    rows = matlab_integers(path, f"track_{part}_info")
    if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
        raise DataError(
            f"{path}: shape {list(rows.shape)}; expected [tracks, 4]: first, last, identity, camera"
        )
    return [
        read_track(boxes, names, row, f"{path}, track {position + 1}")
        for position, row in enumerate(rows.tolist())
    ]


def read_track(boxes: Path, names: list[str], row: list[int], where: str) -> Tracklet:
    """Read one track with frames in order of name; the names must match identity and camera of ``row``."""
    first, last, identity, camera = row
    if not 1 <= first <= last <= len(names):
        raise DataError(
            f"{where}: frames {first} to {last}; expected within 1 to {len(names)}, the listed names"
        )
    folder = "00-1" if identity == -1 else f"{identity:04d}"
    frames = sorted(names[first - 1 : last])
    mismatch = next((frame for frame in frames if not frame.startswith(f"{folder}C{camera}")), None)
    if mismatch is not None:
        raise DataError(
            f"{where}: identity {identity}, camera {camera}, but frame {mismatch}; expected the same"
        )
    return Tracklet(
        SPECIAL.get(folder, folder), str(camera), tuple(Frame(boxes / folder / frame) for frame in frames)
    )


def check_files(boxes: Path, names: list[str], names_path: Path) -> None:
    """Raise a DataError for invalid names and missing files.

    Folders are listed once per identity, because a million single look-ups would be slow.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for number, name in enumerate(names, start=1):
        match = NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{names_path}, line {number}: {name!r}; expected a name like 0001C1T0001F001.jpg"
            )
        by_folder[match["identity"]].append(name)
    if not names:
        raise DataError(f"{names_path}: the file is empty; {EXPECTED}")
    missing: list[str] = []
    for folder, folder_names in by_folder.items():
        files = {child.name for child in (boxes / folder).iterdir()} if (boxes / folder).is_dir() else set()
        missing += [f"{folder}/{name}" for name in folder_names if name not in files]
    if missing:
        raise DataError(
            f"{boxes}: missing {some(missing)}; expected all {len(names):,} frames of {names_path.name}"
            f" ({_why_missing(boxes, missing[0])})"
        )


def _why_missing(boxes: Path, name: str) -> str:
    """Return what may have happened to the first missing frame."""
    inner = boxes / boxes.name
    if inner.is_dir():
        return f"are they in {inner}?"
    folder, alike = (boxes / name).parent, Path(name).name.lower()
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    other = next((each for each in names if each.lower() == alike), None)
    return "partly unpacked?" if other is None else f"there is {other}: rename it"


class MarsReader(Reader):
    """Reader of MARS."""

    kind = "sequence"
    expected = EXPECTED
    licence = RESEARCH
    recognise = staticmethod(recognise)
    read = staticmethod(read)
