"""The JSON records of a job's folder: how they are read, and what is valid in them."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import InputError, newer_schema
from orchestrator.storage.base import Store

SCHEMA = 2
"""Version of the records. Those of version 1 have no ``schema``; they have the same keys."""

JOB = "job"
"""User attribute of a study with the `JobRecord` of its job, which replaces a file that is lost."""


class DamagedError(InputError):
    """A record is not what this project writes. Rerunning the command that started the job restores it."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class RecordedObjective(_Strict):
    """An objective of a sweep."""

    metric: str
    mode: Literal["min", "max"]


class RecordedBudget(_Strict):
    """The budget of a sweep."""

    trials: int
    wall: float | None = None
    gpu_hours: float | None = None


class RecordedSweep(_Strict):
    """What other processes read of the resolved file of a sweep."""

    trainable: str
    study: str = ""
    objective: list[RecordedObjective] = Field(min_length=1)
    budget: RecordedBudget
    search: dict[str, dict[str, Any]]
    config: dict[str, Any]


class RecordedComparison(_Strict):
    """The same for a comparison, which records less of its file."""

    trainable: str
    study: str = ""
    variants: dict[str, dict[str, str]]


RECORDED: dict[str, type[RecordedSweep | RecordedComparison]] = {
    "sweep": RecordedSweep,
    "comparison": RecordedComparison,
}
"""The kinds of jobs. The record of a job is the file ``<kind>.json``."""


class JobRecord(_Strict):
    """The record of a job."""

    id: str
    resolved: dict[str, Any]
    storage: str = ""
    """Address of the storage of the job, in the copy that its study has."""


class RecordedModel(_Strict):
    """A registered model, in the outcome of a sweep."""

    name: str
    version: int = Field(strict=False)
    alias: str
    promoted: bool = True


class RecordedOutcome(_Strict):
    """What other processes read of the outcome of a job."""

    report: str
    budget: dict[str, Any] | None = None
    finals: dict[str, Any] | None = None
    model: RecordedModel | None = None
    delivered: bool = True


def read_record(store: Store, name: str, model: type[BaseModel]) -> dict[str, Any] | None:
    """Return a record of a store, or None where there is none.

    Raises:
        DamagedError: it is not valid according to ``model``.
        InputError: it was written by a later version of this project.
        StorageError: the storage does not answer.
    """
    file = store.read(name)
    if file is None:
        return None
    location = store.locate(name)
    try:
        record = json.loads(file[0])
    except (ValueError, RecursionError) as error:
        raise _damaged(location) from error
    if isinstance(record, dict) and isinstance(schema := record.get("schema", 1), int) and schema > SCHEMA:
        raise InputError(newer_schema(location, schema, SCHEMA))
    if not is_valid(record, model):
        raise _damaged(location)
    valid: dict[str, Any] = record
    return valid


def read_job_record(store: Store, name: str, kind: str) -> dict[str, Any] | None:
    """Return the `JobRecord` of a job of a kind, or None where there is none; raises as `read_record`."""
    file = f"{name}/{kind}.json"
    record = read_record(store, file, JobRecord)
    if record is not None and not is_valid(record["resolved"], RECORDED[kind]):
        raise _damaged(store.locate(file))
    return record


def write_record(content: Mapping[str, Any]) -> bytes:
    """Return the file of a record."""
    return json.dumps({"schema": SCHEMA, **content}, indent=2).encode()


def is_valid(content: Any, model: type[BaseModel]) -> bool:
    """Return whether a value is valid according to a model."""
    try:
        model.model_validate(content)
    except ValidationError:
        return False
    return True


def _damaged(location: str) -> DamagedError:
    return DamagedError(f"{location} is damaged; rerun the command that started the job, which restores it")
