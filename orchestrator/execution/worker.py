"""What runs on a Ray Train worker: the trainable, its context, and a watchdog for hangs."""

import faulthandler
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train

from orchestrator import trainable
from orchestrator.errors import newer_schema
from orchestrator.execution.checkpoints import TrialFolder, storage_errors
from orchestrator.execution.metrics import mark_worker
from orchestrator.study.trial_report import EpochEnded, Started, encode, trial_name

HANG_PREFIX = "hung"
"""Prefix of the files in a trial's folder with the stacks of a worker that hung."""

_REPORTS_FILE = "reported.json"
_SCHEMA = 2
"""Version of the file with the reports in a checkpoint; version 1 was a plain list."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What all trials of a job share."""

    job: str
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

    def resources_per_worker(self) -> dict[str, float]:
        """Return the Ray resources of one Train worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def trial_folder(self, number: int) -> TrialFolder:
        """Return the folder of a trial."""
        filesystem = self.filesystem or pyarrow.fs.LocalFileSystem()
        return TrialFolder(filesystem, f"{self.folder}/{trial_name(number)}")


class WorkerContext:
    """The trainable's view of one Ray Train worker (see `orchestrator.trainable.Context`).

    A checkpoint holds every report up to it. On resume all of them are reported again, because a driver that
    died may have missed some; the study ignores those it has recorded.
    """

    def __init__(self, folder: TrialFolder, on_report: Callable[[], None] = lambda: None) -> None:
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = str(get_device())
        self._reports: list[dict[str, float]] = []
        self._folder, self._on_report = folder, on_report
        ray.train.report(encode(Started()))

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; rank 0 uploads what ``save`` writes as the checkpoint of the trial."""
        self._reports.append(metrics)
        report = encode(_epoch_report(metrics))
        if save is None or self.rank != 0:
            with storage_errors():
                ray.train.report(report)
        else:
            with tempfile.TemporaryDirectory() as folder, storage_errors():
                save(Path(folder))
                (Path(folder) / _REPORTS_FILE).write_text(_dump_reports(self._reports))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(report, checkpoint=checkpoint, checkpoint_upload_fn=self._folder.upload)
        self._on_report()

    def restore(self) -> Path | None:
        """Return a folder with the trial's last checkpoint, or None when it starts from the beginning."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with storage_errors():
            folder = Path(checkpoint.to_directory())
            self._reports = _load_reports((folder / _REPORTS_FILE).read_text())
        for metrics in self._reports:
            ray.train.report(encode(_epoch_report(metrics, str(checkpoint.path))))
        self._on_report()
        return folder


def run_worker(job: Mapping[str, Any]) -> None:
    """Train one trial on this worker; the training loop that Ray Train calls.

    ``job`` holds the dotted ``trainable``, the ``config``, the `TrialSpec` as ``spec``, and the ``number``.
    """
    subject = trainable.load(job["trainable"])
    spec, number = job["spec"], job["number"]
    alive, ended = threading.Event(), threading.Event()
    threading.Thread(target=_exit_when_hung, args=(alive, ended, spec, number), daemon=True).start()
    threading.Thread(target=mark_worker, args=(spec.job, trial_name(number), ended), daemon=True).start()
    try:
        context = WorkerContext(spec.trial_folder(number), alive.set)
        subject.fit(subject.Config.model_validate(job["config"]), context)
    finally:
        ended.set()
        alive.set()


def _exit_when_hung(alive: threading.Event, ended: threading.Event, spec: TrialSpec, number: int) -> None:
    """End this process when it has not reported for too long, and keep the stacks of its threads."""
    while alive.wait(spec.report_timeout):
        if ended.is_set():
            return
        alive.clear()
    try:
        with tempfile.TemporaryFile() as stacks:
            faulthandler.dump_traceback(stacks)
            stacks.seek(0)
            worker = ray.get_runtime_context().get_worker_id()
            spec.trial_folder(number).write(f"{HANG_PREFIX}-{worker}.txt", stacks.read())
    finally:
        os._exit(1)


def _epoch_report(metrics: Mapping[str, float], checkpoint: str | None = None) -> EpochEnded:
    values = {metric: value for metric, value in metrics.items() if metric != "epoch"}
    return EpochEnded(int(metrics["epoch"]), values, checkpoint)


def _dump_reports(reports: list[dict[str, float]]) -> str:
    return json.dumps({"schema": _SCHEMA, "reports": reports})


def _load_reports(text: str) -> list[dict[str, float]]:
    content = json.loads(text)
    if isinstance(content, list):
        content = {"schema": 1, "reports": content}
    if content["schema"] > _SCHEMA:
        raise ValueError(newer_schema(f"{_REPORTS_FILE} of the checkpoint", content["schema"], _SCHEMA))
    reports: list[dict[str, float]] = content["reports"]
    return reports
