"""Packed sets: all frames of a data set, decoded and resized once, in one memory-mapped Arrow file.

The file is Arrow IPC with one row per frame. The rows of a tracklet are adjacent and inside one record batch,
so that its frames are one slice of mapped memory. Each row has CRC-32 checksums, which are compared when a
process first reads the row. The last batch has no rows: its metadata holds the tracklets, splits and content
digest, which are complete only after all frames are written.
"""

import contextlib
import hashlib
import json
import logging
import os
import zlib
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

from trainables.data.decoding import decode_image
from trainables.data.tracklet import DataSet, Protocol, Split, Tracklet
from trainables.errors import DataError, check_name
from trainables.network import images
from trainables.network.flow import optical_flow

_log = logging.getLogger(__name__)

FORMAT = 3
"""Version of the pack format. Increase it if a set packs to different bytes, so that packs are rebuilt."""

_TABLE, _TABLE_CHECKSUM = b"table", b"table-crc32"
_CHECKSUM = "-crc32"
"""End of the name of a column of checksums. Packs of version 0.1.0 have none."""

_BATCH_BYTES = 16 * 2**20
_RUN_FRAMES = 32

Indices = NDArray[np.integer] | slice


class Pack:
    """Memory-mapped packed set.

    A pack is cheap to open, can be pickled, and shares its memory between processes through the page cache.

    Attributes:
        path: the Arrow file.
        name: name of the set.
        kind: ``"sequence"`` or ``"image"``.
        digest: hash of the packed frames, labels, splits, protocol and packing parameters; the same on every
            machine.
        height: height of a frame in pixels.
        width: width of a frame in pixels.
        has_flow: whether the set was packed with optical flow.
        identities: identity of each tracklet.
        cameras: camera of each tracklet.
        lengths: number of frames of each tracklet.
        splits: the official splits, as indices of tracklets.
        protocol: protocol that scores the test part of a split.
        skipped: number of unreadable frames that were left out.
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
            metadata = reader.get_batch_with_custom_metadata(count).custom_metadata
            table = json.loads(metadata[_TABLE])
            if int(metadata.get(_TABLE_CHECKSUM, b"-1")) not in (-1, zlib.crc32(metadata[_TABLE])):
                raise ValueError("its table of tracklets is damaged")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a complete pack ({error}); delete it to rebuild it") from error
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
        self._positions: list[tuple[int, int]] = [(batch, row) for batch, row in table["places"]]
        self._frames = _Column(path, batches, "frame", np.uint8, (self.height, self.width, 3))
        self._flows = None
        if "flow" in reader.schema.names:
            self._flows = _Column(path, batches, "flow", np.float16, (self.height, self.width, 2))

    @classmethod
    def open(cls, path: str | Path, name: str | None = None) -> Self:
        """Open a packed set, and rename it to ``name`` if that is not None.

        Raises:
            DataError: the pack is incomplete.
        """
        return cls(Path(path), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.name)

    def __len__(self) -> int:
        """Number of tracklets."""
        return len(self._positions)

    def frames(self, tracklet: int, indices: Indices | None = None) -> NDArray[np.uint8]:
        """Return RGB frames ``[time, height, width, 3]``: a read-only view, or a copy for index arrays.

        Raises:
            DataError: the file is damaged.
        """
        return self._frames.rows(self._positions[tracklet], int(self.lengths[tracklet]), indices)

    def flow(self, tracklet: int, indices: Indices | None = None) -> NDArray[np.float32]:
        """Return optical flow to the next frame, ``[time, height, width, 2]``.

        Flow is (right, down) in pixels per frame. The last frame repeats the flow before it. Still images
        have a flow of 0.

        Raises:
            DataError: the file is damaged.
            ValueError: the set was packed without flow.
        """
        if not self.has_flow:
            raise ValueError(f"{self.path}: packed without optical flow")
        if self._flows is None:
            count = len(np.arange(self.lengths[tracklet])[indices if indices is not None else slice(None)])
            return np.zeros((count, self.height, self.width, 2), np.float32)
        flow = self._flows.rows(self._positions[tracklet], int(self.lengths[tracklet]), indices)
        return flow.astype(np.float32)


def pack(
    data_set: DataSet,
    path: str | Path,
    *,
    height: int,
    width: int,
    flow: Literal["none", "dis"],
    unreadable: Literal["stop", "skip"],
) -> Pack:
    """Decode, resize and write every frame of a set to one file.

    The file is written under a temporary name and renamed once it is complete. Memory is bounded by a few
    tracklets. Callers must hold a lock if several may write the same path at once.

    Args:
        data_set: the set, as returned by a reader.
        path: the file to write.
        height: height of a packed frame in pixels.
        width: width of a packed frame in pixels.
        flow: ``"dis"`` also stores dense optical flow (Kroeger et al., ECCV 2016) of sequences.
        unreadable: ``"stop"`` at a frame that cannot be decoded, or ``"skip"`` and count it.

    Raises:
        DataError: a frame is unreadable, no frame is left, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected the name of a file to write")
    partial = path.with_name(f".{path.name}.partial")
    check_name(path)
    new_folders = [folder for folder in path.parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_opencv_thread())
        stack.callback(_remove_empty, new_folders)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(partial.unlink, missing_ok=True)
            _write(data_set, partial, height, width, flow, unreadable)
            with partial.open("rb") as written:
                os.fsync(written.fileno())  # after a power failure, a whole pack or none has its name
            os.replace(partial, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Pack(path)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, up to one that is not empty or does not exist."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _write(
    data_set: DataSet,
    path: Path,
    height: int,
    width: int,
    flow: Literal["none", "dis"],
    unreadable: Literal["stop", "skip"],
) -> None:
    with_flow = flow != "none" and data_set.kind == "sequence"
    sizes = {"frame": height * width * 3} | ({"flow": height * width * 2 * 2} if with_flow else {})
    schema = pa.schema(
        [(column, pa.binary(size)) for column, size in sizes.items()]
        + [(f"{column}{_CHECKSUM}", pa.uint32()) for column in sizes]
    )
    hasher = hashlib.blake2b(digest_size=20)
    new_index: dict[int, int] = {}
    lengths: list[int] = []
    positions: list[tuple[int, int]] = []
    errors: list[str] = []
    pending: list[_Rows] = []
    rows = batches = 0

    def prepare(tracklet: Tracklet) -> _Rows:
        return _prepare(tracklet, height, width, with_flow, unreadable)

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for index, tracklet_rows in enumerate(_in_order(prepare, data_set.tracklets)):
            errors += tracklet_rows.errors
            if len(tracklet_rows.frames) == 0:
                continue
            new_index[index] = len(positions)
            positions.append((batches, rows))
            lengths.append(len(tracklet_rows.frames))
            hasher.update(tracklet_rows.frames.data)
            pending.append(tracklet_rows)
            rows += len(tracklet_rows.frames)
            if rows * sum(sizes.values()) >= _BATCH_BYTES:
                writer.write_batch(_batch(pending, schema))
                pending, rows, batches = [], 0, batches + 1
        if pending:
            writer.write_batch(_batch(pending, schema))
        if not new_index:
            raise DataError(f"{data_set.name}: no readable frame in {len(data_set.tracklets)} tracklets")
        table: dict[str, Any] = {
            "format": FORMAT,
            "kind": data_set.kind,
            "height": height,
            "width": width,
            "flow": flow,
            "identities": [data_set.tracklets[i].identity for i in new_index],
            "cameras": [data_set.tracklets[i].camera for i in new_index],
            "lengths": lengths,
            "splits": [
                [
                    [new_index[i] for i in part if i in new_index]
                    for part in (split.train, split.query, split.gallery)
                ]
                for split in data_set.splits
            ],
            "protocol": data_set.protocol,
        }
        hasher.update(json.dumps(table, sort_keys=True).encode())
        table |= {
            "name": data_set.name,
            "digest": hasher.hexdigest(),
            "places": positions,
            "skipped": len(errors),
        }
        empty = pa.record_batch([pa.array([], column.type) for column in schema], schema=schema)
        content = json.dumps(table).encode()
        checksum = str(zlib.crc32(content)).encode()
        writer.write_batch(empty, custom_metadata={_TABLE: content, _TABLE_CHECKSUM: checksum})
    if errors:
        lost = len(data_set.tracklets) - len(new_index)
        _log.info(
            "%s: skipped %d unreadable frames and %d tracklets without any other frame; first error: %s",
            data_set.name,
            len(errors),
            lost,
            errors[0],
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Packed frames of one tracklet, their flow, and the errors of unreadable frames."""

    frames: NDArray[np.uint8]
    flow: NDArray[np.float16] | None
    errors: list[str]


def _prepare(
    tracklet: Tracklet, height: int, width: int, with_flow: bool, unreadable: Literal["stop", "skip"]
) -> _Rows:
    frames: list[NDArray[np.uint8]] = []
    errors: list[str] = []
    for frame in tracklet.frames:
        try:
            image = decode_image(frame)
        except DataError as error:
            if unreadable == "stop":
                raise
            errors.append(str(error))
            continue
        frames.append(images.resize(image, height, width))
    stack = np.stack(frames) if frames else np.empty((0, height, width, 3), np.uint8)
    return _Rows(stack, optical_flow(stack).astype(np.float16) if with_flow else None, errors)


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread: DIS splits frames by thread, so that flow would depend on the machine."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _in_order(prepare: Callable[[Tracklet], _Rows], tracklets: Iterable[Tracklet]) -> Iterator[_Rows]:
    """Apply ``prepare`` in threads and yield results in order, a few runs of tracklets ahead of the consumer.

    Pillow and OpenCV let other threads run while they decode, resize and compute flow.
    """
    workers = min(16, len(os.sched_getaffinity(0)))
    futures: deque[Future[list[_Rows]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="packing") as executor:
        try:
            for run in _runs(tracklets):
                futures.append(executor.submit(lambda run: [prepare(tracklet) for tracklet in run], run))
                if len(futures) > 2 * workers:
                    yield from futures.popleft().result()
            while futures:
                yield from futures.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _runs(tracklets: Iterable[Tracklet]) -> Iterator[list[Tracklet]]:
    """Yield runs of adjacent tracklets with enough frames that the change of threads costs little."""
    run: list[Tracklet] = []
    frames = 0
    for tracklet in tracklets:
        run.append(tracklet)
        frames += len(tracklet.frames)
        if frames >= _RUN_FRAMES:
            yield run
            run, frames = [], 0
    if run:
        yield run


def _batch(pending: Sequence[_Rows], schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "frame": [rows.frames for rows in pending],
        "flow": [rows.flow for rows in pending],
    }
    arrays: dict[str, pa.Array] = {}
    for name in schema.names:
        if name in columns:
            values = np.concatenate(columns[name])
            buffers = [None, pa.py_buffer(values)]
            arrays[name] = pa.FixedSizeBinaryArray.from_buffers(schema.field(name).type, len(values), buffers)
            arrays[f"{name}{_CHECKSUM}"] = pa.array([zlib.crc32(row) for row in values], pa.uint32())
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)


class _Column:
    """Column of fixed-size rows ``[row, *shape]`` in mapped memory, batch by batch."""

    def __init__(
        self, path: Path, batches: Sequence[pa.RecordBatch], name: str, dtype: Any, shape: tuple[int, ...]
    ) -> None:
        self._path = path
        self._batches = [
            np.frombuffer(batch.column(name).buffers()[1], dtype).reshape(-1, *shape)[: batch.num_rows]
            for batch in batches
        ]
        self._checksums: list[NDArray[np.uint32]] = []
        if batches and name + _CHECKSUM in batches[0].schema.names:
            self._checksums = [batch.column(name + _CHECKSUM).to_numpy() for batch in batches]
        self._is_checked = [np.full(batch.num_rows, not self._checksums) for batch in batches]

    def rows(self, position: tuple[int, int], length: int, indices: Indices | None) -> NDArray[Any]:
        """Return rows of the tracklet at (batch, row); raises DataError where they are damaged."""
        batch, first = position
        tracklet = slice(first, first + length)
        chosen = slice(None) if indices is None else indices
        if not self._is_checked[batch][tracklet][chosen].all():
            self._check(batch, np.arange(first, first + length)[chosen])
        return self._batches[batch][tracklet][chosen]

    def _check(self, batch: int, rows: NDArray[np.int64]) -> None:
        for row in rows:
            if zlib.crc32(self._batches[batch][row]) != self._checksums[batch][row]:
                raise DataError(f"{self._path}: the packed frames are damaged; delete the file to rebuild it")
        self._is_checked[batch][rows] = True
