"""The folder of one trial in the storage: its checkpoints, and the stacks of workers that hung.

A checkpoint counts once the file ``<checkpoint>.complete`` beside its folder exists, which is written last
and holds the checksums of its files, and no longer once ``<checkpoint>.damaged`` exists. Ray Train cannot
keep the checkpoints: a run of Ray Train trains many trials, and would keep the last checkpoint of only one.
"""

import contextlib
import json
import platform
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.fs
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from orchestrator.errors import InputError, StorageError, is_full, is_refused, one_line
from orchestrator.storage.names import CHECKPOINT, COMPLETE

if TYPE_CHECKING:
    import ray.train

_DAMAGED = ".damaged"

_LIST = "checkpoint_manager_snapshot.json"
"""File of sweeps of version 0.1.0: the list that Ray Train kept of the complete checkpoints."""

_HANG = "hung-"

_MAX_UPLOADS = 5
"""How often the upload of one file is tried before the attempt of its trial fails."""

_PROBE_BYTES = 1 << 20
"""Size of a file that shows whether the storage takes files."""

_CHUNK_BYTES = 1 << 26
"""Bytes that are copied at once."""


class DamagedError(Exception):
    """A file of a checkpoint is missing, or has changed."""


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """The files of a trial. A method raises OSError when the storage fails, unless it says otherwise."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    owner: str = ""
    """Mark of the job and the trial in the names of its checkpoints, ``JOB`` or ``JOB-VALUES``.

    A worker of a job that was started over may still write into the folder of the new job. After an older
    study was put back, another trial of the same number, with other values, has left checkpoints.
    """

    def create(self) -> None:
        """Create the folder."""
        self.filesystem.create_dir(self.path)

    def last_checkpoint(self) -> str | None:
        """Return the path of the last complete checkpoint, or None while there is none."""
        names = self._complete(self._names())
        return f"{self.path}/{names[-1]}" if names else None

    def hangs(self) -> list[str]:
        """Return the names of the files that workers of this trial which hung have left."""
        own = f"_{self.owner}.txt"
        hangs = [name for name in self._names() if name.startswith(_HANG)]
        return [name for name in hangs if name.endswith(own) or "_" not in name]  # version 0.1.0 has no mark

    def save(self, source: Path, epoch: int) -> str:
        """Upload the files of a local folder as the checkpoint of an epoch; return its path.

        Arrow's own copying ignores errors when it closes a file. In a bucket most of a file is sent at that
        moment.

        Raises:
            ValueError: the folder is gone, or the storage is not the one that the lane writes to.
        """
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(_MAX_UPLOADS),
            wait=wait_random_exponential(min=0.5, max=10),
            reraise=True,
        )
        if not retrying(self._exists, self.path):  # the lane has created it from its node
            raise ValueError(f"storage {self.path} {self._why_missing()}")
        # The worker of an attempt that has ended may still write the same epoch: no two write one folder.
        target = f"{self.path}/{CHECKPOINT}{epoch:06d}_{self.owner}_{uuid.uuid4().hex[:8]}"
        checksums = {}
        for file in sorted(file for file in source.rglob("*") if file.is_file()):
            name = file.relative_to(source).as_posix()
            retrying(self._copy, file, f"{target}/{name}")
            checksums[name] = _checksum(file)
        retrying(self.write, f"{target.rpartition('/')[2]}{COMPLETE}", json.dumps(checksums).encode())
        return target

    def delete(self, checkpoint: str) -> None:
        """Delete a checkpoint that a later one replaces; a fault of the storage leaves it."""
        with contextlib.suppress(OSError):  # it is never read again, and only takes space
            if self.filesystem.get_file_info(checkpoint + COMPLETE).type is pyarrow.fs.FileType.File:
                self.filesystem.delete_file(checkpoint + COMPLETE)
            self.filesystem.delete_dir(checkpoint)

    def delete_all_but(self, checkpoint: str) -> None:
        """Delete all other checkpoints, also those of workers that died; a fault leaves them.

        An incomplete checkpoint of the same or a later epoch stays: a worker that does not know yet that its
        attempt has ended may still be uploading it.
        """
        kept = checkpoint.rpartition("/")[2]
        with contextlib.suppress(OSError):
            names = self._names()
            complete = self._complete(names)
            for name in names:
                if name == kept or not name.startswith(CHECKPOINT) or name.endswith((COMPLETE, _DAMAGED)):
                    continue
                if name in complete or epoch_of(name) < epoch_of(kept):
                    self.delete(f"{self.path}/{name}")

    def set_aside(self, checkpoint: str) -> None:
        """Let a damaged checkpoint count no longer; its files stay."""
        self.write(f"{checkpoint.rpartition('/')[2]}{_DAMAGED}", b"")

    def can_be_written(self) -> bool:
        """Return whether the storage takes a file, beside the folder of this trial."""
        probe = f"{self.path.rpartition('/')[0]}/probe"  # one name, because it may not be deleted
        try:
            with self.filesystem.open_output_stream(probe) as file:
                file.write(bytes(_PROBE_BYTES))
        except OSError:
            return False
        with contextlib.suppress(OSError):
            self.filesystem.delete_file(probe)
        return True

    def record_hang(self, worker: str, stacks: bytes) -> None:
        """Keep the stacks of a worker that hung."""
        self.write(f"{_HANG}{worker}_{self.owner}.txt", stacks)

    def read(self, name: str) -> str:
        """Return the text of a file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return str(file.read().decode(errors="replace"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)

    def _exists(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(path).type is not pyarrow.fs.FileType.NotFound)

    def _why_missing(self) -> str:
        """Return why the folder does not exist on this node."""
        job = self.path.rsplit("/", 2)[0]
        if self._exists(job):
            return "is gone; was it moved or deleted while the job ran?"
        return f"does not exist on {platform.node()}; all nodes have to share it"

    def _copy(self, source: Path, target: str) -> None:
        self.filesystem.create_dir(target.rpartition("/")[0])
        with source.open("rb") as file, self.filesystem.open_output_stream(target) as copy:
            shutil.copyfileobj(file, copy, _CHUNK_BYTES)

    def _names(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return [str(entry.base_name) for entry in self.filesystem.get_file_info(selector)]

    def _complete(self, names: list[str]) -> list[str]:
        """Return the names of the complete checkpoints, the last one at the end."""
        job = self.owner.partition("-")[0]  # alone in the checkpoints of version 0.1.0
        marks = (f"_{self.owner}_", f"_{job}_")
        complete = {
            name for name in names if name + COMPLETE in names and any(mark in name for mark in marks)
        }
        if _LIST in names:
            complete |= set(re.findall(rf"{CHECKPOINT}[\w.-]+", self.read(_LIST))) & set(names)
        complete = {name for name in complete if name + _DAMAGED not in names}
        return sorted(complete, key=lambda name: (epoch_of(name), name))


def check_files(filesystem: pyarrow.fs.FileSystem, checkpoint: str, copy: Path) -> None:
    """Check a copy of a checkpoint against the checksums of the files that were saved.

    Files that scoring has added are not checked, and neither is a checkpoint of a version that kept no
    checksums.

    Args:
        filesystem: of the checkpoint.
        checkpoint: its path.
        copy: a local folder with its files.

    Raises:
        DamagedError: a file is missing, or has changed.
        OSError: the storage fails.
    """
    try:
        with filesystem.open_input_stream(checkpoint + COMPLETE) as marker:
            checksums = dict(json.loads(marker.read()))
    except FileNotFoundError as error:
        if epoch_of(checkpoint):  # else version 0.1.0 wrote it
            raise DamagedError("it was deleted") from error
        return
    except (ValueError, TypeError):
        return
    for name, checksum in checksums.items():
        file = copy / name
        if not file.is_file() or _checksum(file) != checksum:
            raise DamagedError(f"{name} {'has changed' if file.is_file() else 'is missing'}")


@contextmanager
def opened(checkpoint: "ray.train.Checkpoint") -> Iterator[Path]:
    """Provide a local folder with the files of a checkpoint, or a copy of them.

    Raises:
        InputError: the checkpoint is damaged.
        OSError: the storage fails.
    """
    with checkpoint.as_directory() as name:
        try:
            check_files(checkpoint.filesystem, checkpoint.path, Path(name))
        except DamagedError as error:
            raise InputError(
                f"storage: {checkpoint.path} is damaged ({error}); restore a copy, or start over with --fresh"
            ) from error
        yield Path(name)


def _checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def epoch_of(checkpoint: str | None) -> int:
    """Return the epoch of a checkpoint by its path; 0 for None, and for one of version 0.1.0."""
    match = re.search(rf"{CHECKPOINT}(\d+)_[^/]*$", checkpoint or "")
    return int(match[1]) if match else 0


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise a fault of the storage as StorageError, to tell it from faults of the trainable."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        message = one_line(f"storage: {error}", 300)
        raise StorageError(message, is_full(error), missing, refused=is_refused(error)) from error


def _may_pass(error: BaseException) -> bool:
    """Return whether a request that failed may succeed later."""
    return isinstance(error, OSError) and not is_full(error) and not is_refused(error)
