"""Packed sets: every frame of a data set, decoded and resized once, in one memory-mapped Arrow file.

The file is Arrow IPC: one row per frame, a tracklet's rows adjacent and inside one record batch, so that the
frames of a tracklet are one slice of mapped memory. The last batch has no rows and carries the tracklets,
the splits and the content digest, which are known only when all frames have passed.
"""

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from trainables.data.decoding import decode
from trainables.data.tracklet import DataError, DataSet, Protocol, Split, Tracklet
from trainables.network.flow import optical_flow

FORMAT = 2
"""Raised whenever the same set packs to other bytes, so that cached packs are built anew."""

_TABLE = b"table"
_BATCH_BYTES = 16 * 2**20

Indices = NDArray[np.integer] | slice


class Pack:
    """A packed set, memory-mapped: cheap to open, picklable, shared between processes by the page cache.

    Attributes:
        path: the Arrow file.
        name: what the set is called.
        kind: ``"sequence"`` or ``"image"``.
        digest: hash of the packed frames, labels, splits, protocol and packing parameters; the same on every
            machine.
        height: rows of a frame.
        width: columns of a frame.
        has_flow: whether optical flow was asked for.
        identities: identity of each tracklet.
        cameras: camera of each tracklet.
        lengths: frames of each tracklet.
        splits: the official splits, indices into the tracklets.
        protocol: how the test part of a split is scored.
        skipped: unreadable frames that were left out.
    """

    path: Path
    name: str
    kind: Literal["sequence", "image"]
    digest: str
    height: int
    width: int
    has_flow: bool
    identities: NDArray[np.str_]
    cameras: NDArray[np.str_]
    lengths: NDArray[np.int64]
    splits: tuple[Split, ...]
    protocol: Protocol
    skipped: int

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            count = reader.num_record_batches - 1
            batches = [reader.get_batch(i) for i in range(count)]
            table = json.loads(reader.get_batch_with_custom_metadata(count).custom_metadata[_TABLE])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no complete pack ({error}); delete it and it is built again") from error
        self.name = name or table["name"]
        self.kind = table["kind"]
        self.digest = table["digest"]
        self.height, self.width = table["height"], table["width"]
        self.has_flow = table["flow"] != "none"
        self.identities = np.array(table["identities"], np.str_)
        self.cameras = np.array(table["cameras"], np.str_)
        self.lengths = np.array(table["lengths"], np.int64)
        self.splits = tuple(Split(*(tuple(part) for part in split)) for split in table["splits"])
        self.protocol = table["protocol"]
        self.skipped = table["skipped"]
        self._places: list[tuple[int, int]] = [(batch, row) for batch, row in table["places"]]
        self._frames = [_column(batch, "frame", np.uint8, self.height, self.width, 3) for batch in batches]
        self._flows = None
        if "flow" in reader.schema.names:
            self._flows = [
                _column(batch, "flow", np.float16, self.height, self.width, 2) for batch in batches
            ]

    @classmethod
    def open(cls, path: str | Path, name: str | None = None) -> Self:
        """Open a packed set, under another name if one is given; DataError for an incomplete pack."""
        return cls(Path(path), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.name)

    def __len__(self) -> int:
        """Number of tracklets."""
        return len(self._places)

    def frames(self, tracklet: int, indices: Indices | None = None) -> NDArray[np.uint8]:
        """RGB frames ``[time, height, width, 3]``: a read-only view, or a copy for an array of indices."""
        return _rows(self._frames, self._places[tracklet], int(self.lengths[tracklet]), indices)

    def flow(self, tracklet: int, indices: Indices | None = None) -> NDArray[np.float32]:
        """Optical flow to the next frame, ``[time, height, width, 2]``, (right, down) in pixels per frame.

        The last frame repeats the flow before it. Stills have none: zeros.

        Raises:
            ValueError: the set was packed without flow.
        """
        if not self.has_flow:
            raise ValueError(f"{self.path}: packed without optical flow")
        if self._flows is None:
            count = len(np.arange(self.lengths[tracklet])[indices if indices is not None else slice(None)])
            return np.zeros((count, self.height, self.width, 2), np.float32)
        stored = _rows(self._flows, self._places[tracklet], int(self.lengths[tracklet]), indices)
        return stored.astype(np.float32)


