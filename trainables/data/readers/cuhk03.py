"""CUHK03 (Li et al., CVPR 2014): five camera pairs, boxes drawn manually (labeled) or detected."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainables.components import Options
from trainables.data.readers.folders import (
    differences,
    image_names,
    matlab_integers,
    matlab_variable,
    split_by_identity,
    still,
    train_on_all,
)
from trainables.data.readers.reader import RESEARCH, Reader
from trainables.data.tracklet import DataSet, Protocol, Split, Tracklet
from trainables.errors import DataError

if TYPE_CHECKING:
    import h5py

EXPECTED = (
    "expected cuhk-03.mat (MATLAB v7.3), or images_labeled/ or images_detected/ with 1_001_1_01.jpg:"
    " pair, identity, view, image"
)
NAME = re.compile(r"(?P<pair>\d)_(?P<identity>\d+)_(?P<view>[12])_(?P<image>\d+)")
PUBLISHED = {"identities": 1467, "camera pairs": 5}
IMAGES_PER_VIEW = 5


class Cuhk03Options(Options):
    """Options of CUHK03."""

    boxes: Literal["labeled", "detected"] = Field(
        "labeled", description="boxes drawn manually or by a detector"
    )
    protocol: Literal["old", "new"] = Field(
        "old",
        description="old: the 20 testsets of cuhk-03.mat, single-gallery-shot, CMC only (the folder form has"
        " no testsets: all images train); new: 767/700 identities from"
        " cuhk03_new_protocol_config_<boxes>.mat, fixed queries and gallery",
    )


def recognise(folder: Path) -> bool:
    """Return whether a folder looks like CUHK03."""
    return (
        archive(folder) is not None
        or any(candidate.is_dir() for candidate in (folder / "images_labeled", folder / "images_detected"))
        or first_image(folder)
    )


def first_image(folder: Path) -> bool:
    """Return whether ``folder`` directly contains an image named as in CUHK03."""
    return any(NAME.match(child.name) is not None for child in folder.glob("[1-5]_*_*_*.*"))


def archive(folder: Path) -> Path | None:
    """Return ``cuhk-03.mat`` in ``folder`` or in its subfolder ``cuhk03_release``; None if there is none."""
    candidates = (folder / "cuhk-03.mat", folder / "cuhk03_release" / "cuhk-03.mat")
    return next((path for path in candidates if path.is_file()), None)


def read(folder: Path, name: str, options: Cuhk03Options) -> DataSet:
    """Read every image; the first view of a pair is the query side, the second the gallery."""
    path = archive(folder)
    images = read_archive(path, options.boxes) if path else read_folder(folder, options.boxes)
    tracklets = list(images.values())
    identities = {tracklet.identity for tracklet in tracklets}
    pairs = {identity.partition("_")[0] for identity in identities}
    notes = differences({"identities": len(identities), "camera pairs": len(pairs)}, PUBLISHED)
    if options.protocol == "new":
        splits: tuple[Split, ...] = (
            new_protocol(folder / f"cuhk03_new_protocol_config_{options.boxes}.mat", list(images)),
        )
    elif path:
        splits = old_protocol(path, tracklets)
    else:
        splits = train_on_all(tracklets)
        notes = (*notes, "the folder form has no testsets: one split, in which every image is for training")
    protocol: Protocol = "single-gallery-shot" if options.protocol == "old" else "whole-gallery"
    return DataSet(name, "image", tuple(tracklets), splits, notes, protocol)


def box(pair: int, identity: int, view: int, path: Path, key: str | None = None) -> Tracklet:
    """Return one image as a tracklet; cameras are named by pair and view, as pairs share no camera."""
    return still(f"{pair}_{identity:03d}", f"{pair}-{view}", path, key)


def read_folder(folder: Path, boxes: str) -> dict[str, Tracklet]:
    """Return the images of the folder form, by name without suffix."""
    root = folder if first_image(folder) else folder / f"images_{boxes}"
    other = folder / f"images_{'detected' if boxes == 'labeled' else 'labeled'}"
    hint = f"set option boxes: {other.name.partition('_')[2]}" if other.is_dir() else EXPECTED
    images = {}
    for name in image_names(root, hint):
        stem = Path(name).stem
        match = NAME.fullmatch(stem)
        if match is None:
            raise DataError(f"{root / name}: not a valid image name; {EXPECTED}")
        images[stem] = box(int(match["pair"]), int(match["identity"]), int(match["view"]), root / name)
    return images


def read_archive(path: Path, boxes: str) -> dict[str, Tracklet]:
    """Return the images of ``cuhk-03.mat`` by their names in the folder form; empty cells have no image."""
    import h5py

    images = {}
    try:
        with h5py.File(path, "r") as file:
            for pair, reference in enumerate(variable(file, path, boxes).ravel(), start=1):
                # MATLAB is column-major: a cell [identity, image] is [image, identity] here.
                cells: NDArray[np.object_] = file[reference][()]
                if cells.dtype != h5py.ref_dtype:
                    continue
                for (image, identity), cell in np.ndenumerate(cells):
                    if not cell or file[cell].ndim < 3:
                        continue
                    view = 1 + image // IMAGES_PER_VIEW
                    stem = f"{pair}_{identity + 1:03d}_{view}_{image + 1:02d}"
                    key = f"{boxes}{{{pair}}}{{{identity + 1},{image + 1}}}"
                    images[stem] = box(pair, identity + 1, view, path, key)
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); {EXPECTED}") from error
    if not images:
        raise DataError(f"{path}: variable {boxes!r} has no images; {EXPECTED}")
    return dict(sorted(images.items()))


def variable(file: "h5py.File", path: Path, name: str) -> NDArray[np.object_]:
    """Return the references of a MATLAB cell array."""
    import h5py

    if name not in file:
        raise DataError(f"{path}: no variable {name!r}; the file contains {', '.join(file) or 'nothing'}")
    references = file[name][()]
    if references.dtype != h5py.ref_dtype:
        raise DataError(f"{path}: {name} contains {references.dtype}; expected a cell array")
    return np.asarray(references)


def old_protocol(path: Path, tracklets: list[Tracklet]) -> tuple[Split, ...]:
    """Return the splits of ``testsets``, cells of 1-based (pair, identity); all other identities train."""
    import h5py

    identities = {tracklet.identity for tracklet in tracklets}
    splits = []
    with h5py.File(path, "r") as file:
        for number, reference in enumerate(variable(file, path, "testsets").ravel(), start=1):
            rows = np.asarray(file[reference][()]).T.astype(int)
            test = {f"{pair}_{identity:03d}" for pair, identity in rows.reshape(-1, 2).tolist()}
            unknown = sorted(test - identities)
            if unknown:
                raise DataError(
                    f"{path}, testsets{{{number}}}: identity {unknown[0]} has no image; expected (pair,"
                    " identity) counted from 1"
                )
            train = identities - test
            splits.append(split_by_identity(tracklets, train, test, lambda t: t.camera.endswith("-1")))
    return tuple(splits)


def new_protocol(path: Path, names: list[str]) -> Split:
    """Return the 767/700 split (Zhong et al., CVPR 2017), given as 1-based positions in ``filelist``."""
    index = {name: i for i, name in enumerate(names)}
    files = [Path(str(np.asarray(entry).item())).stem for entry in matlab_variable(path, "filelist").ravel()]

    def part(name: str) -> tuple[int, ...]:
        rows = matlab_integers(path, name).ravel().tolist()
        wrong = next((row for row in rows if not 1 <= row <= len(files) or files[row - 1] not in index), None)
        if wrong is not None:
            what = f"image {files[wrong - 1]}" if 1 <= wrong <= len(files) else f"beyond {len(files)} files"
            raise DataError(f"{path}: {name} contains {wrong}, {what}; expected an existing image")
        return tuple(index[files[row - 1]] for row in rows)

    return Split(train=part("train_idx"), query=part("query_idx"), gallery=part("gallery_idx"))


class Cuhk03Reader(Reader):
    """Reader of CUHK03."""

    kind = "image"
    expected = EXPECTED
    licence = RESEARCH
    Options = Cuhk03Options
    recognise = staticmethod(recognise)
    read = staticmethod(read)
