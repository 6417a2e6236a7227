"""Generated walkers in the original layouts of the published sets, so that any job uses the real readers.

Identities and cameras depend only on the layout, the seed and their number: a larger set with the same seed
contains the identities of a smaller one, and sets with different seeds share neither identities nor cameras.
As in the published sets, MARS and Market-1501 of one seed share identities under the same numbers.
"""

import contextlib
import functools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pydantic import Field

from trainables.data.walkers.cameras import Camera, draw_camera, draw_tracklet
from trainables.data.walkers.drawing import Image, Walker, draw_walker
from trainables.errors import DataError
from trainables.network.section import Section

if TYPE_CHECKING:
    import h5py

_log = logging.getLogger(__name__)

VERSION = 2
"""Version of the generator. Increase it if a config gives different files, so that sets are regenerated."""

MARKER = "walkers.json"
"""File that is written last: a folder without it is incomplete."""

_VIEWS = (1.45, 0.5, -1.4, 2.7, 2.1, -0.6)
_SPLITS = 10
_SPLIT_OF = {"mars": 0, "market1501": 1}
_STILL_STEP = 5
_CUHK03_PAIRS = (0.58, 0.30, 0.05, 0.04, 0.03)
_CUHK03_TESTSETS = 20
_CUHK03_LARGEST_TESTSET = 100


class GenerateConfig(Section):
    """Config of a generated set; `check` refuses fields that do not apply to a layout."""

    identities: int = Field(60, ge=4, le=9000, description="number of identities, for training and testing")
    frames: int = Field(
        12,
        ge=2,
        le=900,
        description="frames of a tracklet; in iLIDS-VID and MARS a random number from half of it",
    )
    images: int = Field(2, ge=1, le=5, description="images of an identity in each view (image layouts)")
    cameras: int | None = Field(
        None,
        ge=2,
        le=6,
        description="cameras of MARS and Market-1501 (default 6); fixed in the other layouts",
    )
    seed: int = Field(0, ge=0, description="seed of identities and cameras")
    difficulty: float = Field(1.0, ge=0, le=2, description="scales colour shift, blur, noise and occlusion")
    hdf5: bool = Field(False, description="CUHK03 only: write cuhk-03.mat instead of image files")


def description(layout: str, config: GenerateConfig) -> str:
    """Return everything that the generated files depend on, as one line of JSON."""
    return json.dumps({"version": VERSION, "layout": layout, **config.model_dump()}, sort_keys=True)


def check(layout: str, config: GenerateConfig) -> None:
    """Check that ``layout`` can be generated from ``config``.

    Raises:
        DataError: it cannot.
    """
    if layout not in LAYOUTS:
        names = ", ".join(sorted(LAYOUTS))
        raise DataError(f"layout {layout!r} cannot be generated; expected one of {names}")
    if config.cameras is not None and layout not in ("mars", "market1501"):
        raise DataError(f"cameras: {layout} has a fixed number of cameras; remove the field")
    if config.hdf5 and layout != "cuhk03":
        raise DataError(f"hdf5: {layout} has no HDF5 form, only cuhk03 has one; remove the field")
    if layout == "cuhk01" and config.images != 2:
        raise DataError(f"images is {config.images}; cuhk01 has 2 images of an identity in each view")


