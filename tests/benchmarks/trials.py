"""How a sweep bears many trials: ``python tests/benchmarks/trials.py --trials 10000 --known 9000``.

The trials are real ones of Ray Tune, with study, MLflow and report, but each reports once by itself instead
of starting Ray Train workers, which would take seconds. Those that are ``--known`` were not run at all, but
for one: they are put into the study as an earlier driver would have left them that died before it told MLflow
of them. The table shows the seconds of a trial and the memory of the driver over the sweep, then what the
sweep took in all, its status, and how large its files are.
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

from orchestrator import status, sweep
from orchestrator.execution import runner as search
from orchestrator.storage.s3 import Folder
from tests.support.paths import ROOT

EXAMPLE = str(ROOT)
FILE = """
name: many
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 1}
search: {x: {uniform: [-3, 3]}, steps: {int: [1, 8]}}
objective: {metric: val/score}
sampler: {random: {seed: 0}}
scheduler: none
budget: {trials: 1}
"""


def no_op(point: Mapping[str, Any], spec: Any) -> None:
    """A trial that is done at once."""
    folder = Path(spec.folder) / f"trial-{point['number']:04d}" / "checkpoint_1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"epoch": 1, "x": 1.0, "y": -2.0}')
    score = -abs(point["config"]["x"])
    names = ["epoch", "val/score", "train/loss", "rate"]
    tune.report(
        {"epoch": 1, "val/score": score, "train/loss": -score, "rate": 1.0, "names": names}
        | {"checkpoint_path": str(folder)}
    )


def fill(place: Path, trials: int) -> None:
    """Put finished trials into the study, like its first one, which was run, but worse."""
    study = optuna.load_study(study_name="many", storage=f"sqlite:///{place}/many/study.db")
    first = study.trials[0]
    (epoch,) = (key for key in first.user_attrs if key.startswith("epoch "))
    for number in range(trials):
        x = 2 + number / trials
        report = {**first.user_attrs[epoch], "val/score": -x, "train/loss": x}
        made = optuna.trial.create_trial(
            values=[-x],
            params={**first.params, "x": x},
            distributions=first.distributions,
            user_attrs={**first.user_attrs, epoch: report},
            intermediate_values={1: -x},
        )
        study.add_trial(made)


def main() -> int:
    """Run it, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--known", type=int, default=0)
    parsed = parser.parse_args()
    trials, known = parsed.trials, parsed.known
    if not 0 <= known < trials:
        parser.error(f"--known {known}: at least one trial of {trials} has to run")
    sys.path.insert(0, EXAMPLE)
    os.environ["PYTHONPATH"] = f"{EXAMPLE}:{os.environ.get('PYTHONPATH', '')}"  # of the workers
    seen: list[tuple[int, float, float]] = []
    begin = time.perf_counter()
    original = search.Monitor.ended

    def ended(monitor: Any, number: int) -> None:
        original(monitor, number)
        if (number + 1) % max(1, (trials - known) // 10) == 0:
            memory = psutil.Process().memory_info().rss / 2**20
            seen.append((number + 1, time.perf_counter() - begin, memory))

    search.run, search.Monitor.ended = no_op, ended  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.yaml"
        file.write_text(FILE)
        command = [str(file), "--storage", folder, "--trials"]
        if known:
            subprocess.run([sys.executable, "-m", "orchestrator.sweep", *command, "1"], check=True)
            fill(Path(folder), known - 1)
            begin = time.perf_counter()
        code = sweep.main([*command, str(trials)])
        table = Table("trials", "s / trial", "driver MiB", title=f"{trials} trials, exit code {code}")
        before, last = 0.0, known
        for count, seconds, memory in seen:
            table.add_row(str(count), f"{(seconds - before) / (count - last):.3f}", f"{memory:.0f}")
            before, last = seconds, count
        after = time.perf_counter()
        told = status.read(Folder(Path(folder)), "many")
        report = Path(folder) / "many" / "report.html"
        rows = Table("afterwards", "")
        rows.add_row("sweep, from start to summary", f"{after - begin:.0f} s")
        rows.add_row("status", f"{time.perf_counter() - after:.1f} s, {told.trials}")
        rows.add_row("report", f"{report.stat().st_size / 2**20:.1f} MiB")
        rows.add_row("study", f"{(report.parent / 'study.db').stat().st_size / 2**20:.1f} MiB")
        Console().print(table, rows)
    return code


if __name__ == "__main__":
    sys.exit(main())
