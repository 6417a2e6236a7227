"""Features of tracklets in a Parquet file: written part by part, and searched without loading the whole file.

The metadata of the file's schema names the model, so that features of different models are never compared.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainables.data.tracklet import Frame, Tracklet
from trainables.errors import DataError, one_line

SCHEMA = "1"
"""Version of the columns and of the metadata."""

_ROWS_AT_ONCE = 1 << 16
_DISTANCES_AT_ONCE = 1 << 12
_CHECKSUM, _DIMENSION, _CALIBRATION = "model_checksum", "embedding_dimension", "calibration"
_ABOUT = "about.json"


@dataclass(frozen=True, slots=True)
class About:
    """What the features of a file are: all of it is in the metadata of the schema, as text."""

    model: str
    """Address of the model; see `trainables.export.stored_model.StoredModel`."""
    model_name: str
    model_version: str
    """Version in the registry; empty for a folder."""
    model_checksum: str
    embedding_dimension: int
    calibration: Mapping[str, Any]
    """Thresholds of the model, as JSON."""
    layout: str
    folder: str
    """Folder that ``path`` is relative to."""
    fingerprint: str
    """Hash of the files that were embedded, and of how."""

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a schema."""
        values = {name: getattr(self, name) for name in self.__slots__}
        texts = {name: text if isinstance(text, str) else json.dumps(text) for name, text in values.items()}
        return texts | {"schema": SCHEMA}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> "About":
        """Return what the metadata of a schema says.

        Raises:
            KeyError: it is not that of such a file.
        """
        texts = {name: metadata[name.encode()].decode() for name in cls.__slots__}
        parsed = {name: json.loads(texts[name]) for name in (_DIMENSION, _CALIBRATION)}
        return cls(**(texts | parsed))


def file_schema(about: About) -> pa.Schema:
    """Return the schema of a file. Unknown identities and cameras, and keys of plain files, are null."""
    fields = {
        "tracklet": pa.int64(),
        "identity": pa.string(),
        "camera": pa.string(),
        "path": pa.string(),
        "key": pa.string(),
        "frames": pa.int32(),
        "embedding": pa.list_(pa.float32(), about.embedding_dimension),
    }
    return pa.schema(list(fields.items()), metadata=about.metadata())


