"""iLIDS-VID (Wang et al., ECCV 2014): 300 identities in two airport cameras, 10 official half/half splits."""

from pathlib import Path

from trainables.components import Options
from trainables.data.readers.folders import (
    differences,
    matlab_integers,
    sequence,
    some,
    split_by_identity,
    subfolders,
)
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DataSet, Split, Tracklet
from trainables.errors import DataError

EXPECTED = (
    "expected i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png, the same under cam2,"
    " and 'train-test people splits/train_test_splits_ilidsvid.mat'"
)
SPLITS = Path("train-test people splits", "train_test_splits_ilidsvid.mat")
CAMERAS = {"1": "cam1", "2": "cam2"}


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like iLIDS-VID."""
    outer = outer_folder(folder)
    sequences = outer / "i-LIDS-VID" / "sequences"
    return (outer / SPLITS).is_file() or any((sequences / camera).is_dir() for camera in CAMERAS.values())


def outer_folder(folder: Path) -> Path:
    """Return the folder that contains both sequences and splits; ``folder`` may be its i-LIDS-VID."""
    return folder.parent if folder.name == "i-LIDS-VID" and (folder / "sequences").is_dir() else folder


def read(folder: Path, name: str, options: Options) -> DataSet:
    """Read every identity; cam1 is the query side, cam2 the gallery."""
    outer = outer_folder(folder)
    sequences = outer / "i-LIDS-VID" / "sequences"
    folders = {camera: subfolders(sequences / path, EXPECTED) for camera, path in CAMERAS.items()}
    identities = sorted({*folders["1"], *folders["2"]})
    one_camera = sorted(set(folders["1"]) ^ set(folders["2"]))
    if one_camera:
        # The official splits are positions in the sorted identities: a gap would shift all that follow.
        raise DataError(
            f"{sequences}: {some(one_camera)} in one camera only; expected every identity under cam1 and cam2"
            " (partly unpacked?)"
        )
    tracklets = [
        sequence(identity, camera, sequences / path / identity)
        for identity in identities
        for camera, path in CAMERAS.items()
    ]
    splits = read_splits(outer / SPLITS, identities, tracklets)
    counts = {"identities": len(identities), "splits": len(splits)}
    notes = differences(counts, {"identities": 300, "splits": 10})
    return DataSet(name, "sequence", tuple(tracklets), splits, notes)


def read_splits(path: Path, identities: list[str], tracklets: list[Tracklet]) -> tuple[Split, ...]:
    """Read the splits, the rows of ``ls_set``.

    A row holds 1-based positions in the sorted identities; its first half is for testing.
    """
    rows = matlab_integers(path, "ls_set")
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise DataError(
            f"{path}: ls_set has shape {list(rows.shape)}; expected [splits, identities], such as [10, 300]"
        )
    if rows.min() < 1 or rows.max() > len(identities):
        raise DataError(
            f"{path}: ls_set ranges from {rows.min()} to {rows.max()}; expected 1 to {len(identities)}, the"
            " number of identities under sequences/cam1 (partly unpacked?)"
        )
    half = rows.shape[1] // 2
    splits = []
    for position, row in enumerate(rows.tolist()):
        if len(set(row)) < len(row):
            raise DataError(f"{path}: row {position + 1} of ls_set repeats an identity; expected each once")
        test, train = ([identities[i - 1] for i in part] for part in (row[:half], row[half:]))
        splits.append(split_by_identity(tracklets, train, test, lambda t: t.camera == "1"))
    return tuple(splits)


class IlidsVidReader(Reader):
    """Reader of iLIDS-VID."""

    kind = "sequence"
    expected = EXPECTED
    licence = RESEARCH
    recognise = staticmethod(recognise)
    read = staticmethod(read)
