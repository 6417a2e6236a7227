"""A trainable that descends a parabola and fails in the ways that tests ask for."""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

_log = logging.getLogger(__name__)


class DataError(ValueError):
    """The user's data is at fault."""


@dataclass(frozen=True)
class Record:
    """The data set that was used."""

    name: str = "parabola"
    role: str = "train"
    source: str = "(x - 1)² + (y + 2)²"
    digest: str = "0f1e2d3c"
    counts: dict[str, int] = field(default_factory=lambda: {"points": 1})


class Noise(BaseModel):
    """An optional part of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["none", "uniform"] = "none"
    width: float = Field(0.1, ge=0)


class ExampleConfig(BaseModel):
    """Where to start, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    epochs: int = Field(4, ge=1)
    x: float = Field(0.0, ge=-10, le=10)
    y: float = Field(0.0, ge=-10, le=10)
    steps: int = Field(1, ge=1, le=8)
    noise: Noise | None = Noise()
    fault: Literal[
        "none", "data", "diverge", "crash", "score", "once", "picture", "hang", "die", "greedy", "poison"
    ] = "none"
    marker: str = Field(
        "", description="fault once: the file that marks that it has occurred; poison: the file"
    )
    seconds: float = Field(0.0, ge=0, description="duration of an epoch")
    sets: dict[str, Noise] = {}


