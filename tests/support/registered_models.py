"""Small models that are registered as a sweep does it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from orchestrator.config.sections import Gate
from orchestrator.tracking.evidence import Evidence
from orchestrator.tracking.gate import Rule
from orchestrator.tracking.model_registry import RegisteredModel, register
from orchestrator.tracking.tracker import Tracker

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


def exported(folder: Path) -> dict[str, Any]:
    """Write a model; return what a trainable returns from its export."""
    (folder / "mean_colour.py").write_text(MODEL)
    (folder / "scale.txt").write_text("0.5")
    noise = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 4, 3), dtype=np.uint8)
    return {
        "python_model": str(folder / "mean_colour.py"),
        "artifacts": {"scale": str(folder / "scale.txt")},
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


@dataclass(frozen=True)
class Walkers:
    """The record of a data set."""

    name: str = "walkers"
    role: str = "target"
    source: str = "generated"
    digest: str = "d1"
    counts: dict[str, int] = field(default_factory=lambda: {"identities": 8})


def register_best(
    tracker: Tracker, export: dict[str, Any], rank1: float, alias: str = "champion"
) -> RegisteredModel:
    scores, data = {"test/walkers/rank1": rank1}, {"walkers": "d1"}
    rule = Rule(gate=Gate(metric="rank1"), metric="rank1")
    return register(
        tracker,
        0,
        export,
        model=f"reid-{tracker.sweep_id.split('-')[0]}",
        alias=alias,
        evaluation=scores,
        record={"data": data, "parameters": {"rnn.cell": "gru"}},
        evidence=Evidence(trainable="a:B", config={}, rule=rule, scores=scores, data=data),
        data_sets=[Walkers()],
    )
