"""Readers of data sets: each reads one original layout into a `DataSet`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainables import components
from trainables.components import Options
from trainables.data.readers import cuhk01, cuhk03, generic, ilids_vid, market1501, mars, prid2011
from trainables.data.readers.folders import some
from trainables.data.readers.reader import Reader
from trainables.data.tracklet import DataSet
from trainables.errors import DataError, check_name, describe_raised, nearest

__all__ = ["READERS", "Reader", "detect_layout", "find_reader", "read", "read_checked"]

READERS: Mapping[str, type[Reader]] = {
    "prid2011": prid2011.Prid2011Reader,
    "ilids-vid": ilids_vid.IlidsVidReader,
    "mars": mars.MarsReader,
    "market1501": market1501.Market1501Reader,
    "cuhk03": cuhk03.Cuhk03Reader,
    "cuhk01": cuhk01.Cuhk01Reader,
    "images": generic.ImagesReader,
    "sequences": generic.SequencesReader,
}
"""Readers by the short name of their layout."""


def read(layout: str, folder: str | Path, *, name: str, **options: Any) -> DataSet:
    """Read the set in ``folder``, which has the given layout.

    Args:
        layout: a key of `READERS`, or ``package.module:Class``.
        folder: the folder of the set, as unpacked.
        name: name of the returned set.
        options: options of the reader.

    Returns:
        Every usable tracklet, frames in the order of their numbers, with the official splits. If there are
        none, splits are drawn from a seed, or all tracklets are for training. ``notes`` reports this, each
        count that differs from the published one, and how many queries have no match.

    Raises:
        DataError: the folder is missing, empty, incomplete or of another layout, or an option is not valid.
    """
    return read_checked(layout, folder, name, check_options(layout, options))


def read_checked(layout: str, folder: str | Path, name: str, options: Options) -> DataSet:
    """Read a set like `read`, with options from `check_options`."""
    reader = find_reader(layout)()
    root = check_folder(layout, reader, Path(folder).expanduser().absolute())
    try:
        data_set = reader.read(root, name, options)
        _check_identities(root, data_set)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); {reader.expected}") from error
    except DataError:
        raise
    except Exception as error:
        if layout in READERS:
            raise
        raise DataError(f"{root}: the reader {layout} failed: {describe_raised(error)}") from error
    for tracklet in data_set.tracklets:
        for frame in tracklet.frames:
            check_name(frame.path)
    unmatched = generic.unmatched_queries(data_set.tracklets, data_set.splits)
    return dataclasses.replace(data_set, notes=(*data_set.notes, *unmatched))


def _check_identities(root: Path, data_set: DataSet) -> None:
    """Raise DataError for an identity that trains and is tested."""
    for number, split in enumerate(data_set.splits):
        parts = (split.train, (*split.query, *split.gallery))
        train, test = ({data_set.tracklets[index].identity for index in part} for part in parts)
        if both := sorted(train & test):
            raise DataError(
                f"{root}, split {number}: {some(both)} in the train part and in query or gallery; expected"
                " different identities"
            )


def find_reader(layout: str) -> type[Reader]:
    """Return the reader class of a layout.

    Raises:
        DataError: there is no such layout; the message has the nearest name.
    """
    try:
        return components.find("layout", layout, READERS, Reader)
    except ValueError as error:
        raise DataError(str(error)) from error


def check_options(layout: str, options: Mapping[str, Any]) -> Options:
    """Return the options of a layout as an instance of its reader's ``Options``.

    Raises:
        DataError: an option is not valid.
    """
    reader = find_reader(layout)
    try:
        return components.check_options(reader, options)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise DataError(f"layout {layout}, {first['ctx']['error']}") from error
        field = ".".join(str(part) for part in first["loc"])
        expected = ", ".join(reader.Options.model_fields)
        raise DataError(
            f"layout {layout}, option {field}: {first['msg']}, got {first['input']!r}; options: {expected}"
        ) from error


def check_folder(layout: str, reader: Reader, folder: Path) -> Path:
    """Return ``folder`` if the reader recognises it.

    Raises:
        DataError: it does not; the message has the nearest valid folder.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        sibling = nearest(folder.name, siblings(folder.parent))
        hint = f"did you mean {folder.parent / sibling}? " if sibling else ""
        raise DataError(f"{folder}: {what}; {hint}{reader.expected}")
    if reader.recognise(folder):
        return folder
    inside = [child for child in siblings(folder) if reader.recognise(folder / child)]
    other = detect_layout(folder)
    if not any(folder.iterdir()):
        what = "the folder is empty"
    elif inside:
        what = f"not the folder of the set: did you mean {folder / inside[0]}?"
    elif other is not None:
        what = f"not layout {layout}: it looks like {other!r}"
    else:
        what = f"not layout {layout}"
    raise DataError(f"{folder}: {what}; {reader.expected}")


def siblings(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``; none if it does not exist."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def detect_layout(folder: str | Path) -> str | None:
    """Return the layout of `READERS` that ``folder`` has, judged by file names alone; None if unknown."""
    root = Path(folder).expanduser().absolute()
    return next((layout for layout, reader in READERS.items() if reader().recognise(root)), None)