def extent(layout: str, config: GenerateConfig) -> tuple[int, int, int]:
    """Return the numbers of splits, training identities and test identities of a generated set."""
    identities = config.identities
    if layout == "cuhk03":
        # The folder form has no testsets: all identities train.
        test = min(_CUHK03_LARGEST_TESTSET, identities // 2) if config.hdf5 else 0
        return (_CUHK03_TESTSETS if config.hdf5 else 1), identities - test, test
    splits = 1 if layout in ("mars", "market1501") else _SPLITS
    train = (identities + 1) // 2 if layout == "ilids-vid" else identities // 2
    return splits, train, identities - train


def split_identities(layout: str, config: GenerateConfig) -> tuple[frozenset[str], frozenset[str]]:
    """Return the training and test identities of a generated MARS or Market-1501."""
    train, test = _Cast(layout, config).halves(_SPLIT_OF[layout])
    return frozenset(map(_pid, train)), frozenset(map(_pid, test))


def write(layout: str, folder: Path, config: GenerateConfig, name: str | None = None) -> None:
    """Generate a set in ``folder``, unless the folder already contains that set.

    The set is written next to ``folder`` and renamed once it is complete. Log messages start with ``name``.

    Raises:
        DataError: the config does not fit the layout, or the folder has other content or is not writable.
    """
    check(layout, config)
    content = description(layout, config)
    label = f"{name}: {folder}" if name else str(folder)
    marker = folder / MARKER
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if marker.is_file():
            if marker.read_text() == content:
                _log.info("%s: reused %d walkers in the layout of %s", label, config.identities, layout)
                return
            raise DataError(
                f"{folder}: contains other generated walkers (see {MARKER}); choose another folder"
            )
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: not empty and without {MARKER}; choose another folder")
        if partial.exists():
            shutil.rmtree(partial)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, partial, ignore_errors=True)  # also after Ctrl-C
            partial.mkdir(parents=True)
            cast = _Cast(layout, config)
            LAYOUTS[layout](partial, cast)
            (partial / MARKER).write_text(content)
            partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    _log.info(
        "%s: generated %d walkers in the layout of %s, %s frames",
        label,
        config.identities,
        layout,
        f"{cast.written:,}",
    )


