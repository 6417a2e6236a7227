"""The folder of one trial in the storage: its checkpoints, the list that Ray Train keeps of them, and stacks.

A checkpoint counts only if it was uploaded completely.
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

from orchestrator.errors import StorageError, is_full, one_line

_LIST = "checkpoint_manager_snapshot.json"
"""File in which Ray Train lists the checkpoints of a trial; others do not count."""

_CHECKPOINT = "checkpoint_2"
"""Prefix of the folders of checkpoints, which Ray Train names by the date."""

_MAX_UPLOADS = 5
"""How often the upload of one file is tried before the attempt of its trial fails."""

_CHUNK_BYTES = 1 << 26
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """The files of a trial. Every method but `delete_unregistered` raises OSError when the storage fails."""

    filesystem: pyarrow.fs.FileSystem
    path: str

    def upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Copy a local checkpoint completely into the folder ``name``; Ray Train's ``checkpoint_upload_fn``.

        Arrow's own copying, which Train would use, ignores errors when it closes a file. In a bucket most of
        a file is sent at that moment.

        Raises:
            ValueError: the storage is not the one that Train's controller writes to.
        """
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, OSError) and not is_full(error)),
            stop=stop_after_attempt(_MAX_UPLOADS),
            wait=wait_random_exponential(min=0.5, max=10),
            reraise=True,
        )
        # Train creates the folder on the controller's node; if it is missing here, this is another storage.
        if retrying(self.filesystem.get_file_info, self.path).type is pyarrow.fs.FileType.NotFound:
            raise ValueError(
                f"storage {self.path} does not exist on {platform.node()}; all nodes have to share it"
            )
        for source in sorted(Path(checkpoint.path).rglob("*")):
            if source.is_file():
                part = source.relative_to(checkpoint.path).as_posix()
                retrying(self._copy, source, f"{self.path}/{name}/{part}")
        return ray.train.Checkpoint(f"{self.path}/{name}", self.filesystem)

    def _copy(self, source: Path, target: str) -> None:
        self.filesystem.create_dir(target.rpartition("/")[0])
        with source.open("rb") as file, self.filesystem.open_output_stream(target) as copy:
            shutil.copyfileobj(file, copy, _CHUNK_BYTES)

    def registered(self) -> str:
        """Return the list that Train keeps of the checkpoints, as text; empty while there is none."""
        return self.read(_LIST) if self.list_names(_LIST) else ""

    def delete_unregistered(self) -> None:
        """Delete checkpoints of workers that died before Train listed them.

        A checkpoint newer than the listed ones stays: a worker that does not know yet that its attempt has
        ended may still be uploading it.
        """
        try:
            listed = re.findall(rf"{_CHECKPOINT}[\w.-]+", self.registered())
            for name in self.list_names(_CHECKPOINT):
                if name not in listed and name < max(listed, default=""):
                    self.filesystem.delete_dir(f"{self.path}/{name}")
        except OSError:
            return  # they are never read; they only take space

    def list_names(self, prefix: str) -> list[str]:
        """Return the names of the files and folders that begin with ``prefix``."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        names = (entry.base_name for entry in self.filesystem.get_file_info(selector))
        return [name for name in names if name.startswith(prefix)]

    def read(self, name: str) -> str:
        """Return the text of a file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return str(file.read().decode(errors="replace"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise a fault of the storage as StorageError, to tell it from faults of the trainable."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise StorageError(one_line(f"storage: {error}", 300), is_full(error), missing) from error
