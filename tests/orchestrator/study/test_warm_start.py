"""Trials of earlier sweeps become points of a new sweep's space, or are left out with a reason."""

import math
import socket
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError
from orchestrator.study.warm_start import (
    PriorTrial,
    TransferredTrial,
    describe,
    from_mlflow,
    from_study,
    transfer,
)
from orchestrator.tracking.tracker import Tracker
from tests.support.sweep_files import load_sweep

SEARCH: dict[str, Any] = {
    "noise.width": {"uniform": [0, 1], "when": {"noise.kind": "uniform"}},
    "noise.kind": {"choice": ["none", "uniform"]},
    "x": {"log_uniform": [0.1, 4]},
    "steps": {"int": [1, 7], "step": 2},
}
POINT = {"x": 1.0, "steps": 3, "noise.kind": "none"}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path, "later", search=SEARCH)


def trial(number: int = 0, score: float | None = 0.5, source: str = "earlier", **params: Any) -> PriorTrial:
    values = {key.replace("__", "."): value for key, value in params.items()}
    metrics = {"rate": 2.0} | ({} if score is None else {"val/score": score})
    return PriorTrial(source, number, {**POINT, **values}, metrics)


def test_transfer_maps_values_by_path_in_the_types_of_the_space(sweep: Sweep) -> None:
    ((used,), left_out) = transfer(sweep, [trial(4, x=1, steps=3.0, seed=7, noise__width=0.5)])
    assert not left_out
    assert used.params == POINT
    assert [type(value) for value in used.params.values()] == [type(POINT[path]) for path in used.params]
    assert (used.values, used.source, used.number) == ([0.5], "earlier", 4)


def test_transfer_needs_the_values_that_are_active(sweep: Sweep) -> None:
    used, left_out = transfer(
        sweep, [trial(noise__kind="uniform", noise__width=0.5), trial(noise__kind="uniform")]
    )
    assert [each.params for each in used] == [{**POINT, "noise.kind": "uniform", "noise.width": 0.5}]
    assert left_out == {"no value for noise.width": 1}


def test_transferred_trials_look_suggested_to_a_study(sweep: Sweep) -> None:
    used, _ = transfer(sweep, [trial(0), trial(1, noise__kind="uniform", noise__width=1)])
    study = optuna.create_study(direction="maximize")
    for each in used:
        study.add_trial(
            create_trial(params=each.params, distributions=each.distributions, values=each.values)
        )
    asked = study.ask()
    values = sweep.space.suggest(asked)
    assert {path: study.trials[1].distributions[path] for path in values} == asked.distributions
    assert [each.params for each in study.trials[:2]] == [each.params for each in used]


def test_transfer_counts_what_it_leaves_out_by_reason(sweep: Sweep) -> None:
    earlier = [
        trial(0),
        trial(1, x=9.0),
        trial(2, x=0.0),
        trial(3, steps=4),
        trial(4, steps=True),
        trial(5, noise__kind="normal"),
        trial(6, score=None),
        trial(7, score=math.nan),
        PriorTrial("earlier", 8, {"x": 1.0}, {"val/score": 1.0}),
    ]
    used, left_out = transfer(sweep, earlier)
    assert [each.number for each in used] == [0]
    assert left_out == {
        "x is outside 0.1 to 4": 2,
        "steps is outside 1 to 7 in steps of 2": 2,
        "noise.kind is not one of none, uniform": 1,
        "no val/score": 1,
        "val/score is not finite": 1,
        "no value for noise.kind": 1,
    }
    assert describe(used, left_out, "earlier") == [
        "warm start from earlier: 1 of 9 trials used; left out: 2 x is outside 0.1 to 4, "
        "2 steps is outside 1 to 7 in steps of 2, 1 noise.kind is not one of none, uniform, 1 no val/score, "
        "2 for other reasons"
    ]


