"""Trainables that report, raise and do what they must not: each costs at most its trial, with its reason."""

from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from tests.support import command_line
from tests.support.hostile_trainable import ACTS, REPORTS
from tests.support.sweep_files import write_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

HARMLESS = (
    "nothing",
    "thread",
    "lasting thread",
    "fork",
    "much output",
    "closed output",
    "many metrics",
    "alarm",
    "timeout of sockets",
    "no working folder",
    "no log",
)
"""Acts after which the trial is complete."""

SWEEP: dict[str, Any] = {
    "trainable": "tests.support.hostile_trainable:HostileTrainable",
    "objective": {"metric": "score"},
    "sampler": {"random": {"seed": 0}},
    "scheduler": "none",
}


def test_hostile_trial_costs_itself_and_nothing_else(tmp_path: Path) -> None:
    acts = [*REPORTS, *ACTS, "many metrics"]
    points = {f"p{number}": {"act": act, "level": 0} for number, act in enumerate(acts)}
    file = write_sweep(
        tmp_path,
        "hostile",
        **SWEEP,
        search={"act": {"choice": acts}, "level": {"choice": [0, 1]}},
        enqueue=points,
        budget={"trials": len(points), "failures": len(points)},
    )
    done = command_line.run("sweep", file, "--storage", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    study = optuna.load_study(study_name="hostile", storage=f"sqlite:///{tmp_path}/hostile/study.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("hostile").experiment_id], max_results=1000)
    recorded = {run.data.tags["trial.number"]: run for run in runs if "trial.number" in run.data.tags}
    assert len(study.trials) == len(recorded) == len(acts)
    for trial in study.trials:
        act, run = trial.params["act"], recorded[str(trial.number)]
        reason = trial.user_attrs.get("reason", "")
        assert "epoch 1" in trial.user_attrs, act
        if act in HARMLESS:
            assert (trial.state, run.info.status) == (TrialState.COMPLETE, "FINISHED"), (act, reason)
        else:
            assert (trial.state, run.info.status) == (TrialState.FAIL, "FAILED"), act
            assert reason and len(reason) <= 600 and reason == run.data.tags["trial.reason"], act
            assert f"{trial.number:04d} failed: " in done.stdout, act
            if act in REPORTS or "message" in act or "error" in act:
                assert "workers ended" not in reason, act
