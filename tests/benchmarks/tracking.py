"""The control plane with many trials: status, continued start, report, tracking, and the driver's part."""

import contextlib
import functools
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import optuna
import psutil

from orchestrator.config.sweep import Sweep
from orchestrator.report.sweep import write_report
from orchestrator.storage.directory import open_store
from orchestrator.study.status import read_status
from orchestrator.tracking.tracker import Tracker
from tests.benchmarks import many_trials
from tests.benchmarks.many_trials import NAME
from tests.benchmarks.table import Row, alternate, seconds, seconds_list
from tests.support.paths import ROOT
from tests.support.servers import Seaweed

_POINTS = ("val/score", "train/loss", "rate")


def rows(quick: bool) -> list[Row]:
    """Return the rows; a quick run has a tenth of the trials."""
    trials, repetitions = (1_000, 2) if quick else (10_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        sweep = many_trials.create(path / "folder", trials, 20)
        many_trials.fill(sweep, trials)
        return [
            _status_in_folder(sweep, trials, repetitions),
            _status_in_bucket(path / "bucket", trials, repetitions),
            _continued_start(sweep, trials, repetitions),
            _report(sweep, trials, repetitions),
            _outbox(path / "outbox", 20 if quick else 100),
            *(_driver_cost(path / sampler, sampler, trials, quick) for sampler in ("random", "tpe")),
        ]


def _status_in_folder(sweep: Sweep, trials: int, repetitions: int) -> Row:
    store = open_store(sweep.storage)
    url = f"sqlite:///{sweep.storage}/{NAME}/study.db"

    def peer() -> None:
        storage = optuna.storages.RDBStorage(url)
        assert len(optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)) == trials
        storage.engine.dispose()

    comparison = alternate(lambda: read_status(store, NAME), peer, repetitions)
    command = [seconds(lambda: _command(f"{sweep.storage}/{NAME}")) for _ in range(repetitions)]
    median = statistics.median
    return Row(
        f"status of {trials} trials of 20 epochs, folder",
        f"{median(comparison.ours):.2f} s; {median(command):.1f} s with the start of Python",
        f"Optuna's get_trials: {median(comparison.peer):.1f} s",
        f"{comparison.ratio:.2f}",
        "under 1 s",
        f"{comparison.raw}; command {seconds_list(command)}",
    )