def test_transfer_uses_a_trial_of_two_sources_once(sweep: Sweep) -> None:
    twice = [trial(0), trial(0, source="mlflow:earlier"), trial(1, score=0.6)]
    used, left_out = transfer(sweep, twice)
    assert [(each.source, each.values) for each in used] == [("earlier", [0.5]), ("earlier", [0.6])]
    assert left_out == {"already present": 1}
    assert transfer(sweep, twice[1:], used) == ([], {"already present": 2})


def test_transfer_of_objectives_keeps_their_order(tmp_path: Path) -> None:
    sweep = load_sweep(
        tmp_path, "later", search=SEARCH, objective=[{"metric": "rate"}, {"metric": "val/score"}]
    )
    ((used,), _) = transfer(sweep, [trial()])
    assert used.values == [2.0, 0.5]


def test_description_of_a_source_counts_its_trials() -> None:
    one = TransferredTrial({}, {}, [1.0], "a", 0)
    assert describe([one], {}, "a") == ["warm start from a: 1 of 1 trials used"]
    assert describe([], {}, "a") == ["warm start from a: it has no complete trial"]
    assert describe([], {"no x": 2}, "a") == ["warm start from a: 0 of 2 trials used; left out: 2 no x"]


def test_trials_of_a_study_have_values_and_last_metrics(tmp_path: Path, sweep: Sweep) -> None:
    earlier = load_sweep(tmp_path, "earlier", config={"epochs": 2, "y": 3}, search={"x": {"uniform": [0, 9]}})
    study = optuna.create_study(study_name="earlier", direction="maximize")
    distributions = {"x": earlier.search["x"].distribution()}
    reports = {
        "epoch 2": {"time": 20, "val/score": 0.5, "rate": 2.0},
        "epoch 1": {"time": 10, "val/score": 0.1, "rate": 1.0},
    }
    endings: list[dict[str, Any]] = [
        {"value": 0.5, "user_attrs": reports},
        {"state": TrialState.PRUNED},
        {"state": TrialState.FAIL},
        {"value": 0.7, "user_attrs": {"source": "before"}},
        {"value": 0.9},
    ]
    for ending in endings:
        study.add_trial(create_trial(params={"x": 2.0}, distributions=distributions, **ending))
    first, second = from_study("earlier", study.trials, earlier.resolved())
    assert (first.source, first.number, second.number) == ("earlier", 0, 4)
    assert first.metrics == {"val/score": 0.5, "rate": 2.0}
    assert second.metrics == {"val/score": 0.9}
    assert first.params["x"] == 2.0
    assert first.params["y"] == 3.0
    assert first.params["noise.width"] == 0.1
    ((used, _), left_out) = transfer(sweep, [first, second])
    assert used.params == {"noise.kind": "none", "x": 2.0, "steps": 1}
    assert not left_out


