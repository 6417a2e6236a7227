"""A driver of a sweep in its own process, which ends or is suspended before one of its writes.

The driver is the real one, from its checks to its outcome. Only Ray is replaced: trials run one after the
other in the process, on a parabola.
"""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock, patch

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from sqlalchemy import event
from sqlalchemy.engine import Engine

from orchestrator.config.sweep import read_sweep
from orchestrator.console.progress import Progress
from orchestrator.drivers.candidates import Candidate
from orchestrator.drivers.sweep import SweepDriver
from orchestrator.errors import InputError
from orchestrator.execution import cluster, runner
from orchestrator.execution.checkpoints import epoch_of
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.interrupt import Interrupt
from orchestrator.storage import lease
from orchestrator.storage.lease import Lease
from orchestrator.storage.local import LocalStore
from orchestrator.storage.s3 import S3Store
from orchestrator.study.trial_report import EpochEnded, Trained, TrialReport, encode
from orchestrator.tracking.outbox import Outbox

End = Literal["kill", "stop", "suspend"]
"""``kill`` and ``stop``: SIGKILL and SIGTERM before a write.

``suspend``: SIGSTOP before the lease is checked, which precedes each write.
"""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "suspend": signal.SIGSTOP}


def drive(file: Path, end: End | None, step: int, log: Path, environment: dict[str, str]) -> None:
    """Run the driver of a sweep file and exit with its code, or be ended before its write number ``step``."""
    os.environ.update(environment)  # that of a forkserver is older
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    left = step

    def count(kinds: tuple[str, ...]) -> None:
        nonlocal left
        if end in kinds:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), _SIGNALS[str(end)])

    with contextlib.ExitStack() as stack:
        for change in _changes(count):
            stack.enter_context(change)
        progress, interrupt = Progress(), Interrupt()
        interrupt.install()
        stack.enter_context(progress.logging())
        try:
            driver = SweepDriver(read_sweep(file, environment={}), progress, interrupt)
            code = driver.run(address=None, dry_run=False, fresh=False)
        except InputError as error:
            print(f"error: {error}", flush=True)
            code = 2
        except KeyboardInterrupt:
            code = 130
    os._exit(code)


def _changes(count: Callable[[tuple[str, ...]], None]) -> Iterator[contextlib.AbstractContextManager[Any]]:
    """Count writes, shorten the times of the lease, and replace what needs Ray."""

    def counted(method: Callable[..., Any], *kinds: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count(kinds)
            return method(*arguments, **options)

        return call

    for store in (LocalStore, S3Store):
        for name in ("write", "compare_and_swap", "publish", "delete"):
            yield patch.object(store, name, counted(getattr(store, name), "kill", "stop"))
    for name in ("log_artifact", "log_artifacts"):
        method = getattr(LocalArtifactRepository, name)
        yield patch.object(LocalArtifactRepository, name, counted(method, "kill", "stop"))
    event.listen(Engine, "commit", lambda connection: count(("kill", "stop")))
    # A request that is on its way when all threads are suspended may still arrive, whatever is checked.
    record, post, check = threading.RLock(), Outbox.post, Lease.check

    def post_whole(
        self: Outbox, what: str, write: Callable[[], None], *arguments: Any, **options: Any
    ) -> None:
        def write_whole() -> None:
            with record:
                write()

        post(self, what, write_whole, *arguments, **options)

    def check_between_records(self: Lease) -> None:
        with record:
            count(("suspend",))
        check(self)

    yield patch.object(Outbox, "post", post_whole)
    yield patch.object(Lease, "check", check_between_records)
    yield patch.object(lease, "HEARTBEAT_SECONDS", 0.3)
    yield patch.object(lease, "LEASE_TIMEOUT_SECONDS", 3.0)
    yield patch.object(lease, "_SAFE_SECONDS", 1.0)
    yield patch.object(cluster, "start", autospec=True, return_value=Cluster("127.0.0.1:9", None, None, []))
    yield patch.object(SweepDriver, "plan", lambda self, joined: "")
    yield patch("orchestrator.drivers.base.ResourceReaper", lambda *_: contextlib.nullcontext(Mock()))
    yield patch("orchestrator.drivers.base.OutcomeMetric")
    yield patch("orchestrator.execution.monitor.SweepMetrics")
    yield patch.object(
        SweepDriver, "_score", lambda self, candidate: {"test/parabola/score": _score(candidate)}
    )
    yield patch.object(SweepDriver, "_illustrate", lambda self, outcome, study, folder: "")
    yield patch.object(runner, "_run_tune", _run_trials)


def _score(candidate: Candidate) -> float:
    """Return a score that the parameters of a candidate determine."""
    return -sum(float(value) ** 2 for value in candidate.parameters.values())


class _Trial:
    """The part of a Ray Tune trial that callbacks and schedulers look at."""

    def __init__(self, suggestion: Any) -> None:
        self.config = suggestion


def _run_trials(study: Any, joined: Any, resources: Any, spec: Any, stopper: Any, monitor: Any) -> None:
    """Run the trials that remain, in the order of calls that Ray Tune has."""
    searcher, scheduler, trials = StudySearcher(study), StudyScheduler(study), 0
    while not stopper.stop_all():
        suggestion = searcher.suggest(str(trials))
        if suggestion == Searcher.FINISHED:
            return
        trial, result = _Trial(suggestion), {}
        monitor.on_trial_start(0, [], trial)
        for report in _train(trial.config, spec.trial_folder(trial.config["number"], trial.config["values"])):
            if stopper.stop_all():
                return
            result = encode(report)
            verdict = scheduler.on_trial_result(None, trial, result)
            monitor.on_trial_result(0, [], trial, result)
            if verdict == TrialScheduler.STOP:
                break
        searcher.on_trial_complete(str(trials), result)
        monitor.on_trial_complete(0, [], trial)
        trials += 1


def _train(suggestion: dict[str, Any], folder: Any) -> Iterator[TrialReport]:
    """Descend from x to 1, from the last checkpoint on; earlier epochs are reported again."""
    folder.create()
    checkpoint, x = folder.last_checkpoint(), suggestion["config"]["x"]
    for epoch in range(1, suggestion["config"]["epochs"] + 1):
        x = (x + 1) / 2
        if epoch > epoch_of(checkpoint):
            with tempfile.TemporaryDirectory() as state:
                (Path(state) / "state.json").write_text(f'{{"epoch": {epoch}, "x": {x}, "y": 0}}')
                checkpoint = folder.save(Path(state), epoch)
        yield EpochEnded(epoch, {"val/score": -((x - 1) ** 2)}, checkpoint)
    yield Trained(checkpoint)