def pack(
    data_set: DataSet,
    path: str | Path,
    *,
    height: int,
    width: int,
    flow: Literal["none", "dis"],
    unreadable: Literal["stop", "skip"],
    say: Callable[[str], None],
) -> Pack:
    """Decode, resize and write every frame of a set to one file, which appears under its name when complete.

    Memory stays bounded by a few tracklets. Callers that may write the same path at once hold a lock.

    Args:
        data_set: what a reader found.
        path: the file to write.
        height: rows of a packed frame, pixels.
        width: columns of a packed frame, pixels.
        flow: ``"dis"`` also stores dense optical flow (Kroeger et al., ECCV 2016) of sequences.
        unreadable: ``"stop"`` at a frame that cannot be decoded, or ``"skip"``: leave it out and count it.
        say: is told how many frames were left out.

    Raises:
        DataError: a frame is unreadable, nothing is left, or the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_opencv_thread())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(partial.unlink, missing_ok=True)
            _write(data_set, partial, height, width, flow, unreadable, say)
            os.replace(partial, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Pack(path)


def _write(
    data_set: DataSet,
    path: Path,
    height: int,
    width: int,
    flow: Literal["none", "dis"],
    unreadable: Literal["stop", "skip"],
    say: Callable[[str], None],
) -> None:
    with_flow = flow != "none" and data_set.kind == "sequence"
    sizes = {"frame": height * width * 3} | ({"flow": height * width * 2 * 2} if with_flow else {})
    schema = pa.schema([(column, pa.binary(size)) for column, size in sizes.items()])
    hasher = hashlib.blake2b(digest_size=20)
    kept: dict[int, int] = {}
    lengths: list[int] = []
    places: list[tuple[int, int]] = []
    complaints: list[str] = []
    waiting: list[_Rows] = []
    rows = batches = 0

    def prepare(tracklet: Tracklet) -> _Rows:
        return _prepare(tracklet, height, width, with_flow, unreadable)

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for index, found in enumerate(_in_order(prepare, data_set.tracklets)):
            complaints += found.complaints
            if len(found.frames) == 0:
                continue
            kept[index] = len(places)
            places.append((batches, rows))
            lengths.append(len(found.frames))
            hasher.update(found.frames.data)
            waiting.append(found)
            rows += len(found.frames)
            if rows * sum(sizes.values()) >= _BATCH_BYTES:
                writer.write_batch(_batch(waiting, schema))
                waiting, rows, batches = [], 0, batches + 1
        if waiting:
            writer.write_batch(_batch(waiting, schema))
        if not kept:
            raise DataError(f"{data_set.name}: no readable frame in {len(data_set.tracklets)} tracklets")
        table: dict[str, Any] = {
            "format": FORMAT,
            "kind": data_set.kind,
            "height": height,
            "width": width,
            "flow": flow,
            "identities": [data_set.tracklets[i].identity for i in kept],
            "cameras": [data_set.tracklets[i].camera for i in kept],
            "lengths": lengths,
            "splits": [
                [[kept[i] for i in part if i in kept] for part in (split.train, split.query, split.gallery)]
                for split in data_set.splits
            ],
            "protocol": data_set.protocol,
        }
        hasher.update(json.dumps(table, sort_keys=True).encode())
        table |= {
            "name": data_set.name,
            "digest": hasher.hexdigest(),
            "places": places,
            "skipped": len(complaints),
        }
        empty = pa.record_batch([pa.array([], column.type) for column in schema], schema=schema)
        writer.write_batch(empty, custom_metadata={_TABLE: json.dumps(table).encode()})
    if complaints:
        lost = len(data_set.tracklets) - len(kept)
        say(
            f"{data_set.name}: left out {len(complaints)} unreadable frames and {lost} tracklets without any"
            f" other; the first: {complaints[0]}"
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The packed frames of one tracklet, its flow, and why frames are missing."""

    frames: NDArray[np.uint8]
    flow: NDArray[np.float16] | None
    complaints: list[str]


def _prepare(
    tracklet: Tracklet, height: int, width: int, with_flow: bool, unreadable: Literal["stop", "skip"]
) -> _Rows:
    frames: list[NDArray[np.uint8]] = []
    complaints: list[str] = []
    for frame in tracklet.frames:
        try:
            image = Image.fromarray(decode(frame))
        except DataError as error:
            if unreadable == "stop":
                raise
            complaints.append(str(error))
            continue
        # Pillow's bilinear filter widens with the reduction, so that downsizing does not alias.
        frames.append(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)))
    stacked = np.stack(frames) if frames else np.empty((0, height, width, 3), np.uint8)
    return _Rows(stacked, optical_flow(stacked).astype(np.float16) if with_flow else None, complaints)


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """DIS works in stripes, one per OpenCV thread: with one, every machine computes the same flow."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _in_order(prepare: Callable[[Tracklet], _Rows], tracklets: Iterable[Tracklet]) -> Iterator[_Rows]:
    """Apply ``prepare`` in threads, in order, never more than a few tracklets ahead of the consumer."""
    workers = min(16, os.cpu_count() or 1)
    ahead: deque[Future[_Rows]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="packing") as executor:
        try:
            for tracklet in tracklets:
                ahead.append(executor.submit(prepare, tracklet))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _batch(waiting: Sequence[_Rows], schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "frame": [rows.frames for rows in waiting],
        "flow": [rows.flow for rows in waiting],
    }
    arrays = []
    for column in schema:
        values = np.concatenate(columns[column.name])
        arrays.append(
            pa.FixedSizeBinaryArray.from_buffers(column.type, len(values), [None, pa.py_buffer(values)])
        )
    return pa.record_batch(arrays, schema=schema)


def _column(batch: pa.RecordBatch, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
    """A fixed-size binary column as ``[row, *shape]`` on the mapped memory."""
    return np.frombuffer(batch.column(name).buffers()[1], dtype).reshape(-1, *shape)[: batch.num_rows]


def _rows(
    batches: Sequence[NDArray[Any]], place: tuple[int, int], length: int, indices: Indices | None
) -> NDArray[Any]:
    batch, row = place
    whole = batches[batch][row : row + length]
    return whole if indices is None else whole[indices]
