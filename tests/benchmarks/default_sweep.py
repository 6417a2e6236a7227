"""The default sweep against its trials in a bare loop of as many processes, without Ray, Optuna and MLflow.

The bare loop trains the configs of the sweep, each for the epochs that the sweep trained it, and saves a
checkpoint after each. Every metric has to be equal to the last digit.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psutil

from orchestrator import trainable
from orchestrator.config.sweep import read_sweep
from orchestrator.study.attributes import epochs
from tests.benchmarks.table import Row, seconds, seconds_list
from tests.support.paths import ROOT

SWEEP = ROOT / "search_spaces" / "alignment.yaml"

_REPETITIONS = 3

Epochs = dict[int, dict[str, float]]


class _Stop(BaseException):
    """Ends a training after its last epoch."""


class _Context:
    """A context that keeps the reports, and ends the training after a number of epochs."""

    rank, world_size, device, metrics = 0, 1, "cpu", ()

    def __init__(self, epochs: int) -> None:
        self.reports: Epochs = {}
        self._epochs = epochs

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        self.reports[int(metrics["epoch"])] = metrics
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
        if len(self.reports) == self._epochs:
            raise _Stop

    def restore(self) -> None:
        return None


def train(dotted: str, config: dict[str, Any], epochs: int) -> Epochs:
    """Train one config for a number of epochs; return its reports."""
    subject, context = trainable.load(dotted), _Context(epochs)
    with contextlib.suppress(_Stop):
        subject.fit(subject.Config.model_validate(config), context)
    return context.reports


def rows(quick: bool) -> list[Row]:
    """Run sweep and bare loop in turns."""
    trials = 4 if quick else None
    commands, phases, loops, inside, outside = [], [], [], [], []
    for _ in range(1 if quick else _REPETITIONS):
        with tempfile.TemporaryDirectory() as folder:
            command, phase, jobs, ours = _sweep(Path(folder), trials)
        reports: list[Epochs] = []
        loops.append(seconds(lambda jobs=jobs, reports=reports: reports.extend(_bare_loop(jobs))))
        commands.append(command)
        phases.append(phase)
        for mine, theirs in zip(ours, reports, strict=True):
            _require_equal(mine, theirs)
            inside += [metrics["frames_per_second"] for metrics in mine.values()]
            outside += [metrics["frames_per_second"] for metrics in theirs.values()]
    loop, phase, command = map(statistics.median, (loops, phases, commands))
    speed, other = statistics.median(inside), statistics.median(outside)
    raw = f"commands {seconds_list(commands)}; trials {seconds_list(phases)}; loop {seconds_list(loops)}"
    return [
        Row(
            "trials of the default sweep",
            f"{phase:.0f} s",
            f"bare loop: {loop:.0f} s",
            f"{phase / loop:.2f}",
            "1.1",
            raw,
        ),
        Row(
            "the default sweep, whole command",
            f"{command:.0f} s",
            f"bare loop: {loop:.0f} s",
            f"{command / loop:.2f}",
            "under 5 minutes on 2 quiet cores",
            raw,
        ),
        Row(
            "frames/s of training inside a trial",
            f"{speed:.0f}",
            f"bare loop: {other:.0f}",
            f"{speed / other:.3f}",
            "at least 0.97",
        ),
    ]


def _sweep(
    folder: Path, trials: int | None
) -> tuple[float, float, list[tuple[str, dict[str, Any], int]], list[Epochs]]:
    """Run the sweep; return the seconds of the command and of its trials, the trials, and their reports."""
    command = [
        sys.executable,
        "-m",
        "orchestrator.sweep",
        str(SWEEP),
        "--storage",
        str(folder),
        "--set",
        "finals=null",
    ]
    command += [] if trials is None else ["--trials", str(trials)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = seconds(
        lambda: subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    )
    sweep = read_sweep(SWEEP)
    study = optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{folder}/{sweep.name}/study.db")
    reports = [epochs(trial) for trial in study.trials]
    jobs = [
        (sweep.trainable, sweep.trial_config(trial.params).model_dump(mode="json"), len(reported))
        for trial, reported in zip(study.trials, reports, strict=True)
    ]
    starts = [trial.datetime_start.timestamp() for trial in study.trials if trial.datetime_start]
    ends = [trial.datetime_complete.timestamp() for trial in study.trials if trial.datetime_complete]
    return whole, max(ends) - min(starts), jobs, reports


def _bare_loop(jobs: list[tuple[str, dict[str, Any], int]]) -> list[Epochs]:
    """Train all jobs on one process for each core."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a worker of one CPU
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(psutil.cpu_count(), mp_context=spawn) as pool:
        return list(pool.map(train, *zip(*jobs, strict=True)))


def _require_equal(ours: Epochs, theirs: Epochs) -> None:
    for epoch, metrics in ours.items():
        for metric, value in metrics.items():
            if metric not in ("time", "frames_per_second") and value != theirs[epoch][metric]:
                message = json.dumps([epoch, metric, value, theirs[epoch][metric]])
                raise AssertionError(f"the sweep and the bare loop differ: {message}")