@pytest.fixture(scope="module")
def recorded(sqlite_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An experiment of two sweeps and a comparison."""
    search = {**SEARCH, "seed": {"choice": ["7", 8]}}
    resolved = load_sweep(tmp_path_factory.mktemp("sweep"), "later", search=SEARCH).resolved() | {
        "search": search
    }
    comparison = {"config": {"x": 1.0, "steps": 1}, "variants": {"few": {"noise": {"kind": "none"}}}}
    for sweep_id, file, params in (
        ("one", resolved, {"x": 1e-5, "noise.kind": "none", "seed": "7", "marker": "no"}),
        ("two", {"config": {"steps": 5}}, {"x": 2.0, "noise.width": 1.0}),
        ("three", comparison, {"variant": "few", "noise": {"kind": "none"}, "x": 3.0}),
    ):
        with Tracker(sqlite_uri, "earlier-2025", sweep_id, sweep_id) as tracker:
            tracker.log_sweep(file, {}, [])
            for number, state in enumerate(("COMPLETE", "PRUNED", "FAIL", "COMPLETE")):
                tracker.start_trial(number, "", params)
                tracker.log_epoch(number, 1, {"val/score": 0.1})
                tracker.log_epoch(number, 2, {"val/score": number / 10})
                if sweep_id == "one" or not number:
                    tracker.end_trial(number, state, value=0.3)  # type: ignore[arg-type]
            tracker.finish("FINISHED")
    return sqlite_uri


def test_mlflow_with_sweeps_gives_all_complete_trials(recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.study.warm_start._PAGE_SIZE", 2)
    found = from_mlflow(recorded, "earlier-2025")
    assert {each.source for each in found} == {"mlflow:earlier-2025"}
    assert [each.number for each in found] == [0, 3, 0, 0]
    first, last, bare, cell = found
    assert (first.metrics["val/score"], last.metrics["val/score"]) == (0.0, 0.3)
    searched = {path: first.params[path] for path in ("x", "noise.kind", "seed", "marker")}
    assert searched == {"x": 1e-5, "noise.kind": "none", "seed": "7", "marker": "no"}
    assert first.params["noise.width"] == 0.1
    assert bare.params == {"steps": 5, "x": 2.0, "noise.width": 1.0}
    assert cell.params == {"variant": "few", "x": 3.0, "steps": 1, "noise.kind": "none"}


def test_transfer_takes_trials_of_mlflow(recorded: str, sweep: Sweep) -> None:
    used, left_out = transfer(sweep, from_mlflow(recorded, "earlier-2025"))
    assert [each.params for each in used] == [{"noise.kind": "none", "x": 3.0, "steps": 1}]
    assert left_out == {"x is outside 0.1 to 4": 2, "no value for noise.kind": 1}


def test_run_without_its_file_has_the_searched_values(recorded: str) -> None:
    client = mlflow.MlflowClient(recorded)
    experiment = client.create_experiment("foreign")
    run = client.create_run(experiment, tags={"run.kind": "trial", "trial.state": "COMPLETE"})
    for path, value in POINT.items():
        client.log_param(run.info.run_id, path, value)
    client.log_metric(run.info.run_id, "val/score", 0.25)
    assert from_mlflow(recorded, "foreign") == [PriorTrial("mlflow:foreign", 0, POINT, {"val/score": 0.25})]


def test_unknown_experiment_names_the_nearest(recorded: str) -> None:
    line = r"no experiment 'earlier-2024' at .*; did you mean 'earlier-2025'\?"
    with pytest.raises(InputError, match=line):
        from_mlflow(recorded, "earlier-2024")


def test_deleted_experiment_is_refused(recorded: str) -> None:
    client = mlflow.MlflowClient(recorded)
    client.delete_experiment(client.create_experiment("given up"))
    with pytest.raises(InputError, match="there is no experiment 'given up'"):
        from_mlflow(recorded, "given up")


def test_missing_database_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no experiment 'a' at sqlite"):
        from_mlflow(f"sqlite:///{tmp_path}/none/mlflow.db", "a")
    assert not (tmp_path / "none").exists()


def test_server_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        socket.socket() as bound,  # it does not listen, and no other process can
        pytest.raises(InputError, match=r"warm_start: mlflow:a cannot be read at .*: connection refused"),
    ):
        bound.bind(("127.0.0.1", 0))
        from_mlflow(f"http://127.0.0.1:{bound.getsockname()[1]}", "a")


def test_transfer_needs_the_metrics_of_constraints(tmp_path: Path) -> None:
    bounds = [{"metric": "rate", "at_most": 1.5}]
    sweep = load_sweep(tmp_path, "bounded", search=SEARCH, constraints=bounds)
    lacking = PriorTrial("earlier", 1, dict(POINT), {"val/score": 0.5})
    ((used,), left_out) = transfer(sweep, [trial(0), lacking])
    assert used.constraints == {"rate at most 1.5": 0.5}
    assert left_out == {"no rate": 1}
