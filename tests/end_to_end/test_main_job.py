"""The main job in small: the shipped sweep file, Ray Train workers, and the registered model in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support.paths import ROOT

SMALL = {
    "budget.trials": "2",
    "finals.top": "1",
    "scheduler": "none",
    "resources.workers": "2",
    "config.epochs": "2",
    "config.data.sets.walkers.generate.identities": "32",
    "config.data.sets.walkers-stills.generate.identities": "24",
    "config.data.sets.walkers-b.generate.identities": "8",
    "config.batch.passes": "1",
}
USE = """
import sys, mlflow, numpy
assert not any(name in sys.modules for name in ("orchestrator", "trainables"))
model = mlflow.pyfunc.load_model("models:/multi-shot-reid-walkers@champion")
for length in (1, 5, 20):
    features = model.predict(numpy.ones((2, length, 96, 40, 3), numpy.uint8))
    numpy.testing.assert_allclose(numpy.linalg.norm(features, axis=1), 1, rtol=1e-5)
print("embedded", features.shape[0])
"""


@pytest.mark.sweep
def test_shipped_sweep_trains_registers_and_serves(tmp_path: Path) -> None:
    store = tmp_path / "store"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "RAY_ADDRESS"))}
    environment["REID_CACHE"] = str(tmp_path / "cache")
    command = [
        sys.executable,
        "-m",
        "orchestrator.sweep",
        "search_spaces/alignment.yaml",
        "--storage",
        str(store),
    ]
    for path, value in SMALL.items():
        command += ["--set", f"{path}={value}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    again = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    assert "is finished" in again.stdout and "warning" not in again.stdout + again.stderr

    outcome = json.loads((store / "alignment" / "outcome.json").read_text())
    assert outcome["trials"] == {"running": 0, "complete": 2, "pruned": 0, "failed": 0}
    assert len(outcome["winner"]["checkpoints"]) == 2, "each run of the winner was scored"
    assert {"test/walkers/rank1", "test/walkers-b/mAP"} <= set(outcome["scores"])
    assert all(0 <= score <= 1 for score in outcome["scores"].values())

    uri = f"sqlite:///{store}/mlflow.db"
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("alignment").experiment_id])
    (parent,) = (run for run in runs if run.data.tags["run.kind"] == "sweep")
    own = [run for run in runs if run.data.tags["sweep.id"] == parent.data.tags["sweep.id"]]
    assert (len(own), len(runs)) == (3, 6)  # the finals have a parent and two runs of one trial
    assert {entry.dataset.name for entry in parent.inputs.dataset_inputs} == {
        "walkers",
        "walkers-stills",
        "walkers-b",
    }
    best = next(run for run in own if run.data.tags.get("trial.number") == str(outcome["best"]["trial"]))
    for term in ("video", "pseudo", "motion", "content", "distribution"):
        assert [p.step for p in client.get_metric_history(best.info.run_id, f"train/{term}")] == [1, 2]

    alone = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    alone |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    used = subprocess.run(
        [sys.executable, "-P", "-c", USE],
        cwd=tmp_path,
        env=alone,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "embedded 2" in used.stdout, used.stderr
