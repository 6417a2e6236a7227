"""Finals through the sweep command: what is trained again, what is scored, and what is registered."""

import json
from functools import partial
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support import command_line
from tests.support.sweep_files import write_sweep

sweep = partial(command_line.run, "sweep")

ONE_LANE = {"resources": {"concurrent": 1}}
FINALS = {"top": 2, "seeds": [0, 1], "splits": {"y": [0, 1]}}


@pytest.mark.slow
@pytest.mark.sweep
def test_sweep_with_finals_registers_the_winner(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path, finals=FINALS, registry={"model": "parabola"}, budget={"trials": 3}, **ONE_LANE
    )
    store = tmp_path / "store"
    done = sweep(file, "--storage", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "winner of the finals" in done.stdout and "95% interval" in done.stdout

    rows = json.loads((store / "parabola.finals" / "results.json").read_text())
    assert [row["state"] for row in rows] == ["complete"] * 8
    scored = {row["variant"] for row in rows if "test/parabola/score" in row["scores"]}
    outcome = json.loads((store / "parabola" / "outcome.json").read_text())
    winner = outcome["winner"]["label"].partition(" ")[0]
    assert scored == {winner}, "only runs of the winner see the targets"

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    version = client.get_model_version_by_alias("parabola", "champion")
    run = client.get_run(version.run_id)
    assert run.data.params["variant"] == winner
    assert run.data.tags["sweep.name"] == "parabola.finals"

    again = sweep(file, "--storage", str(store))
    assert again.returncode == 0 and "is finished" in again.stdout
    assert "winner of the finals" in again.stdout and "warning" not in again.stdout

    client.delete_registered_model("parabola")
    outcomes = [store / f"{job}/outcome.json" for job in ("parabola.finals", "parabola")]
    warned = sweep(file, "--storage", str(store)).stdout
    assert f"version 1 was deleted from the registry; remove {outcomes[0]} and {outcomes[1]}, and" in warned
    for outcome_file in outcomes:
        outcome_file.unlink()
    assert sweep(file, "--storage", str(store)).returncode == 0
    assert int(client.get_model_version_by_alias("parabola", "champion").version) == 1


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_with_a_training_set_that_fails_has_an_outcome(tmp_path: Path) -> None:
    """Training on one further set crashes: everything else is done and shown, and a rerun tries it again."""
    finals = {"top": 1, "seeds": [0, 1], "train": {"fault": ["none", "crash"]}}
    file = write_sweep(tmp_path, finals=finals, registry={"model": "parabola"}, budget={"trials": 1})
    store = tmp_path / "store"
    for _ in range(2):
        done = sweep(file, "--storage", str(store))
        assert done.returncode == 1, done.stdout + done.stderr
        assert "winner of the finals" in done.stdout and (store / "parabola" / "report.html").exists()
        assert "parabola.crossed failed; rerun the command to try it again" in done.stdout
        assert "Traceback" not in done.stderr
    versions = MlflowClient(f"sqlite:///{store}/mlflow.db").search_model_versions("name='parabola'")
    assert [int(version.version) for version in versions] == [1]


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_interrupted_in_its_finals_resumes_them(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, finals=FINALS, budget={"trials": 2}, config={"seconds": 2.0})
    options = ["--storage", str(tmp_path / "store")]
    command_line.interrupt("sweep", file, *options, epochs=12)  # those of the search are 8
    second = sweep(file, *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming: 2 trials started before, 0 remain" in second.stdout
    rows = json.loads((tmp_path / "store/parabola.finals/results.json").read_text())
    assert sorted(row["number"] for row in rows) == list(range(8)), "no run was repeated"


@pytest.mark.faults
@pytest.mark.sweep
def test_sweep_fresh_sets_earlier_finals_aside(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, finals={"top": 1, "seeds": [0]}, budget={"trials": 1})
    store = tmp_path / "store"
    for options in ([], ["--fresh"]):
        done = sweep(file, "--storage", str(store), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    kept = [folder.name for folder in store.iterdir() if folder.name.startswith("parabola.finals.")]
    assert len(kept) == 1 and (store / "parabola.finals/outcome.json").exists()
