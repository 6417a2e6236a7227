"""PRID 2011 (Hirzer et al., SCIA 2011): two cameras, people 1 to 200 in both, hand-made tracklets."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainables.data.readers.folders import (
    Layout,
    Options,
    differences,
    random_halves,
    sequence,
    some,
    split_by_people,
    subfolders,
    within,
)
from trainables.data.tracklet import DataError, DataSet, Tracklet

EXPECTED = "expected multi_shot/cam_a/person_0001/0001.png and the same under multi_shot/cam_b"
CAMERAS = {"a": "cam_a", "b": "cam_b"}
SHARED_PEOPLE = 200
"""Above this number cam_a and cam_b use the same folder name for different people."""
PROTOCOL_FRAMES = 28
"""The published protocol keeps the people with more than 27 frames in both cameras: 178 of the 200."""


class Prid2011Options(Options):
    """What a user may choose about PRID 2011."""

    minimum_frames: int = Field(1, ge=1, description="leave out people with fewer frames in a camera")
    seed: int = Field(0, ge=0, description="seed of the random splits, used when no split list is there")


class PeopleSplit(BaseModel):
    """One entry of the split list: folder names of the people."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    train: list[str]
    test: list[str]


SplitList = TypeAdapter(list[PeopleSplit])


def recognise(folder: Path) -> bool:
    """Whether a folder shows a mark of PRID 2011."""
    root = within(folder, "multi_shot")
    return any((root / camera).is_dir() for camera in CAMERAS.values())


def read(folder: Path, name: str, options: Prid2011Options) -> DataSet:
    """Read the people that can be paired; cam_a is probe, cam_b gallery."""
    root = within(folder, "multi_shot")
    people = {camera: set(subfolders(root / path, EXPECTED)) for camera, path in CAMERAS.items()}
    path = split_list(folder)
    if path is None:
        pairs = sorted(person for person in people["a"] | people["b"] if number(person) <= SHARED_PEOPLE)
        check_people(root, pairs, people)
        splits = None
    else:
        splits = read_split_list(path)
        pairs = sorted({person for split in splits for person in (*split.train, *split.test)})
        check_people(path, pairs, people)
    if not pairs:
        raise DataError(f"{root}: no person is in both cam_a and cam_b; {EXPECTED}")

    tracklets: list[Tracklet] = []
    longest = 0
    for person in pairs:
        seen = [sequence(person, camera, root / path / person) for camera, path in CAMERAS.items()]
        shortest = min(len(tracklet.frames) for tracklet in seen)
        longest = max(longest, shortest)
        if shortest >= options.minimum_frames:
            tracklets += seen
    kept = sorted({tracklet.identity for tracklet in tracklets})
    if len(kept) < 2:
        raise DataError(
            f"{root}: {len(kept)} people have minimum_frames = {options.minimum_frames} frames in both"
            f" cameras; expected at least 2: lower it, to {longest} or less"
        )

    halves = (
        random_halves(kept, 10, options.seed)
        if splits is None
        else [(split.train, split.test) for split in splits]
    )
    notes = [*differences({"people": len(kept)}, {"people": 178})]
    if options.minimum_frames < PROTOCOL_FRAMES:
        notes.append(
            f"minimum_frames is {options.minimum_frames}; the published protocol asks for {PROTOCOL_FRAMES}"
        )
    if splits is None:
        notes.append(f"no split list: 10 random half/half splits, seed {options.seed}")
    if len(kept) < len(pairs):
        notes.append(
            f"{len(pairs) - len(kept)} people with fewer than {options.minimum_frames} frames left out"
        )
    return DataSet(
        name,
        "sequence",
        tuple(tracklets),
        tuple(split_by_people(tracklets, train, test, lambda t: t.camera == "a") for train, test in halves),
        tuple(notes),
    )


def number(person: str) -> int:
    """The number in ``person_0001``."""
    digits = person.removeprefix("person_")
    if not digits.isdecimal():
        raise DataError(f"multi_shot: folder {person!r} has no person's name; {EXPECTED}")
    return int(digits)


def split_list(folder: Path) -> Path | None:
    """``splits_prid2011.json``, else the only JSON file with "split" in its name, else None."""
    around = folder.parent if folder.name == "multi_shot" else folder
    official = around / "splits_prid2011.json"
    if official.is_file():
        return official
    others = sorted(around.glob("*split*.json"))
    if len(others) > 1:
        names = some(other.name for other in others)
        raise DataError(f"{around}: several split lists ({names}); expected one, as in splits_prid2011.json")
    return others[0] if others else None


def read_split_list(path: Path) -> list[PeopleSplit]:
    """The splits of a list, each with people in both parts and nobody in two."""
    expected = 'expected a list of {"train": ["person_0001", ...], "test": [...]}'
    try:
        splits = SplitList.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise DataError(f"{path}, {where}: {first['msg']}; {expected}") from error
    if not splits:
        raise DataError(f"{path}: no split in it; {expected}")
    for position, split in enumerate(splits):
        both = sorted(set(split.train) & set(split.test))
        if both:
            raise DataError(f"{path}, split {position}: {some(both)} in both train and test; {expected}")
        if not split.train or not split.test:
            raise DataError(f"{path}, split {position}: an empty part; {expected}")
    return splits


def check_people(path: Path, listed: list[str], people: dict[str, set[str]]) -> None:
    """Refuse people of the split list who lack a folder in a camera."""
    for camera, other in (("a", "b"), ("b", "a")):
        absent = [person for person in listed if person not in people[camera]]
        if absent:
            where = "in neither camera" if absent[0] not in people[other] else f"only in {CAMERAS[other]}"
            raise DataError(
                f"{path}: {some(absent)} are {where}; expected a folder of each in"
                f" {CAMERAS['a']} and {CAMERAS['b']} (half unpacked?)"
            )


LAYOUT = Layout("prid2011", "sequence", EXPECTED, Prid2011Options, recognise, read)
