"""Many trials without training: seconds of a trial, and memory of the driver, from the first to the last.

Every trial runs for real: it is suggested, runs on the workers of a lane, saves a checkpoint, and is recorded
in the study and in MLflow. The peer is a function of Ray Tune that reports once, with Optuna's search.
``python -m tests.benchmarks.trials --trials N`` prints more detail for N trials.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from orchestrator import sweep
from orchestrator.execution import runner
from orchestrator.storage.local import LocalStore
from orchestrator.study.status import read_status
from tests.benchmarks.table import Row, seconds
from tests.support.paths import ROOT
from tests.support.sweep_files import write_sweep

_SAMPLES = 10
"""Number of times at which seconds and memory are taken."""

_PLAIN = """
import sys, tempfile
from ray import tune
import ray
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
tune.Tuner(
    lambda config: tune.report({"loss": config["rate"]}),
    param_space={"rate": tune.loguniform(1e-4, 1e-1)},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=int(sys.argv[1]), search_alg=OptunaSearch(seed=0)
    ),
    run_config=tune.RunConfig(storage_path=sys.argv[2], verbose=0),
).fit()
"""

Sample = tuple[int, float, float]
"""Trials that have ended, seconds since the first one ended, and MiB of the driver."""


def rows(quick: bool) -> list[Row]:
    """Measure trials without training."""
    trials, theirs = (300, 20) if quick else (10_000, 100)
    with tempfile.TemporaryDirectory() as folder:
        samples = _run(Path(folder), trials)
    per_trial = samples[-1][1] / (samples[-1][0] - 1)
    fewer, more = (_plain(count) for count in (theirs // 2, theirs))
    peer = (more - fewer) / (theirs - theirs // 2)
    raw = "; ".join(f"{count}: {elapsed:.0f} s, {memory:.0f} MiB" for count, elapsed, memory in samples)
    first, last = samples[0], samples[-1]
    return [
        Row(
            f"a trial without training, of {trials}",
            f"{per_trial:.3f} s",
            f"plain Tune function and OptunaSearch: {peer:.2f} s",
            f"1/{peer / per_trial:.0f}",
            "under 0.1 s",
            raw,
        ),
        Row(
            f"driver memory from {first[0]} to {last[0]} trials",
            f"{first[2]:.0f} to {last[2]:.0f} MiB",
            ratio=f"{last[2] / first[2]:.2f}",
            aim="flat, 0.9 to 1.1",
            raw=raw,
        ),
    ]


def _run(folder: Path, trials: int) -> list[Sample]:
    """Run a sweep in this process; return samples of its progress."""
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"  # of the workers
    file = write_sweep(
        folder,
        "many",
        trainable="tests.benchmarks.tiny_trainable:TinyTrainable",
        config={"epochs": 1},
        search={"rate": {"log_uniform": [1e-4, 1e-1]}},
        objective={"metric": "loss"},
        budget={"trials": trials},
    )
    ends: list[float] = []
    samples: list[Sample] = []
    original = runner.TrialMonitor.publish_end

    def publish_end(monitor: Any, number: int) -> None:
        original(monitor, number)
        ends.append(time.perf_counter())
        if len(ends) % max(1, trials // _SAMPLES) == 0:
            memory = psutil.Process().memory_info().rss / 2**20
            samples.append((len(ends), ends[-1] - ends[0], memory))

    runner.TrialMonitor.publish_end = publish_end  # type: ignore[method-assign]
    try:
        code = sweep.main([str(file), "--storage", str(folder)])
    finally:
        runner.TrialMonitor.publish_end = original  # type: ignore[method-assign]
    if code:
        raise RuntimeError(f"the sweep ended with {code}")
    return samples


def _plain(trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PLAIN, str(trials), folder]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def main() -> int:
    """Run one sweep and print its progress, and what its study costs afterwards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        samples = _run(Path(folder), trials)
        table = Table("trials", "s / trial", "driver MiB", title=f"{trials} trials")
        before = (1, 0.0)
        for count, elapsed, memory in samples:
            table.add_row(str(count), f"{(elapsed - before[1]) / (count - before[0]):.3f}", f"{memory:.0f}")
            before = (count, elapsed)
        begin = time.perf_counter()
        status = read_status(LocalStore(Path(folder)), "many")
        rows = Table("afterwards", "")
        rows.add_row("status", f"{time.perf_counter() - begin:.1f} s, {status.trials}")
        for name in ("report.html", "study.db"):
            size = (Path(folder) / "many" / name).stat().st_size
            rows.add_row(name, f"{size / 2**20:.1f} MiB")
    Console().print(table, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
