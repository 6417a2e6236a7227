"""An Optuna study kept in a bucket: a journal of one writer, in objects that are replaced as a whole.

S3 cannot append. The journal is cut into segments; an append replaces the last one, on the condition that it
is still what this process wrote, so that a driver that lost its sweep to another cannot write into its study.
"""

import json
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from orchestrator.errors import StorageError
from orchestrator.storage.s3 import Bucket

_SEGMENT = 1 << 17
"""Bytes after which a new segment begins: what an append uploads is at most about that."""


class BucketJournal(BaseJournalBackend):
    """The journal of one study under ``name`` in a bucket, for one Optuna storage.

    The one writer knows what he wrote and reads nothing twice; a reader makes a new journal to see what is
    new. Raises StorageError, also when another process wrote to it.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._logs: list[dict[str, Any]] = []  # those that Optuna has not applied yet
        self._first = 0
        self._lines: list[str] = []  # of the last segment
        self._number = 0
        self._seen: str | None = None
        self._read()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The operations from a number on; what lies before it is not asked for again."""
        self._logs = self._logs[log_number_from - self._first :]
        self._first = log_number_from
        return self._logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations; they are there for good when this returns."""
        if sum(map(len, self._lines)) > _SEGMENT:
            self._number, self._seen, self._lines = self._number + 1, None, []
        lines = [*self._lines, *(json.dumps(log, separators=(",", ":")) for log in logs)]
        version = self._bucket.exchange(self._segment(self._number), "\n".join(lines).encode(), self._seen)
        if version is None:
            where = self._bucket.locate(self._name)
            raise StorageError(f"study: another process writes to {where}, so this one ends")
        self._seen, self._lines = version, lines
        self._logs = [*self._logs, *logs]

    def _read(self) -> None:
        for number, name in enumerate(self._bucket.names(f"{self._name}/")):
            found = self._bucket.read(name)
            if found is None or name != self._segment(number):
                raise StorageError(f"study: {self._bucket.locate(self._segment(number))} is missing")
            self._lines = found[0].decode().split("\n")
            self._number, self._seen = number, found[1]
            self._logs += map(json.loads, self._lines)

    def _segment(self, number: int) -> str:
        return f"{self._name}/{number:08d}.jsonl"
