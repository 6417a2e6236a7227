"""Driver, lease, study, tracking, outcome and registry through crashes, thefts and repairs.

Hypothesis chooses before which write a driver is killed, stopped or suspended, and which file is lost or
damaged afterwards, for sweeps in a folder and in a bucket. Whatever happened, the next driver has to end with
the study, runs and model of a sweep that nothing disturbed. There are ``FAULT_JOBS`` (default 30) sweeps of
each kind.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import boto3
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from mlflow import MlflowClient

from orchestrator.config.sweep import read_sweep
from orchestrator.errors import ExitCode
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import read_driver_record, record_name
from orchestrator.study.search import SearchStudy
from orchestrator.tracking.promotion import DECISION_TAG
from tests.support import driver_process
from tests.support.servers import Seaweed
from tests.support.sweep_files import write_sweep

TRIALS, EPOCHS, STEPS = 3, 3, 90
SWEEP: dict[str, Any] = {
    "config": {"epochs": EPOCHS},
    "scheduler": {"asha": {"grace": 1, "reduction": 2}},
    "budget": {"trials": TRIALS},
    "registry": {"model": "parabola"},
}
FILES = ("parabola/sweep.json", "parabola/outcome.json", record_name("parabola"))
DAMAGES = {"missing": None, "empty": b"", "truncated": b'{"id": "', "another type": b"[]"}

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload([driver_process.__name__])


class JobMachine(RuleBasedStateMachine):
    """One sweep, and the processes that drive it."""

    bucket: ClassVar[bool]
    template: ClassVar[Path]
    """A database of MLflow with its tables, which take seconds to make."""

    expected: ClassVar[Any] = None
    """What a sweep that nothing disturbs leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "mlflow.db")
        self.log = self.folder / "log.txt"
        self.suspended: Any = None
        storage = f"s3://sweeps/{self.folder.name}" if self.bucket else str(self.folder / "store")
        tracking = {"uri": f"sqlite:///{self.folder}/mlflow.db"}
        self.file = write_sweep(self.folder, storage=storage, tracking=tracking, **SWEEP)
        self.sweep = read_sweep(self.file, environment={})

    @initialize()
    def begin(self) -> None:
        if type(self).expected is None:
            assert self.drive() == ExitCode.DONE, self.log.read_text()
            type(self).expected = self.outcome()

    @rule(end=st.sampled_from(["kill", "stop"]), step=st.integers(1, STEPS))
    def end_driver(self, end: driver_process.End, step: int) -> None:
        self.drive(end, step)

    @rule(step=st.integers(1, STEPS))
    def suspend_driver(self, step: int) -> None:
        if self.suspended is None:
            self.drive("suspend", step)

    # No preconditions: hypothesis wants them to be the same whenever it repeats the steps.
    @rule()
    def continue_suspended(self) -> None:
        """Let a suspended driver go on: without a successor it may; with one it must not write."""
        if self.suspended is None:
            return
        (process, identity), self.suspended = self.suspended, None
        taken = self.driver_identity() != identity
        try:
            before = self.contents()
        except sqlite3.OperationalError:  # it was suspended while it commits, so nobody else could write
            before = None
        os.kill(process.pid, signal.SIGCONT)
        code = self.wait(process)
        if taken:
            assert code == ExitCode.LEASE_LOST, self.log.read_text()
            assert before is None or self.contents() ^ before == set(), self.log.read_text()

    @rule(file=st.sampled_from(FILES), damage=st.sampled_from(sorted(DAMAGES)))
    def damage(self, file: str, damage: str) -> None:
        store = JobDirectory(self.sweep).store
        content = DAMAGES[damage]
        if self.suspended is not None or store.read(file) is None:
            return
        if content is None:
            store.delete(file)
        else:
            store.write(file, content)

    def drive(self, end: driver_process.End | None = None, step: int = 0) -> int | None:
        """Run a driver; return its exit code, or None where it is suspended."""
        arguments = (self.file, end, step, self.log, dict(os.environ))
        process = _servers.Process(target=driver_process.drive, args=arguments, daemon=True)
        process.start()
        code = self.wait(process)
        if code is None:
            self.suspended = (process, self.driver_identity())
            return None
        allowed = {ExitCode.DONE, ExitCode.INTERRUPTED, -signal.SIGKILL}
        if self.suspended is not None and not self.bucket:
            allowed.add(ExitCode.BAD_INPUT)  # the lock says that another driver runs
        elif self.suspended is not None:
            allowed.add(ExitCode.UNREACHABLE)  # it may have been suspended while it commits to SQLite
        assert code in allowed, self.log.read_text()
        assert "Traceback" not in self.log.read_text()
        return code

    def driver_identity(self) -> str:
        """Return which driver has the lease, or had it last."""
        current = read_driver_record(JobDirectory(self.sweep).store, "parabola")
        return "" if current is None else current[0].identity

    def wait(self, process: Any) -> int | None:
        """Wait until a process ends, and return its exit code; return None when it is suspended."""
        while process.is_alive():
            process.join(0.05)
            with contextlib.suppress(FileNotFoundError):
                if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return None
        return cast(int, process.exitcode)

    def contents(self) -> set[str]:
        """Return everything that a driver writes but its own record and checkpoints, as lines."""
        store = JobDirectory(self.sweep).store
        names = [name for name in store.list_files("parabola/") if "/trials/" not in name]
        lines = {f"{name} {store.read(name)}" for name in names}
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            for (table,) in database.execute("select name from sqlite_master where type = 'table'"):
                lines |= {f"{table} {row}" for row in database.execute(f"select * from {table}")}
        return lines

    def outcome(self) -> Any:
        """Return what the sweep has left in study, MLflow and registry, without ids and times."""
        study = SearchStudy(self.sweep, JobDirectory(self.sweep))
        job = JobDirectory(self.sweep).store.read("parabola/outcome.json")
        client = MlflowClient(self.sweep.tracking.uri, registry_uri=self.sweep.tracking.uri)
        experiment = client.get_experiment_by_name(self.sweep.tracking.experiment)
        assert job is not None and b'"delivered": true' in job[0] and experiment is not None
        parents: list[Any] = []
        trials: list[Any] = []
        for run in client.search_runs([experiment.experiment_id]):
            points = {
                metric: sorted(
                    (point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)
                )
                for metric in ("val/score", "epoch")
            }
            number, state = run.data.tags.get("trial.number"), run.data.tags.get("trial.state")
            if number is None:
                parents.append((run.info.status, run.data.metrics["val/score"]))
            else:
                trials.append((number, state, run.info.status, run.data.params, points))
        version, *others = client.search_model_versions("name = 'parabola'")
        assert not others and version.tags[DECISION_TAG]
        champion = client.get_model_version_by_alias("parabola", "champion")
        return {
            "study": [
                (trial.number, trial.params, trial.state, trial.intermediate_values, trial.values)
                for trial in study.started_trials
            ],
            "parents": parents,
            "trials": sorted(trials, key=lambda trial: int(trial[0])),
            "version": (version.version, version.tags["trial.number"], champion.version),
        }

    def teardown(self) -> None:
        try:
            if self.suspended is not None and not self.bucket:
                self.continue_suspended()  # it holds the lock
            if self.expected is not None:
                code = self.drive()
                if code == ExitCode.UNREACHABLE:
                    self.continue_suspended()
                    code = self.drive()
                assert code == ExitCode.DONE, self.log.read_text()
                assert self.outcome() == self.expected
            if self.suspended is not None:
                self.continue_suspended()
        finally:
            if self.suspended is not None:
                self.suspended[0].kill()
            shutil.rmtree(self.folder)


