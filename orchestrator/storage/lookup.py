"""Jobs that are there, as others than their drivers see them: found, looked at, and left as they are."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial
from sqlalchemy.exc import DBAPIError, OperationalError

from orchestrator.config.document import Document, Override
from orchestrator.config.sections import NAME
from orchestrator.config.sweep import Job
from orchestrator.errors import Fault, FieldError, InputError, StorageError, nearest, show
from orchestrator.storage import lease
from orchestrator.storage import s3 as storage
from orchestrator.storage.directory import KINDS, read_record, study_storage
from orchestrator.storage.lease import Holder
from orchestrator.storage.s3 import Bucket, Store

SILENT = 30.0
"""Seconds without a sign of life after which a driver may be dead."""

Condition = Literal["running", "stopped", "died", "silent"]
"""Of a driver: stopped as it said itself, died without a word, or silent where nobody can know."""


def find(sweep: str, place: str | None = None, settings: Sequence[str] = ()) -> tuple[Store, str]:
    """The store of a job and its name, from what the user calls it; raises InputError or StorageError.

    That is the file of the job (with ``settings`` laid over it), its folder or address, or its name in the
    storage ``place``. Of a file nothing is read but name and storage.
    """
    given = [Override.parse(text) for text in settings]
    if sweep.endswith((".yaml", ".yml")) or Path(sweep).is_file():
        if place is not None:
            given.append(Override("storage", place, f"--storage {place}"))
        above, name = of_file(sweep, given)
    elif given:
        raise InputError(f"{given[0].origin}: goes with the file of a job, and {show(sweep)} is none")
    elif "/" in sweep or sweep in (".", ".."):
        above, _, name = _normal(sweep).rpartition("/")
        if above == "s3:/":
            raise InputError(f"{sweep} is a whole bucket; write s3://bucket/prefix/NAME")
        if place is not None and _normal(place) != above:
            raise InputError(f"--storage {place}: {show(sweep)} says already where it is kept")
    else:
        above, name = _normal(Job.model_fields["storage"].default if place is None else place), sweep
    store = storage.open_store(above or "/")
    if not name or record(store, name) is None:
        raise missing(store, name)
    return store, name


def missing(store: Store, name: str) -> InputError:
    """What to raise where there is no such job."""
    before, after = lease.record_name("*").split("*")
    if isinstance(store, Bucket):
        files = store.names(before)
    else:
        files = [file.name for file in Path(store.path).glob(lease.record_name("*"))]
    known = [file[len(before) : -len(after)] for file in files if file.endswith(after)]
    return InputError(f"there is no sweep {store.locate(name)}{nearest(name, known)}")


def record(store: Store, name: str) -> tuple[str, dict[str, Any]] | None:
    """The kind of a job and what was recorded of its file; raises InputError or StorageError."""
    for kind in KINDS:
        found = read_record(store, f"{name}/{kind}.json", "resolved")
        if found is not None:
            resolved = found["resolved"]
            needed = {"budget", "objective"} if kind == "sweep" else set()
            if not isinstance(resolved, dict) or needed - resolved.keys():
                raise InputError(f"{store.locate(name)}/{kind}.json is damaged; start over with --fresh")
            return kind, resolved
    return None


def condition(store: Store, name: str, driver: Holder) -> Condition:
    """How the driver of a job is, by its record; raises StorageError."""
    if driver.ended:
        return "stopped"
    if driver.is_gone():
        return "died"
    held = store.is_held(name)
    if held is not None:
        return "running" if held else "died"
    if -lease.BEAT < time.time() - driver.renewed < SILENT:
        return "running"
    # Clocks of two machines may differ: what tells is whether the record still changes.
    until = time.monotonic() + lease.BEAT + 2
    while time.monotonic() < until:
        time.sleep(0.5)
        found = lease.holder(store, name)
        if found is None or found[0] != driver:
            return "running"
    return "silent"


def trials(store: Store, name: str, resolved: dict[str, Any]) -> list[FrozenTrial]:
    """All trials of a job's study, none where its driver has not come that far; raises StorageError."""
    study, database = resolved.get("name", name), resolved.get("study", "")
    if isinstance(store, Bucket) and not database:
        return _of_study(study_storage(store, name), study)
    file = Path(store.path) / name / "study.db"
    if not database and not file.exists():
        return []
    try:
        if database:
            return _of_database(database, study)
        try:
            return _of_database(f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true", study)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
                raise
        # A driver died while it wrote. What it left half done is undone in a copy, and here by the next one.
        with tempfile.TemporaryDirectory() as folder:
            for each in file.parent.glob(f"{file.name}*"):
                shutil.copy(each, folder)
            return _of_database(f"sqlite:///{folder}/{file.name}", study)
    except (DBAPIError, ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "orig", error)).split())[:200]
        raise StorageError(f"study: {database or file} cannot be read: {reason}") from error


def _of_database(url: str, study: str) -> list[FrozenTrial]:
    with ExitStack() as stack:
        engine = sqlalchemy.create_engine(url)
        stack.callback(engine.dispose)
        with engine.connect() as connection:  # a driver makes its tables one by one; this one fills last
            made = "alembic_version"
            if not sqlalchemy.inspect(connection).has_table(made):
                return []
            if not connection.scalar(sqlalchemy.text(f"SELECT count(*) FROM {made}")):
                return []
        opened = optuna.storages.RDBStorage(url, skip_table_creation=True)
        stack.callback(opened.engine.dispose)
        return _of_study(opened, study)


def _of_study(opened: optuna.storages.BaseStorage, study: str) -> list[FrozenTrial]:
    try:
        found: list[FrozenTrial] = optuna.load_study(study_name=study, storage=opened).get_trials(
            deepcopy=False
        )
    except KeyError:
        return []
    return found


def of_file(file: str, given: Sequence[Override]) -> tuple[str, str]:
    """Storage and name that the file of a job names; raises InputError."""
    document = Document.read(Path(file))
    for override in given:
        document.set(override)
    tree = document.tree
    document.tree = {key: tree[key] for key in ("name", "storage") if key in tree}
    try:
        document.fill(os.environ)
        name = document.tree.get("name")
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            reason = f"{show(name)} is no name of a job" if "name" in tree else "missing; name the job"
            raise FieldError(Fault(("name",), reason))
        try:
            place = document.tree.get("storage", Job.model_fields["storage"].default)
            return storage.normalize(place, "sweep"), name
        except ValueError as error:
            raise FieldError(Fault(("storage",), str(error))) from error
    except FieldError as error:
        raise InputError(f"{document.place(error.fault.path)}: {error}") from error


def _normal(place: str) -> str:
    try:
        return storage.normalize(place, "sweep")
    except ValueError as error:
        raise InputError(f"storage: {error}") from error
