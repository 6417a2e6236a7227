"""The directory of a job: its resolved file, study, trial checkpoints and outcome."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import optuna
import pyarrow.fs
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DatabaseError

from orchestrator.config.job import Job
from orchestrator.errors import InputError, newer_schema, one_line
from orchestrator.interrupt import Interrupt
from orchestrator.storage import s3
from orchestrator.storage.base import Store
from orchestrator.storage.lease import Lease, check_driver
from orchestrator.storage.local import LocalStore
from orchestrator.storage.study_database import database_problem, study_storage
from orchestrator.storage.study_mirror import StudyMirror

if TYPE_CHECKING:
    import ray.train

KINDS = ("sweep", "comparison")

SCHEMA = 2
"""Version of the records. Those of version 1 have no ``schema``; they have the same keys."""


class JobDirectory:
    """``<storage>/<name>``. Rerunning the command resumes the job in it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.store: Store = open_store(job.storage)
        self.path = Path()
        """Where this driver writes files before it publishes them, while the directory is open."""

    @property
    def uri(self) -> str:
        """The address under which a user finds it."""
        return self.store.locate(self._job.name)

    @property
    def _label(self) -> str:
        return f"{self._job.kind} {self.uri}"

    @property
    def root(self) -> str:
        """The path of the directory in `filesystem`."""
        return f"{self.store.path}/{self._job.name}"

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem | None:
        """The file system of the checkpoints; None for local paths."""
        return self.store.filesystem

    def check(self, fresh: bool) -> None:
        """Check that the storage can be written and holds no other job of this name; writes nothing.

        Raises:
            InputError: it cannot, or it does.
        """
        self.store.check()
        if fresh:
            return
        remedy = "change 'name' in the file, or start over with --fresh (which keeps the old folder)"
        for kind in KINDS:
            if kind != self._job.kind and self.store.read(self._name(f"{kind}.json")) is not None:
                raise InputError(f"{self.uri} holds a {kind} of the same name; {remedy}")
        recorded = self._recorded()
        changed = [] if recorded is None else self._job.differences(recorded["resolved"])
        if changed:
            raise InputError(
                f"{self.uri} holds a {self._job.kind} of the same name with other settings: "
                f"{'; '.join(changed)}; {remedy}"
            )

    def check_driver(self) -> None:
        """Raise InputError if a driver is known to run the job; writes nothing."""
        check_driver(self.store, self._job.name, self._label)

    def is_new(self) -> bool:
        """Return whether the job has no record yet."""
        return self._recorded() is None

    def open_neighbour(self, sweep: str) -> tuple[optuna.Study, dict[str, Any]]:
        """Return the study of another sweep of this storage, and its recorded file.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        record = read_record(self.store, f"{sweep}/sweep.json", "resolved")
        if record is None:
            raise InputError(f"warm_start: there is no sweep {self.store.locate(sweep)}")
        resolved = record["resolved"]
        try:
            storage = study_storage(self.store, sweep, resolved.get("study", ""))
            study = optuna.load_study(study_name=sweep, storage=storage)
            study.get_trials(deepcopy=False)  # most tables are read only now
        except KeyError as error:
            raise InputError(f"warm_start: {self.store.locate(sweep)} has no study yet") from error
        except (DatabaseError, StorageInternalError) as error:
            problem = database_problem(error)
            reason = one_line(error, 200) if problem is None else problem.message
            raise InputError(f"warm_start: {self.store.locate(sweep)} cannot be read: {reason}") from error
        return study, resolved

    @contextmanager
    def open(self, fresh: bool, interrupt: Interrupt) -> Iterator[tuple[str, Lease]]:
        """Hold the lease of the job until the block ends; yields the id of the job and the lease.

        Raises:
            InputError: another driver runs the job, or the storage cannot be written.
        """
        with Lease(self.store, self._job.name, self._label, interrupt, fresh) as lease:
            if fresh:
                self.store.rename(self._job.name, f"{self._job.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            recorded = self._recorded()
            job_id = recorded["id"] if recorded is not None else uuid.uuid4().hex
            resolved = self._job.record(None if recorded is None else recorded["resolved"])
            with self.store.workspace(self._job.name) as self.path:
                self._write(f"{self._job.kind}.json", {"id": job_id, "resolved": resolved})
                yield job_id, lease

    def study_storage(self) -> optuna.storages.BaseStorage:
        """Open the study of the job for its driver; raises SweepError."""
        storage = study_storage(self.store, self._job.name, self._job.study)
        return StudyMirror(storage) if isinstance(storage, optuna.storages.RDBStorage) else storage

    def holds_checkpoints(self) -> bool:
        """Return whether any trial has uploaded a checkpoint; raises StorageError."""
        return bool(self.store.list_files(self._name("trials/")))

    def checkpoint(self, relative: str) -> "ray.train.Checkpoint":
        """Return a checkpoint by its path in this directory."""
        import ray.train  # takes a second, which commands that only read a job do not need

        return ray.train.Checkpoint(f"{self.root}/{relative}", self.filesystem)

    def publish(self, *files: Path) -> None:
        """Copy files of ``path`` into the directory; raises StorageError."""
        for file in files:
            self.store.publish(file, self._name(str(file.relative_to(self.path))))

    def locate(self, file: str) -> str:
        """Return the address under which a user finds a file."""
        return self.store.locate(self._name(file))

    def outcome(self, *keys: str) -> dict[str, Any] | None:
        """Return the outcome of the finished job with at least ``keys``, or None while it is not finished."""
        return self._read("outcome.json", *keys)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Record the outcome of the job."""
        self._write("outcome.json", outcome)

    def _recorded(self) -> dict[str, Any] | None:
        """The resolved file that an earlier driver recorded."""
        return self._read(f"{self._job.kind}.json", "id", "resolved")

    def _read(self, file: str, *keys: str) -> dict[str, Any] | None:
        return read_record(self.store, self._name(file), *keys)

    def _write(self, file: str, content: dict[str, Any]) -> None:
        record = {"schema": SCHEMA, **content}
        self.store.write(self._name(file), json.dumps(record, indent=2).encode())

    def _name(self, file: str) -> str:
        return f"{self._job.name}/{file}"


def read_record(store: Store, name: str, *keys: str) -> dict[str, Any] | None:
    """Return a JSON record of a store with at least ``keys``, or None where there is none.

    Raises:
        InputError: it is damaged, or was written by a later version of this project.
    """
    file = store.read(name)
    if file is None:
        return None
    location = store.locate(name)
    try:
        content = json.loads(file[0])
        record = {**content, **{key: content[key] for key in keys}}
        schema = int(record.get("schema", 1))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{location} is damaged; move it away, or start over with --fresh") from error
    if schema > SCHEMA:
        raise InputError(newer_schema(location, schema, SCHEMA))
    return record


def open_store(storage: str) -> Store:
    """Return the store at a ``storage`` address; raises InputError when it cannot be opened."""
    if not storage.startswith("s3://"):
        return LocalStore(Path(storage))
    try:
        return s3.S3Store(storage)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise InputError(f"storage: {storage}: {s3.describe_error(error)}") from error