class FolderMachine(JobMachine):
    """The storage is a folder."""

    bucket = False


class BucketMachine(JobMachine):
    """The storage is a bucket."""

    bucket = True


@pytest.fixture(autouse=True)
def servers(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Make the tables of MLflow, and run a bucket if the test needs one."""
    JobMachine.template = tmp_path / "mlflow.db"
    MlflowClient(f"sqlite:///{JobMachine.template}").search_experiments()
    if "Folder" in request.node.nodeid:
        yield
        return
    with Seaweed(tmp_path / "seaweed") as seaweed, monkeypatch.context() as variables:
        for name, value in seaweed.environment().items():
            variables.setenv(name, value)
        variables.setattr(boto3, "DEFAULT_SESSION", None)
        yield
    boto3.DEFAULT_SESSION = None


TestFolderMachine = pytest.mark.faults(pytest.mark.timeout(7200)(FolderMachine.TestCase))
TestBucketMachine = pytest.mark.faults(pytest.mark.timeout(7200)(BucketMachine.TestCase))
TestFolderMachine.settings = TestBucketMachine.settings = settings(
    max_examples=int(os.environ.get("FAULT_JOBS", "30")),
    stateful_step_count=5,
    phases=(Phase.generate,),  # a failure takes too long to be shrunk
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
