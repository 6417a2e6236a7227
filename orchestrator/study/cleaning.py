"""What may be deleted: checkpoints that nothing needs any more, and results that were set aside."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs

from orchestrator.errors import StorageError, one_line
from orchestrator.storage import lease, lookup
from orchestrator.storage.base import Store
from orchestrator.storage.records import RecordedOutcome, read_record
from orchestrator.storage.study_database import open_study
from orchestrator.study import attributes
from orchestrator.study.selection import best_trials, own_trials
from orchestrator.study.trial_report import trial_name

SET_ASIDE = re.compile(r"(?P<job>.+)\.\d{8}-\d{6}")
"""Name of a folder that ``--fresh`` set aside."""

_CHECKPOINT = "checkpoint_"


@dataclass(frozen=True, slots=True)
class Removable:
    """Files of one job that may be deleted together."""

    job: str
    what: str
    paths: tuple[str, ...]
    """Files and folders, as the file system of the store names them."""
    bytes: int


def find_removable(store: Store, name: str) -> list[Removable]:
    """Return what of a job may be deleted.

    Of a finished sweep these are the checkpoints of all trials but the best ones. A comparison, also that of
    finals, needs all of them: more seeds or splits may give another winner. Nothing of a job that runs or is
    not finished may be deleted.

    Raises:
        InputError: a record is damaged.
        StorageError: the storage does not answer.
    """
    kept = _kept_trials(store, name)
    if kept is None:
        return []
    paths = [
        entry
        for trial in _entries(store, f"{store.path}/{name}/trials")
        if trial.base_name not in kept
        for entry in _entries(store, trial.path)
        if entry.base_name.startswith(_CHECKPOINT)
    ]
    size = sum(_size(store, entry) for entry in paths)
    # The file that marks a checkpoint as complete goes first.
    ordered = sorted((entry.path for entry in paths), key=lambda path: not path.endswith(".complete"))
    what = "checkpoints of other trials than the best"
    return [Removable(name, what, tuple(ordered), size)] if paths else []


def find_set_aside(store: Store, name: str | None = None) -> list[Removable]:
    """Return the folders that ``--fresh`` set aside, of one job or of all; raises StorageError."""
    folders = []
    for entry in _entries(store, store.path):
        match = SET_ASIDE.fullmatch(entry.base_name)
        if (
            match is None
            or entry.type is not pyarrow.fs.FileType.Directory
            or name not in (None, match["job"])
        ):
            continue
        if lookup.recorded_job(store, entry.base_name) is not None:  # and not a folder of someone else
            size = _size(store, entry)
            folders.append(Removable(entry.base_name, "results that --fresh set aside", (entry.path,), size))
    return folders


def remove(store: Store, removable: Removable) -> None:
    """Delete files; raises StorageError."""
    files = _file_system(store)
    try:
        for path in removable.paths:
            if files.get_file_info(path).type is pyarrow.fs.FileType.Directory:
                files.delete_dir(path)
            else:
                files.delete_file(path)
    except OSError as error:
        raise StorageError(f"{store.locate(removable.job)}: {one_line(error, 200)}") from error


def _kept_trials(store: Store, name: str) -> set[str] | None:
    """Return the names of the trials whose checkpoints a finished sweep needs; None for another job."""
    job = lookup.recorded_job(store, name)
    outcome = read_record(store, f"{name}/outcome.json", RecordedOutcome)
    driver = lease.read_driver_record(store, name)
    runs = driver is not None and lookup.driver_state(store, name, driver[0]) in lookup.DRIVEN
    if job is None or job[0] != "sweep" or outcome is None or runs:
        return None
    resolved = job[1]
    with open_study(store, name, resolved) as study:
        if study is None:
            return None
        trials = study.read_trials((attributes.SOURCE, attributes.VIOLATED))
        if any(not trial.state.is_finished() for trial in trials):
            return None
        best = best_trials(own_trials(trials), *(each["mode"] for each in resolved["objective"]))
    return {trial_name(trial.number) for trial in best}


def _entries(store: Store, path: str) -> Iterator[pyarrow.fs.FileInfo]:
    yield from _file_system(store).get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))


def _size(store: Store, entry: pyarrow.fs.FileInfo) -> int:
    if entry.type is not pyarrow.fs.FileType.Directory:
        return int(entry.size or 0)
    selector = pyarrow.fs.FileSelector(entry.path, recursive=True)
    return sum(int(inner.size or 0) for inner in _file_system(store).get_file_info(selector))


def _file_system(store: Store) -> pyarrow.fs.FileSystem:
    return store.filesystem or pyarrow.fs.LocalFileSystem()
