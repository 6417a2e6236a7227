"""Studies of many trials, copied from one that a study of this project has recorded."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.config.sweep import Sweep
from orchestrator.execution.monitor import TrialMonitor
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.interrupt import Interrupt
from orchestrator.storage.base import Store
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.s3_journal import SEGMENT_BYTES
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Trained, TrialReport, encode
from orchestrator.tracking.tracker import Tracker
from tests.support.sweep_files import load_sweep

NAME = "many"

_TABLES = ("trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes")
_RUN_TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")
_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) SELECT i FROM n"
_CREATE_TRIAL = 4
"""Of Optuna's journal: the operation that adds a trial."""


class TuneTrial:
    """The part of a Ray Tune trial that scheduler and monitor look at."""

    def __init__(self, suggestion: Any) -> None:
        self.config = suggestion


class DriverLoop:
    """What a driver does for each trial, without Ray: suggest, record, decide, track."""

    def __init__(self, sweep: Sweep, study: SearchStudy, monitor: TrialMonitor) -> None:
        self._sweep, self._monitor = sweep, monitor
        self._searcher, self._scheduler = StudySearcher(study), StudyScheduler(study)

    def run_trial(self) -> None:
        """Run one trial that does nothing but report."""
        suggestion = self._searcher.suggest("id")
        assert isinstance(suggestion, dict)
        trial = TuneTrial(suggestion)
        self._monitor.on_trial_start(0, [], trial)
        score = -abs(suggestion["config"]["x"])
        checkpoint = f"{self._sweep.storage}/{NAME}/trials/checkpoint"
        reports: list[TrialReport] = [
            EpochEnded(epoch, {"val/score": score, "train/loss": -score, "rate": 100.0 + epoch}, checkpoint)
            for epoch in range(1, self._sweep.epochs + 1)
        ]
        for report in (*reports, Trained(checkpoint)):
            result = encode(report)
            self._scheduler.on_trial_result(None, trial, result)
            self._monitor.on_trial_result(0, [], trial, result)
        self._searcher.on_trial_complete("id", result)
        self._monitor.on_trial_complete(0, [], trial)


@contextmanager
def driver(sweep: Sweep) -> Iterator[tuple[DriverLoop, TrialMonitor, Tracker]]:
    """Open a sweep as a driver does."""
    directory = JobDirectory(sweep)
    with directory.open(False, Interrupt()) as (job_id, lease):
        study = SearchStudy(sweep, directory)
        if not study.is_seeded:
            study.seed([])
        with Tracker(sweep.tracking.uri, sweep.tracking.experiment, NAME, job_id) as tracker:
            monitor = TrialMonitor(sweep, study, lease, tracker)
            yield DriverLoop(sweep, study, monitor), monitor, tracker


def create(folder: Path, trials: int, epochs: int, **changes: Any) -> Sweep:
    """Create a sweep with a budget of so many trials, and run its first one; ``changes`` are of its file."""
    settings: Mapping[str, Any] = {
        "config": {"epochs": epochs},
        "search": {"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 8]}},
        "scheduler": {"asha": {"grace": max(1, epochs - 1)}},
        "budget": {"trials": 2 * trials},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    sweep = load_sweep(folder, NAME, **settings)
    with driver(sweep) as (loop, _, tracker):
        loop.run_trial()
        tracker.note_delivered(trials)
        tracker.flush(60)
    return sweep


def fill(sweep: Sweep, trials: int) -> None:
    """Copy the first trial of a sweep in a folder until there are so many, in the study and in MLflow."""
    with closing(sqlite3.connect(f"{sweep.storage}/{NAME}/study.db")) as database:
        database.execute(f"CREATE TEMP TABLE n AS {_NUMBERS}", (trials,))
        _copy(database, "trials", {"trial_id": "n.i + 1", "number": "n.i"}, "t.number = 0")
        for table in (*_TABLES, "trial_intermediate_values"):
            key = database.execute(f"PRAGMA table_info({table})").fetchone()[1]
            _copy(database, table, {key: "NULL", "trial_id": "n.i + 1"}, "t.trial_id = 1")
        database.execute("UPDATE trial_user_attributes SET value_json = trial_id WHERE key = 'order'")
        database.commit()
    with closing(sqlite3.connect(sweep.tracking.uri.removeprefix("sqlite:///"))) as database:
        database.execute(f"CREATE TEMP TABLE n AS {_NUMBERS}", (trials,))
        run = "(SELECT run_uuid FROM tags WHERE key = 'trial.number' AND value = '0')"
        new = "printf('%032x', n.i)"
        for table in _RUN_TABLES:
            _copy(database, table, {"run_uuid": new}, f"t.run_uuid = {run}")
        number = "UPDATE tags SET value = n.i FROM n WHERE key = 'trial.number' AND run_uuid"
        database.execute(f"{number} = {new}")
        database.commit()


def _copy(database: sqlite3.Connection, table: str, changes: Mapping[str, str], which: str) -> None:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    names = ", ".join(f'"{column}"' for column in columns)
    values = ", ".join(changes.get(column, f't."{column}"') for column in columns)
    database.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM n, {table} t WHERE {which}")


def fill_journal(store: Store, trials: int) -> None:
    """Copy the first trial of a sweep in a bucket until there are so many."""
    files = [store.read(name) for name in store.list_files(f"{NAME}/study/")]
    lines = [line for file in files if file is not None for line in file[0].decode().split("\n")]
    operations = [json.loads(line) for line in lines]
    of_trial = [each for each in operations if "trial_id" in each or each["op_code"] == _CREATE_TRIAL]
    segments: list[list[str]] = [[json.dumps(each) for each in operations if each not in of_trial]]
    size = 0
    for number in range(trials):
        for operation in of_trial:
            if size > SEGMENT_BYTES:
                segments.append([])
                size = 0
            copied = {**operation, "trial_id": number} if "trial_id" in operation else operation
            segments[-1].append(json.dumps(copied, separators=(",", ":")))
            size += len(segments[-1][-1])
    for number, segment in enumerate(segments):
        store.write(f"{NAME}/study/{number:08d}.jsonl", "\n".join(segment).encode())
