"""Readers of the published data sets, each from its original layout into one `DataSet`."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainables.data.readers import cuhk01, cuhk03, generic, ilids_vid, market1501, mars, prid2011
from trainables.data.readers.folders import AnyLayout, Options
from trainables.data.tracklet import DataError, DataSet

LAYOUTS: Mapping[str, AnyLayout] = {
    layout.name: layout
    for layout in (
        prid2011.LAYOUT,
        ilids_vid.LAYOUT,
        mars.LAYOUT,
        market1501.LAYOUT,
        cuhk03.LAYOUT,
        cuhk01.LAYOUT,
        generic.IMAGES_LAYOUT,
        generic.SEQUENCES_LAYOUT,
    )
}


def read(layout: str, folder: str | Path, *, name: str, **options: Any) -> DataSet:
    """Read the set in ``folder``, which has the original layout named ``layout``.

    Args:
        layout: a key of `LAYOUTS`.
        folder: the set's own folder, as unpacked.
        name: the name that the set goes by from here on.
        options: the fields of ``LAYOUTS[layout].options``.

    Returns:
        Every usable tracklet, frames in name order, with the official splits. Where a set has none they are
        drawn from a seed, or everything trains; ``notes`` says so, and names each count that differs from the
        published one.

    Raises:
        DataError: the folder is missing, empty, half unpacked or of another layout, or an option is wrong.
    """
    known = find_layout(layout)
    chosen = check_options(known, options)
    root = check_folder(known, Path(folder).expanduser().absolute())
    try:
        data_set: DataSet = known.read(root, name, chosen)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); {known.expected}") from error
    return data_set


def find_layout(name: str) -> AnyLayout:
    """The layout called ``name``; a DataError that lists the layouts, the nearest first."""
    if name not in LAYOUTS:
        nearest = difflib.get_close_matches(name, LAYOUTS, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise DataError(f"layout: no layout {name!r}; {hint}expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def check_options(layout: AnyLayout, options: Mapping[str, Any]) -> Options:
    """The options as the layout's own model; a DataError that names the first wrong one."""
    try:
        checked: Options = layout.options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        there = ", ".join(layout.options.model_fields) or "none"
        what = (
            "no such option"
            if first["type"] == "extra_forbidden"
            else f"{first['msg']}, got {first['input']!r}"
        )
        nearest = difflib.get_close_matches(field, layout.options.model_fields, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest and nearest[0] != field else ""
        raise DataError(
            f"layout {layout.name}, option {field}: {what}; {hint}options of this layout: {there}"
        ) from error
    return checked


def check_folder(layout: AnyLayout, folder: Path) -> Path:
    """``folder`` if it shows a mark of the layout; else a DataError with the nearest valid thing."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        nearest = difflib.get_close_matches(folder.name, siblings(folder.parent), n=1)
        hint = f"did you mean {folder.parent / nearest[0]}? " if nearest else ""
        raise DataError(f"{folder}: {what}; {hint}{layout.expected}")
    if layout.recognise(folder):
        return folder
    inside = [child for child in siblings(folder) if layout.recognise(folder / child)]
    other = detect_layout(folder)
    if not any(folder.iterdir()):
        what = "the folder is empty"
    elif inside:
        what = f"not the set's own folder: did you mean {folder / inside[0]}?"
    elif other is not None:
        what = f"not layout {layout.name}: it looks like {other!r}"
    else:
        what = f"not layout {layout.name}"
    raise DataError(f"{folder}: {what}; {layout.expected}")


def siblings(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, none when it is not there."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def detect_layout(folder: str | Path) -> str | None:
    """The layout that ``folder`` shows a mark of, or None. Cheap: looks at names, opens nothing."""
    root = Path(folder).expanduser().absolute()
    return next((name for name, layout in LAYOUTS.items() if layout.recognise(root)), None)


__all__ = ["LAYOUTS", "detect_layout", "read"]
