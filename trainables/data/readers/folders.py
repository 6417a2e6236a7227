"""What every reader does with folders: list them in name order, complain in one line, compare the counts."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import scipy.io
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trainables.data.tracklet import DataError, DataSet, Frame, Split, Tracklet

# What scipy's parser runs into in a file that was cut short: it has no check of its own.
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
    scipy.io.matlab.MatReadError,
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})


class Options(BaseModel):
    """What a user may choose about one layout. The layouts without choices take this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SomeOptions = TypeVar("SomeOptions", bound=Options)


@dataclass(frozen=True, slots=True)
class Layout(Generic[SomeOptions]):
    """One way in which a published set lies on disk.

    Attributes:
        expected: the shape of the layout in words, the second half of every error line.
        options: the typed choices of the layout.
        recognise: whether a folder shows a mark of this layout; cheap, and true when it is half unpacked.
        read: ``(folder, name, options) -> DataSet``, raising DataError for anything missing.
    """

    name: str
    kind: Literal["sequence", "image"]
    expected: str
    options: type[SomeOptions]
    recognise: Callable[[Path], bool]
    read: Callable[[Path, str, SomeOptions], DataSet]


AnyLayout = Layout[Any]


def within(folder: Path, child: str) -> Path:
    """``folder/child``, or ``folder`` itself when the user named the inner folder."""
    return folder if folder.name == child and not (folder / child).is_dir() else folder / child


def subfolders(folder: Path, missing: str) -> list[str]:
    """Names of the folders in ``folder``, sorted; a DataError ending in ``missing`` if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {missing}")
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    if not names:
        raise DataError(f"{folder}: holds no folders; {missing}")
    return names


def image_names(folder: Path, missing: str) -> list[str]:
    """Names of the image files in ``folder``, sorted; a DataError ending in ``missing`` if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {missing}")
    names = sorted(
        child.name
        for child in folder.iterdir()
        if child.suffix.lower() in IMAGE_SUFFIXES and child.name[0] != "."
    )
    if not names:
        raise DataError(f"{folder}: holds no images; {missing}")
    return names


def sequence(identity: str, camera: str, folder: Path) -> Tracklet:
    """The tracklet whose frames are the images of ``folder``, in name order."""
    names = image_names(folder, "expected one image per frame")
    return Tracklet(identity, camera, tuple(Frame(folder / name) for name in names))


def still(identity: str, camera: str, path: Path, key: str | None = None) -> Tracklet:
    """One image as a tracklet of length 1."""
    return Tracklet(identity, camera, (Frame(path, key),))


def matlab_variable(path: Path, variable: str) -> NDArray[Any]:
    """One variable of a MATLAB file older than v7.3; a DataError that names the file when it is not there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the MATLAB file that comes with the set")
    try:
        content: dict[str, Any] = scipy.io.loadmat(path)
    except DAMAGED_MATLAB_FILE as error:
        raise DataError(
            f"{path}: no readable MATLAB file ({error}); expected variable {variable!r}"
        ) from error
    if variable not in content:
        present = ", ".join(repr(name) for name in content if not name.startswith("__")) or "nothing"
        raise DataError(f"{path}: no variable {variable!r}; the file holds {present}")
    return np.asarray(content[variable])


def matlab_integers(path: Path, variable: str) -> NDArray[np.int64]:
    """One variable of whole numbers, which MATLAB often stores as floating point."""
    values = matlab_variable(path, variable)
    if values.dtype.kind not in "iuf" or not np.array_equal(values, np.trunc(values)):
        raise DataError(f"{path}: {variable} is no array of whole numbers ({values.dtype})")
    return values.astype(np.int64)


def some(names: Iterable[str]) -> str:
    """A few names and how many there are: ``person_0001, person_0002, person_0003, ... (12)``."""
    ordered = list(names)
    return ", ".join(ordered[:3]) + (f", ... ({len(ordered)})" if len(ordered) > 3 else "")


def differences(found: Mapping[str, int], published: Mapping[str, int]) -> tuple[str, ...]:
    """One note for each count that is not the published one."""
    return tuple(
        f"{found[what]:,} {what}, published: {count:,}"
        for what, count in published.items()
        if found[what] != count
    )


def random_halves(people: Sequence[str], count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """``count`` random ``(train, test)`` halves, the same for a seed; an odd person goes to test."""
    half = len(people) // 2
    orders = [np.random.default_rng([seed, number]).permutation(len(people)) for number in range(count)]
    return [
        (sorted(people[i] for i in order[:half]), sorted(people[i] for i in order[half:])) for order in orders
    ]


def split_by_people(
    tracklets: Sequence[Tracklet],
    train: Iterable[str],
    test: Iterable[str],
    probe: Callable[[Tracklet], bool],
) -> Split:
    """The split in which test people's tracklets query where ``probe`` holds, and are gallery elsewhere."""
    train, test = set(train), set(test)
    tested = [(i, probe(tracklet)) for i, tracklet in enumerate(tracklets) if tracklet.identity in test]
    return Split(
        train=tuple(i for i, tracklet in enumerate(tracklets) if tracklet.identity in train),
        query=tuple(i for i, queries in tested if queries),
        gallery=tuple(i for i, queries in tested if not queries),
    )


def train_on_all(tracklets: Sequence[Tracklet]) -> tuple[Split, ...]:
    """The one split of a set without a protocol: everything trains, nothing is tested."""
    return (Split(train=tuple(range(len(tracklets))), query=(), gallery=()),)
