"""Lanes: trials in used processes are like trials in new ones, and what a trial damages is replaced."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.support import command_line
from tests.support.command_line import read_until
from tests.support.ray_nodes import RayNodes
from tests.support.sweep_files import write_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

MESSY: dict[str, Any] = {
    "trainable": "tests.support.messy_trainable:MessyTrainable",
    "config": {"epochs": 2},
    "search": {
        "x": {"uniform": [0, 9]},
        "fault": {"choice": ["none", "crash", "memory", "thread", "rank1"]},
    },
    "objective": {"metric": "score"},
    "sampler": {"random": {"seed": 0}},
    "scheduler": "none",
}


def run_points(folder: Path, faults: list[str], xs: list[int] | None = None, **resources: int) -> str:
    """Run a sweep of these points in this order, one at a time; return its output."""
    points = {
        f"p{number}": {"x": float(x), "fault": fault}
        for number, (x, fault) in enumerate(zip(xs or range(len(faults)), faults, strict=True))
    }
    folder.mkdir()
    file = write_sweep(
        folder,
        "messy",
        **MESSY,
        enqueue=points,
        budget={"trials": len(points)},
        resources={"concurrent": 1, **resources},
    )
    done = command_line.run("sweep", file, "--storage", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(folder: Path, name: str = "messy") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/{name}/study.db").trials


def processes(folder: Path) -> list[float]:
    """Return the process of each trial."""
    return [trial.user_attrs["epoch 1"]["pid"] for trial in trials(folder)]


def test_trials_are_equal_in_new_and_used_processes(tmp_path: Path) -> None:
    xs = [0, 1, 2]
    run_points(tmp_path / "used", ["none"] * 3, xs)
    run_points(tmp_path / "reversed", ["none"] * 3, xs[::-1])
    run_points(tmp_path / "new", ["none"] * 3, xs, trials_per_worker=1)
    results = []
    for name, expected in (("used", 1), ("reversed", 1), ("new", 3)):
        assert len(set(processes(tmp_path / name))) == expected
        results.append({trial.params["x"]: trial.intermediate_values for trial in trials(tmp_path / name)})
    assert results[0] == results[1] == results[2]
    assert len({str(values) for values in results[0].values()}) == 3


def test_workers_survive_errors_and_are_replaced_after_damage(tmp_path: Path) -> None:
    faults = ["none", "crash", "none", "thread", "none", "memory", "none"]
    output = run_points(tmp_path / "sweep", faults)
    states = [trial.state for trial in trials(tmp_path / "sweep")]
    assert states == [
        TrialState.FAIL if fault in ("crash", "memory") else TrialState.COMPLETE for fault in faults
    ]
    first, second, third, fourth, fifth, sixth, last = processes(tmp_path / "sweep")
    assert first == second == third == fourth  # an exception does no harm to the process
    assert fifth == sixth and len({first, fifth, last}) == 3
    assert "trial-0004 gets new workers: after their last trial, it left 1 thread (left behind)" in output
    assert "trial-0001 failed: RuntimeError: crashed as asked" in output
    assert "trial-0005 failed: MemoryError: no memory left, as asked" in output


def test_group_of_workers_is_replaced_when_one_fails(tmp_path: Path) -> None:
    run_points(tmp_path / "sweep", ["none", "rank1", "none", "none"], workers=2)
    states = [trial.state for trial in trials(tmp_path / "sweep")]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    first, second, third, last = processes(tmp_path / "sweep")
    assert first == second != third == last


def test_lane_gives_its_workers_to_a_job_that_waits(tmp_path: Path) -> None:
    environment = command_line.environment()
    with RayNodes(1, environment, tmp_path / "ray.log") as nodes:
        options = ["--storage", str(tmp_path), "--address", nodes.address]
        long = write_sweep(tmp_path, "long", config={"epochs": 1, "seconds": 1.0}, budget={"trials": 300})
        short = write_sweep(tmp_path, "short", config={"epochs": 1}, budget={"trials": 2})
        with command_line.start("sweep", long, *options) as (process, output):
            read_until(output, epochs=1)
            done = command_line.run("sweep", short, *options)
            assert done.returncode == 0, done.stdout + done.stderr
            assert process.poll() is None  # it has trials for minutes
            process.terminate()
            output.read()
        assert nodes.placement_groups() == [] and nodes.left() == []


@pytest.mark.timeout(3600)
def test_pruned_trials_leave_nothing(tmp_path: Path) -> None:
    environment = command_line.environment()
    stops = int(os.environ.get("FAULT_STOPS", "20"))
    count = stops * 4 // 3 + 4
    file = write_sweep(
        tmp_path,
        config={"epochs": 4},
        search={"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 3]}},
        sampler={"random": {"seed": 3}},
        scheduler={"asha": {"grace": 1, "reduction": 8}},
        budget={"trials": count},
        resources={"concurrent": "auto"},
    )
    with RayNodes(2, environment, tmp_path / "ray.log") as nodes:
        done = command_line.run("sweep", file, "--storage", str(tmp_path), "--address", nodes.address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "unused placement groups" not in done.stdout  # the reaper had nothing to remove, either
        assert nodes.placement_groups() == [] and nodes.left() == []
    ended = trials(tmp_path, "parabola")
    states = Counter(trial.state.name for trial in ended)
    print(f"{states['PRUNED']} trials were stopped early, {states['COMPLETE']} were not")
    assert states["PRUNED"] >= stops and states.total() == count
    # A trial that is stopped early reports nothing after its rung.
    assert all(max(trial.intermediate_values) == 1 for trial in ended if trial.state == TrialState.PRUNED)