class _Cast:
    """Identities and cameras of one set, and the generator of their frames."""

    def __init__(self, layout: str, config: GenerateConfig) -> None:
        self.config = config
        self.written = 0
        source = "mars" if layout == "market1501" else layout
        self._entropy = (zlib.crc32(source.encode()), config.seed)
        self.camera = functools.cache(self._camera)

    def rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([*self._entropy, zlib.crc32(purpose.encode()), *numbers])

    def walker(self, number: int) -> Walker:
        return draw_walker(self.rng("walker", number))

    def _camera(self, number: int) -> Camera:
        rng = self.rng("camera", number)
        return draw_camera(rng, _VIEWS[number % len(_VIEWS)], self.config.difficulty)

    def frames(self, number: int | None, camera: int, count: int, take: int = 0, step: int = 1) -> Image:
        """Draw frames ``[count, 128, 64, 3]`` of an identity, or of a false detection (``None``)."""
        rng = self.rng("tracklet", 0 if number is None else number + 1, camera, take)
        walker = None if number is None else self.walker(number)
        self.written += count
        return draw_tracklet(walker, self.camera(camera), count, rng, step)

    def length(self, *numbers: int) -> int:
        """Draw the number of frames of a tracklet, for layouts whose tracklets differ in length."""
        longest = self.config.frames
        return int(self.rng("length", *numbers).integers((longest + 1) // 2, longest + 1))

    def halves(self, number: int = 0) -> tuple[list[int], list[int]]:
        """Draw a half/half split of the identities."""
        order = self.rng("split", number).permutation(self.config.identities).tolist()
        half = len(order) // 2
        return sorted(order[:half]), sorted(order[half:])

    def cameras_of(self, identity: int) -> list[int]:
        """Draw two to four of the set's cameras, in order, that see an identity."""
        cameras = self.config.cameras or len(_VIEWS)
        rng = self.rng("seen by", identity)
        count = int(rng.integers(2, min(4, cameras) + 1))
        return sorted(rng.choice(cameras, count, replace=False).tolist())

    @property
    def strays(self) -> range:
        """A few numbers for distractors and junk, above those of the identities."""
        first = self.config.identities
        return range(first, first + max(2, first // 8))


def _pid(identity: int) -> str:
    """Return an identity's number as in MARS and Market-1501."""
    return f"{identity + 1:04}"


def _save(path: Path, frame: Image) -> None:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
    success, content = cv2.imencode(path.suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not success:
        raise DataError(f"{path}: OpenCV cannot encode {path.suffix} images")
    path.write_bytes(content.tobytes())


def _save_matlab(path: Path, variables: Mapping[str, Any]) -> None:
    import scipy.io  # only generating and reading need it, and it takes long to import

    scipy.io.savemat(path, variables)


def _prid2011(root: Path, cast: _Cast) -> None:
    for camera, name in enumerate(("cam_a", "cam_b")):
        for identity in range(cast.config.identities):
            folder = root / "multi_shot" / name / f"person_{identity + 1:04}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(cast.frames(identity, camera, cast.config.frames)):
                _save(folder / f"{t + 1:04}.png", frame)
    splits = []
    for number in range(_SPLITS):
        train, test = ([f"person_{identity + 1:04}" for identity in half] for half in cast.halves(number))
        splits.append({"train": train, "test": test})
    (root / "splits_prid2011.json").write_text(json.dumps(splits))


def _ilids_vid(root: Path, cast: _Cast) -> None:
    for camera in range(2):
        for identity in range(cast.config.identities):
            # The published numbers have gaps (300 identities, with numbers up to 319).
            name = f"person{identity + identity // 15 + 1:03}"
            folder = root / "i-LIDS-VID" / "sequences" / f"cam{camera + 1}" / name
            folder.mkdir(parents=True)
            start = int(cast.rng("start", identity, camera).integers(1, 20000))
            for t, frame in enumerate(cast.frames(identity, camera, cast.length(identity, camera))):
                _save(folder / f"cam{camera + 1}_{name}_{start + t:05}.png", frame)
    rows = []
    for number in range(_SPLITS):
        test, train = cast.halves(number)
        rows.append([identity + 1 for identity in (*test, *train)])
    folder = root / "train-test people splits"
    folder.mkdir()
    _save_matlab(folder / "train_test_splits_ilidsvid.mat", {"ls_set": np.array(rows, np.uint16)})


def _mars(root: Path, cast: _Cast) -> None:
    info = root / "info"
    info.mkdir()
    train, test = cast.halves(_SPLIT_OF["mars"])
    test_identities = [(_pid(identity), identity) for identity in test]
    strays = list(cast.strays)
    junk: list[tuple[str, int | None]] = [("00-1", None)]
    distractors: list[tuple[str, int | None]] = [("0000", stray) for stray in strays]
    _mars_part(root, cast, "train", [(_pid(identity), identity) for identity in train])
    tracks = _mars_part(root, cast, "test", [*junk, *distractors, *test_identities])
    queries: dict[tuple[int, int], int] = {}
    for row, (_, _, pid, camera) in enumerate(tracks):
        if pid > 0:
            queries.setdefault((pid, camera), row + 1)
    _save_matlab(info / "query_IDX.mat", {"query_IDX": np.array([sorted(queries.values())], np.int32)})


def _mars_part(
    root: Path, cast: _Cast, part: str, identities: Sequence[tuple[str, int | None]]
) -> list[tuple[int, int, int, int]]:
    """Write ``bbox_<part>`` and its info files; return its rows: start, end, pid, camera (1-based)."""
    names: list[str] = []
    tracks: list[tuple[int, int, int, int]] = []
    tracklets: dict[str, int] = {}
    for name, identity in identities:
        folder = root / f"bbox_{part}" / name
        folder.mkdir(parents=True, exist_ok=True)
        is_identity = identity is not None and identity < cast.config.identities
        cameras = cast.cameras_of(0 if identity is None else identity)
        for camera in cameras:
            takes = int(cast.rng("takes", identity or 0, camera).integers(1, 4)) if is_identity else 1
            for take in range(takes):
                tracklets[name] = tracklets.get(name, 0) + 1
                frames = cast.frames(identity, camera, cast.length(identity or 0, camera, take), take)
                first = len(names) + 1
                for t, frame in enumerate(frames):
                    names.append(f"{name}C{camera + 1}T{tracklets[name]:04}F{t + 1:03}.jpg")
                    _save(folder / names[-1], frame)
                tracks.append(
                    (
                        first,
                        len(names),
                        int(name.removeprefix("00-")) * (-1 if "-" in name else 1),
                        camera + 1,
                    )
                )
    (root / "info" / f"{part}_name.txt").write_text("".join(f"{name}\n" for name in names))
    variable = "track_train_info" if part == "train" else "track_test_info"
    _save_matlab(root / "info" / f"tracks_{part}_info.mat", {variable: np.array(tracks, np.int32)})
    return tracks


def _market1501(root: Path, cast: _Cast) -> None:
    parts = {name: root / name for name in ("bounding_box_train", "bounding_box_test", "query")}
    for folder in parts.values():
        folder.mkdir()
    images = cast.config.images
    _, test = cast.halves(_SPLIT_OF["market1501"])

    def save(folder: Path, pid: str, camera: int, frames: Image, box: int = 1) -> None:
        for t, frame in enumerate(frames):
            _save(folder / f"{pid}_c{camera + 1}s1_{_STILL_STEP * t + 1:06}_{box:02}.jpg", frame)

    for identity in range(cast.config.identities):
        pid = _pid(identity)
        is_test = identity in test
        for camera in cast.cameras_of(identity):
            frames = cast.frames(identity, camera, images + is_test, step=_STILL_STEP)
            save(
                parts["bounding_box_test" if is_test else "bounding_box_train"], pid, camera, frames[:images]
            )
            save(parts["query"], pid, camera, frames[images:], box=0)
    for stray in cast.strays:
        camera = cast.cameras_of(stray)[0]
        box = stray - cast.config.identities + 1
        save(parts["bounding_box_test"], "0000", camera, cast.frames(stray, camera, 1), box)
        save(parts["bounding_box_test"], "-1", camera, cast.frames(None, camera, 1, take=stray), box)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Camera pair of CUHK03 and the identities that it sees."""

    number: int
    identities: range


def _cuhk03_pairs(identities: int) -> list[_Pair]:
    ends = np.round(np.cumsum(_CUHK03_PAIRS) * identities).astype(int).tolist()
    return [_Pair(i, range(start, end)) for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]


def _cuhk03(root: Path, cast: _Cast) -> None:
    pairs = _cuhk03_pairs(cast.config.identities)
    if cast.config.hdf5:
        _cuhk03_file(root / "cuhk-03.mat", cast, pairs)
        return
    folder = root / "images_labeled"
    folder.mkdir()
    for pair in pairs:
        for position, identity in enumerate(pair.identities):
            for view in range(2):
                frames = cast.frames(identity, 2 * pair.number + view, cast.config.images, step=_STILL_STEP)
                for t, frame in enumerate(frames):
                    name = f"{pair.number + 1}_{position + 1:03}_{view + 1}_{5 * view + t + 1:02}.png"
                    _save(folder / name, frame)


def _cuhk03_file(path: Path, cast: _Cast, pairs: Sequence[_Pair]) -> None:
    """Write a MATLAB v7.3 file: HDF5 with reversed axes and cells as references; empty cells hold a shape."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("#refs#")

        def reference(data: Any, dtype: Any = None) -> "h5py.Reference":
            return group.create_dataset(str(len(group)), data=data, dtype=dtype).ref

        def cell(rows: list[list["h5py.Reference"]]) -> "h5py.Reference":
            return reference(np.array(rows, object).T, h5py.ref_dtype)

        empty = reference(np.zeros(2, np.uint64))
        detected: list[h5py.Reference] = []
        labeled: list[h5py.Reference] = []
        for pair in pairs:
            rows = []
            for identity in pair.identities:
                row = [empty] * 10
                for view in range(2):
                    frames = cast.frames(
                        identity, 2 * pair.number + view, cast.config.images, step=_STILL_STEP
                    )
                    for t, frame in enumerate(frames):
                        row[5 * view + t] = reference(frame.transpose(2, 1, 0))
                rows.append(row)
            for cells in (detected, labeled):
                cells.append(cell(rows) if rows else empty)
        all_rows = np.array([(pair.number + 1, i + 1) for pair in pairs for i in range(len(pair.identities))])
        testsets = []
        for number in range(_CUHK03_TESTSETS):
            order = cast.rng("testset", number).permutation(len(all_rows))
            testsets.append(
                reference(
                    all_rows[np.sort(order[: min(_CUHK03_LARGEST_TESTSET, len(order) // 2)])].T.astype(float)
                )
            )
        for name, cells in (("detected", detected), ("labeled", labeled), ("testsets", testsets)):
            file.create_dataset(name, data=np.array([cells], object), dtype=h5py.ref_dtype)


def _cuhk01(root: Path, cast: _Cast) -> None:
    folder = root / "campus"
    folder.mkdir()
    for identity in range(cast.config.identities):
        for view in range(2):
            for t, frame in enumerate(cast.frames(identity, view, 2, step=_STILL_STEP)):
                wide = cv2.resize(frame, (60, 160), interpolation=cv2.INTER_LINEAR)
                _save(folder / f"{identity + 1:04}{2 * view + t + 1:03}.png", wide.astype(np.uint8))


LAYOUTS: dict[str, Callable[[Path, _Cast], None]] = {
    "prid2011": _prid2011,
    "ilids-vid": _ilids_vid,
    "mars": _mars,
    "market1501": _market1501,
    "cuhk03": _cuhk03,
    "cuhk01": _cuhk01,
}
"""Writers of the layouts that can be generated."""