def _command(job: str) -> None:
    command = [sys.executable, "-m", "orchestrator.status", job, "--json"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _status_in_bucket(folder: Path, trials: int, repetitions: int) -> Row:
    folder.mkdir()
    with Seaweed(folder) as server, _environment(server.environment()):
        sweep = many_trials.create(folder / "job", trials, 20, storage="s3://sweeps/many")
        store = open_store(sweep.storage)
        many_trials.fill_journal(store, trials)
        with many_trials.driver(sweep) as (loop, _, _):
            loop.run_trial()
        ours = [seconds(lambda: read_status(store, NAME)) for _ in range(repetitions)]
    return Row(
        f"status of {trials} trials of 20 epochs, bucket",
        f"{statistics.median(ours):.2f} s",
        aim="under 1 s",
        raw=seconds_list(ours),
    )


def _continued_start(sweep: Sweep, trials: int, repetitions: int) -> Row:
    def start() -> None:
        with many_trials.driver(sweep) as (_, monitor, _):
            monitor.catch_up()
            times.append(time.perf_counter() - begin)

    times: list[float] = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        start()
    return Row(
        f"study, MLflow and what MLflow lacks, when a sweep of {trials} trials of 20 epochs is continued",
        f"{statistics.median(times):.1f} s",
        aim="under 5 s",
        raw=seconds_list(times),
    )


def _report(sweep: Sweep, trials: int, repetitions: int) -> Row:
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{sweep.storage}/{NAME}/study.db")
    study.get_trials(deepcopy=False)
    path = Path(sweep.storage) / "report.html"
    ours = [seconds(lambda: write_report(study, {"metric": "val/score"}, path)) for _ in range(repetitions)]
    return Row(
        f"report of {trials} trials of 20 epochs",
        f"{statistics.median(ours):.1f} s",
        aim="stated",
        raw=seconds_list(ours),
    )


def _outbox(folder: Path, epochs: int) -> Row:
    """Compare the time until all points of two trials are in MLflow; the caller's time is that of posting."""
    folder.mkdir()
    posting: list[float] = []
    ours: list[float] = []
    peer: list[float] = []
    mlflow.set_tracking_uri(f"sqlite:///{folder}/peer.db")
    with Tracker(f"sqlite:///{folder}/ours.db", "benchmark", NAME, "id") as tracker:
        mlflow.set_experiment("benchmark")
        for number in range(4):  # the first is a warm-up
            tracker.start_trial(number, "", {}, new=True)
            tracker.flush(60)

            def post(number: int = number) -> None:
                for epoch in range(1, epochs + 1):
                    tracker.log_epoch(number, epoch, dict.fromkeys(_POINTS, 0.5), time=epoch)

            begin = time.perf_counter()
            posting.append(seconds(post))
            assert tracker.flush(600) is None
            ours.append(time.perf_counter() - begin)
            with mlflow.start_run():
                peer.append(seconds(lambda: _log_one_by_one(epochs)))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # also for the processes of later benchmarks
    points = epochs * (len(_POINTS) + 1)
    rates = [points / statistics.median(times[1:]) for times in (ours, peer)]
    post_us = statistics.median(posting[1:]) / epochs * 1e6
    return Row(
        "points/s into MLflow's SQLite store, of epochs that wait",
        f"{rates[0]:.0f}; training waits {post_us:.0f} µs for an epoch",
        f"mlflow.log_metric: {rates[1]:.0f}",
        f"{rates[0] / rates[1]:.0f} times",
        "20 times; training waits 0",
        f"ours {seconds_list(ours)}; peer {seconds_list(peer)}; post {seconds_list(posting)}",
    )


def _log_one_by_one(epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        for metric in (*_POINTS, "epoch"):
            mlflow.log_metric(metric, 0.5, step=epoch)


def _driver_cost(folder: Path, sampler: str, trials: int, quick: bool) -> Row:
    """Run trials that do nothing in a small study and in a large one, next to Optuna's ask and tell."""
    runs = 10 if quick else 50
    texts, memory, raw = [], [], []
    cpu: dict[int, float] = {}
    for before in (trials // 10, trials):
        sweep = many_trials.create(folder / str(before), before, 1, sampler={sampler: {"seed": 0}})
        many_trials.fill(sweep, before)
        peer = _ask_and_tell(folder / f"peer-{before}.db", sampler)
        with many_trials.driver(sweep) as (loop, _, tracker):
            loop.run_trial()
            next(peer)
            walls, cpus, others = [], [], []
            for _ in range(runs):
                begin = time.thread_time()
                walls.append(seconds(loop.run_trial))
                cpus.append(time.thread_time() - begin)
                others.append(seconds(functools.partial(next, peer)))
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 2**20)
            tracker.flush(60)
        cpu[before] = statistics.median(cpus)
        texts.append(
            f"{before}: {cpu[before] * 1e3:.0f} ms on the processor, {statistics.median(walls) * 1e3:.0f} ms"
        )
        raw.append(f"{before}: wall {seconds_list(walls)}, Optuna {seconds_list(others)}")
    few, many = cpu
    return Row(
        f"driver's part of a trial of one epoch, {sampler} sampler, with trials before it",
        f"{'; '.join(texts)}; memory {memory[0]:.0f} and {memory[1]:.0f} MiB",
        f"Optuna's ask, report and tell on SQLite, empty study: {statistics.median(others) * 1e3:.0f} ms",
        f"{cpu[many] / cpu[few]:.2f} of the processor time of the small study",
        "under 20 ms, flat",
        "; ".join(raw),
    )


def _ask_and_tell(file: Path, sampler: str) -> Iterator[None]:
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
    }
    study = optuna.create_study(storage=f"sqlite:///{file}", sampler=samplers[sampler]())
    while True:
        trial = study.ask()
        score = trial.suggest_float("x", -3, 3) + trial.suggest_int("steps", 1, 8)
        trial.set_user_attr("epoch 1", dict.fromkeys(_POINTS, 0.5))
        trial.report(score, step=1)
        study.tell(trial, score)
        yield


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