def table(
    tracklets: Mapping[int, Tracklet], features: NDArray[np.float32], folder: Path, schema: pa.Schema
) -> pa.Table:
    """Return tracklets by their number, and their features, as rows; ``path`` is that of the middle frame."""
    middle = [tracklet.frames[len(tracklet.frames) // 2] for tracklet in tracklets.values()]
    flat = pa.array(features.ravel(), pa.float32())
    columns: dict[str, Any] = {
        "tracklet": list(tracklets),
        "identity": [tracklet.identity or None for tracklet in tracklets.values()],
        "camera": [tracklet.camera or None for tracklet in tracklets.values()],
        "path": [os.path.relpath(frame.path, folder) for frame in middle],
        "key": [frame.key for frame in middle],
        "frames": [len(tracklet.frames) for tracklet in tracklets.values()],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
    }
    return pa.table(columns, schema=schema)


class Parts:
    """Parts of a file that is being written, in a folder beside it, so that a killed command can resume."""

    def __init__(self, file: Path, about: About) -> None:
        self.file, self.schema = file, file_schema(about)
        self.folder = file.with_name(f"{file.name}.parts")
        self._about = json.dumps(about.metadata(), indent=2, sort_keys=True)

    @contextmanager
    def opened(self) -> Iterator[bool]:
        """Create the folder, or reuse it; yield whether it has parts of the same features.

        Raises:
            DataError: another process writes the file, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / "lock", timeout=0):
                yield self._reuse()
        except filelock.Timeout as error:
            raise DataError(f"{self.file}: another process is writing it; wait for it, or stop it") from error
        except OSError as error:
            raise DataError(f"{self.file}: cannot be written ({error.strerror or error})") from error

    def has(self, number: int) -> bool:
        """Return whether a part is complete."""
        return self._part(number).is_file()

    def write(self, number: int, rows: pa.Table) -> None:
        """Write a part."""
        partial = self._part(number).with_suffix(".partial")
        pq.write_table(rows, partial, write_page_checksum=True)
        partial.rename(self._part(number))

    def join(self, count: int) -> None:
        """Write the file from its parts, and remove them."""
        partial = self.folder / "whole.partial"
        with pq.ParquetWriter(partial, self.schema, write_page_checksum=True) as writer:
            for number in range(count):
                writer.write_table(pq.read_table(self._part(number)))
        partial.rename(self.file)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"

    def _reuse(self) -> bool:
        """Return whether there are parts of the same features; raises DataError if there are others."""
        about = self.folder / _ABOUT
        same = about.is_file() and about.read_text(encoding="utf-8") == self._about
        if not same:
            if any(self.folder.glob("*.parquet")):
                raise DataError(
                    f"{self.folder}: holds a part of other features, of another model or folder; rerun the"
                    " command that wrote it, choose another name, or remove it"
                )
            about.write_text(self._about, encoding="utf-8")
        return same


@dataclass(frozen=True, slots=True)
class Row:
    """A tracklet of a file."""

    identity: str | None
    camera: str | None
    path: str
    key: str | None

    def frame(self, folder: Path) -> Frame:
        """Return its middle frame; ``folder`` is that of the gallery."""
        return Frame(folder / self.path, self.key)


class Gallery:
    """A file of features.

    Attributes:
        path: the file.
        about: what its features are.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            DataError: it is not a file of features.
        """
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected a file that `embed` wrote")
        try:
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            self.about = About.of(self._file.schema_arrow.metadata or {})
        except (KeyError, ValueError, OSError, pa.ArrowException) as error:
            reason = "it names no model" if isinstance(error, KeyError) else one_line(error)
            raise DataError(f"{path}: {reason}; expected a file that `embed` wrote") from error
        if len(self) == 0:
            raise DataError(f"{path}: holds no tracklets")

    def __len__(self) -> int:
        """Number of tracklets."""
        return int(self._file.metadata.num_rows)

    @property
    def thresholds(self) -> dict[float, float]:
        """Distances by false-match rate, the smallest rate first; empty if the model has none."""
        stated = self.about.calibration["thresholds"]
        return dict(sorted((item["false_match_rate"], item["distance"]) for item in stated))

    def features(self) -> Iterator[NDArray[np.float32]]:
        """Yield all features, ``[tracklet, feature]``, a bounded number at a time."""
        for batch in self._batches(_ROWS_AT_ONCE, ["embedding"]):
            yield self._features(batch)

    def check(self) -> None:
        """Read everything; raises DataError if the file is damaged."""
        for _ in self._batches(_ROWS_AT_ONCE, None):
            pass

    def _batches(self, size: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(size, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}: is damaged ({one_line(error)}); remove it, and embed again"
            ) from error

    def tracklets(self, size: int) -> Iterator[tuple[NDArray[np.float32], list[Row]]]:
        """Yield the features and rows of all tracklets, ``size`` at a time; the file is read once."""
        names = list(Row.__slots__)
        for batch in self._batches(size, ["embedding", *names]):
            yield self._features(batch), [Row(**row) for row in batch.select(names).to_pylist()]

    def _features(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        values: NDArray[np.float32] = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
        return values.reshape(batch.num_rows, self.about.embedding_dimension)

    def rows(self, numbers: Sequence[int]) -> dict[int, Row]:
        """Return rows by their number."""
        wanted, found, first = np.unique(np.asarray(numbers, np.int64)), {}, 0
        names = list(Row.__slots__)
        for batch in self._batches(_ROWS_AT_ONCE, names):
            inside = wanted[(wanted >= first) & (wanted < first + batch.num_rows)]
            for number, row in zip(
                inside.tolist(), batch.take(pa.array(inside - first)).to_pylist(), strict=True
            ):
                found[number] = Row(**row)
            first += batch.num_rows
        return found

    def check_same_model(self, checksum: str, other: str) -> None:
        """Check that features of another source can be compared with those of this file.

        Raises:
            DataError: they are of different models.
        """
        if checksum != self.about.model_checksum:
            raise DataError(
                f"{other}: features of another model than those of {self.path}, which are of"
                f" {self.about.model} (checksum {self.about.model_checksum[:12]}, not {checksum[:12]}); embed"
                " both with one model"
            )


@dataclass(frozen=True, slots=True)
class Match:
    """A gallery tracklet near a query."""

    number: int
    """Its row in the file."""
    distance: float
    """Euclidean distance: 0 to 2."""


def nearest(queries: NDArray[np.float32], gallery: Gallery, top: int) -> list[list[Match]]:
    """Return the ``top`` nearest tracklets of each of ``queries [query, feature]``, nearest first."""
    distances = np.full((len(queries), 0), np.inf)
    numbers = np.zeros((len(queries), 0), np.int64)
    first = 0
    for features in gallery.features():
        near, which = _nearest(queries, features, top)
        distances = np.concatenate([distances, near], axis=1)
        numbers = np.concatenate([numbers, which + first], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :top]
        distances = np.take_along_axis(distances, order, axis=1)
        numbers = np.take_along_axis(numbers, order, axis=1)
        first += len(features)
    return [
        [Match(number, distance) for number, distance in zip(*pair, strict=True)]
        for pair in zip(numbers.tolist(), distances.tolist(), strict=True)
    ]


def _nearest(
    queries: NDArray[np.float32], features: NDArray[np.float32], top: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distances and indices ``[query, top]`` of the nearest of ``features``, in any order."""
    count = min(top, len(features))
    products = queries @ features.T
    chosen = np.argpartition(-products, count - 1, axis=1)[:, :count]
    # Exactly, because a product in float32 leaves an error of a few 1e-4 in a distance near 0.
    distances = np.empty(chosen.shape)
    for query, near, row in zip(queries.astype(np.float64), chosen, distances, strict=True):
        for start in range(0, count, _DISTANCES_AT_ONCE):
            block = slice(start, start + _DISTANCES_AT_ONCE)
            row[block] = np.linalg.norm(features[near[block]] - query, axis=1)
    return distances, chosen


def _missed(gallery: Gallery, rate: float) -> str:
    """Return how many pairs of the same identity are farther than a threshold, as the end of a reason."""
    for item in gallery.about.calibration["thresholds"]:
        if item["false_match_rate"] == rate and item["missed"] is not None:
            return f"; {item['missed']:.0%} of pairs of the same identity are also farther"
    return ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the nearest tracklet is near enough to be the person of the query."""

    decision: str
    """``match``, ``possible``, ``no match`` or ``unknown``."""
    reason: str


def judge(distance: float, gallery: Gallery) -> Verdict:
    """Judge a query by the distance of its nearest tracklet, with the thresholds of the model."""
    thresholds = gallery.thresholds
    if not thresholds:
        reasons = "; ".join(gallery.about.calibration["not_stated"]) or "no reason is recorded"
        return Verdict("unknown", f"the model has no thresholds: {reasons}")
    rate = next((rate for rate, threshold in thresholds.items() if distance <= threshold), None)
    if rate is None:
        rate, threshold = max(thresholds.items())
        reason = f"the nearest is farther than {threshold:.3f}, the threshold at {rate:.1%}"
        return Verdict("no match", reason + _missed(gallery, rate))
    by_chance = rate * len(gallery)
    reason = f"within {thresholds[rate]:.3f}, the threshold at {rate:.1%}"
    if by_chance < 1:
        return Verdict("match", reason)
    return Verdict("possible", f"{reason}; about {by_chance:,.0f} of {len(gallery):,} others are, by chance")
