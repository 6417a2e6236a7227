"""Generated walkers in the original layouts of the published sets: any job runs through the real readers.

People and cameras depend on the layout, the seed and their own number only: a larger set with the same seed
holds the people of the smaller one, and two sets with different seeds share neither people nor cameras. MARS
and Market-1501 of one seed are, as the published ones, the same people under the same numbers.
"""

import functools
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import scipy.io
from pydantic import BaseModel, ConfigDict, Field

from trainables.data.tracklet import DataError
from trainables.data.walkers.cameras import Camera, draw_camera, draw_tracklet
from trainables.data.walkers.drawing import Image, Walker, draw_walker

VERSION = 2
"""Raised whenever the same config gives other files, so that cached sets are generated anew."""

MARKER = "walkers.json"
"""Written last: a folder without it is half written."""

Say = Callable[[str], None]

_VIEWS = (1.45, 0.5, -1.4, 2.7, 2.1, -0.6)
_SPLITS = 10
_SPLIT_OF = {"mars": 0, "market1501": 1}
_STILL_STEP = 5
_CUHK03_PAIRS = (0.58, 0.30, 0.05, 0.04, 0.03)
_CUHK03_TESTSETS = 20
_CUHK03_LARGEST_TESTSET = 100


class GenerateConfig(BaseModel):
    """What to generate; a field that a layout cannot follow is refused by ``check``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identities: int = Field(60, ge=4, le=9000, description="people of the set, train and test together")
    frames: int = Field(
        12,
        ge=2,
        le=900,
        description="frames of a tracklet; iLIDS-VID and MARS have half as many to all of them",
    )
    images: int = Field(2, ge=1, le=5, description="stills of one person in one view (image layouts)")
    cameras: int | None = Field(
        None,
        ge=2,
        le=6,
        description="cameras of MARS and Market-1501 (6); the other layouts have their own number",
    )
    seed: int = Field(0, ge=0, description="other seeds give other people and other cameras")
    difficulty: float = Field(1.0, ge=0, le=2, description="scales colour shift, blur, noise and occlusion")
    hdf5: bool = Field(False, description="CUHK03 only: write cuhk-03.mat in place of image files")


def description(layout: str, config: GenerateConfig) -> str:
    """Everything the generated files depend on, as one line of JSON."""
    return json.dumps({"version": VERSION, "layout": layout, **config.model_dump()}, sort_keys=True)


def check(layout: str, config: GenerateConfig) -> None:
    """Raise DataError where ``layout`` cannot be generated or cannot follow ``config``."""
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r} cannot be generated; these can: {', '.join(sorted(LAYOUTS))}")
    if config.cameras is not None and layout not in ("mars", "market1501"):
        raise DataError(f"cameras: {layout} has its own number of cameras; leave the field out")
    if config.hdf5 and layout != "cuhk03":
        raise DataError(f"hdf5: {layout} has no HDF5 form, only cuhk03; leave the field out")
    if layout == "cuhk01" and config.images != 2:
        raise DataError(f"images is {config.images}: cuhk01 has 2 stills of a person in each view; write 2")


def extent(layout: str, config: GenerateConfig) -> tuple[int, int, int]:
    """What the reader will find in a generated set: (splits, training identities, test identities)."""
    people = config.identities
    if layout == "cuhk03":
        # The folder form has no test sets: everybody trains.
        test = min(_CUHK03_LARGEST_TESTSET, people // 2) if config.hdf5 else 0
        return (_CUHK03_TESTSETS if config.hdf5 else 1), people - test, test
    splits = 1 if layout in ("mars", "market1501") else _SPLITS
    train = (people + 1) // 2 if layout == "ilids-vid" else people // 2
    return splits, train, people - train


def people(layout: str, config: GenerateConfig) -> tuple[frozenset[str], frozenset[str]]:
    """Identities that train and those that test in generated MARS or Market-1501."""
    train, test = _Cast(layout, config).halves(_SPLIT_OF[layout])
    return frozenset(map(_pid, train)), frozenset(map(_pid, test))


def write(layout: str, folder: Path, config: GenerateConfig, say: Say) -> None:
    """Generate a set into ``folder``; return at once when that very set is there already.

    The set is written next to ``folder`` and renamed when complete.

    Raises:
        DataError: the layout cannot follow the config, or the folder is taken or cannot be written.
    """
    check(layout, config)
    wanted = description(layout, config)
    marker = folder / MARKER
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if marker.is_file():
            if marker.read_text() == wanted:
                say(f"{folder}: reused, {config.identities} walkers in the layout of {layout}")
                return
            raise DataError(f"{folder}: holds other generated walkers (see {MARKER}); name another folder")
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: not empty and not complete walkers (no {MARKER}); name another folder"
            )
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        cast = _Cast(layout, config)
        LAYOUTS[layout](partial, cast)
        (partial / MARKER).write_text(wanted)
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); name a writable folder") from error
    say(f"{folder}: generated {config.identities} walkers in the layout of {layout}, {cast.written:,} frames")


class _Cast:
    """The people and cameras of one set, and the pen that writes their frames."""

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
        """Frames ``[count, 128, 64, 3]`` of one person (``None``: a false detection) passing one camera."""
        rng = self.rng("tracklet", 0 if number is None else number + 1, camera, take)
        walker = None if number is None else self.walker(number)
        self.written += count
        return draw_tracklet(walker, self.camera(camera), count, rng, step)

    def length(self, *numbers: int) -> int:
        """Frames of a tracklet in the layouts whose tracklets differ in length."""
        longest = self.config.frames
        return int(self.rng("length", *numbers).integers((longest + 1) // 2, longest + 1))

    def halves(self, number: int = 0) -> tuple[list[int], list[int]]:
        """A random half/half split of the people."""
        order = self.rng("split", number).permutation(self.config.identities).tolist()
        half = len(order) // 2
        return sorted(order[:half]), sorted(order[half:])

    def cameras_of(self, person: int) -> list[int]:
        """Two to four of the set's cameras, in order, that a person is seen by."""
        available = self.config.cameras or len(_VIEWS)
        rng = self.rng("seen by", person)
        count = int(rng.integers(2, min(4, available) + 1))
        return sorted(rng.choice(available, count, replace=False).tolist())

    @property
    def strays(self) -> range:
        """Numbers for distractors and junk: a few, and beyond those of the people."""
        first = self.config.identities
        return range(first, first + max(2, first // 8))


def _pid(person: int) -> str:
    """How MARS and Market-1501 number a person."""
    return f"{person + 1:04}"


def _save(path: Path, frame: Image) -> None:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(f"{path}: OpenCV cannot encode {path.suffix} images")
    path.write_bytes(encoded.tobytes())


def _prid2011(root: Path, cast: _Cast) -> None:
    for camera, name in enumerate(("cam_a", "cam_b")):
        for person in range(cast.config.identities):
            folder = root / "multi_shot" / name / f"person_{person + 1:04}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(cast.frames(person, camera, cast.config.frames)):
                _save(folder / f"{t + 1:04}.png", frame)
    splits = []
    for number in range(_SPLITS):
        train, test = ([f"person_{person + 1:04}" for person in half] for half in cast.halves(number))
        splits.append({"train": train, "test": test})
    (root / "splits_prid2011.json").write_text(json.dumps(splits))


def _ilids_vid(root: Path, cast: _Cast) -> None:
    people = cast.config.identities
    for camera in range(2):
        for person in range(people):
            # The published numbers have gaps (300 people, numbered to 319).
            name = f"person{person + person // 15 + 1:03}"
            folder = root / "i-LIDS-VID" / "sequences" / f"cam{camera + 1}" / name
            folder.mkdir(parents=True)
            start = int(cast.rng("start", person, camera).integers(1, 20000))
            for t, frame in enumerate(cast.frames(person, camera, cast.length(person, camera))):
                _save(folder / f"cam{camera + 1}_{name}_{start + t:05}.png", frame)
    rows = []
    for number in range(_SPLITS):
        test, train = cast.halves(number)
        rows.append([person + 1 for person in (*test, *train)])
    folder = root / "train-test people splits"
    folder.mkdir()
    scipy.io.savemat(folder / "train_test_splits_ilidsvid.mat", {"ls_set": np.array(rows, np.uint16)})


def _mars(root: Path, cast: _Cast) -> None:
    info = root / "info"
    info.mkdir()
    train, test = cast.halves(_SPLIT_OF["mars"])
    people = [(_pid(person), person) for person in test]
    strays = list(cast.strays)
    junk: list[tuple[str, int | None]] = [("00-1", None)]
    distractors: list[tuple[str, int | None]] = [("0000", stray) for stray in strays]
    _mars_part(root, cast, "train", [(_pid(person), person) for person in train])
    tracks = _mars_part(root, cast, "test", [*junk, *distractors, *people])
    queries: dict[tuple[int, int], int] = {}
    for row, (_, _, pid, camera) in enumerate(tracks):
        if pid > 0:
            queries.setdefault((pid, camera), row + 1)
    scipy.io.savemat(info / "query_IDX.mat", {"query_IDX": np.array([sorted(queries.values())], np.int32)})


def _mars_part(
    root: Path, cast: _Cast, part: str, people: Sequence[tuple[str, int | None]]
) -> list[tuple[int, int, int, int]]:
    """Write ``bbox_<part>`` and its info files; return its rows: start, end, pid, camera (1-based)."""
    names: list[str] = []
    tracks: list[tuple[int, int, int, int]] = []
    tracklets: dict[str, int] = {}
    for name, person in people:
        folder = root / f"bbox_{part}" / name
        folder.mkdir(parents=True, exist_ok=True)
        known = person is not None and person < cast.config.identities
        cameras = cast.cameras_of(0 if person is None else person)
        for camera in cameras:
            takes = int(cast.rng("takes", person or 0, camera).integers(1, 4)) if known else 1
            for take in range(takes):
                tracklets[name] = tracklets.get(name, 0) + 1
                frames = cast.frames(person, camera, cast.length(person or 0, camera, take), take)
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
    scipy.io.savemat(root / "info" / f"tracks_{part}_info.mat", {variable: np.array(tracks, np.int32)})
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

    for person in range(cast.config.identities):
        pid = _pid(person)
        queried = person in test
        for camera in cast.cameras_of(person):
            frames = cast.frames(person, camera, images + queried, step=_STILL_STEP)
            save(
                parts["bounding_box_test" if queried else "bounding_box_train"], pid, camera, frames[:images]
            )
            save(parts["query"], pid, camera, frames[images:], box=0)
    for stray in cast.strays:
        camera = cast.cameras_of(stray)[0]
        box = stray - cast.config.identities + 1
        save(parts["bounding_box_test"], "0000", camera, cast.frames(stray, camera, 1), box)
        save(parts["bounding_box_test"], "-1", camera, cast.frames(None, camera, 1, take=stray), box)


@dataclass(frozen=True, slots=True)
class _Pair:
    """One camera pair of CUHK03 and the people it saw."""

    number: int
    people: range


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
        for position, person in enumerate(pair.people):
            for view in range(2):
                frames = cast.frames(person, 2 * pair.number + view, cast.config.images, step=_STILL_STEP)
                for t, frame in enumerate(frames):
                    name = f"{pair.number + 1}_{position + 1:03}_{view + 1}_{5 * view + t + 1:02}.png"
                    _save(folder / name, frame)


def _cuhk03_file(path: Path, cast: _Cast, pairs: Sequence[_Pair]) -> None:
    """MATLAB v7.3 is HDF5 with reversed axes; cells are references, an empty cell holds its own shape."""
    with h5py.File(path, "w") as file:
        stored = file.create_group("#refs#")

        def reference(data: Any, dtype: Any = None) -> h5py.Reference:
            return stored.create_dataset(str(len(stored)), data=data, dtype=dtype).ref

        def cell(rows: list[list[h5py.Reference]]) -> h5py.Reference:
            return reference(np.array(rows, object).T, h5py.ref_dtype)

        empty = reference(np.zeros(2, np.uint64))
        detected: list[h5py.Reference] = []
        labeled: list[h5py.Reference] = []
        for pair in pairs:
            people = []
            for person in pair.people:
                row = [empty] * 10
                for view in range(2):
                    frames = cast.frames(person, 2 * pair.number + view, cast.config.images, step=_STILL_STEP)
                    for t, frame in enumerate(frames):
                        row[5 * view + t] = reference(frame.transpose(2, 1, 0))
                people.append(row)
            for cells in (detected, labeled):
                cells.append(cell(people) if people else empty)
        everyone = np.array([(pair.number + 1, i + 1) for pair in pairs for i in range(len(pair.people))])
        testsets = []
        for number in range(_CUHK03_TESTSETS):
            order = cast.rng("testset", number).permutation(len(everyone))
            testsets.append(
                reference(
                    everyone[np.sort(order[: min(_CUHK03_LARGEST_TESTSET, len(order) // 2)])].T.astype(float)
                )
            )
        for name, cells in (("detected", detected), ("labeled", labeled), ("testsets", testsets)):
            file.create_dataset(name, data=np.array([cells], object), dtype=h5py.ref_dtype)


def _cuhk01(root: Path, cast: _Cast) -> None:
    folder = root / "campus"
    folder.mkdir()
    for person in range(cast.config.identities):
        for view in range(2):
            for t, frame in enumerate(cast.frames(person, view, 2, step=_STILL_STEP)):
                wide = cv2.resize(frame, (60, 160), interpolation=cv2.INTER_LINEAR)
                _save(folder / f"{person + 1:04}{2 * view + t + 1:03}.png", wide.astype(np.uint8))


LAYOUTS: dict[str, Callable[[Path, _Cast], None]] = {
    "prid2011": _prid2011,
    "ilids-vid": _ilids_vid,
    "mars": _mars,
    "market1501": _market1501,
    "cuhk03": _cuhk03,
    "cuhk01": _cuhk01,
}
"""The layouts that can be generated."""
