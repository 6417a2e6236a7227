"""The folder of a sweep or comparison: what was asked, the study, the checkpoints, the outcome."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.config import Job
from orchestrator.errors import InputError

_KINDS = ("sweep", "comparison")


class JobDirectory:
    """``<storage>/<name>``; running the same file again continues what lies there."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.path = job.directory
        self.trials = self.path / "trials"
        self.tune = self.path / "ray-tune"
        self.report = self.path / "report.html"
        self._record = self.path / f"{job.kind}.json"
        self._outcome = self.path / "outcome.json"

    def check(self, fresh: bool) -> None:
        """Refuse a folder that cannot be written or holds another job; writes nothing.

        Raises:
            InputError: what is wrong with the folder.
        """
        existing = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        if not existing.is_dir():
            raise InputError(f"storage: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"storage: {existing} cannot be written")
        if fresh:
            return
        instead = "change 'name' in the file, or start over with --fresh (which keeps the old folder)"
        for kind in _KINDS:
            if kind != self._job.kind and (self.path / f"{kind}.json").exists():
                raise InputError(f"{self.path} holds a {kind} of the same name; {instead}")
        before = self._before()
        changed = [] if before is None else self._job.differences(before)
        if changed:
            raise InputError(
                f"{self.path} holds a {self._job.kind} of the same name with other settings: "
                f"{'; '.join(changed)}; {instead}"
            )

    @contextmanager
    def open(self, fresh: bool) -> Iterator[str]:
        """Make the folder this driver's own until the block ends; gives the id of the job.

        Raises:
            InputError: another driver runs the job, or the folder cannot be written.
        """
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another process on this storage runs the {self._job.kind} {self.path}"
            ) from error
        except OSError as error:
            raise InputError(f"storage: {self.path.parent} cannot be written: {error.strerror}") from error
        try:
            if fresh and self.path.exists():
                self.path.rename(self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
            self.trials.mkdir(parents=True, exist_ok=True)
            known = self._read(self._record, "id")["id"] if self._record.exists() else uuid.uuid4().hex
            self._write(self._record, {"id": known, "resolved": self._job.record(self._before())})
            yield known
        finally:
            lock.release()

    def outcome(self, *keys: str) -> dict[str, Any] | None:
        """What the finished job ended with, at least ``keys``, or None while it is not finished."""
        return self._read(self._outcome, *keys) if self._outcome.exists() else None

    def finish(self, outcome: dict[str, Any]) -> None:
        """Record what the job ended with."""
        self._write(self._outcome, outcome)

    def _before(self) -> dict[str, Any] | None:
        """What an earlier driver recorded of the file."""
        if not self._record.exists():
            return None
        before: dict[str, Any] = self._read(self._record, "resolved")["resolved"]
        return before

    def _read(self, file: Path, *keys: str) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text())
            return {**content, **{key: content[key] for key in keys}}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file} is damaged; move it away, or start over with --fresh") from error

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True))
        temporary.replace(file)
