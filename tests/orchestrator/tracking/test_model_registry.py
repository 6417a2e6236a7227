import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from orchestrator.tracking.model_registry import RegisteredModel, decide, register
from orchestrator.tracking.tracker import Tracker, TrackingError

MODEL = """
import mlflow
import numpy as np

class MeanColour(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        with open(context.artifacts["scale"]) as file:
            self.scale = float(file.read())

    def predict(self, context, model_input: np.ndarray, params=None) -> np.ndarray:
        return (model_input.mean(axis=(1, 2, 3)) * self.scale).astype(np.float32)

mlflow.models.set_model(MeanColour())
"""


@pytest.fixture
def export(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mean_colour.py").write_text(MODEL)
    (tmp_path / "scale.txt").write_text("0.5")
    noise = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 4, 3), dtype=np.uint8)
    return {
        "python_model": str(tmp_path / "mean_colour.py"),
        "artifacts": {"scale": str(tmp_path / "scale.txt")},
        "input_example": noise,
        "signature": ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, -1, 3))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, 3))]),
        ),
        "pip_requirements": ["mlflow==3.17.2", "numpy"],
    }


def finish_sweep(uri: str, sweep_id: str) -> Tracker:
    tracker = Tracker(uri, "alignment", "alignment", sweep_id)
    tracker.start_trial(0, "gru 128", {"rnn.cell": "gru"})
    tracker.log_epoch(0, 1, {"val/rank1": 0.5})
    tracker.end_trial(0, "COMPLETE", value=0.5)
    return tracker


def register_best(tracker: Tracker, export: dict[str, Any], rank1: float) -> RegisteredModel:
    return register(
        tracker,
        0,
        export,
        model=f"reid-{tracker.sweep_id.split('-')[0]}",
        alias="champion",
        evaluation={"test/walkers/rank1": rank1},
        record={"data": {"walkers": "d1"}, "parameters": {"rnn.cell": "gru"}},
    )


def test_model_is_registered_once_and_the_alias_follows_the_latest_sweep(
    mlflow_server: Any, export: dict[str, Any]
) -> None:
    uri = mlflow_server.uri
    with finish_sweep(uri, "once-a") as tracker:
        client = tracker.client
        before = client.get_run(tracker.run_id(0)).info
        first = register_best(tracker, export, 0.6)
        name = first.name
        assert (first.version, first.alias, first.created) == (1, "champion", True)
        assert first.uri == f"models:/{name}@champion"
        after = client.get_run(tracker.run_id(0)).info
        assert (after.status, after.end_time) == (before.status, before.end_time)
        assert client.search_logged_models([tracker.experiment_id]), "beside its run, not in Default"

    with finish_sweep(uri, "once-b") as tracker:
        second = register_best(tracker, export, 0.75)
        assert (second.version, second.created) == (2, True)
        run_id = tracker.run_id(0)
        artifact = client.download_artifacts(run_id, f"registry/{name}-v2.json")
        decision = json.loads(Path(artifact).read_text())
        assert decision["champion"]["version"] == 1 and decision["promoted"]
        assert decision["difference"] == {"test/walkers/rank1": pytest.approx(0.15)}
        assert decision["record"]["data"] == {"walkers": "d1"}

    with Tracker(uri, "alignment", "alignment", "once-a") as tracker:  # the first sweep, run again
        again = register_best(tracker, export, 0.6)
    assert (again.version, again.created) == (1, False)
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    champion = client.get_model_version_by_alias(name, "champion")
    assert int(champion.version) == 2
    assert champion.tags["score.test/walkers/rank1"] == "0.75"
    assert champion.tags["data.walkers"] == "d1"
    assert champion.tags["trial.number"] == "0" and champion.tags["decision"] == "promoted"
    assert "| rnn.cell | gru |" in champion.description


def test_another_process_loads_it_without_this_project_and_without_pickle(
    sqlite_uri: str, export: dict[str, Any], tmp_path: Path
) -> None:
    with finish_sweep(sqlite_uri, "load") as tracker:
        registered = register_best(tracker, export, 0.6)
    code = "import sys, mlflow, numpy as np\n"
    code += "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
    code += "print(model.predict(np.full((2, 5, 8, 4, 3), 10, np.uint8)).tolist())\n"
    code += "assert 'orchestrator' not in sys.modules"
    environment = {
        "PATH": "/usr/bin:/bin",
        "MLFLOW_TRACKING_URI": sqlite_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, registered.uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]")


def test_registration_that_was_interrupted_is_completed(
    sqlite_uri: str, export: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with finish_sweep(sqlite_uri, "cut") as tracker:

        def cut(*_: object) -> NoReturn:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", cut)
            with pytest.raises(TrackingError, match=r"^registry: reid-.* disk full$"):
                register_best(tracker, export, 0.6)
        registered = register_best(tracker, export, 0.6)
        assert (registered.version, registered.created) == (1, False)
        assert int(tracker.client.get_model_version_by_alias(registered.name, "champion").version) == 1


def test_trial_without_a_run_is_refused_in_one_line(sqlite_uri: str, export: dict[str, Any]) -> None:
    tracker = Tracker(sqlite_uri, "alignment", "alignment", "empty")
    with tracker, pytest.raises(TrackingError, match="no run of trial 0"):
        register_best(tracker, export, 0.6)


def test_scores_are_compared_on_the_same_data_only() -> None:
    candidate = {"scores": {"rank1": 0.5, "mAP": 0.4}, "data": {"walkers": "d1"}}
    same = decide(candidate, {"scores": {"rank1": 0.75}, "data": {"walkers": "d1"}})
    assert same["comparable"] and same["difference"] == {"rank1": -0.25}
    other = decide(candidate, {"scores": {"rank1": 0.75}, "data": {"walkers": "d2"}})
    assert not other["comparable"] and "difference" not in other
    assert decide(candidate, None)["reason"] == "first version under this alias"
