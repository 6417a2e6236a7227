"""The plan of a sweep, as the command prints it."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config.document import Override
from orchestrator.config.sweep import read_sweep
from orchestrator.drivers.plan import sweep_plan
from orchestrator.execution.cluster import Cluster
from tests.support.sweep_files import write_sweep


@pytest.fixture
def file(tmp_path: Path) -> Path:
    search = {"x": {"uniform": [-5, 5]}, "steps": {"int": [1, 8]}}
    return write_sweep(tmp_path, search=search, sampler=None, scheduler=None)


def plan_of(file: Path, *overrides: str) -> str:
    """Return the plan of a sweep as text."""
    console = Console(width=120)
    sweep = read_sweep(file, [Override.parse(text) for text in overrides], environment={})
    with console.capture() as capture:
        console.print(sweep_plan(sweep, Cluster("here", None, None, ({"CPU": 2.0},))))
    return capture.get()


def test_plan_enqueued_points_are_tried_first(file: Path) -> None:
    text = plan_of(file, "enqueue={paper: {x: 1}, larger: {steps: 8}}")
    assert re.search(r"enqueued +paper, larger", text)


def test_plan_warm_start_names_its_sources(file: Path) -> None:
    assert re.search(r"warm start +earlier, mlflow:b", plan_of(file, "warm_start=[earlier, mlflow:b]"))


def test_plan_without_points_omits_them(file: Path) -> None:
    assert "tried first" not in plan_of(file)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("{asha: {grace: 2, reduction: 2}}", "asha, trials may stop after epoch 2, 4"),
        ("{asha: {grace: 6}}", "asha, stops no trial, because a trial has only 6 epochs"),
        ("none", "none"),
    ],
)
def test_plan_says_when_trials_may_be_stopped(file: Path, scheduler: str, told: str) -> None:
    text = plan_of(file, f"scheduler={scheduler}", "config.epochs=6")
    assert re.search(rf"scheduler +{told} *\n", text)


def test_plan_of_several_objectives_names_the_pareto_set(file: Path) -> None:
    text = plan_of(file, "objective=[{metric: val/score}, {metric: rate}]")
    assert re.search(
        r"objective +val/score \(max\), rate \(max\): a Pareto set; the model with the best", text
    )


@pytest.mark.parametrize(("sampler", "ignores"), [("random", True), ("tpe", False)])
def test_plan_says_that_a_sampler_ignores_constraints(file: Path, sampler: str, ignores: bool) -> None:
    text = plan_of(file, "constraints=[{metric: rate, at_least: 2}]", f"sampler={sampler}")
    assert re.search(r"constraints +rate at least 2", text)
    assert ("random ignores them" in text) is ignores
