"""Start and cost of a trial on a lane, against Ray's documented nesting of Ray Train in Ray Tune.

Both train `TinyTrainable`'s model for three epochs with a checkpoint after each, one trial after the other.
The start is the time from the suggestion of a trial to the first line of its training code. Both run as
commands, and the figures leave out the first two trials, for which processes have to start.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import optuna

from tests.benchmarks.table import Row, seconds_list
from tests.support.paths import ROOT
from tests.support.sweep_files import write_sweep

_SKIPPED = 2

_NESTING = """
import json, os, sys, tempfile, time
import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

trials, workers, scratch = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
starts, begins, ends = {}, {}, []

def train_loop(config):
    import torch
    begin = time.time()
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config["rate"])
    for epoch in range(3):
        inputs = torch.randn(32, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), os.path.join(folder, "model.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"loss": float(loss.detach()), "begin": begin}, checkpoint=checkpoint)

def trial(config):
    TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=tune.get_context().get_trial_id(), storage_path=scratch, callbacks=[TuneReportCallback()]
        ),
    ).fit()

class Times(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        begins.setdefault(trial.trial_id, result["begin"])
    def on_trial_complete(self, iteration, trials, trial, **info):
        ends.append(time.time())

class Search(OptunaSearch):
    def suggest(self, trial_id):
        suggestion = super().suggest(trial_id)
        if suggestion is not None:
            starts[trial_id] = time.time()
        return suggestion

ray.init(num_cpus=2, resources={"trial_slot": 4}, log_to_driver=False, logging_level="ERROR")
tune.Tuner(
    tune.with_resources(trial, {"trial_slot": 1}),
    param_space={"rate": tune.loguniform(1e-4, 1e-1)},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=trials,
        search_alg=ConcurrencyLimiter(Search(seed=0), max_concurrent=1),
    ),
    run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[Times()]),
).fit()
print("times", json.dumps({"starts": [begins[i] - starts[i] for i in starts], "ends": ends}))
"""
"""Ray's documented way: a Tune function that starts a Ray Train trainer."""

Times = tuple[list[float], list[float]]
"""Seconds from suggestion to first line of each trial, and from the end of each to that of the next."""


def rows(quick: bool) -> list[Row]:
    """Measure the start and the wall time of a trial with one and with two workers."""
    trials, theirs = (30, 4) if quick else (100, 8)
    table = []
    for workers in (1, 2):
        ours_start, ours_wall, peer_start, peer_wall = [], [], [], []
        for _ in range(1 if quick else 3):
            start, wall = _sweep(trials, workers)
            ours_start += start
            ours_wall += wall
            start, wall = _nesting(theirs, workers)
            peer_start += start
            peer_wall += wall
        unit = f"{workers} worker" + "s" * (workers > 1)
        if workers == 1:
            table.append(_row(f"suggestion to first line of fit, {unit}", ours_start, peer_start, 0.1))
        table.append(_row(f"wall time of a tiny trial, {unit}", ours_wall, peer_wall, 0.3))
    return table


def _row(what: str, ours: list[float], peer: list[float], aim: float) -> Row:
    median, other = statistics.median(ours), statistics.median(peer)
    return Row(
        what,
        f"{median:.3f} s",
        f"Ray's documented nesting: {other:.2f} s",
        f"1/{other / median:.0f}",
        f"under {aim:g} s, under 1/50",
        f"ours {seconds_list(sorted(ours)[:: max(1, len(ours) // 20)])}; peer {seconds_list(peer)}",
    )


def _sweep(trials: int, workers: int) -> Times:
    """Run a sweep of tiny trials, one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_sweep(
            Path(folder),
            "tiny",
            trainable="tests.benchmarks.tiny_trainable:TinyTrainable",
            config={"epochs": 3},
            search={"rate": {"log_uniform": [1e-4, 1e-1]}},
            objective={"metric": "loss"},
            budget={"trials": trials},
            resources={"workers": workers, "concurrent": 1},
        )
        _run([sys.executable, "-m", "orchestrator.sweep", str(file), "--storage", folder])
        study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/tiny/study.db")
        measured = study.trials[_SKIPPED:]
        starts = [
            trial.user_attrs["epoch 1"]["begin"] - trial.datetime_start.timestamp()
            for trial in measured
            if trial.datetime_start is not None
        ]
        ends = [trial.datetime_complete.timestamp() for trial in measured if trial.datetime_complete]
    return starts, [later - earlier for earlier, later in pairwise(ends)]


def _nesting(trials: int, workers: int) -> Times:
    """Run tiny trials in Ray's documented way, one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        output = _run([sys.executable, "-c", _NESTING, str(trials), str(workers), folder])
    (line,) = [line for line in output.splitlines() if line.startswith("times ")]
    times = json.loads(line.removeprefix("times "))
    return times["starts"][_SKIPPED:], [b - a for a, b in pairwise(times["ends"][_SKIPPED:])]


def _run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:3])} ended with {done.returncode}: {done.stdout}{done.stderr}"
        )
    return done.stdout
