"""Layouts for custom sets: images, or sequences, in folders by identity and camera."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

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
from trainables.data.tracklet import DISTRACTOR, JUNK, DataSet, Split, Tracklet
from trainables.errors import DataError, did_you_mean

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
    splits: str = Field(
        "", description="JSON file of the official splits, by its path in the folder; not with random_splits"
    )

    @model_validator(mode="after")
    def _one_kind_of_splits(self) -> Self:
        if self.splits and self.random_splits:
            raise ValueError("splits and random_splits are given; keep one of them")
        return self


class ListedSplit(BaseModel):
    """One official split: each item is an identity, or the path of a camera, tracklet or image below it."""

    model_config = ConfigDict(extra="forbid")

    train: list[str] = []
    query: list[str] = []
    gallery: list[str] = []


_SPLIT_LIST = TypeAdapter(Annotated[list[ListedSplit], Field(min_length=1)])


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
    chosen = splits(root, tracklets, options, is_image=True)
    return DataSet(name, "image", tracklets, chosen)


def read_sequences(folder: Path, name: str, options: GenericOptions) -> DataSet:
    """Read every tracklet."""
    root = within(folder, "sequences")
    tracklets = tuple(
        sequence(identity, camera, path / tracklet)
        for identity, camera, path in cameras(root, SEQUENCES)
        for tracklet in subfolders(path, SEQUENCES)
    )
    unpaired = sorted(identity for identity, cameras in seen(tracklets).items() if len(cameras) == 1)
    if unpaired and not options.splits:  # official splits have distractors
        raise DataError(
            f"{root}: {some(unpaired)} in one camera only; expected every identity in at least two cameras, "
            "or a list of splits that says where it belongs (options.splits)"
        )
    chosen = splits(root, tracklets, options, is_image=False)
    return DataSet(name, "sequence", tracklets, chosen)


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


def splits(
    root: Path, tracklets: Sequence[Tracklet], options: GenericOptions, *, is_image: bool
) -> tuple[Split, ...]:
    """Return the official splits, one split for training alone, or random half/half splits of the identities.

    In a random split, a test identity's first camera is its query side, all others are the gallery.
    """
    if options.splits:
        file = root.parent / options.splits
        return tuple(
            listed_split(root, tracklets, listed, f"{file}, split {number}", is_image=is_image)
            for number, listed in enumerate(read_split_list(file))
        )
    if not options.random_splits:
        return train_on_all(tracklets)
    seen_by = seen(tracklets)
    identities = sorted(identity for identity, cameras in seen_by.items() if len(cameras) > 1)
    if len(identities) < 2:
        raise DataError(
            f"{root}: {len(identities)} identities are in at least two cameras; random_splits needs 2 "
            "or more (where cameras are unknown, a camera folder for each recording)"
        )
    first = {identity: min(cameras) for identity, cameras in seen_by.items()}
    return tuple(
        split_by_identity(tracklets, train, test, lambda t: t.camera == first[t.identity])
        for train, test in random_halves(identities, options.random_splits, options.seed)
    )


def unmatched_queries(tracklets: Sequence[Tracklet], splits: Sequence[Split]) -> tuple[str, ...]:
    """Return a note for each split with queries that have no match in another camera of its gallery."""
    notes = []
    for number, split in enumerate(splits):
        cameras = seen([tracklets[i] for i in split.gallery])
        queries = [tracklets[i] for i in split.query]
        without = sum(
            each.identity in (JUNK, DISTRACTOR) or not cameras.get(each.identity, set()) - {each.camera}
            for each in queries
        )
        if without:
            notes.append(
                f"split {number}: {without} of {len(queries)} queries have no match in another camera, and do"
                " not count"
            )
    return tuple(notes)


def read_split_list(file: Path) -> list[ListedSplit]:
    """Read a JSON list of splits.

    Raises:
        DataError: the file is missing, or is not such a list.
    """
    expected = 'expected [{"train": [...], "query": [...], "gallery": [...]}]'
    try:
        return _SPLIT_LIST.validate_json(file.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; {expected}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text; {expected}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise DataError(f"{file}, {where}: {first['msg']}; {expected}") from error


def listed_split(
    root: Path, tracklets: Sequence[Tracklet], listed: ListedSplit, place: str, *, is_image: bool
) -> Split:
    """Return a split of the listed tracklets; ``place`` begins messages.

    Raises:
        DataError: an item names no tracklet, or a part is empty.
    """
    below: dict[str, list[int]] = {}
    for index, tracklet in enumerate(tracklets):
        first = tracklet.frames[0].path
        parts = (first if is_image else first.parent).relative_to(root).parts
        for depth in range(1, len(parts) + 1):
            below.setdefault("/".join(parts[:depth]), []).append(index)

    def chosen(part: str) -> tuple[int, ...]:
        items = getattr(listed, part)
        for item in items:
            if item.strip("/") not in below:
                raise DataError(
                    f"{place}, {part}: {root} has no {item!r}; {did_you_mean(item, below)}".rstrip("; ")
                )
        return tuple(sorted({index for item in items for index in below[item.strip("/")]}))

    split = Split(chosen("train"), chosen("query"), chosen("gallery"))
    if bool(split.query) != bool(split.gallery) or not (split.train or split.query):
        raise DataError(f"{place}: a part is empty; expected train, or query and gallery, or all three")
    return split


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
