"""Sweeps one after the other that register models of one name: only a better one takes the alias."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.config.sections import sqlite_address
from orchestrator.tracking.promotion import records_of
from tests.support import command_line
from tests.support.sweep_files import write_sweep

TRAINABLE = "tests.support.example_trainable:ComparableTrainable"
SMALL = {
    "trainable": TRAINABLE,
    "budget": {"trials": 1},
    "resources": {"concurrent": 1},
    "search": {"x": {"uniform": [0.9, 1.1]}},
}

sweep = partial(command_line.run, "sweep")
refused = partial(command_line.refused, "sweep")


def run(folder: Path, name: str, epochs: int, **changes: Any) -> str:
    """Run a sweep that is the better, the more epochs it has; return what it prints."""
    file = write_sweep(
        folder, name, **SMALL, config={"epochs": epochs}, registry={"model": "parabola", **changes}
    )
    done = sweep(file, "--storage", str(folder / "store"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.sweep
def test_worse_sweep_leaves_the_champion_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "parabola version 1, alias champion: no version had this alias" in run(tmp_path, "good", 5)
    monkeypatch.setenv("PARABOLA_SCORING", "2")  # the champion is scored anew
    output = " ".join(run(tmp_path, "worse", 2).split())
    assert "parabola version 2, without the alias champion: score on parabola changes by -0." in output
    assert "version 1, alias champion" in run(tmp_path, "good", 5)

    client = MlflowClient(sqlite_address(tmp_path / "store" / "mlflow.db"))
    client.set_registered_model_alias("parabola", "champion", "2")
    assert "the alias champion of parabola is that of version 2 now" in run(tmp_path, "good", 5)
    client.set_registered_model_alias("parabola", "champion", "1")
    changed = " ".join(run(tmp_path, "worse", 2, gate={"confidence": 0.6}).split())
    assert "registry.gate: confidence 0.95, now 0.6; the decision about parabola version 2 stays" in changed
    aliases = client.get_registered_model("parabola").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 1, "challenger": 2}
    version = client.get_model_version("parabola", "2")
    (record,) = records_of(version, "champion")
    assert (record.method, record.champion) == ("paired bootstrap over identities", 1)
    assert record.targets["parabola"].queries == 10 and not record.not_compared
    kept = json.loads(
        Path(client.download_artifacts(version.run_id, "registry/parabola-v2-champion.json")).read_text()
    )
    assert kept["verdict"] == "declined" and sum(kept["histogram"]["counts"]) == 10_000
    assert "| parabola |" in version.description


@pytest.mark.parametrize(
    ("gate", "line"),
    [
        ({"metric": "scor"}, "registry.gate.metric: no target reports 'scor'; did you mean 'score'?"),
        ({"floors": {"test/x/score": 1}}, "registry.gate.floors: no score 'test/x/score'"),
        ({"aggregate": {"parabel": 1}}, "registry.gate.aggregate: no target 'parabel' reports 'score'"),
        ({"confidence": 1.5}, "registry.gate.confidence: should be"),
        ("never", "registry.gate: invalid value 'never'; expected none, or for example {metric: mAP}"),
        ({"tolerence": 0.1}, "registry.gate.tolerence: unknown key; did you mean 'tolerance'?"),
    ],
    ids=["metric", "floors", "aggregate", "confidence", "word", "key"],
)
def test_gate_that_cannot_work_is_refused_before_training(tmp_path: Path, gate: Any, line: str) -> None:
    file = write_sweep(tmp_path, **SMALL, registry={"model": "parabola", "gate": gate})
    assert line in refused(file, "--storage", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
