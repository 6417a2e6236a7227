"""Cost of a sweep of many trials: ``python -m tests.benchmarks.trials --trials 10000 --recorded 9000``.

The trials are those of Ray Tune, with study, MLflow and report, but each reports once by itself instead of
starting Ray Train workers, which would take seconds. Of the ``--recorded`` ones only the first is run: the
others are put into the study as a driver leaves them that dies before it delivers them to MLflow. The table
shows the seconds of a trial and the memory of the driver over the sweep, then the time of the whole sweep and
of its status, and the size of its files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import psutil
from ray import tune
from rich.console import Console
from rich.table import Table

from orchestrator import sweep
from orchestrator.execution import runner
from orchestrator.storage.local import LocalStore
from orchestrator.study.status import read_status
from orchestrator.study.trial_report import EpochEnded, encode, trial_name
from tests.support.paths import ROOT
from tests.support.sweep_files import write_sweep

SEARCH = {"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 8]}}


def end_at_once(suggestion: Mapping[str, Any], spec: Any) -> None:
    """Report the only epoch of a trial."""
    folder = Path(spec.folder) / trial_name(suggestion["number"]) / "checkpoint_1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"epoch": 1, "x": 1.0, "y": -2.0}')
    score = -abs(suggestion["config"]["x"])
    tune.report(encode(EpochEnded(1, {"val/score": score, "train/loss": -score, "rate": 1.0}, str(folder))))


def fill(storage: Path, trials: int) -> None:
    """Put finished trials into the study: copies of its first one, but worse."""
    study = optuna.load_study(study_name="many", storage=f"sqlite:///{storage}/many/study.db")
    first = study.trials[0]
    (epoch,) = (key for key in first.user_attrs if key.startswith("epoch "))
    for number in range(trials):
        x = 2 + number / trials
        report = {**first.user_attrs[epoch], "val/score": -x, "train/loss": x}
        trial = optuna.trial.create_trial(
            values=[-x],
            params={**first.params, "x": x},
            distributions=first.distributions,
            user_attrs={**first.user_attrs, epoch: report},
            intermediate_values={1: -x},
        )
        study.add_trial(trial)


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--recorded", type=int, default=0)
    parsed = parser.parse_args()
    trials, recorded = parsed.trials, parsed.recorded
    if not 0 <= recorded < trials:
        parser.error(f"--recorded {recorded}: at least one trial of {trials} has to run")
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"  # of the workers
    samples: list[tuple[int, float, float]] = []
    begin = time.perf_counter()
    original = runner.TrialMonitor.publish_end

    def publish_end(monitor: Any, number: int) -> None:
        original(monitor, number)
        if (number + 1) % max(1, (trials - recorded) // 10) == 0:
            memory = psutil.Process().memory_info().rss / 2**20
            samples.append((number + 1, time.perf_counter() - begin, memory))

    runner.run_trial, runner.TrialMonitor.publish_end = end_at_once, publish_end  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder:
        file = write_sweep(Path(folder), "many", config={"epochs": 1}, search=SEARCH, budget={"trials": 1})
        command = [str(file), "--storage", folder, "--trials"]
        if recorded:
            subprocess.run([sys.executable, "-m", "orchestrator.sweep", *command, "1"], check=True)
            fill(Path(folder), recorded - 1)
            begin = time.perf_counter()
        code = sweep.main([*command, str(trials)])
        table = Table("trials", "s / trial", "driver MiB", title=f"{trials} trials, exit code {code}")
        before, last = 0.0, recorded
        for count, seconds, memory in samples:
            table.add_row(str(count), f"{(seconds - before) / (count - last):.3f}", f"{memory:.0f}")
            before, last = seconds, count
        after = time.perf_counter()
        status = read_status(LocalStore(Path(folder)), "many")
        report = Path(folder) / "many" / "report.html"
        rows = Table("afterwards", "")
        rows.add_row("sweep, from start to summary", f"{after - begin:.0f} s")
        rows.add_row("status", f"{time.perf_counter() - after:.1f} s, {status.trials}")
        rows.add_row("report", f"{report.stat().st_size / 2**20:.1f} MiB")
        rows.add_row("study", f"{(report.parent / 'study.db').stat().st_size / 2**20:.1f} MiB")
        Console().print(table, rows)
    return code


if __name__ == "__main__":
    sys.exit(main())
