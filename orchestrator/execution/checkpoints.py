"""The folder of one trial in the storage: its checkpoints, which Ray Train lists there, and what else it has.

A checkpoint is there whole, or it does not count.
"""

import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs
import ray.train
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from orchestrator.errors import StorageError, is_full

_LIST = "checkpoint_manager_snapshot.json"
"""File in which Ray Train lists the checkpoints of a trial; one that is not in it does not count."""

_CHECKPOINT = "checkpoint_2"
"""How the folders of checkpoints begin: Ray Train names them by the date."""

_UPLOADS = 5
"""How often a file of a checkpoint is sent before the attempt of its trial is given up."""

_PIECE = 1 << 26
"""Bytes of a file that are copied at once."""


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """What a trial keeps; every method but `forget_unregistered` raises OSError when the storage fails."""

    filesystem: pyarrow.fs.FileSystem
    path: str

    def upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Copy a local checkpoint into the folder ``name``, all of it, or raise; what Ray Train calls.

        Arrow's own copying, which Train would use, overlooks what fails as a file is closed; in a bucket that
        is where most of it is sent.

        Raises:
            ValueError: the storage is not the one that Train's controller writes to.
        """
        again = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, OSError) and not is_full(error)),
            stop=stop_after_attempt(_UPLOADS),
            wait=wait_random_exponential(min=0.5, max=10),
            reraise=True,
        )
        # Train made it, on the node of its controller: where it is missing, the storage is another one.
        if again(self.filesystem.get_file_info, self.path).type is pyarrow.fs.FileType.NotFound:
            raise ValueError(
                f"storage {self.path} is not there on {platform.node()}: all nodes have to share it"
            )
        for source in sorted(Path(checkpoint.path).rglob("*")):
            if source.is_file():
                part = source.relative_to(checkpoint.path).as_posix()
                again(self._copy, source, f"{self.path}/{name}/{part}")
        return ray.train.Checkpoint(f"{self.path}/{name}", self.filesystem)

    def _copy(self, source: Path, target: str) -> None:
        self.filesystem.create_dir(target.rpartition("/")[0])
        with source.open("rb") as file, self.filesystem.open_output_stream(target) as copy:
            shutil.copyfileobj(file, copy, _PIECE)

    def registered(self) -> str:
        """What Train recorded of the checkpoints; nothing while there is none."""
        return self.read(_LIST) if self.names(_LIST) else ""

    def forget_unregistered(self) -> None:
        """Delete checkpoints that were uploaded, in part or whole, by workers who died before Train knew.

        One that is newer than what Train knows may be in the making: by a worker who was told later than its
        trial that it is over.
        """
        try:
            known = re.findall(rf"{_CHECKPOINT}[\w.-]+", self.registered())
            for name in self.names(_CHECKPOINT):
                if name not in known and name < max(known, default=""):
                    self.filesystem.delete_dir(f"{self.path}/{name}")
        except OSError:
            return  # they do no harm, but take room

    def names(self, prefix: str) -> list[str]:
        """The files and folders that begin so."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        names = (entry.base_name for entry in self.filesystem.get_file_info(selector))
        return [each for each in names if each.startswith(prefix)]

    def read(self, name: str) -> str:
        """The text of a file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return str(file.read().decode(errors="replace"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)


@contextmanager
def storing() -> Iterator[None]:
    """Tell faults of the storage, as StorageError, from those of the trainable."""
    try:
        yield
    except OSError as error:
        message = " ".join(str(error).split())[:300]
        missing = isinstance(error, FileNotFoundError)
        raise StorageError(f"storage: {message}", is_full(error), missing) from error
