"""An Optuna study in a bucket: a journal with one writer, cut into segments that are replaced as a whole.

S3 cannot append. An append replaces the last segment, on the condition that it is still what this process
wrote, so a driver that lost its lease cannot write into the study of its successor.
"""

import json
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from orchestrator.errors import StorageError
from orchestrator.storage.base import Store

_SEGMENT_BYTES = 1 << 17
"""Size after which a new segment begins; an append uploads at most about that."""


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
        self._read()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the operations from a number on; Optuna never asks for earlier ones again."""
        self._logs = self._logs[log_number_from - self._first :]
        self._first = log_number_from
        return self._logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations; they are permanent when this returns."""
        if sum(map(len, self._lines)) > _SEGMENT_BYTES:
            self._number, self._seen, self._lines = self._number + 1, None, []
        lines = [*self._lines, *(json.dumps(log, separators=(",", ":")) for log in logs)]
        content = "\n".join(lines).encode()
        version = self._store.compare_and_swap(self._segment(self._number), content, self._seen)
        if version is None:
            raise StorageError(f"study: another process writes to {self._store.locate(self._name)}")
        self._seen, self._lines = version, lines
        self._logs = [*self._logs, *logs]

    def _read(self) -> None:
        for number, name in enumerate(self._store.list_files(f"{self._name}/")):
            file = self._store.read(name)
            if file is None or name != self._segment(number):
                raise StorageError(f"study: {self._store.locate(self._segment(number))} is missing")
            self._lines = file[0].decode().split("\n")
            self._number, self._seen = number, file[1]
            self._logs += map(json.loads, self._lines)

    def _segment(self, number: int) -> str:
        return f"{self._name}/{number:08d}.jsonl"
