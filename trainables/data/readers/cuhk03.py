"""CUHK03 (Li et al., CVPR 2014): five camera pairs, boxes drawn by hand (labeled) or detected."""

import re
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainables.data.readers.folders import (
    Layout,
    Options,
    differences,
    image_names,
    matlab_integers,
    matlab_variable,
    split_by_people,
    still,
    train_on_all,
)
from trainables.data.tracklet import DataError, DataSet, Protocol, Split, Tracklet

EXPECTED = (
    "expected cuhk-03.mat (MATLAB v7.3), or images_labeled/ or images_detected/ with 1_001_1_01.jpg:"
    " pair, person, view, image"
)
NAME = re.compile(r"(?P<pair>\d)_(?P<person>\d+)_(?P<view>[12])_(?P<image>\d+)")
PUBLISHED = {"people": 1467, "camera pairs": 5}
IMAGES_PER_VIEW = 5


class Cuhk03Options(Options):
    """What a user may choose about CUHK03."""

    boxes: Literal["labeled", "detected"] = Field(
        "labeled", description="boxes drawn by hand or by a detector"
    )
    protocol: Literal["old", "new"] = Field(
        "old",
        description="old: the 20 testsets of cuhk-03.mat, single-gallery-shot, CMC only (in the folder form,"
        " without any, all images train); new: 767/700 people from cuhk03_new_protocol_config_<boxes>.mat,"
        " fixed queries and gallery",
    )


def recognise(folder: Path) -> bool:
    """Whether a folder shows a mark of CUHK03."""
    return (
        archive(folder) is not None
        or any(candidate.is_dir() for candidate in (folder / "images_labeled", folder / "images_detected"))
        or first_image(folder)
    )


def first_image(folder: Path) -> bool:
    """Whether ``folder`` itself holds an image with a name of CUHK03."""
    return any(NAME.match(child.name) is not None for child in folder.glob("[1-5]_*_*_*.*"))


def archive(folder: Path) -> Path | None:
    """``cuhk-03.mat`` in ``folder``, or in the folder of the release inside it."""
    candidates = (folder / "cuhk-03.mat", folder / "cuhk03_release" / "cuhk-03.mat")
    return next((path for path in candidates if path.is_file()), None)


def read(folder: Path, name: str, options: Cuhk03Options) -> DataSet:
    """Read every image; the first view of a pair is probe, the second gallery."""
    path = archive(folder)
    images = read_archive(path, options.boxes) if path else read_folder(folder, options.boxes)
    tracklets = list(images.values())
    people = {tracklet.identity for tracklet in tracklets}
    found = {"people": len(people), "camera pairs": len({person.partition("_")[0] for person in people})}
    notes = differences(found, PUBLISHED)
    if options.protocol == "new":
        splits: tuple[Split, ...] = (
            new_protocol(folder / f"cuhk03_new_protocol_config_{options.boxes}.mat", list(images)),
        )
    elif path:
        splits = old_protocol(path, tracklets)
    else:
        splits = train_on_all(tracklets)
        notes = (*notes, "the folder form has no testsets: one split, every image trains")
    scored: Protocol = "single-gallery-shot" if options.protocol == "old" else "whole-gallery"
    return DataSet(name, "image", tuple(tracklets), splits, notes, scored)


def box(pair: int, person: int, view: int, path: Path, key: str | None = None) -> Tracklet:
    """One image; views are cameras of their pair, so that no camera is shared between pairs."""
    return still(f"{pair}_{person:03d}", f"{pair}-{view}", path, key)


def read_folder(folder: Path, boxes: str) -> dict[str, Tracklet]:
    """The images of the folder form, by name without suffix."""
    root = folder if first_image(folder) else folder / f"images_{boxes}"
    other = folder / f"images_{'detected' if boxes == 'labeled' else 'labeled'}"
    hint = f"option boxes: {other.name.partition('_')[2]} is there" if other.is_dir() else EXPECTED
    images = {}
    for name in image_names(root, hint):
        stem = Path(name).stem
        match = NAME.fullmatch(stem)
        if match is None:
            raise DataError(f"{root / name}: no name of CUHK03; {EXPECTED}")
        images[stem] = box(int(match["pair"]), int(match["person"]), int(match["view"]), root / name)
    return images


