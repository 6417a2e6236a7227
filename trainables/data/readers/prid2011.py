"""PRID 2011 (Hirzer et al., SCIA 2011): two cameras, identities 1 to 200 in both, manual tracklets."""

from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from trainables.components import Options
from trainables.data.readers.folders import (
    differences,
    random_halves,
    sequence,
    some,
    split_by_identity,
    subfolders,
    within,
)
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DataSet, Tracklet
from trainables.errors import DataError
from trainables.network.section import Section

EXPECTED = "expected multi_shot/cam_a/person_0001/0001.png and the same under multi_shot/cam_b"
CAMERAS = {"a": "cam_a", "b": "cam_b"}
SHARED_IDENTITIES = 200
"""Above this number, cam_a and cam_b use the same folder name for different identities."""
PROTOCOL_FRAMES = 28
"""The published protocol uses identities with more than 27 frames in both cameras: 178 of the 200."""


class Prid2011Options(Options):
    """Options of PRID 2011."""

    minimum_frames: int = Field(1, ge=1, description="leave out identities with fewer frames in a camera")
    seed: int = Field(0, ge=0, description="seed of the random splits, used if there is no split list")


class IdentitySplit(Section):
    """Entry of the split list, with the folder names of identities."""

    train: list[str]
    test: list[str]


SplitList = TypeAdapter(list[IdentitySplit])


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like PRID 2011."""
    root = within(folder, "multi_shot")
    return any((root / camera).is_dir() for camera in CAMERAS.values())


def read(folder: Path, name: str, options: Prid2011Options) -> DataSet:
    """Read the identities that are in both cameras; cam_a is the query side, cam_b the gallery."""
    root = within(folder, "multi_shot")
    folders = {camera: set(subfolders(root / path, EXPECTED)) for camera, path in CAMERAS.items()}
    path = split_list(folder)
    if path is None:
        pairs = sorted(name for name in folders["a"] | folders["b"] if number(name) <= SHARED_IDENTITIES)
        check_identities(root, pairs, folders)
        splits = None
    else:
        splits = read_split_list(path)
        pairs = sorted({identity for split in splits for identity in (*split.train, *split.test)})
        check_identities(path, pairs, folders)
    if not pairs:
        raise DataError(f"{root}: no identity is in both cam_a and cam_b; {EXPECTED}")

    tracklets: list[Tracklet] = []
    longest = 0
    for identity in pairs:
        pair = [sequence(identity, camera, root / path / identity) for camera, path in CAMERAS.items()]
        shortest = min(len(tracklet.frames) for tracklet in pair)
        longest = max(longest, shortest)
        if shortest >= options.minimum_frames:
            tracklets += pair
    identities = sorted({tracklet.identity for tracklet in tracklets})
    if len(identities) < 2:
        raise DataError(
            f"{root}: {len(identities)} identities have minimum_frames = {options.minimum_frames} frames in"
            f" both cameras; expected at least 2: lower it to {longest} or less"
        )

    halves = (
        random_halves(identities, 10, options.seed)
        if splits is None
        else [(split.train, split.test) for split in splits]
    )
    notes = [*differences({"identities": len(identities)}, {"identities": 178})]
    if options.minimum_frames < PROTOCOL_FRAMES:
        notes.append(
            f"minimum_frames is {options.minimum_frames}; the published protocol uses {PROTOCOL_FRAMES}"
        )
    if splits is None:
        notes.append(f"no split list: 10 random half/half splits with seed {options.seed}")
    if len(identities) < len(pairs):
        count = len(pairs) - len(identities)
        notes.append(f"left out {count} identities with fewer than {options.minimum_frames} frames")
    return DataSet(
        name,
        "sequence",
        tuple(tracklets),
        tuple(split_by_identity(tracklets, train, test, lambda t: t.camera == "a") for train, test in halves),
        tuple(notes),
    )


def number(name: str) -> int:
    """Return the number in a folder name such as ``person_0001``."""
    digits = name.removeprefix("person_")
    if not digits.isdecimal():
        raise DataError(f"multi_shot: {name!r} is not a valid folder name of an identity; {EXPECTED}")
    return int(digits)


def split_list(folder: Path) -> Path | None:
    """Return ``splits_prid2011.json``, else the only JSON file with "split" in its name, else None."""
    parent = folder.parent if folder.name == "multi_shot" else folder
    official = parent / "splits_prid2011.json"
    if official.is_file():
        return official
    others = sorted(file for file in parent.glob("*split*.json") if file.name[0] != ".")
    if len(others) > 1:
        names = some(other.name for other in others)
        raise DataError(f"{parent}: several split lists ({names}); expected one, named splits_prid2011.json")
    return others[0] if others else None


def read_split_list(path: Path) -> list[IdentitySplit]:
    """Read the splits of a list, and check that each has two non-empty, disjoint parts."""
    expected = 'expected a list of {"train": ["person_0001", ...], "test": [...]}'
    try:
        splits = SplitList.validate_json(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; {expected}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise DataError(f"{path}, {where}: {first['msg']}; {expected}") from error
    if not splits:
        raise DataError(f"{path}: the list is empty; {expected}")
    for position, split in enumerate(splits):
        both = sorted(set(split.train) & set(split.test))
        if both:
            raise DataError(f"{path}, split {position}: {some(both)} in both train and test; {expected}")
        if not split.train or not split.test:
            raise DataError(f"{path}, split {position}: train or test is empty; {expected}")
    return splits


def check_identities(path: Path, identities: list[str], folders: dict[str, set[str]]) -> None:
    """Raise a DataError if a listed identity has no folder in a camera."""
    for camera, other in (("a", "b"), ("b", "a")):
        missing = [identity for identity in identities if identity not in folders[camera]]
        if missing:
            where = "in neither camera" if missing[0] not in folders[other] else f"only in {CAMERAS[other]}"
            raise DataError(
                f"{path}: {some(missing)} are {where}; expected a folder of each identity in"
                f" {CAMERAS['a']} and {CAMERAS['b']} (partly unpacked?)"
            )


class Prid2011Reader(Reader):
    """Reader of PRID 2011."""

    kind = "sequence"
    expected = EXPECTED
    licence = RESEARCH
    Options = Prid2011Options
    recognise = staticmethod(recognise)
    read = staticmethod(read)
