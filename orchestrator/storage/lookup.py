"""Read access to jobs from processes other than their drivers."""

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from orchestrator.config.document import Document, Override
from orchestrator.config.finals import CROSSED, FINALS
from orchestrator.config.job import Job
from orchestrator.config.sections import JOB_NAME, storage_address
from orchestrator.errors import Fault, FieldError, InputError, StorageError, nearest, quote
from orchestrator.storage import lease
from orchestrator.storage.base import Store
from orchestrator.storage.directory import open_store
from orchestrator.storage.lease import DriverRecord
from orchestrator.storage.records import RECORDED, read_job_record

SILENT_SECONDS = 30.0
"""Time without a heartbeat after which a driver may be dead."""

SET_ASIDE = re.compile(rf"(?P<job>.+?)(?:{re.escape(FINALS)}|{re.escape(CROSSED)})?\.\d{{8}}-\d{{6}}")
"""Name of a folder that ``--fresh`` set aside."""

DriverState = Literal["running", "stalled", "stopped", "died", "silent"]
"""``stopped``: it recorded its end; ``died``: it ended without recording that; ``stalled``: it holds its lock
and sends no heartbeat; ``silent``: it sends none, and there is no lock."""

DRIVEN: tuple[DriverState, ...] = ("running", "stalled", "silent")
"""States of a driver that runs, or may run."""


def find_job(
    sweep: str, storage: str | None = None, settings: Sequence[str] = (), *, or_driver: bool = False
) -> tuple[Store, str]:
    """Return the store of a job and its name.

    Args:
        sweep: the file of the job, its folder or address, or its name.
        storage: address of the storage, if ``sweep`` does not contain it.
        settings: overrides of the file, ``path=value``. Only its name and storage are read.
        or_driver: accept a job without a record that a driver runs.

    Raises:
        InputError: there is no such job.
        StorageError: the storage does not answer.
    """
    overrides, remedy = [Override.parse(text) for text in settings], ""
    if sweep.endswith((".yaml", ".yml")) or _is_file(sweep):
        if storage is not None:
            overrides.append(Override("storage", storage, f"--storage {storage}"))
        parent, name = job_of_file(sweep, overrides)
    elif overrides:
        raise InputError(f"{overrides[0].origin}: goes with the file of a job, which {quote(sweep)} is not")
    elif "/" in sweep or sweep in (".", ".."):
        parent, _, name = _address(sweep).rpartition("/")
        if parent == "s3:/":
            raise InputError(f"{sweep} is a whole bucket; write s3://bucket/prefix/NAME")
        if storage is not None and _address(storage) != parent:
            raise InputError(f"--storage {storage}: {quote(sweep)} already says where it is kept")
    else:
        parent, name = find_storage(storage).uri, sweep
        remedy = "; name another storage with --storage" if storage is None else ""
    store = open_store(parent or "/")
    if not name or recorded_job(store, name) is None:
        driver = lease.read_driver_record(store, name) if name and or_driver else None
        if driver is None or driver_state(store, name, driver[0]) not in DRIVEN:
            raise InputError(f"{no_such_job(store, name)}{remedy or _storage_hint(store, name)}")
    return store, name


def _storage_hint(store: Store, name: str) -> str:
    """Return a hint if a name is that of a folder that holds jobs itself."""
    with suppress(InputError, StorageError):
        if name and (jobs := job_names(open_store(store.locate(name)))):
            uri = store.locate(name)
            return (
                f"; it is the storage of {', '.join(jobs[:3])}; add the name of one, or write --storage {uri}"
            )
    return ""


def find_storage(storage: str | None) -> Store:
    """Return the store at an address, by default that of files without a ``storage``; raises InputError."""
    return open_store(_address(Job.model_fields["storage"].default if storage is None else storage))