class ExampleTrainable:
    """A trainable that halves its distance to the minimum ``steps`` times an epoch."""

    Config = ExampleConfig
    InputError = DataError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "val/score": "max",
        "train/loss": "min",
        "rate": "max",
    }
    throughput: str | None = "rate"

    def prepare(self, config: ExampleConfig) -> list[Record]:
        """Check the data and return its record."""
        self.check(config, workers=1)
        _log.info("the parabola is ready")
        return [Record(digest=os.environ.get("PARABOLA_DATA", Record.digest))]

    def check(self, config: ExampleConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Raise the error that a test asks for."""
        if config.fault == "data":
            raise DataError("fault: data is at fault; write none")

    def fit(self, config: ExampleConfig, context: Any) -> None:
        """Descend, from the last checkpoint if there is one."""
        state = {"epoch": 0, "x": config.x, "y": config.y}
        checkpoint = context.restore()
        if checkpoint is not None:
            state = json.loads((checkpoint / "state.json").read_text())
        for epoch in range(int(state["epoch"]) + 1, config.epochs + 1):
            begun = time.perf_counter()
            time.sleep(config.seconds)
            if config.fault == "crash" and epoch == 2:
                raise RuntimeError("the trainable crashed as asked")
            if config.fault == "poison" and _take(Path(config.marker)):
                raise RuntimeError("poisoned: a\0b\udc80")
            if config.fault == "hang" and epoch == 2:
                time.sleep(3600)
            if config.fault == "die" and epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.fault == "greedy" and epoch == 2:
                hoard = [b"x" * (100 << 20) for _ in range(100)]
                raise RuntimeError(f"the trial was not stopped at {len(hoard)} times 100 MiB")
            for _ in range(config.steps):
                state = {"epoch": epoch, "x": (state["x"] + 1) / 2, "y": (state["y"] - 2) / 2}
            loss = math.nan if config.fault == "diverge" else (state["x"] - 1) ** 2 + (state["y"] + 2) ** 2
            if not math.isfinite(loss):
                raise FloatingPointError(f"train/loss is {loss} in epoch {epoch}")
            text = json.dumps(state)
            rate = 1 / (time.perf_counter() - begun + 1e-9)
            context.report(
                {"epoch": epoch, "val/score": -loss, "train/loss": loss, "rate": rate},
                lambda folder, text=text: (folder / "state.json").write_text(text) and None,
            )

    def evaluate(self, config: ExampleConfig, checkpoint: Path) -> dict[str, float]:
        """Score the checkpoint."""
        if config.fault == "score":
            raise RuntimeError("the targets are out of reach as asked")
        if config.fault == "once" and not Path(config.marker).exists():
            Path(config.marker).touch()
            raise RuntimeError("the targets are out of reach, this once")
        state = json.loads((checkpoint / "state.json").read_text())
        return {"test/parabola/score": -((state["x"] - 1) ** 2) - (state["y"] + 2) ** 2}

    def illustrate_run(
        self, variant: str, number: int, config: ExampleConfig, checkpoint: Path, directory: Path
    ) -> tuple[float, float]:
        """Return the last point of a run."""
        if config.fault == "picture":
            raise RuntimeError("the picture cannot be drawn as asked")
        state = json.loads((checkpoint / "state.json").read_text())
        return state["x"], state["y"]

    def illustrate_comparison(
        self, runs: Mapping[str, Sequence[tuple[float, float]]], directory: Path
    ) -> None:
        """Draw the last point of each run, one picture per variant."""
        from matplotlib.figure import Figure

        for name, points in runs.items():
            figure = Figure(figsize=(3, 2))
            axes = figure.add_subplot()
            for point in points:
                axes.plot(*point, "o")
            figure.savefig(directory / f"ends-of-{name}.png")

    def export(self, config: ExampleConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write a model that adds the state's ``x`` to its input."""
        import numpy
        from mlflow.models import infer_signature

        state, model = directory / "state.json", directory / "model.py"
        state.write_text((checkpoint / "state.json").read_text())
        model.write_text(_MODEL)
        example = numpy.zeros((1, 2), dtype=numpy.float32)
        return {
            "python_model": str(model),
            "artifacts": {"state": str(state)},
            "input_example": example,
            "signature": infer_signature(example, example),
            "pip_requirements": ["numpy"],
        }


@dataclass(frozen=True)
class Results:
    """The results on the parabola, of points that a model is tried at."""

    data: str
    protocol: str
    version: str
    queries: tuple[str, ...]
    identities: tuple[str, ...]
    metrics: dict[str, tuple[float, ...]]


class ComparableTrainable(ExampleTrainable):
    """A trainable whose models are compared at ten points: the nearer to the minimum, the better at each."""

    def target_metrics(self, config: ExampleConfig) -> dict[str, list[str]]:
        """Return the only metric."""
        return {"parabola": ["score"]}

    def query_results(self, config: ExampleConfig, checkpoint: Path) -> dict[str, Results]:
        """Return the results of a checkpoint."""
        return self._results(checkpoint / "state.json")

    def score_model(self, config: ExampleConfig, model: Path) -> dict[str, Results]:
        """Return the results of a model."""
        found = next(model.rglob("state.json"), None)
        if found is None:
            raise DataError(f"model: {model} holds no state")
        return self._results(found)

    def trained_on(self, config: ExampleConfig) -> dict[str, list[str]]:
        """Return nobody."""
        return {}

    def tested_on(self, config: ExampleConfig) -> dict[str, dict[str, list[str]]]:
        """Return nobody."""
        return {"parabola": {}}

    def _results(self, file: Path) -> dict[str, Results]:
        state = json.loads(file.read_text())
        score = -((state["x"] - 1) ** 2) - (state["y"] + 2) ** 2
        values = tuple(score + (point - 4.5) / 10 for point in range(10))
        names = tuple(f"point {point}" for point in range(10))
        version = os.environ.get("PARABOLA_SCORING", "1")
        return {"parabola": Results("0f1e2d3c", "exact", version, names, names, {"score": values})}


class PlainErrors(ExampleTrainable):
    """Raises the most general error that the contract allows."""

    InputError: ClassVar[type[Exception]] = ValueError  # type: ignore[misc,assignment]


def _take(file: Path) -> bool:
    """Remove a file; return whether this process removed it."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


_MODEL = '''"""Adds a constant."""

import json

import mlflow


class Model(mlflow.pyfunc.PythonModel):
    """Adds the x of the exported state."""

    def load_context(self, context):
        with open(context.artifacts["state"]) as file:
            self.x = json.load(file)["x"]

    def predict(self, context, model_input, params=None):
        return (model_input + self.x).astype("float32")


mlflow.models.set_model(Model())
'''
