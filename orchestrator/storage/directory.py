"""The directory of a job: its resolved file, study, trial checkpoints and outcome."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.exceptions
import optuna
import pyarrow.fs
from optuna.trial import FrozenTrial
from pydantic import BaseModel
from sqlalchemy import event

from orchestrator.config.job import Job
from orchestrator.errors import InputError, StorageError, UnreachableError
from orchestrator.interrupt import Interrupt
from orchestrator.storage import s3
from orchestrator.storage.base import Store
from orchestrator.storage.lease import Lease, check_driver
from orchestrator.storage.local import LocalStore
from orchestrator.storage.names import SET_ASIDE_MARK
from orchestrator.storage.records import (
    JOB,
    RECORDED,
    DamagedError,
    JobRecord,
    is_valid,
    read_job_record,
    read_record,
    write_record,
)
from orchestrator.storage.study_database import (
    check_database,
    open_study,
    rename_study,
    study_storage,
)
from orchestrator.storage.study_mirror import StudyMirror

if TYPE_CHECKING:
    import ray.train

OutcomeModel = TypeVar("OutcomeModel", bound=BaseModel)


class JobDirectory:
    """``<storage>/<name>``. Rerunning the command resumes the job in it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.store: Store = open_store(job.storage)
        self.path = Path()
        """Where this driver writes files before it publishes them, while the directory is open."""

        self.record: dict[str, Any] = {}
        """``id`` of the job and its ``resolved`` file, while the directory is open."""

        self._check_lease: Callable[[], None] = lambda: None
        self._is_set_aside = False

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
        for folder in (self._job.name, self._name("trials")):
            self.store.check_folder(folder)
        if self._job.study:
            check_database(self._job.study)
        if fresh or self._renaming() is not None:
            self._databases()
            return
        remedy = "change 'name' in the file, or start over with --fresh (which keeps the old folder)"
        for kind in RECORDED:
            if kind != self._job.kind and self.store.read(self._name(f"{kind}.json")) is not None:
                raise InputError(f"{self.uri} holds a {kind} of the same name; {remedy}")
        recorded = self.recorded()
        if recorded is None and (others := self._other_files()):
            raise InputError(
                f"{self.uri} has files, such as {others[0]}, but neither record nor study of a "
                f"{self._job.kind}; put these back, or {remedy}"
            )
        if recorded is not None and self._job.study:
            self._check_original(recorded["id"])
        changed = [] if recorded is None else self._job.differences(recorded["resolved"])
        if changed:
            raise InputError(
                f"{self.uri} holds a {self._job.kind} of the same name with other settings: "
                f"{'; '.join(changed)}; {remedy}"
            )

    def _other_files(self) -> list[str]:
        """Return the files that a driver writes only after its record, or that are not its own."""
        names = [name.removeprefix(self._name("")) for name in self.store.list_files(self._name(""))]
        own = ("study", "trials/", f"{self._job.kind}.json")
        # The web page of S3 marks a folder by an empty file whose name ends in a slash.
        return [name for name in names if not name.startswith(own) and name[-1:] not in ("", "/")]

    def _check_original(self, job_id: str) -> None:
        """Raise InputError if this job is a copy, and its study in a database is that of the original."""
        with open_study(self.store, self._job.name, {"study": self._job.study}) as study:
            record: Any = {} if study is None else study.user_attributes().get(JOB, {})
        original = record.get("storage", self.store.uri) if is_valid(record, JobRecord) else self.store.uri
        if _is_same_place(original, self.store.uri):
            return
        try:
            known = read_job_record(open_store(original), self._job.name, self._job.kind)
        except (InputError, StorageError):
            return  # it was moved
        if known is not None and known["id"] == job_id:
            raise InputError(
                f"study: {self._job.study} has the study of {self._job.name} in {original}, and {self.uri} "
                "is a copy of that job; change 'name' in the file, or delete the job in one of the two places"
            )

    def check_follow_up(self) -> None:
        """Check that no job but one that followed from a sweep has this name; raises InputError."""
        for kind in RECORDED:
            with contextlib.suppress(DamagedError):
                record = read_job_record(self.store, self._job.name, kind)
                if record is not None and "sweep" not in record["resolved"]:
                    raise InputError(
                        f"finals: their name is {self._job.name}, and {self.uri} holds a {kind} of that name;"
                        " change 'name' in the file"
                    )

    def check_driver(self) -> None:
        """Raise InputError if a driver is known to run the job; writes nothing."""
        check_driver(self.store, self._job.name, self._label)

    def check_study(self) -> None:
        """Raise InputError if the job has a study that a storage of another kind wrote."""
        if not self._job.study and (problem := self.store.foreign_study(self._job.name)):
            raise InputError(
                f"{self._label}: {problem}, or start over with --fresh (which keeps the old folder)"
            )

    def is_new(self) -> bool:
        """Return whether the job has no record yet."""
        return self._renaming() is not None or self.recorded() is None

    def read_neighbour(self, sweep: str) -> tuple[str, list[FrozenTrial], dict[str, Any]]:
        """Return the name of another sweep of this storage, its trials and recorded file; writes nothing.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        try:
            record = read_job_record(self.store, sweep, "sweep")
        except InputError as error:
            raise InputError(f"warm_start: {error}") from error
        if record is None:
            raise InputError(f"warm_start: there is no sweep {self.store.locate(sweep)}")
        try:
            with open_study(self.store, sweep, record["resolved"]) as study:
                if study is None:
                    raise InputError(f"warm_start: {self.store.locate(sweep)} has no study yet")
                return sweep, study.read_trials(None), record["resolved"]
        except StorageError as error:
            kind = UnreachableError if error.unreachable else InputError
            raise kind(f"warm_start: {error}") from error

    @contextmanager
    def open(self, fresh: bool, interrupt: Interrupt) -> Iterator[tuple[str, Lease]]:
        """Hold the lease of the job until the block ends; yields the id of the job and the lease.

        Raises:
            InputError: another driver runs the job, or the storage cannot be written.
        """
        with (
            Lease(self.store, self._job.name, self._label, interrupt, fresh) as lease,
            lease.explained_loss(),
        ):
            self.store.before_write = self._check_lease = lease.check
            self.store.is_interrupted = lambda: interrupt.requested
            self._set_aside(fresh and not self._is_set_aside)
            self._is_set_aside = True
            recorded = self.recorded()
            job_id = recorded["id"] if recorded is not None else uuid.uuid4().hex
            resolved = self._job.record(None if recorded is None else recorded["resolved"])
            with self.store.workspace(self._job.name) as self.path:
                self.record = {"id": job_id, "resolved": resolved}
                self._write(f"{self._job.kind}.json", self.record)
                self.record["storage"] = self.store.uri
                yield job_id, lease

    def _set_aside(self, fresh: bool) -> None:
        """Rename what an earlier job of this name left, or go on with that where a driver was ended."""
        other = self._renaming()
        if other is None and not fresh:
            return
        databases = self._databases()
        if other is None:
            other = f"{self._job.name}.{time.strftime('%Y%m%d-%H%M%S')}"
            self.store.write(self._renaming_name, other.encode())
        for database in databases:
            self._check_lease()
            rename_study(database, self._job.name, other)
        if self.store.list_files(self._name("")):
            self.store.write(self._name(SET_ASIDE_MARK), other.encode())
        self.store.rename(self._job.name, other)
        self.store.delete(self._renaming_name)

    def _databases(self) -> set[str]:
        """Return the databases that may hold the study of an earlier job of this folder."""
        databases = {self._job.study}
        with contextlib.suppress(DamagedError):
            record = read_job_record(self.store, self._job.name, self._job.kind)
            databases.add(record["resolved"].get("study", "") if record is not None else "")
        for database in databases - {""}:
            try:
                with open_study(self.store, self._job.name, {"study": database}) as study:
                    self._check_owner(database, {} if study is None else study.user_attributes().get(JOB, {}))
            except StorageError:
                if database == self._job.study:
                    raise
                databases.remove(database)  # the earlier one may be gone for good
        return databases - {""}

    def _check_owner(self, database: str, record: Any) -> None:
        """Raise InputError if a study in a database is that of a job in another storage."""
        storage = record["storage"] if is_valid(record, JobRecord) and "storage" in record else self.store.uri
        if database and storage != self.store.uri:
            raise InputError(
                f"study: {database} has a study {self._job.name} of the job in {storage}; change 'name' in "
                "the file, or name another database"
            )

    @property
    def _renaming_name(self) -> str:
        return f".{self._job.name}.renaming"

    def _renaming(self) -> str | None:
        """Return the name to which an earlier job of this name is being renamed."""
        file = self.store.read(self._renaming_name)
        return None if file is None else file[0].decode(errors="replace")

    def study_storage(self) -> optuna.storages.BaseStorage:
        """Open the study of the job for its driver; raises SweepError."""
        storage = study_storage(self.store, self._job.name, self._job.study)
        if not isinstance(storage, optuna.storages.RDBStorage):
            return storage
        # The journal in a bucket is protected by its versions; a database has to be.
        event.listen(storage.engine, "commit", lambda connection: self._check_lease())
        return StudyMirror(storage)

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

    def outcome(self, model: type[OutcomeModel]) -> OutcomeModel | None:
        """Return the outcome of the finished job, or None while it is not finished.

        Raises:
            DamagedError: the record is not valid.
        """
        record = read_record(self.store, self._name("outcome.json"), model)
        return None if record is None else model.model_validate(record)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Record the outcome of the job."""
        self._write("outcome.json", outcome)

    def recorded(self) -> dict[str, Any] | None:
        """Return the record of an earlier driver, or the copy in the study; raises InputError."""
        try:
            record = read_job_record(self.store, self._job.name, self._job.kind)
        except DamagedError:
            record = None
        return self._recorded_in_study() if record is None else record

    def _recorded_in_study(self) -> dict[str, Any] | None:
        """Return the copy of the record that the study has; None where no trial was started.

        Raises:
            InputError: a study of an earlier version has trials and no copy.
        """
        with open_study(self.store, self._job.name, {"study": self._job.study}) as study:
            if study is None:
                return None
            record: dict[str, Any] = study.user_attributes().get(JOB, {})
            self._check_owner(self._job.study, record)
            if is_valid(record, JobRecord) and is_valid(record["resolved"], RECORDED[self._job.kind]):
                return record
            if not study.read_trials(()):
                return None
        file = self.locate(f"{self._job.kind}.json")
        raise InputError(
            f"{file} is missing or damaged, and the study has trials but no copy of it; put a copy back, or "
            "start over with --fresh (which keeps the old folder)"
        )

    def _write(self, file: str, content: dict[str, Any]) -> None:
        self.store.write(self._name(file), write_record(content))

    def _name(self, file: str) -> str:
        return f"{self._job.name}/{file}"


def _is_same_place(storage: str, other: str) -> bool:
    """Return whether two addresses are those of one storage; links may lead to one folder."""
    if storage == other:
        return True
    try:
        return Path(storage).samefile(other)
    except OSError:  # one of them is a bucket, or gone
        return False


def open_store(storage: str) -> Store:
    """Return the store at a ``storage`` address; raises InputError when it cannot be opened."""
    if not storage.startswith("s3://"):
        return LocalStore(Path(storage))
    try:
        return s3.S3Store(storage)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise InputError(f"storage: {storage}: {s3.describe_error(error)}") from error
