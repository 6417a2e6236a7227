"""The command that runs a comparison."""

import json
from functools import partial
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support import command_line
from tests.support.sweep_files import write_comparison

compare = partial(command_line.run, "compare")


@pytest.mark.faults
@pytest.mark.sweep
def test_compare_interrupted_and_enlarged_finishes(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, splits={"y": [0]}, seeds=[0])
    marker = ["--set", f"config.marker={tmp_path}/marker", "--set", "variants={plain: {}, quick: {steps: 2}}"]
    options = [*marker, "--storage", str(tmp_path / "store"), "--set", "config.seconds=3"]
    command_line.interrupt("compare", file, *options, epochs=1)

    larger = [*options, "--set", "splits.y=[0, 1]", "--set", "variants.flaky={steps: 3, fault: once}"]
    second = compare(file, *larger)
    assert second.returncode == 1, second.stdout + second.stderr
    assert "resuming: 2 trials started before, 6 remain" in second.stdout
    assert "out of reach, this once" in second.stdout and "Traceback" not in second.stderr
    assert "rerun the command to try failed trials again" in second.stdout
    assert "means so far: test/parabola/score plain" in second.stdout

    third = compare(file, *larger, "--set", "metrics=[test/parabola/scroe]")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "'test/parabola/scroe'; did you mean 'test/parabola/score'?" in third.stdout
    folder = tmp_path / "store" / "parabola"
    rows = json.loads((folder / "results.json").read_text())
    assert [row["state"] for row in rows] == ["complete"] * 6
    assert len({row["number"] for row in rows}) == 6
    (flaky,) = [row for row in rows if row["number"] == 6]  # the others are trials 0 to 5
    assert flaky["variant"] == "flaky"
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        f"ends-of-{name}.png" for name in ("plain", "quick", "flaky")
    }
    assert (folder / "report.html").read_text().count("data:image/png") == 4

    client = MlflowClient(f"sqlite:///{tmp_path}/store/mlflow.db")
    experiment = client.get_experiment_by_name("parabola")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["run.kind"] == "comparison"]
    assert parent.info.status == "FINISHED" and "| flaky |" in parent.data.tags["mlflow.note.content"]
    assert "quick - plain/test/parabola/score" in parent.data.metrics
    assert len(client.list_artifacts(parent.info.run_id, "pictures")) == 3
    trials = {int(run.data.tags["trial.number"]): run for run in runs if "trial.number" in run.data.tags}
    assert sorted(trials) == [0, 1, 2, 3, 4, 5, 6]
    for row in rows:
        run = trials[row["number"]]
        assert run.data.metrics["test/parabola/score"] == row["scores"]["test/parabola/score"]
        assert run.data.params["variant"] == row["variant"]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/score")]
        assert steps == ([] if row is flaky else [1, 2, 3, 4])  # what was only scored trained no epoch

    fourth = compare(file, *larger, "--set", "metrics=[test/parabola/scroe]")
    assert fourth.returncode == 0 and "is finished" in fourth.stdout and "± " in fourth.stdout
    changed = command_line.refused("compare", file, *larger, "--set", "variants.flaky.steps=4")
    assert "variants.flaky: steps: 3 → 4" in changed


def test_compare_help_shows_examples() -> None:
    done = compare(Path("--help"))
    assert done.returncode == 0
    assert "python -m orchestrator.compare search_spaces/claim.yaml" in done.stdout


def test_compare_bad_input_is_refused(tmp_path: Path) -> None:
    file = write_comparison(tmp_path)
    store = ["--storage", str(tmp_path / "store")]
    assert "fault: data is at fault" in command_line.refused(
        "compare", file, *store, "--set", "variants.quick.fault=data"
    )
    assert "--trials" in command_line.refused("compare", file, *store, "--trials", "3")
    assert not (tmp_path / "store").exists()
