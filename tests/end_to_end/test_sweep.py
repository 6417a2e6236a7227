"""The sweep command: a real Ray cluster, MLflow in SQLite, and the example trainable."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import optuna
import pytest
from mlflow.tracking import MlflowClient

from orchestrator import status, stop
from orchestrator.config.sections import sqlite_address
from orchestrator.storage.local import LocalStore
from orchestrator.sweep import main
from tests.support import command_line
from tests.support.sweep_files import write_sweep

SWEEP: dict[str, Any] = {
    "config": {"epochs": 6},
    "search": {
        "x": {"uniform": [-3, 3]},
        "steps": {"int": [1, 3]},
        "fault": {"choice": ["none", "diverge", "crash"]},
    },
    "sampler": {"random": {"seed": 4}},
    "scheduler": {"asha": {"grace": 1, "reduction": 2}},
    "budget": {"trials": 4},
    "resources": {"concurrent": 1},
    "registry": {"model": "parabola"},
}


sweep = partial(command_line.run, "sweep")
refused = partial(command_line.refused, "sweep")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_sweep(tmp_path, **SWEEP)


@pytest.mark.sweep
def test_sweep_registers_its_model_and_runs_only_once(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "my store?50%#1"
    mask = os.umask(0o007)
    try:
        done = sweep(file, "--storage", str(store))
    finally:
        os.umask(mask)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "parabola version 1, alias champion" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"parabola.yaml", store.name}

    study = optuna.load_study(study_name="parabola", storage=sqlite_address(store / "parabola/study.db"))
    states = {trial.number: trial.state.name for trial in study.trials}
    assert len(states) == 4
    assert set(states.values()) == {"COMPLETE", "PRUNED", "FAIL"}
    reasons = [t.user_attrs["reason"] for t in study.trials if t.state.name == "FAIL"]
    assert any("FloatingPointError: train/loss is nan" in reason for reason in reasons)

    best = json.loads((store / "parabola/outcome.json").read_text())["best"]["trial"]
    (kept,) = (store / "parabola/trials").glob("*/checkpoint_*.complete")
    assert kept.parent.name == f"trial-{best:04d}", "the other checkpoints are deleted"
    modes = [path.stat().st_mode & 0o777 for path in (store / "parabola").iterdir()]
    assert set(modes) == {0o770, 0o660} and kept.parent.stat().st_mode & 0o777 == 0o770
    assert (store / "mlflow.db").stat().st_mode & 0o777 == 0o660

    client = MlflowClient(sqlite_address(store / "mlflow.db"))
    runs = client.search_runs([client.get_experiment_by_name("parabola").experiment_id])
    trials = {int(run.data.tags["trial.number"]): run for run in runs if "trial.number" in run.data.tags}
    assert len(runs) == 5
    assert {number: run.data.tags["trial.state"] for number, run in trials.items()} == states
    for trial in study.trials:
        points = client.get_metric_history(trials[trial.number].info.run_id, "val/score")
        assert {point.step: point.value for point in points} == trial.intermediate_values

    again = sweep(file, "--storage", str(store))
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert "parabola version 1, alias champion" in again.stdout
    assert len(client.search_runs([client.get_experiment_by_name("parabola").experiment_id])) == 5

    moved = store.rename(tmp_path / "moved")
    elsewhere = sweep(file, "--storage", str(moved)).stdout
    assert "finished" in elsewhere and "warning" not in elsewhere
    assert f"{moved}/mlflow.db" in elsewhere and f"{moved}/parabola/report.html" in elsewhere
    assert not store.exists(), "looking creates nothing"
    database = (moved / "mlflow.db").rename(tmp_path / "mlflow.db")
    assert "was deleted from the registry" in sweep(file, "--storage", str(moved)).stdout
    assert not (moved / "mlflow.db").exists(), "looking creates nothing"
    database.rename(moved / "mlflow.db")
    moved.rename(store)

    client.delete_registered_model("parabola")
    warned = sweep(file, "--storage", str(store)).stdout
    assert (
        f"version 1 was deleted from the registry; remove {store}/parabola/outcome.json, and rerun" in warned
    )
    (store / "parabola/outcome.json").unlink()
    assert sweep(file, "--storage", str(store)).returncode == 0
    assert int(client.get_model_version_by_alias("parabola", "champion").version) == 1

    changed = refused(file, "--storage", str(store), "--set", "search.steps={int: [1, 2]}")
    assert "search.steps: int [1, 3] → int [1, 2]" in changed


@pytest.mark.slow
@pytest.mark.sweep
def test_sweep_of_several_objectives_shows_its_pareto_set(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        config={"epochs": 1},
        objective=[{"metric": "val/score"}, {"metric": "train/loss"}],
        constraints=[{"metric": "train/loss", "at_most": 1e9}],
        budget={"trials": 2},
        resources={"concurrent": 1},
    )
    store = tmp_path / "store"
    done = sweep(file, "--storage", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pareto set" in done.stdout and "constraints" in done.stdout
    outcome = json.loads((store / "parabola/outcome.json").read_text())
    assert [trial["trial"] for trial in outcome["pareto_set"]] == [f"trial-{outcome['best']['trial']:04d}"]
    client = MlflowClient(sqlite_address(store / "mlflow.db"))
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("parabola").experiment_id], "tags.`run.kind` = 'sweep'"
    )
    assert "| Pareto set | val/score | train/loss |" in parent.data.tags["mlflow.note.content"]


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_interrupted_resumes_without_repeats(file: Path, tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "store"), "--trials", "2", "--set", "resources.concurrent=2"]
    options += ["--set", "search.fault={choice: [none]}"]
    options += ["--set", "config.seconds=3", "--set", "scheduler=none"]
    command_line.interrupt("sweep", file, *options, epochs=2)

    second = sweep(file, *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming: 2 trials started before, 2 remain" in second.stdout
    outcome = json.loads((tmp_path / "store" / "parabola" / "outcome.json").read_text())
    assert outcome["trials"] == {"running": 0, "complete": 2, "pruned": 0, "failed": 0}
    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("parabola").experiment_id])
    assert len(runs) == 3
    for run in runs:
        if "trial.number" in run.data.tags:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/score")]
            assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_failed_scoring_is_one_line_keeps_trial(file: Path, tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "store"), "--trials", "1", "--set", "config.epochs=1"]
    options += ["--set", "search.fault={choice: [score]}"]
    for _ in range(2):
        done = sweep(file, *options)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "could not be scored: RuntimeError: the targets are out of reach as asked" in done.stdout
        assert "Traceback" not in done.stderr
    assert "trial-0000 starts" not in done.stdout
    study = optuna.load_study(study_name="parabola", storage=f"sqlite:///{tmp_path}/store/parabola/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_damaged_checkpoint_is_named_and_neither_scored_nor_registered(
    file: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ["--storage", str(store), "--trials", "1", "--set", "config.epochs=1"]
    options += ["--set", "search.fault={choice: [none]}"]
    assert sweep(file, *options).returncode == 0
    (store / "parabola/outcome.json").unlink()
    (state,) = store.glob("parabola/trials/trial-0000/checkpoint_*/state.json")
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    line = f"trial-0000 could not be scored: storage: {state.parent} is damaged (state.json has changed)"
    assert f"{line}; restore a copy, or start over with --fresh" in refused(file, *options)
    state.write_bytes(whole)
    assert "parabola version 1, alias champion" in sweep(file, *options).stdout


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_trial_cut_by_wall_budget_is_pruned(file: Path, tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "store"), "--trials", "2", "--set", "budget.wall=40s"]
    options += ["--set", "resources.concurrent=2"]
    options += ["--set", "config.epochs=100", "--set", "config.seconds=1", "--set", "scheduler=none"]
    done = sweep(file, *options, "--set", "search.fault={choice: [none]}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "none of 2 trials succeeded: the wall budget of 0:00:40 is spent" in done.stdout
    study = optuna.load_study(study_name="parabola", storage=f"sqlite:///{tmp_path}/store/parabola/study.db")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]


@pytest.mark.sweep
def test_sweep_dry_run_shows_plan_writes_nothing(file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = sweep(file, "--storage", str(store), "--dry-run")
    assert done.returncode == 0, done.stderr
    for expected in (
        "-3 to 3",
        "after epoch 1, 2, 4",
        "4 trials of at most 6 epochs",
        "sqlite:///",
        "http://",
    ):
        assert expected in done.stdout
    assert not store.exists()


@pytest.mark.sweep
@pytest.mark.slow
def test_sweep_with_too_many_workers_is_refused(file: Path, tmp_path: Path) -> None:
    line = refused(file, "--storage", str(tmp_path / "store"), "--set", "resources.workers=4096")
    assert "resources.workers: 4096 workers of 1 CPUs do not fit" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "config.fault=data"], "fault is searched"),
        (["--set", "search.fault={choice: [data]}", "--set", "config.epochs=0"], "epochs"),
        (["--trials", "0"], "trials"),
        (["--trials", "many"], "invalid int value: 'many'"),
        (["--trails", "3"], "--trails"),
        (["--storage", "/dev/null/x"], "/dev/null is a file, not a folder"),
        (["--address", "nowhere"], "write HOST:PORT"),
    ],
)
def test_sweep_bad_input_is_refused(
    file: Path, tmp_path: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--storage" not in options:
        options = [*options, "--storage", str(tmp_path / "store")]
    try:
        code = main([str(file), *options])
    except SystemExit as error:  # argparse ends the process
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ") and expected in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--set", "tracking.uri=http://127.0.0.1:9"],
            "tracking.uri: the MLflow server at http://127.0.0.1:9 does not answer: connection refused",
        ),
        (
            ["--set", "study=postgresql+psycopg2://nobody@127.0.0.1:9/optuna"],
            "study: postgresql+psycopg2://nobody@127.0.0.1:9/optuna does not answer: ",
        ),
        (
            [
                "--set",
                "trainable=tests.support.example_trainable:PlainErrors",
                "--set",
                "tracking.uri=http://127.0.0.1:9",
            ],
            "error: --set tracking.uri=http://127.0.0.1:9: tracking.uri: the MLflow server at",
        ),
        (["--address", "127.0.0.1:9"], "--address 127.0.0.1:9: no Ray cluster answers there"),
    ],
)
def test_sweep_without_an_answer_has_its_own_code(
    file: Path, tmp_path: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(file), *options, "--storage", str(tmp_path / "store")])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 3 and line.startswith("error: ") and expected in line
    assert not (tmp_path / "store").exists()


def test_sweep_with_a_bucket_that_does_not_answer_has_its_own_code(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the key for the whole process
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = ["--storage", "s3://bucket/sweeps", "--set", "tracking.uri=http://127.0.0.1:9"]
    for command in (main, status.main, stop.main):
        code = command([str(file), *(options if command is main else options[:2])])
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 3 and line.startswith("error: ") and "storage: s3://bucket/sweeps: " in line


def test_sweep_bad_data_is_refused(tmp_path: Path) -> None:
    search = {path: values for path, values in SWEEP["search"].items() if path != "fault"}
    file = write_sweep(tmp_path, **{**SWEEP, "search": search, "config": {"epochs": 6, "fault": "data"}})
    (line,) = [number for number, text in enumerate(file.read_text().splitlines(), 1) if "fault" in text]
    expected = f"error: {file}:{line}: config.fault: data is at fault"
    assert expected in refused(file, "--storage", str(tmp_path / "store"))


def test_sweep_of_a_running_driver_is_refused_at_once(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    with LocalStore(store).lock("parabola"):
        assert main([str(file), "--storage", str(store)]) == 2
    output, error = capsys.readouterr()
    assert "starting Ray" not in output
    assert error.startswith(f"error: sweep {store}/parabola is driven by another process")


def test_sweep_storage_that_cannot_be_written_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--storage", "/proc/sweeps"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --storage /proc/sweeps: storage: /proc cannot be written"
    )


def test_sweep_help_shows_examples() -> None:
    done = sweep(Path("--help"))
    assert done.returncode == 0
    assert "python -m orchestrator.sweep search_spaces/alignment.yaml" in done.stdout
