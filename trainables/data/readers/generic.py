"""The two layouts for sets of one's own: images and sequences by identity and camera."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from trainables.data.readers.folders import (
    Layout,
    Options,
    image_names,
    random_halves,
    sequence,
    some,
    split_by_people,
    still,
    subfolders,
    train_on_all,
    within,
)
from trainables.data.tracklet import DataError, DataSet, Split, Tracklet

IMAGES = "expected images/<identity>/<camera>/<any>.jpg"
SEQUENCES = "expected sequences/<identity>/<camera>/<tracklet>/<frame>.jpg"


class GenericOptions(Options):
    """What a user may choose about a set without a protocol of its own."""

    random_splits: int = Field(
        0, ge=0, description="random half/half splits of the people seen in two cameras or more; 0: all train"
    )
    seed: int = Field(0, ge=0, description="seed of the random splits")


def recognise_images(folder: Path) -> bool:
    """Whether a folder holds ``images/`` by identity (and not the middle frames that come with iLIDS-VID)."""
    root = within(folder, "images")
    return root.is_dir() and not (root / "cam1").is_dir()


def recognise_sequences(folder: Path) -> bool:
    """Whether a folder holds ``sequences/`` by identity (and not by camera, as iLIDS-VID does)."""
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
    alone = sorted(person for person, by in seen(tracklets).items() if len(by) == 1)
    if alone:
        raise DataError(
            f"{root}: {some(alone)} in one camera only; expected every identity in two cameras or more"
        )
    return DataSet(name, "sequence", tracklets, splits(root, tracklets, options))


def cameras(root: Path, expected: str) -> Iterator[tuple[str, str, Path]]:
    """Every (identity, camera, folder) under ``root``."""
    for identity in subfolders(root, expected):
        for camera in subfolders(root / identity, expected):
            yield identity, camera, root / identity / camera


def seen(tracklets: Sequence[Tracklet]) -> dict[str, set[str]]:
    """The cameras of each identity."""
    by_camera: dict[str, set[str]] = {}
    for tracklet in tracklets:
        by_camera.setdefault(tracklet.identity, set()).add(tracklet.camera)
    return by_camera


def splits(root: Path, tracklets: Sequence[Tracklet], options: GenericOptions) -> tuple[Split, ...]:
    """Everything trains, or random halves: a test person's first camera queries, the others are gallery."""
    if not options.random_splits:
        return train_on_all(tracklets)
    by_camera = seen(tracklets)
    people = sorted(person for person, by in by_camera.items() if len(by) > 1)
    if len(people) < 2:
        raise DataError(
            f"{root}: {len(people)} people are in two cameras or more; expected at least 2 for random_splits"
        )
    first = {person: min(by) for person, by in by_camera.items()}
    return tuple(
        split_by_people(tracklets, train, test, lambda t: t.camera == first[t.identity])
        for train, test in random_halves(people, options.random_splits, options.seed)
    )


IMAGES_LAYOUT = Layout("images", "image", IMAGES, GenericOptions, recognise_images, read_images)
SEQUENCES_LAYOUT = Layout(
    "sequences", "sequence", SEQUENCES, GenericOptions, recognise_sequences, read_sequences
)
