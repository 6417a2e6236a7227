"""What runs on a Ray Train worker: one trial after the other, with a context and a watchdog for hangs."""

import contextlib
import faulthandler
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.exceptions import RayError

from orchestrator import trainable
from orchestrator.errors import InputError, StorageError, newer_schema, one_line, plain_text
from orchestrator.execution.checkpoints import (
    DamagedError,
    TrialFolder,
    check_files,
    epoch_of,
    storage_errors,
)
from orchestrator.execution.failures import explain
from orchestrator.execution.isolation import ProcessFootprint, isolated, poisons_process
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.metrics import mark_worker
from orchestrator.execution.tasks import score
from orchestrator.study.trial_report import (
    EpochEnded,
    Failed,
    Scored,
    Started,
    Trained,
    TrialReport,
    encode,
    is_last,
    trial_name,
)
from orchestrator.trainable import checked_report

_log = logging.getLogger(__name__)

_REPORTS_FILE = "reported.json"
_SCHEMA = 2
"""Version of the file with the reports in a checkpoint; version 1 was a plain list."""

_WATCH_SECONDS = 1.0
"""Longest time between two looks of the watchdog."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What all trials of a job share."""

    job: str
    job_id: str
    """Identifier of the job, which a job that is started over does not share with the one before."""

    trainable: str
    folder: str
    filesystem: pyarrow.fs.FileSystem | None
    """The file system of the folder; None for a local path."""

    workers: int
    cpus: float
    gpus: float
    report_timeout: float
    """Seconds without a report after which a worker counts as hung."""

    scores_trials: bool
    """Whether each trial's last checkpoint is scored on the targets."""

    trials_per_worker: int
    """Trials after which the processes of the workers are replaced."""

    metrics: tuple[str, ...] = ()
    """Metrics that the job needs."""

    def resources_per_worker(self) -> dict[str, float]:
        """Return the Ray resources of one Train worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def trial_folder(self, number: int, values: Mapping[str, Any]) -> TrialFolder:
        """Return the folder of a trial; ``values`` define the trial."""
        filesystem = self.filesystem or pyarrow.fs.LocalFileSystem()
        # A value that was enqueued as 1 is 1.0 once it was read from the study.
        same = {
            path: int(value) if isinstance(value, float) and value.is_integer() else value
            for path, value in values.items()
        }
        mark = zlib.crc32(json.dumps(same, sort_keys=True, default=str).encode())
        owner = f"{self.job_id[:8]}-{mark:08x}"
        return TrialFolder(filesystem, f"{self.folder}/{trial_name(number)}", owner)


class TrialStopped(BaseException):
    """Ends ``fit`` of a trial that is stopped early; no ``except Exception`` catches it."""


def run_worker(job: Mapping[str, Any]) -> None:
    """Run the trials that the mailbox hands out, as the training loop of Ray Train.

    ``job`` holds the `TrialSpec` as ``spec``, and the handle of the `Mailbox` as ``mailbox``.
    """
    spec, mailbox = job["spec"], job["mailbox"]
    rank = ray.train.get_context().get_world_rank()
    _log_to_worker_file(spec.trainable)
    trainable.load(spec.trainable)
    footprint, leftover = ProcessFootprint(), ""
    while (trial := ray.get(mailbox.next_trial.remote(rank, leftover))) is not None:
        _log.info("%s starts on rank %d", trial_name(trial.number), rank)
        _TrialRun(spec, mailbox, rank, trial).run()
        _log.info("%s has ended", trial_name(trial.number))
        try:
            leftover = footprint.leftover()
        except Exception as error:  # such as one of the device, which it reports only now
            leftover = f"its process failed: {explain(error)}"


def _log_to_worker_file(dotted: str) -> None:
    """Let messages of this package and of the trainable's reach the log file that Ray keeps of a worker."""
    # Ray's stream refuses some text, and the worker would end. It may be wrapped in a class of Ray.
    if (reconfigure := getattr(sys.stderr, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for package in (__name__, dotted.partition(":")[0]):
        logging.getLogger(package.partition(".")[0]).setLevel(logging.INFO)


class _TrialRun:
    """One trial on one worker."""

    def __init__(self, spec: TrialSpec, mailbox: Any, rank: int, trial: TrialJob) -> None:
        self._spec, self._mailbox, self._rank, self._trial = spec, mailbox, rank, trial
        self._subject = trainable.load(spec.trainable)
        self._folder = spec.trial_folder(trial.number, trial.values)
        self._silent = False
        """Whether the trial has ended for the lane, so that what happens afterwards says nothing about it."""

    def run(self) -> None:
        """Train the trial, and score it if the job scores every trial.

        Raises:
            BaseException: this process, or the group of all workers, cannot run another trial.
        """
        try:
            config: Any = self._subject.Config.model_validate(self._trial.config)
            seed = [abs(config.seed), self._rank, epoch_of(self._trial.checkpoint)]
            with self._shown(), isolated(seed):
                checkpoint = self._trial.checkpoint if self._trial.trained else self._train(config)
                if checkpoint is not None and self._rank == 0:
                    self._conclude(config, checkpoint)
        except TrialStopped:
            _log.info("%s is stopped early", trial_name(self._trial.number))
        except BaseException as error:
            if not threading.main_thread().is_alive():  # the process ends, which may be all that is wrong
                os._exit(1)
            lasting = isinstance(error, StorageError | RayError) or poisons_process(error)
            if lasting or self._spec.workers > 1:  # other ranks may wait for this one forever
                raise
            log = plain_text(traceback.format_exc())  # its own text may be one that cannot be printed
            _log.warning("%s raised an exception\n%s", trial_name(self._trial.number), log)
            self._tell(Failed(explain(error), log))

    def _train(self, config: Any) -> str | None:
        with _Watchdog(self._spec.report_timeout, self._folder) as watchdog, contextlib.ExitStack() as stack:
            context = WorkerContext(
                self._trial,
                config.epochs,
                self._mailbox,
                self._folder,
                watchdog,
                stack,
                self._spec.metrics,
            )
            self._tell(Started())
            try:
                self._subject.fit(config, context)
            finally:
                self._silent = context.stopped
        if context.stopped:  # `fit` has caught the exception
            raise TrialStopped
        ray.get(self._mailbox.finish.remote())
        if context.checkpoint is None and self._rank == 0:
            lacking = "checkpoint" if context.reports else "report"
            self._tell(Failed(f"it ended without a {lacking}"))
        return context.checkpoint

    def _conclude(self, config: Any, checkpoint: str) -> None:
        self._folder.delete_all_but(checkpoint)
        self._tell(Trained(checkpoint))
        if self._spec.scores_trials:
            try:
                saved = ray.train.Checkpoint(checkpoint, self._spec.filesystem)
                report: TrialReport = Scored(score(self._subject, config, saved))
            except Exception as error:
                if poisons_process(error):
                    raise
                log = plain_text(traceback.format_exc())
                report = Failed(f"it could not be scored: {explain(error)}", log)
            self._tell(report)

    def _tell(self, report: TrialReport) -> None:
        if self._rank == 0 and not self._silent:
            self._silent = is_last(report, self._spec.scores_trials)
            ray.get(self._mailbox.tell.remote(self._trial.number, encode(report)))

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """Show the trial as a task on the Ray dashboard, and its GPUs among the metrics."""
        name, ended = trial_name(self._trial.number), threading.Event()
        gauge = threading.Thread(target=mark_worker, args=(self._spec.job, name, ended), daemon=True)
        gauge.start()
        if self._rank == 0:
            self._mailbox.train.options(name=name).remote()
        try:
            yield
        finally:
            ended.set()
            gauge.join()
            if self._rank == 0:
                self._mailbox.end.remote()


class WorkerContext:
    """The trainable's view of one Ray Train worker (see `orchestrator.trainable.Context`).

    A checkpoint holds every report up to it. On resume all of them are reported again, because a driver that
    died may have missed some; the study ignores those it has recorded.
    """

    def __init__(
        self,
        trial: TrialJob,
        epochs: int,
        mailbox: Any,
        folder: TrialFolder,
        watchdog: "_Watchdog",
        stack: contextlib.ExitStack,
        metrics: tuple[str, ...] = (),
    ) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = str(get_device())
        self.metrics = metrics
        self.checkpoint = trial.checkpoint
        """Path of the last complete checkpoint, on rank 0."""
        self.stopped = False
        """Whether the trial is stopped early."""
        self.reports: list[dict[str, float]] = []
        """The reports of the trial so far, those before a resume too."""
        self._trial, self._epochs, self._mailbox, self._folder = trial, epochs, mailbox, folder
        self._watchdog, self._stack = watchdog, stack  # the stack outlives what `restore` returns

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; rank 0 uploads what ``save`` writes as the checkpoint of the trial.

        Raises:
            TrialStopped: the trial is stopped early.
            ValueError: the metrics or the epoch are not valid.
        """
        if self.stopped:
            raise TrialStopped
        last = int(self.reports[-1]["epoch"]) if self.reports else 0
        metrics = checked_report(metrics, last, self._epochs)
        self.reports.append(metrics)
        before = self.checkpoint
        if save is not None and self.rank == 0:
            with _scratch_folder() as folder, storage_errors():
                save(folder)
                (folder / _REPORTS_FILE).write_text(_dump_reports(self.reports))
                self.checkpoint = self._folder.save(folder, int(metrics["epoch"]))
        verdict = self._send(metrics)
        if before is not None and self.checkpoint != before:
            self._folder.delete(before)
        self._wait(verdict)

    def restore(self) -> Path | None:
        """Return a folder with the trial's last checkpoint, or None when it starts from the beginning.

        Raises:
            TrialStopped: the trial is stopped early.
            StorageError: the checkpoint cannot be read. A damaged one is set aside, so that the next attempt
                uses the one before it.
        """
        if self._trial.checkpoint is None:
            return None
        checkpoint = ray.train.Checkpoint(self._trial.checkpoint, self._folder.filesystem)
        with storage_errors():
            copy = self._stack.enter_context(tempfile.TemporaryDirectory())
            folder = Path(checkpoint.to_directory(copy))
        try:
            self.reports = _load_reports(folder / _REPORTS_FILE)
            with storage_errors():
                check_files(checkpoint.filesystem, checkpoint.path, folder)
        except DamagedError as error:
            self._folder.set_aside(checkpoint.path)
            name = checkpoint.path.rpartition("/")[2]
            raise StorageError(f"storage: {name} is damaged ({error}) and not used", missing=True) from error
        for metrics in self.reports:
            self._wait(self._send(metrics))
        return folder

    def _send(self, metrics: Mapping[str, float]) -> Any:
        values = {metric: value for metric, value in metrics.items() if metric != "epoch"}
        report = encode(EpochEnded(int(metrics["epoch"]), values, self.checkpoint))
        return self._mailbox.report.remote(self._trial.number, self.rank, report)

    def _wait(self, verdict: Any) -> None:
        """Wait for the verdict on a report, while the watchdog rests."""
        with self._watchdog.paused():
            self.stopped = not ray.get(verdict)
        if self.stopped:
            raise TrialStopped


class _Watchdog:
    """Ends this process when its trial has not reported for too long, and keeps the stacks of its threads."""

    def __init__(self, timeout: float, folder: TrialFolder) -> None:
        self._timeout, self._folder = timeout, folder
        self._deadline = time.monotonic() + timeout
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "_Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, and start to count anew after it."""
        self._deadline = math.inf
        try:
            yield
        finally:
            self._deadline = time.monotonic() + self._timeout

    def _watch(self) -> None:
        while not self._ended.wait(min(_WATCH_SECONDS, self._timeout / 4)):
            if time.monotonic() > self._deadline:
                self._exit()

    def _exit(self) -> None:
        try:
            with tempfile.TemporaryFile() as stacks:
                faulthandler.dump_traceback(stacks)
                stacks.seek(0)
                self._folder.record_hang(ray.get_runtime_context().get_worker_id(), stacks.read())
        finally:
            os._exit(1)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Provide a new folder until the block ends.

    Python deletes a `tempfile.TemporaryDirectory` when the process ends, also while another thread still
    saves a checkpoint in it, which would then be incomplete.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dump_reports(reports: list[dict[str, float]]) -> str:
    return json.dumps({"schema": _SCHEMA, "reports": reports})


def _load_reports(file: Path) -> list[dict[str, float]]:
    """Return the reports of a checkpoint, without those of an earlier version that are not valid.

    Raises:
        InputError: a later version of this project wrote them.
        DamagedError: they cannot be read.
    """
    try:
        content = json.loads(file.read_text())
        if isinstance(content, list):
            content = {"schema": 1, "reports": content}
        schema, reports = int(content["schema"]), list(content["reports"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{_REPORTS_FILE}: {one_line(error, 100)}") from error
    if schema > _SCHEMA:
        raise InputError(newer_schema(f"{_REPORTS_FILE} of the checkpoint", schema, _SCHEMA))
    valid: list[dict[str, float]] = []
    for report in reports:
        try:
            valid.append(checked_report(report, int(valid[-1]["epoch"]) if valid else 0, sys.maxsize))
        except ValueError as error:
            _log.warning("a report of the checkpoint is left out: %s", error)
    return valid
