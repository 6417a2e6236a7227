"""Layouts for custom sets: images, or sequences, in folders by identity and camera."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from trainables.components import Options
from trainables.data.readers.folders import (
    image_names,
    random_halves,
    sequence,
    some,
    split_by_identity,
    still,
    subfolders,
    train_on_all,
    within,
)
from trainables.data.readers.reader import Reader
from trainables.data.tracklet import DataSet, Split, Tracklet
from trainables.errors import DataError

IMAGES = "expected images/<identity>/<camera>/<any>.jpg"
SEQUENCES = "expected sequences/<identity>/<camera>/<tracklet>/<frame>.jpg"


class GenericOptions(Options):
    """Options of a set without an official protocol."""

    random_splits: int = Field(
        0,
        ge=0,
        description="number of random half/half splits of the identities seen in at least two cameras; 0:"
        " all identities train",
    )
    seed: int = Field(0, ge=0, description="seed of the random splits")


def recognise_images(folder: Path) -> bool:
    """Return whether a folder has ``images/`` by identity, unlike that of iLIDS-VID's middle frames."""
    root = within(folder, "images")
    return root.is_dir() and not (root / "cam1").is_dir()


def recognise_sequences(folder: Path) -> bool:
    """Return whether a folder has ``sequences/`` by identity, unlike that of iLIDS-VID by camera."""
    root = within(folder, "sequences")
    return root.is_dir() and not (root / "cam1").is_dir()


def read_images(folder: Path, name: str, options: GenericOptions) -> DataSet:
    """Read every image."""
    root = within(folder, "images")
    tracklets = tuple(
        still(identity, camera, path / image)
        for identity, camera, path in cameras(root, IMAGES)
        for image in image_names(path, IMAGES)
    )
    return DataSet(name, "image", tracklets, splits(root, tracklets, options))


def read_sequences(folder: Path, name: str, options: GenericOptions) -> DataSet:
    """Read every tracklet."""
    root = within(folder, "sequences")
    tracklets = tuple(
        sequence(identity, camera, path / tracklet)
        for identity, camera, path in cameras(root, SEQUENCES)
        for tracklet in subfolders(path, SEQUENCES)
    )
    unpaired = sorted(identity for identity, cameras in seen(tracklets).items() if len(cameras) == 1)
    if unpaired:
        raise DataError(
            f"{root}: {some(unpaired)} in one camera only; expected every identity in at least two cameras"
        )
    return DataSet(name, "sequence", tracklets, splits(root, tracklets, options))


def cameras(root: Path, expected: str) -> Iterator[tuple[str, str, Path]]:
    """Yield every (identity, camera, folder) under ``root``."""
    for identity in subfolders(root, expected):
        for camera in subfolders(root / identity, expected):
            yield identity, camera, root / identity / camera


def seen(tracklets: Sequence[Tracklet]) -> dict[str, set[str]]:
    """Return the cameras of each identity."""
    cameras: dict[str, set[str]] = {}
    for tracklet in tracklets:
        cameras.setdefault(tracklet.identity, set()).add(tracklet.camera)
    return cameras


def splits(root: Path, tracklets: Sequence[Tracklet], options: GenericOptions) -> tuple[Split, ...]:
    """Return one split for training alone, or random half/half splits of the identities.

    A test identity's first camera is its query side, all others are the gallery.
    """
    if not options.random_splits:
        return train_on_all(tracklets)
    seen_by = seen(tracklets)
    identities = sorted(identity for identity, cameras in seen_by.items() if len(cameras) > 1)
    if len(identities) < 2:
        raise DataError(
            f"{root}: {len(identities)} identities are in at least two cameras; random_splits needs 2 or more"
        )
    first = {identity: min(cameras) for identity, cameras in seen_by.items()}
    return tuple(
        split_by_identity(tracklets, train, test, lambda t: t.camera == first[t.identity])
        for train, test in random_halves(identities, options.random_splits, options.seed)
    )


class ImagesReader(Reader):
    """Reader of images by identity and camera."""

    kind = "image"
    expected = IMAGES
    Options = GenericOptions
    recognise = staticmethod(recognise_images)
    read = staticmethod(read_images)


class SequencesReader(Reader):
    """Reader of sequences by identity and camera."""

    kind = "sequence"
    expected = SEQUENCES
    Options = GenericOptions
    recognise = staticmethod(recognise_sequences)
    read = staticmethod(read_sequences)
