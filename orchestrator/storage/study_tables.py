"""Bulk reads of the tables in which Optuna keeps a study.

Optuna reads every row of every trial as an object of SQLAlchemy's ORM, which takes seconds for 10,000 trials.
These queries select columns. They name the tables by Optuna's models; `optuna.storages.RDBStorage`, which is
opened first, refuses a database with another version of the tables.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Select

_distribution = lru_cache(maxsize=1024)(json_to_distribution)
"""Trials share the objects of equal distributions, which nothing changes."""


def read_trials(
    connection: Connection, study_id: int, attributes: Collection[str] | None = None
) -> list[FrozenTrial]:
    """Return the trials of a study, by number.

    Args:
        connection: to a database that `optuna.storages.RDBStorage` accepts.
        study_id: the study.
        attributes: names of user attributes. With them the trials have only number, state, times, values and
            these attributes; otherwise they are complete.
    """
    trial = models.TrialModel
    columns = (
        trial.trial_id,
        trial.number,
        trial.state,
        trial._datetime_start_utc,
        trial._datetime_complete_utc,
    )
    rows = connection.execute(
        sqlalchemy.select(*columns).where(trial.study_id == study_id).order_by(trial.trial_id)
    ).all()
    values = _read_values(connection, study_id)
    user_attrs = _read_attributes(connection, study_id, models.TrialUserAttributeModel, attributes)
    params: dict[int, dict[str, Any]] = {}
    distributions: dict[int, dict[str, BaseDistribution]] = {}
    system_attrs: dict[int, dict[str, Any]] = {}
    steps: dict[int, dict[int, float]] = {}
    if attributes is None:
        params, distributions = _read_params(connection, study_id)
        system_attrs = _read_attributes(connection, study_id, models.TrialSystemAttributeModel)
        steps = _read_steps(connection, study_id)
    trials = [
        FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=values.get(trial_id),
            datetime_start=local_time(start),
            datetime_complete=local_time(end),
            params=params.get(trial_id, {}),
            distributions=distributions.get(trial_id, {}),
            user_attrs=user_attrs.get(trial_id, {}),
            system_attrs=system_attrs.get(trial_id, {}),
            intermediate_values=steps.get(trial_id, {}),
            trial_id=trial_id,
        )
        for trial_id, number, state, start, end in rows
    ]
    return sorted(trials, key=lambda trial: trial.number)


def read_times(connection: Connection, trial_id: int) -> tuple[datetime | None, datetime | None]:
    """Return when a trial started and ended."""
    trial = models.TrialModel
    columns = sqlalchemy.select(trial._datetime_start_utc, trial._datetime_complete_utc)
    start, end = connection.execute(columns.where(trial.trial_id == trial_id)).one()
    return local_time(start), local_time(end)


def read_number(connection: Connection, trial_id: int) -> int:
    """Return the number of a trial in its study."""
    trial = models.TrialModel
    return int(
        connection.execute(sqlalchemy.select(trial.number).where(trial.trial_id == trial_id)).scalar_one()
    )


def local_time(time: datetime | None) -> datetime | None:
    """Return a time of the database, which is in UTC, as Optuna shows it."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _of_study(columns: Iterable[Any], table: Any, study_id: int) -> Select[Any]:
    """Select columns of a table with one row for each trial and key; the index of both serves the join."""
    trial = models.TrialModel
    return (
        sqlalchemy.select(*columns)
        .select_from(trial.__table__.join(table.__table__, table.trial_id == trial.trial_id))
        .where(trial.study_id == study_id)
    )


def _read_values(connection: Connection, study_id: int) -> dict[int, list[float]]:
    table = models.TrialValueModel
    columns = (table.trial_id, table.value, table.value_type)
    values: defaultdict[int, list[float]] = defaultdict(list)
    for trial_id, value, kind in connection.execute(
        _of_study(columns, table, study_id).order_by(table.trial_id, table.objective)
    ):
        values[trial_id].append(table.stored_repr_to_value(value, kind))
    return values


def _read_params(
    connection: Connection, study_id: int
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]:
    table = models.TrialParamModel
    columns = (table.trial_id, table.param_name, table.param_value, table.distribution_json)
    params: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    distributions: defaultdict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    for trial_id, name, value, text in connection.execute(
        _of_study(columns, table, study_id).order_by(table.param_id)
    ):
        distribution = distributions[trial_id][name] = _distribution(text)
        params[trial_id][name] = distribution.to_external_repr(value)
    return params, distributions


def _read_attributes(
    connection: Connection, study_id: int, table: Any, names: Collection[str] | None = None
) -> dict[int, dict[str, Any]]:
    query = _of_study((table.trial_id, table.key, table.value_json), table, study_id)
    if names is not None:
        query = query.where(table.key.in_(names))
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(query):
        attributes[trial_id][key] = json.loads(text)
    return attributes


def _read_steps(connection: Connection, study_id: int) -> dict[int, dict[int, float]]:
    table = models.TrialIntermediateValueModel
    columns = (table.trial_id, table.step, table.intermediate_value, table.intermediate_value_type)
    steps: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for trial_id, step, value, kind in connection.execute(_of_study(columns, table, study_id)):
        steps[trial_id][step] = table.stored_repr_to_intermediate_value(value, kind)
    return steps
