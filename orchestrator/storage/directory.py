"""What is kept of a sweep or comparison: what was asked, the study, the checkpoints, the outcome."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pyarrow.fs
from sqlalchemy.exc import DatabaseError

from orchestrator.config.sweep import Job
from orchestrator.errors import InputError
from orchestrator.storage.lease import Lease
from orchestrator.storage.s3 import Bucket, Store, open_store
from orchestrator.storage.s3_journal import BucketJournal

if TYPE_CHECKING:
    import ray.train

KINDS = ("sweep", "comparison")


class JobDirectory:
    """``<storage>/<name>``; running the same file again continues what lies there."""

    def __init__(self, job: Job, say: Callable[[str], None] = lambda line: None) -> None:
        self._job, self._say = job, say
        self.store: Store = open_store(job.storage, say)
        self.path = Path()
        """Where this driver writes files before it publishes them, while the directory is open."""

    @property
    def place(self) -> str:
        """Where a user finds it."""
        return self.store.locate(self._job.name)

    @property
    def root(self) -> str:
        """Where its file system finds it."""
        return f"{self.store.path}/{self._job.name}"

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem | None:
        """The file system of the checkpoints; None for local paths."""
        return self.store.filesystem

    def check(self, fresh: bool) -> None:
        """Refuse a storage that cannot be written or holds another job there; writes nothing.

        Raises:
            InputError: what is wrong with it.
        """
        self.store.check()
        if fresh:
            return
        instead = "change 'name' in the file, or start over with --fresh (which keeps the old folder)"
        for kind in KINDS:
            if kind != self._job.kind and self.store.read(self._name(f"{kind}.json")) is not None:
                raise InputError(f"{self.place} holds a {kind} of the same name; {instead}")
        before = self._before()
        changed = [] if before is None else self._job.differences(before["resolved"])
        if changed:
            raise InputError(
                f"{self.place} holds a {self._job.kind} of the same name with other settings: "
                f"{'; '.join(changed)}; {instead}"
            )

    def is_new(self) -> bool:
        """Whether nothing of the job is there yet."""
        return self._before() is None

    def neighbour(self, sweep: str) -> tuple[optuna.Study, dict[str, Any]]:
        """The study of another sweep of this storage, and what was recorded of its file; InputError."""
        resolved = read_record(self.store, f"{sweep}/sweep.json", "resolved")
        if resolved is None:
            raise InputError(f"warm_start: there is no sweep {self.store.locate(sweep)}")
        resolved = resolved["resolved"]
        try:
            stored = study_storage(self.store, sweep, resolved.get("study", ""))
            return optuna.load_study(study_name=sweep, storage=stored), resolved
        except KeyError as error:
            raise InputError(f"warm_start: {self.store.locate(sweep)} has no study yet") from error
        except DatabaseError as error:
            raise InputError(
                f"warm_start: {self.store.locate(sweep)} cannot be read: {error.orig}"
            ) from error

    @contextmanager
    def open(self, fresh: bool) -> Iterator[tuple[str, Lease]]:
        """Make the directory this driver's own until the block ends; gives the id of the job, and the lease.

        Raises:
            InputError: another driver runs the job, or the storage cannot be written.
        """
        what = f"{self._job.kind} {self.place}"
        with Lease(self.store, self._job.name, what, self._say, fresh) as lease:
            if fresh:
                self.store.move(self._job.name, f"{self._job.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            before = self._before()
            known = before["id"] if before is not None else uuid.uuid4().hex
            asked = self._job.record(None if before is None else before["resolved"])
            with self.store.workspace(self._job.name) as self.path:
                self._write(f"{self._job.kind}.json", {"id": known, "resolved": asked})
                yield known, lease

    def study_storage(self) -> optuna.storages.BaseStorage:
        """Where Optuna keeps the study of the job; raises SweepError."""
        return study_storage(self.store, self._job.name, self._job.study)

    def holds_checkpoints(self) -> bool:
        """Whether any trial has begun to keep some; raises StorageError."""
        if isinstance(self.store, Bucket):
            return bool(self.store.names(self._name("trials/")))
        return any(Path(self.root, "trials").glob("*"))

    def checkpoint(self, relative: str) -> "ray.train.Checkpoint":
        """A checkpoint by its path in this directory."""
        import ray.train  # a second, which those who only look at a job do without

        return ray.train.Checkpoint(f"{self.root}/{relative}", self.filesystem)

    def publish(self, *files: Path) -> None:
        """Keep files of ``path``, which stand in folders of it or on top; raises StorageError."""
        for file in files:
            self.store.publish(file, self._name(str(file.relative_to(self.path))))

    def locate(self, file: str) -> str:
        """Where a user finds a file."""
        return self.store.locate(self._name(file))

    def outcome(self, *keys: str) -> dict[str, Any] | None:
        """What the finished job ended with, at least ``keys``, or None while it is not finished."""
        return self._read("outcome.json", *keys)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Record what the job ended with."""
        self._write("outcome.json", outcome)

    def _before(self) -> dict[str, Any] | None:
        """What an earlier driver recorded of the file."""
        return self._read(f"{self._job.kind}.json", "id", "resolved")

    def _read(self, file: str, *keys: str) -> dict[str, Any] | None:
        return read_record(self.store, self._name(file), *keys)

    def _write(self, file: str, content: dict[str, Any]) -> None:
        self.store.write(self._name(file), json.dumps(content, indent=2, sort_keys=True).encode())

    def _name(self, file: str) -> str:
        return f"{self._job.name}/{file}"


def read_record(store: Store, name: str, *keys: str) -> dict[str, Any] | None:
    """A JSON record of a store with at least ``keys``, or None; InputError says that it is damaged."""
    found = store.read(name)
    if found is None:
        return None
    try:
        content = json.loads(found[0])
        return {**content, **{key: content[key] for key in keys}}
    except (ValueError, TypeError, KeyError) as error:
        where = store.locate(name)
        raise InputError(f"{where} is damaged; move it away, or start over with --fresh") from error


def study_storage(store: Store, job: str, database: str = "") -> optuna.storages.BaseStorage:
    """Where Optuna keeps the study of a job: beside its other files, or in a ``database``."""
    if database:
        return optuna.storages.RDBStorage(database, engine_kwargs={"pool_pre_ping": True})
    if isinstance(store, Bucket):
        return optuna.storages.JournalStorage(BucketJournal(store, f"{job}/study"))
    return optuna.storages.RDBStorage(f"sqlite:///{store.path}/{job}/study.db")
