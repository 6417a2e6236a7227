"""iLIDS-VID (Wang et al., ECCV 2014): 300 people in two airport cameras, 10 published half/half splits."""

from pathlib import Path

from trainables.data.readers.folders import (
    Layout,
    Options,
    differences,
    matlab_integers,
    sequence,
    some,
    split_by_people,
    subfolders,
)
from trainables.data.tracklet import DataError, DataSet, Split, Tracklet

EXPECTED = (
    "expected i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png, the same under cam2,"
    " and 'train-test people splits/train_test_splits_ilidsvid.mat'"
)
SPLITS = Path("train-test people splits", "train_test_splits_ilidsvid.mat")
CAMERAS = {"1": "cam1", "2": "cam2"}


def recognise(folder: Path) -> bool:
    """Whether a folder shows a mark of iLIDS-VID."""
    outer = outer_folder(folder)
    sequences = outer / "i-LIDS-VID" / "sequences"
    return (outer / SPLITS).is_file() or any((sequences / camera).is_dir() for camera in CAMERAS.values())


def outer_folder(folder: Path) -> Path:
    """The folder that holds both the sequences and the splits, also when i-LIDS-VID itself was named."""
    return folder.parent if folder.name == "i-LIDS-VID" and (folder / "sequences").is_dir() else folder


def read(folder: Path, name: str, options: Options) -> DataSet:
    """Read every person; cam1 is probe, cam2 gallery."""
    outer = outer_folder(folder)
    sequences = outer / "i-LIDS-VID" / "sequences"
    people = {camera: subfolders(sequences / path, EXPECTED) for camera, path in CAMERAS.items()}
    everyone = sorted({*people["1"], *people["2"]})
    one_camera = sorted(set(people["1"]) ^ set(people["2"]))
    if one_camera:
        # The published splits are positions in the sorted list of people: a gap would shift everybody.
        raise DataError(
            f"{sequences}: {some(one_camera)} in one camera only; expected every person under cam1 and cam2"
            " (half unpacked?)"
        )
    tracklets = [
        sequence(person, camera, sequences / path / person)
        for person in everyone
        for camera, path in CAMERAS.items()
    ]
    splits = read_splits(outer / SPLITS, everyone, tracklets)
    found = {"people": len(everyone), "splits": len(splits)}
    return DataSet(
        name, "sequence", tuple(tracklets), splits, differences(found, {"people": 300, "splits": 10})
    )


def read_splits(path: Path, people: list[str], tracklets: list[Tracklet]) -> tuple[Split, ...]:
    """Rows of ``ls_set``: 1-based positions in the sorted people, the first half test, the second train."""
    rows = matlab_integers(path, "ls_set")
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise DataError(
            f"{path}: ls_set has shape {list(rows.shape)}; expected [splits, people], as [10, 300]"
        )
    if rows.min() < 1 or rows.max() > len(people):
        raise DataError(
            f"{path}: ls_set runs from {rows.min()} to {rows.max()}; expected 1 to {len(people)}, the"
            " number of people under sequences/cam1 (half unpacked?)"
        )
    half = rows.shape[1] // 2
    splits = []
    for position, row in enumerate(rows.tolist()):
        if len(set(row)) < len(row):
            raise DataError(f"{path}: row {position + 1} of ls_set names a person twice; expected each once")
        test, train = ([people[i - 1] for i in part] for part in (row[:half], row[half:]))
        splits.append(split_by_people(tracklets, train, test, lambda t: t.camera == "1"))
    return tuple(splits)


LAYOUT = Layout("ilids-vid", "sequence", EXPECTED, Options, recognise, read)
