"""What the runner makes of errors that Ray Tune raises."""

from unittest.mock import MagicMock

import pytest
from optuna.exceptions import StorageInternalError
from ray import tune

from orchestrator.execution import runner
from orchestrator.storage.study_database import Problem, database_problem


def test_fault_of_the_study_keeps_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = StorageInternalError("an exception is raised during the commit")
    fault.__cause__ = OSError(28, "No space left on device")
    for name in ("lane_class", "StudySearcher", "StudyScheduler"):
        monkeypatch.setattr(runner, name, MagicMock())
    for name in ("TuneConfig", "RunConfig"):
        monkeypatch.setattr(tune, name, MagicMock())
    monkeypatch.setattr(tune, "Tuner", MagicMock(**{"return_value.fit.side_effect": tune.TuneError("text")}))
    study, unused = MagicMock(fault=fault, **{"remaining.return_value": 1}), MagicMock()
    with pytest.raises(StorageInternalError) as raised:
        runner._run_tune(study, unused, unused, unused, unused, unused)
    problem = database_problem(raised.value)
    assert problem is not None and problem.kind is Problem.FULL
