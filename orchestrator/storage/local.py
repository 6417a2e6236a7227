"""A store in a local folder, or in one that several hosts share."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
from filelock import FileLock, Timeout

from orchestrator.config.sections import sqlite_address
from orchestrator.errors import InputError, StorageError, is_full
from orchestrator.storage.base import LockedError, Store

_LOCK_FILE = re.compile(r"\..*\.(lock|swap)")
"""Files that carry the locks of `LocalStore.lock` and `LocalStore.compare_and_swap`."""


_LOCKED_SECONDS = 20
"""Time for which another program, such as a backup, may lock the study; meanwhile Ctrl-C waits, too."""


def _identity(folder: Path) -> tuple[int, int]:
    """Return device and inode of a folder; raises OSError."""
    found = folder.stat()
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise InputError for a folder that this user may not look into."""
    try:
        yield
    except OSError as error:
        raise InputError(f"storage: {error.filename}: {error.strerror}") from error


class LocalStore(Store):
    """A folder; a version is the hash of the content."""

    heartbeat_only = False
    kind = "folder"
    study_prefix = "study.db"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder
        self._identity: tuple[int, int] | None = None
        """What tells the folder from another one of its name, since a lock was taken."""

        self.path = str(folder)

    @property
    def filesystem(self) -> None:
        """None: Ray opens local paths without one."""

    def check(self) -> None:
        """Check that the folder, or the closest one above it that exists, can be written."""
        with _refusals():
            existing = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        if not existing.is_dir():
            raise InputError(f"storage: {existing} is a file, not a folder")
        try:
            with tempfile.TemporaryFile(dir=existing):  # it has no name, so nothing remains
                pass
        except OSError as error:
            raise InputError(f"storage: {existing} cannot be written: {error.strerror}") from None

    def check_folder(self, name: str) -> None:
        """Check that nothing but a folder has the name: no file, and no link that leads nowhere."""
        folder = self._folder / name
        with _refusals():
            if folder.is_symlink() and not folder.exists():
                raise InputError(f"storage: {folder} is a link to {folder.readlink()}, which does not exist")
            if folder.exists() and not folder.is_dir():
                raise InputError(f"storage: {folder} is a file, not a folder")

    def _check_identity(self) -> None:
        if problem := self.replaced():
            raise StorageError(problem, missing=True)

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Read a file."""
        try:
            self._check_kind(self._folder / name)
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error) from error
        return content, _version(content)

    def write(self, name: str, content: bytes) -> None:
        """Write to a temporary file, flush it to the disk, and rename it."""
        self._check_identity()
        file = self._folder / name
        temporary = file.with_name(f"{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError as error:
            raise self._error(error) from error

    def compare_and_swap(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Compare and write under a lock of the operating system."""
        file = self._folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name(f".{file.name.lstrip('.')}.swap")):
                current = self.read(name)
                if (None if current is None else current[1]) != seen:
                    return None
                self.write(name, content)
        except OSError as error:
            raise self._error(error) from error
        return _version(content)

    def list_files(self, prefix: str) -> list[str]:
        """Walk the folder that holds all files with this prefix."""
        folder, _, start = prefix.rpartition("/")
        root = self._folder / folder
        try:
            if root.exists() and not root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
            names = [
                file.relative_to(self._folder).as_posix()
                for top in (root.iterdir() if root.is_dir() else ())
                if top.name.startswith(start)
                for file in (top.rglob("*") if top.is_dir() else (top,))
                if file.is_file() and not _LOCK_FILE.fullmatch(file.name)
            ]
        except OSError as error:
            raise self._error(error) from error
        return sorted(names)

    def list_folders(self) -> list[str]:
        """List the folders and the links to folders."""
        try:
            entries = list(self._folder.iterdir()) if self._folder.exists() else []
        except OSError as error:
            raise self._error(error) from error
        return sorted(entry.name for entry in entries if entry.is_dir())

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock of the operating system, which ends with its process."""
        # A command that only looks at a job shares its lock for a moment; a driver keeps it.
        lock = FileLock(self._folder / f".{name}.lock", timeout=1)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            self._identity = _identity(self._folder)
        except Timeout as error:
            raise LockedError from error
        except OSError as error:
            file = error.filename or self._folder
            raise InputError(f"storage: {file} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def replaced(self) -> str:
        """Compare the folder with the one in which the lock was taken."""
        with contextlib.suppress(OSError):  # there is no folder, which the next write tells
            if self._identity not in (None, _identity(self._folder)):
                return f"storage: {self._folder} is another folder than at the start"
        return ""

    def is_locked(self, name: str) -> bool | None:
        """Try to share the lock, which needs no permission to write."""
        try:
            with open(self._folder / f".{name}.lock", "rb", opener=_open_at_once) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return None

    def delete(self, name: str) -> None:
        """Remove the file."""
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._error(error) from error

    def rename(self, name: str, other: str) -> None:
        """Rename the folder."""
        try:
            (self._folder / name).rename(self._folder / other)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error) from error

    @contextlib.contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """Provide the folder of the job itself."""
        folder = self._folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from error
        yield folder

    def publish(self, file: Path, name: str) -> None:
        """Do nothing: the workspace is the folder of the job."""

    def study_storage(self, job: str) -> optuna.storages.BaseStorage:
        """Open the SQLite database in the folder of the job."""
        options = {"connect_args": {"timeout": _LOCKED_SECONDS}}
        file = self.study_file(job)
        if not file.exists():
            file.touch()  # SQLite would not let a group write, whatever the umask
        return optuna.storages.RDBStorage(sqlite_address(file), engine_kwargs=options)

    def study_file(self, job: str) -> Path:
        """Return the database in the folder of the job; raises StorageError where it is no file."""
        file = self._folder / job / "study.db"
        try:
            self._check_kind(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._error(error) from error
        return file

    def _check_kind(self, file: Path) -> None:
        """Raise StorageError for a folder, and for a pipe or device, which could be read for ever."""
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise StorageError(f"storage: {file} is a folder, where a file is expected; move the folder away")
        if not stat.S_ISREG(mode):
            raise StorageError(f"storage: {file} is not a regular file")

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"storage: {error.filename or self.uri}: {error.strerror}", full=is_full(error))


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, as the other end of a pipe may never come."""
    return os.open(path, flags | os.O_NONBLOCK)


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