def no_such_job(store: Store, name: str) -> InputError:
    """Return the error for a job that does not exist, with the nearest one that does."""
    jobs = job_names(store)
    if name in jobs and not store.list_files(f"{name}/"):
        return InputError(f"the folder of {store.locate(name)} is missing")
    if name in jobs:
        driver = lease.read_driver_record(store, name)
        driven = driver is not None and driver_state(store, name, driver[0]) in DRIVEN
        stop = f"stop its driver with python -m orchestrator.stop {store.locate(name)}, and then " * driven
        return InputError(
            f"{store.locate(name)} holds no record of a sweep or comparison; {stop}rerun the command that "
            "started it, which restores the record from the study"
        )
    return InputError(f"there is no sweep {store.locate(name)}{nearest(name, jobs)}")


def job_names(store: Store) -> list[str]:
    """Return the names of the jobs of a store, but of those that ``--fresh`` set aside; raises StorageError.

    A job has the record of a driver, a folder, or both: a copied folder may lack the hidden file beside it.
    """
    before, after = lease.record_name("*").split("*")
    driven = {
        file[len(before) : -len(after)]
        for file in store.list_files(before)
        if file.endswith(after) and "/" not in file
    }
    folders = {
        name
        for name in store.list_folders()
        if re.fullmatch(JOB_NAME, name) and not SET_ASIDE.fullmatch(name) and _is_job(store, name)
    }
    return sorted(driven | folders)


def _is_job(store: Store, name: str) -> bool:
    """Return whether a folder has the record of a job; not that of another user who does not let one look."""
    try:
        return any(store.read(f"{name}/{kind}.json") is not None for kind in RECORDED)
    except StorageError:
        return False


def recorded_job(store: Store, name: str) -> tuple[str, dict[str, Any]] | None:
    """Return the kind of a job and its recorded file, or None; raises InputError or StorageError."""
    for kind in RECORDED:
        record = read_job_record(store, name, kind)
        if record is not None:
            return kind, record["resolved"]
    return None


def driver_state(store: Store, name: str, driver: DriverRecord) -> DriverState:
    """Return the state of the driver of a job, from its record; raises StorageError."""
    if driver.ended:
        return "stopped"
    if driver.is_gone():
        return "died"
    locked = store.is_locked(name)
    if locked is False and not driver.is_alive():  # the file of the lock may have been deleted
        return "died"
    if -lease.HEARTBEAT_SECONDS < time.time() - driver.renewed < SILENT_SECONDS:
        return "running"
    # The clocks of two machines may differ: what counts is whether the record still changes.
    deadline = time.monotonic() + lease.HEARTBEAT_SECONDS + 2
    while time.monotonic() < deadline:
        time.sleep(0.5)
        current = lease.read_driver_record(store, name)
        if current is None or current[0] != driver:
            return "running"
    return "stalled" if locked else "silent"


def job_of_file(file: str, overrides: Sequence[Override]) -> tuple[str, str]:
    """Return the storage and the name that the file of a job gives; raises InputError."""
    document = Document.read(Path(file))
    for override in overrides:
        document.set(override)
    tree = document.tree
    document.tree = {key: tree[key] for key in ("name", "storage") if key in tree}
    try:
        document.fill(os.environ)
        name = document.tree.get("name")
        if not isinstance(name, str) or not re.fullmatch(JOB_NAME, name):
            reason = (
                f"{quote(name)} is not a valid name of a job" if "name" in tree else "missing; name the job"
            )
            raise FieldError(Fault(("name",), reason))
        try:
            address = document.tree.get("storage", Job.model_fields["storage"].default)
            return storage_address(address, "sweep"), name
        except ValueError as error:
            raise FieldError(Fault(("storage",), str(error))) from error
    except FieldError as error:
        raise InputError(document.located(error.fault)) from error


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # such as of a name that is too long
        return False


def _address(storage: str) -> str:
    try:
        return storage_address(storage, "sweep")
    except ValueError as error:
        raise InputError(f"storage: {error}") from error
