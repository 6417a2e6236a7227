"""An Optuna study in a bucket: a journal with one writer, cut into segments that are replaced as a whole.

S3 cannot append. An append replaces the last segment, on the condition that it is still what this process
wrote, so a driver that lost its lease cannot write into the study of its successor.

A digest beside the segments says the same in fewer operations, one for each trial, so that a long journal is
read in a second. The segments stay the only truth: a digest that is missing, damaged or of other segments is
ignored, and the next driver writes a new one.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from orchestrator.errors import StorageError
from orchestrator.storage.base import Store, StudyStorage

_log = logging.getLogger(__name__)

SEGMENT_BYTES = 1 << 17
"""Size after which a new segment begins; an append uploads at most about that."""

_SUFFIX = ".jsonl"
"""Of the name of a segment. Other objects in its folder are no part of the journal."""

_SCHEMA = 1
"""Version of the digest."""

_INDEX = "index.json"

_DIGEST_SEGMENTS = 16
"""Segments after which the digest is brought up to date."""


class S3Journal(BaseJournalBackend):
    """The journal of one study under ``name`` in a store, for one Optuna storage.

    The writer knows what it wrote and reads nothing twice. A reader opens a new journal to see what is new.
    Methods raise StorageError, also when another process wrote to the journal.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._logs: list[dict[str, Any]] = []  # those that Optuna has not applied yet
        self._first = 0
        self._lines: list[str] = []  # of the last segment
        self._number = 0
        self._seen: str | None = None
        self._held_back: list[dict[str, Any]] | None = None  # of a transaction
        self._digest = _Digest(store, name)
        self._read()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the operations from a number on; Optuna never asks for earlier ones again."""
        self._logs = self._logs[log_number_from - self._first :]
        self._first = log_number_from
        return self._logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations; they are permanent when this returns, or at the end of a transaction."""
        if self._held_back is not None:
            self._held_back += logs
        else:
            self._write(logs)
        self._logs = [*self._logs, *logs]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write the operations of a block at once when it ends; blocks within it have no effect."""
        if self._held_back is not None:
            yield
            return
        self._held_back = []
        try:
            yield
            if self._held_back:
                self._write(self._held_back)
        finally:
            self._held_back = None

    def update_digest(self, storage: JournalStorage) -> None:
        """Bring the digest up to date if enough was written; ``storage`` has applied all of it."""
        if self._number + 1 - self._digest.segments >= _DIGEST_SEGMENTS and self._seen is not None:
            try:
                self._digest.write(storage, self._number + 1, self._seen)
            except StorageError as error:  # readers take the segments
                _log.warning("the study is read slowly: %s", error)
                self._digest.segments = self._number + 1  # the next try is some segments later
            self._begin_segment()

    def _write(self, logs: list[dict[str, Any]]) -> None:
        if sum(map(len, self._lines)) > SEGMENT_BYTES:
            self._begin_segment()
        lines = [*self._lines, *(json.dumps(log, separators=(",", ":")) for log in logs)]
        content = "\n".join(lines).encode()
        version = self._store.compare_and_swap(self._segment(self._number), content, self._seen)
        if version is None:
            segment, location = self._segment(self._number), self._store.locate(self._name)
            if self._seen is not None and self._store.read(segment) is None:
                raise StorageError(f"study: objects of {location} are gone; restore them before you go on")
            raise StorageError(f"study: another process writes to {location}")
        self._seen, self._lines = version, lines

    def _begin_segment(self) -> None:
        self._number, self._seen, self._lines = self._number + 1, None, []

    def _read(self) -> None:
        self._logs = self._digest.read(self._segment)
        names = [name for name in self._store.list_files(f"{self._name}/") if name.endswith(_SUFFIX)]
        for number, name in enumerate(names):
            if name != self._segment(number):
                raise StorageError(f"study: {self._store.locate(self._segment(number))} is missing")
        for number in range(self._digest.segments, len(names)):
            file = self._store.read(names[number])
            if file is None:
                raise StorageError(f"study: {self._store.locate(names[number])} is missing")
            self._lines = file[0].decode().split("\n")
            self._number, self._seen = number, file[1]
            self._logs += map(json.loads, self._lines)
        if self._digest.segments and self._digest.segments == len(names):
            self._number = len(names)  # nothing was written after the digest

    def _segment(self, number: int) -> str:
        return f"{self._name}/{number:08d}{_SUFFIX}"


class _Digest:
    """What the first segments of a journal say, with one operation for each trial.

    ``<name>.digest/index.json`` holds ``segments`` (how many of them), ``version`` (of the last one), the
    operations of the study and of the ``trials`` that had not ended, and the names of the ``parts``. A part
    is written once, and holds the operations of trials that had ended, by number.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, f"{name}.digest"
        self._ended: set[int] = set()
        self._parts: list[str] = []
        self.segments = 0

    def read(self, segment: Callable[[int], str]) -> list[dict[str, Any]]:
        """Return the operations of the digest; none where it is not valid.

        ``segment`` returns the name of a segment.
        """
        try:
            index = self._load(_INDEX)
            if index is None or index["schema"] != _SCHEMA:
                return []
            last = self._store.read(segment(index["segments"] - 1))
            if last is None or last[1] != index["version"]:
                return []
            trials: dict[str, Any] = {}
            for part in index["parts"]:
                trials |= self._load(part)
            ended = {int(number) for number in trials}
            trials |= index["trials"]
            operations = [*index["study"], *(trials[str(number)] for number in range(len(trials)))]
        except (ValueError, TypeError, KeyError):  # damaged or incomplete
            return []
        self._ended, self._parts, self.segments = ended, index["parts"], index["segments"]
        return operations

    def write(self, storage: JournalStorage, segments: int, version: str) -> None:
        """Write the digest of a study that fills so many segments; ``version`` is that of the last one."""
        (study,) = storage.get_all_studies()
        operations = _Operations()
        copy = JournalStorage(operations)
        study_id = copy.create_new_study(study.directions, study.study_name)
        for key, value in study.user_attrs.items():
            copy.set_study_user_attr(study_id, key, value)
        for key, value in study.system_attrs.items():
            copy.set_study_system_attr(study_id, key, value)
        of_study = list(operations.all)
        unfinished: dict[int, Any] = {}
        ended: dict[int, Any] = {}
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.number not in self._ended:
                copy.create_new_trial(study_id, trial)
                (ended if trial.state.is_finished() else unfinished)[trial.number] = operations.all[-1]
        part = f"{segments:08d}.json"
        self._save(part, ended)
        self._ended |= ended.keys()
        self._parts, self.segments = [*self._parts, part], segments
        index = {"schema": _SCHEMA, "segments": segments, "version": version, "parts": self._parts}
        self._save(_INDEX, {**index, "study": of_study, "trials": unfinished})

    def _load(self, file: str) -> Any:
        content = self._store.read(f"{self._name}/{file}")
        return None if content is None else json.loads(content[0])

    def _save(self, file: str, content: Any) -> None:
        self._store.write(f"{self._name}/{file}", json.dumps(content, separators=(",", ":")).encode())


class _Operations(BaseJournalBackend):
    """A journal in memory, which shows how Optuna writes a study."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the operations from a number on."""
        return self.all[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep operations."""
        self.all += logs


class S3Study(JournalStorage, StudyStorage):
    """A study in a bucket."""

    def __init__(self, journal: S3Journal) -> None:
        super().__init__(journal)
        self._journal = journal

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write the operations of a block at once when it ends."""
        with self._journal.transaction():
            yield

    def on_trial_end(self) -> None:
        """Bring the digest up to date, if enough was written."""
        self._journal.update_digest(self)
