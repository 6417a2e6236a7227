"""The files of the tests: a small sweep and a small comparison of the example trainable, with changes."""

import math
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.comparison import Comparison, read_comparison
from orchestrator.config.sweep import Sweep, read_sweep

TRAINABLE = "tests.support.example_trainable:ExampleTrainable"

_SWEEP: dict[str, Any] = {
    "trainable": TRAINABLE,
    "search": {"x": {"uniform": [-3, 3]}},
    "objective": {"metric": "val/score"},
    "sampler": {"random": {"seed": 0}},
    "scheduler": "none",
    "budget": {"trials": 4},
}

_COMPARISON: dict[str, Any] = {
    "trainable": TRAINABLE,
    "config": {"epochs": 4},
    "variants": {"plain": None, "quick": {"steps": 2}, "noisy": {"noise.kind": "uniform", "x": 1.0}},
    "splits": {"y": [0, 1]},
    "seeds": [0, 7],
    "baseline": "plain",
}


def sweep_text(name: str = "parabola", **changes: Any) -> str:
    """Return a sweep file with one line for each top-level key.

    ``changes`` replace the values of the default file by key, or add keys; None leaves a key out.
    """
    return _text({"name": name, **_SWEEP, **changes})


def write_sweep(folder: Path, name: str = "parabola", **changes: Any) -> Path:
    """Write ``<folder>/<name>.yaml`` and return its path; see `sweep_text`."""
    file = folder / f"{name}.yaml"
    file.write_text(sweep_text(name, **changes))
    return file


def load_sweep(folder: Path, name: str = "parabola", **changes: Any) -> Sweep:
    """Write a sweep file whose storage is ``<folder>/store``, and read it."""
    changes = {"storage": str(folder / "store"), **changes}
    return read_sweep(write_sweep(folder, name, **changes), environment={})


def comparison_text(**changes: Any) -> str:
    """Return a comparison file named parabola; ``changes`` are those of `sweep_text`."""
    return _text({"name": "parabola", **_COMPARISON, **changes})


def write_comparison(folder: Path, **changes: Any) -> Path:
    """Write ``<folder>/parabola.yaml`` and return its path; see `comparison_text`."""
    file = folder / "parabola.yaml"
    file.write_text(comparison_text(**changes))
    return file


def load_comparison(folder: Path, **changes: Any) -> Comparison:
    """Write a comparison file whose storage is ``<folder>/store``, and read it."""
    changes = {"storage": str(folder / "store"), **changes}
    return read_comparison(write_comparison(folder, **changes), environment={})


def _text(values: dict[str, Any]) -> str:
    """Return a file with one line for each key whose value is not None."""
    return "".join(f"{key}: {_flow(value)}\n" for key, value in values.items() if value is not None)


def _flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