def read_archive(path: Path, boxes: str) -> dict[str, Tracklet]:
    """The images of ``cuhk-03.mat``, by the name they have in the folder form. Empty cells hold no image."""
    images = {}
    try:
        with h5py.File(path, "r") as file:
            for pair, reference in enumerate(variable(file, path, boxes).ravel(), start=1):
                # MATLAB is column-major: a cell [person, image] is [image, person] here.
                cells: NDArray[np.object_] = file[reference][()]
                if cells.dtype != h5py.ref_dtype:
                    continue
                for (image, person), cell in np.ndenumerate(cells):
                    if not cell or file[cell].ndim < 3:
                        continue
                    view = 1 + image // IMAGES_PER_VIEW
                    stem = f"{pair}_{person + 1:03d}_{view}_{image + 1:02d}"
                    key = f"{boxes}{{{pair}}}{{{person + 1},{image + 1}}}"
                    images[stem] = box(pair, person + 1, view, path, key)
    except OSError as error:
        raise DataError(f"{path}: no readable HDF5 file ({error}); {EXPECTED}") from error
    if not images:
        raise DataError(f"{path}: no image under {boxes!r}; {EXPECTED}")
    return dict(sorted(images.items()))


def variable(file: h5py.File, path: Path, name: str) -> NDArray[np.object_]:
    """The references of a MATLAB cell array."""
    if name not in file:
        raise DataError(f"{path}: no variable {name!r}; the file holds {', '.join(file) or 'nothing'}")
    references = file[name][()]
    if references.dtype != h5py.ref_dtype:
        raise DataError(f"{path}: {name} holds {references.dtype}; expected a cell array")
    return np.asarray(references)


def old_protocol(path: Path, tracklets: list[Tracklet]) -> tuple[Split, ...]:
    """The splits of ``testsets``: cells of (pair, person), 1-based; everybody else trains."""
    people = {tracklet.identity for tracklet in tracklets}
    splits = []
    with h5py.File(path, "r") as file:
        for number, reference in enumerate(variable(file, path, "testsets").ravel(), start=1):
            rows = np.asarray(file[reference][()]).T.astype(int)
            test = {f"{pair}_{person:03d}" for pair, person in rows.reshape(-1, 2).tolist()}
            unknown = sorted(test - people)
            if unknown:
                raise DataError(
                    f"{path}, testsets{{{number}}}: person {unknown[0]} has no image; expected (pair, person)"
                    " counted from 1"
                )
            splits.append(split_by_people(tracklets, people - test, test, lambda t: t.camera.endswith("-1")))
    return tuple(splits)


def new_protocol(path: Path, names: list[str]) -> Split:
    """The 767/700 split (Zhong et al., CVPR 2017): 1-based positions in ``filelist``."""
    index = {name: i for i, name in enumerate(names)}
    files = [Path(str(np.asarray(entry).item())).stem for entry in matlab_variable(path, "filelist").ravel()]

    def part(name: str) -> tuple[int, ...]:
        rows = matlab_integers(path, name).ravel().tolist()
        wrong = next((row for row in rows if not 1 <= row <= len(files) or files[row - 1] not in index), None)
        if wrong is not None:
            listed = files[wrong - 1] if 1 <= wrong <= len(files) else f"beyond the {len(files)} listed files"
            raise DataError(f"{path}: {name} has {wrong}, {listed}; expected an image that is there")
        return tuple(index[files[row - 1]] for row in rows)

    return Split(train=part("train_idx"), query=part("query_idx"), gallery=part("gallery_idx"))


LAYOUT = Layout("cuhk03", "image", EXPECTED, Cuhk03Options, recognise, read)
