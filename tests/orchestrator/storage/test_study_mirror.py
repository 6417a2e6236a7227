"""The study of a driver in memory, and the bulk reads of its tables: both equal to what Optuna reads."""

import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from orchestrator.storage.study_mirror import StudyMirror
from orchestrator.storage.study_tables import read_trials


@pytest.fixture
def database(tmp_path: Path) -> Iterator[optuna.storages.RDBStorage]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    yield storage
    storage.engine.dispose()


@pytest.fixture
def study(database: optuna.storages.RDBStorage) -> optuna.Study:
    """A study in a mirror with a trial of every state."""
    study = optuna.create_study(study_name="job", storage=StudyMirror(database), direction="maximize")
    study.enqueue_trial({"x": 0.25}, user_attrs={"point": "first"})
    for value in (0.5, math.inf, None, 0.125):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("kind", ["a", "b"])
        trial.suggest_int("steps", 1, 8, log=True)
        trial.set_user_attr("epoch 1", {"time": 1, "loss": math.nan})
        study._storage.set_trial_system_attr(trial._trial_id, "rung", [1, 2])
        trial.report(0.5, step=1)
        trial.report(-math.inf, step=2)
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.ask()
    study.enqueue_trial({"x": 0.75})
    study.add_trial(optuna.trial.create_trial(value=0.75, user_attrs={"source": "other"}))
    return study


def of_optuna(database: optuna.storages.RDBStorage) -> list[FrozenTrial]:
    trials: list[FrozenTrial] = optuna.load_study(study_name="job", storage=database).get_trials()
    return trials


def texts(trials: list[FrozenTrial]) -> list[str]:
    """Return the trials as texts, in which NaN equals NaN, with their attributes in one order."""
    return [
        repr(
            {
                key: sorted(value.items()) if isinstance(value, dict) else value
                for key, value in vars(trial).items()
            }
        )
        for trial in trials
    ]


def test_mirror_equals_the_database(study: optuna.Study, database: optuna.storages.RDBStorage) -> None:
    assert texts(study.trials) == texts(of_optuna(database))


def test_mirror_of_an_earlier_study_equals_the_database(
    study: optuna.Study, database: optuna.storages.RDBStorage
) -> None:
    again = optuna.load_study(study_name="job", storage=StudyMirror(database))
    assert texts(again.trials) == texts(of_optuna(database))


def test_bulk_read_of_some_attributes_has_no_others(
    study: optuna.Study, database: optuna.storages.RDBStorage
) -> None:
    with database.engine.connect() as connection:
        trials = read_trials(connection, study._study_id, ("point", "source"))
    expected = of_optuna(database)
    assert [(t.number, t.state, t.values) for t in trials] == [
        (t.number, t.state, t.values) for t in expected
    ]
    assert trials[0].user_attrs == {"point": "first"} and trials[-1].user_attrs == {"source": "other"}
    assert not any(trial.user_attrs or trial.params for trial in trials[1:-1])


def test_transaction_is_committed_once(study: optuna.Study, database: optuna.storages.RDBStorage) -> None:
    commits: list[object] = []
    sqlalchemy.event.listen(database.engine, "commit", commits.append)
    mirror = study._storage
    assert isinstance(mirror, StudyMirror)
    with mirror.transaction(), mirror.transaction():
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("point", "last")
        assert not commits
    assert len(commits) == 1
    assert texts(of_optuna(database)) == texts(study.trials)


def test_transaction_that_fails_changes_nothing(
    study: optuna.Study, database: optuna.storages.RDBStorage
) -> None:
    before = texts(of_optuna(database))
    mirror = study._storage
    assert isinstance(mirror, StudyMirror)
    with pytest.raises(ZeroDivisionError), mirror.transaction():
        study.ask().set_user_attr("point", 1 // 0)
    assert texts(of_optuna(database)) == before


def test_mirror_writes_at_once_without_a_transaction(
    study: optuna.Study, database: optuna.storages.RDBStorage
) -> None:
    trial = study.ask()
    trial.set_user_attr("point", "alone")
    assert of_optuna(database)[trial.number].user_attrs == {"point": "alone"}
