"""What every store offers: named files, compare-and-swap, locks and the study of a job."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, Literal

import optuna
import pyarrow.fs

from orchestrator.storage.names import CHECKPOINT


class LockedError(Exception):
    """Another process holds the lock."""


class StudyStorage(optuna.storages.BaseStorage):
    """A storage of Optuna that can write several changes at once."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Keep changes back until the block ends, and make all of them permanent then, or none."""

    def on_trial_end(self) -> None:
        """Do what is done now and then to keep the study quick to read."""

    def read_anew(self, trial_id: int) -> bool:
        """Read a trial that another program has changed; return False where no other program can write."""
        return False


def transaction(storage: optuna.storages.BaseStorage) -> AbstractContextManager[None]:
    """Write the changes of a block at once where the storage can, else one by one."""
    return storage.transaction() if isinstance(storage, StudyStorage) else nullcontext()


class Store(ABC):
    """The files of all jobs of one storage, by names such as ``alignment/sweep.json``.

    A file has a version, which changes with its content. `compare_and_swap` lets several processes write the
    same file without losing a write: each names the version that it has read.
    """

    heartbeat_only: ClassVar[bool]
    """Whether a driver that died shows only by its missing heartbeat, because the store has no locks."""

    kind: ClassVar[Literal["folder", "bucket"]]
    """What it is called in messages."""

    study_prefix: ClassVar[str]
    """Beginning of the names of a study's files in the folder of its job."""

    path: str
    """The root, as its file system names it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.before_write: Callable[[], None] = lambda: None
        """Called before each attempt to write, delete or rename, where `heartbeat_only`. It raises what keeps
        this process from writing. `compare_and_swap` has its own condition."""

        self.is_interrupted: Callable[[], bool] = lambda: False
        """Whether this process has to end, so that it waits no longer for an answer."""

    @property
    @abstractmethod
    def filesystem(self) -> pyarrow.fs.FileSystem | None:
        """The file system through which Ray reads and writes checkpoints; None for local paths."""

    @abstractmethod
    def check(self) -> None:
        """Check that the store can be reached and written, without writing anything.

        Raises:
            InputError: it cannot.
        """

    def check_folder(self, name: str) -> None:  # noqa: B027 - a bucket has no folders
        """Check that the folder of a job can be made, or is one; raises InputError."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return the content of a file and its version, or None when there is no such file.

        Raises:
            StorageError: the store does not answer.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all.

        Raises:
            StorageError: the store does not take it.
        """

    @abstractmethod
    def compare_and_swap(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Write a file unless its version differs from ``seen`` (None: the file does not exist).

        Returns the new version, or None when another process wrote the file in the meantime.

        Raises:
            StorageError: the store does not take it.
        """

    @abstractmethod
    def list_files(self, prefix: str) -> list[str]:
        """Return the names of all files that begin with ``prefix``, sorted.

        Raises:
            StorageError: the store does not answer.
        """

    @abstractmethod
    def list_folders(self) -> list[str]:
        """Return the names of the folders at the top of the store, sorted.

        Raises:
            StorageError: the store does not answer.
        """

    def replaced(self) -> str:
        """Return what is wrong if another store has this address since a lock was taken; else ""."""
        return ""

    @abstractmethod
    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other drivers of a job out while the context lasts; a no-op where `heartbeat_only`.

        Raises:
            LockedError: another process holds the lock.
        """

    @abstractmethod
    def is_locked(self, name: str) -> bool | None:
        """Return whether a process holds the lock, or None where that is unknown."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, if it exists.

        Raises:
            StorageError: the store does not take it.
        """

    @abstractmethod
    def rename(self, name: str, other: str) -> None:
        """Rename the folder ``name`` with all its files to ``other``; called again, it goes on.

        Raises:
            StorageError: the store does not take it.
        """

    @abstractmethod
    def workspace(self, name: str) -> AbstractContextManager[Path]:
        """Provide a local folder for the files of a job, until they are published."""

    @abstractmethod
    def publish(self, file: Path, name: str) -> None:
        """Keep a file of the workspace under ``name``.

        Raises:
            StorageError: the store does not take it.
        """

    @abstractmethod
    def study_storage(self, job: str) -> optuna.storages.BaseStorage:
        """Open the study of a job for its driver.

        Raises:
            StorageError: the store does not answer.
        """

    @abstractmethod
    def study_file(self, job: str) -> Path | None:
        """Return the SQLite file of the study of a job; None where it is not one."""

    def foreign_study(self, job: str) -> str:
        """Return what is wrong if all that a job has is a study that a store of another kind wrote; else "".

        Raises:
            StorageError: the store does not answer.
        """
        files = self.list_files(f"{job}/study")
        if not files or any(file.startswith(f"{job}/{self.study_prefix}") for file in files):
            return ""
        other = "folder" if self.kind == "bucket" else "bucket"
        return f"its study was written in a {other} and cannot be read in a {self.kind}; move the job back"

    def emptied_study(self, job: str) -> str:
        """Return what is wrong with the study of a job if it holds no trial; "" for a new job.

        Raises:
            StorageError: the store does not answer.
        """
        if not any(f"/{CHECKPOINT}" in name for name in self.list_files(f"{job}/trials/")):
            return ""
        return (
            f"it holds no trial, but {self.locate(f'{job}/trials')} holds checkpoints from which new trials "
            "would resume; put the study back"
        )

    def locate(self, name: str) -> str:
        """Return the address under which a user finds a file."""
        return f"{self.uri}/{name}"
