"""What may be deleted of a storage: checkpoints that no job needs, and results that were set aside."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
from optuna.trial import TrialState

from orchestrator.errors import InputError, StorageError, one_line
from orchestrator.storage import lease, lookup
from orchestrator.storage.base import Store
from orchestrator.storage.names import CHECKPOINT, COMPLETE, SET_ASIDE_MARK
from orchestrator.storage.records import RecordedOutcome, read_record
from orchestrator.storage.study_database import open_study
from orchestrator.study.selection import ATTRIBUTES, best_trials, own_trials
from orchestrator.study.trial_report import trial_name

_TRIAL = re.compile(r"trial-\d+")
_DIRECTORY, _MISSING = pyarrow.fs.FileType.Directory, pyarrow.fs.FileType.NotFound


@dataclass(frozen=True, slots=True)
class Removable:
    """Files of one job that may be deleted together."""

    job: str
    what: str
    paths: tuple[str, ...]
    """Files and folders in the order of deletion, as the file system of the store names them."""
    bytes: int


class Cleaner:
    """Finds what may be deleted in a store, and deletes it. Methods raise StorageError when it fails."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files = store.filesystem or pyarrow.fs.LocalFileSystem()

    def checkpoints(self, name: str) -> Removable | None:
        """Return the checkpoints that a finished sweep does not need; None where there are none.

        They are those of all trials but the best ones. A comparison, also that of finals, needs all of its
        checkpoints: more seeds or splits may give another winner.

        Raises:
            InputError: a driver runs the job, or a record is damaged.
        """
        kept = self._kept_trials(name)
        return None if kept is None else self.checkpoints_but(name, kept)

    def checkpoints_but(self, name: str, kept: Collection[str]) -> Removable | None:
        """Return the checkpoints of all trials but some of a sweep; None where there are none."""
        entries = [
            entry
            for trial in self._entries(f"{self._store.path}/{name}/trials")
            if trial.type is _DIRECTORY and _TRIAL.fullmatch(trial.base_name) and trial.base_name not in kept
            for entry in self._entries(trial.path)
            if entry.base_name.startswith(CHECKPOINT)
        ]
        if not entries:
            return None
        # The file that marks a checkpoint as complete goes first.
        paths = sorted((entry.path for entry in entries), key=lambda path: not path.endswith(COMPLETE))
        size = sum(map(self._size, entries))
        return Removable(name, "checkpoints of all trials but the best", tuple(paths), size)

    def set_aside(self, name: str | None = None) -> list[Removable]:
        """Return the folders that ``--fresh`` set aside, of one job and its finals or of all jobs."""
        folders = []
        for entry in self._named_as_set_aside(name):
            if self._is_marked(entry.base_name):
                mark = f"{entry.path}/{SET_ASIDE_MARK}"
                inner = [each.path for each in self._entries(entry.path) if each.path != mark]
                what, size = "results that --fresh set aside", self._size(entry)
                # The mark, by which the folder is recognised, goes last.
                folders.append(Removable(entry.base_name, what, (*sorted(inner), entry.path), size))
        return folders

    def unmarked(self, name: str | None = None) -> list[str]:
        """Return the folders that `set_aside` leaves, because they may be a user's own copies."""
        names = [entry.base_name for entry in self._named_as_set_aside(name)]
        return [folder for folder in names if not self._is_marked(folder)]

    def remove(self, removable: Removable) -> None:
        """Delete files; those that are gone already do no harm."""
        with self._explained(removable.job):
            for path in removable.paths:
                kind = self._files.get_file_info(path).type
                if kind is _DIRECTORY:
                    self._files.delete_dir(path)
                elif kind is not _MISSING:
                    self._files.delete_file(path)

    def _kept_trials(self, name: str) -> set[str] | None:
        """Return the names of the trials whose checkpoints a finished sweep needs; None for another job."""
        job = lookup.recorded_job(self._store, name)
        outcome = read_record(self._store, f"{name}/outcome.json", RecordedOutcome)
        if job is None or job[0] != "sweep" or outcome is None:
            return None
        lease.check_driver(self._store, name, f"sweep {self._store.locate(name)}")
        driver = lease.read_driver_record(self._store, name)
        if driver is not None and lookup.driver_state(self._store, name, driver[0]) in lookup.DRIVEN:
            raise InputError(f"{self._store.locate(name)}: a driver runs it")
        resolved = job[1]
        with open_study(self._store, name, resolved) as study:
            trials = own_trials([] if study is None else study.read_trials(ATTRIBUTES))
            if any(trial.state == TrialState.RUNNING for trial in trials):
                return None
            best = best_trials(trials, *(each["mode"] for each in resolved["objective"]))
        kept = {trial_name(trial.number) for trial in best}
        # A study that lacks the trials of the outcome is not the one that the outcome was made from.
        return kept if kept >= _named_in(outcome) and kept else None

    def _named_as_set_aside(self, job: str | None) -> list[pyarrow.fs.FileInfo]:
        """Return the folders that are named as ``--fresh`` does, and in which no job was started."""
        found = []
        for entry in self._entries(self._store.path):
            match = lookup.SET_ASIDE.fullmatch(entry.base_name)
            if match is None or job not in (None, match["job"]) or entry.type is not _DIRECTORY:
                continue
            renaming = f".{entry.base_name.rpartition('.')[0]}.renaming"  # a bucket copies file by file
            if self._text(renaming) != entry.base_name and not self._was_driven(entry.base_name):
                found.append(entry)
        return found

    def _was_driven(self, name: str) -> bool:
        return lease.read_driver_record(self._store, name) is not None

    def _is_marked(self, name: str) -> bool:
        """Return whether ``--fresh`` made a folder of this name; a copy of such a folder has another name."""
        return self._text(f"{name}/{SET_ASIDE_MARK}") == name

    def _text(self, name: str) -> str | None:
        content = self._store.read(name)
        return None if content is None else content[0].decode(errors="replace")

    def _entries(self, path: str) -> list[pyarrow.fs.FileInfo]:
        """Return the entries of a folder; none if there is no such folder."""
        with self._explained(path):
            if self._files.get_file_info(path).type is not _DIRECTORY:
                return []
            return list(self._files.get_file_info(pyarrow.fs.FileSelector(path)))

    def _size(self, entry: pyarrow.fs.FileInfo) -> int:
        if entry.type is not _DIRECTORY:
            return int(entry.size or 0)
        with self._explained(entry.path):
            inner = self._files.get_file_info(pyarrow.fs.FileSelector(entry.path, recursive=True))
            return sum(int(each.size or 0) for each in inner)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"storage: {what}: {one_line(error, 200)}") from error


def _named_in(outcome: dict[str, Any]) -> set[str]:
    """Return the names of the best trials of an outcome."""
    best, pareto_set = outcome.get("best"), outcome.get("pareto_set") or []
    names = {each["trial"] for each in pareto_set if isinstance(each, dict) and "trial" in each}
    return names | ({trial_name(best["trial"])} if isinstance(best, dict) and "trial" in best else set())
