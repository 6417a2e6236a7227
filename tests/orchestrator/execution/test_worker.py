"""One trial on a worker, with a mailbox that answers at once; without Ray running."""

import contextlib
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import ray.train.torch
import torch
from pydantic import BaseModel, ConfigDict

from orchestrator.errors import StorageError
from orchestrator.execution import worker
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.worker import TrialSpec, TrialStopped, WorkerContext
from orchestrator.study.trial_report import (
    EpochEnded,
    Failed,
    Scored,
    Started,
    Trained,
    TrialReport,
    decode,
)

Fit = Callable[[WorkerContext], None]


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = 3
    seed: int = 0


class Subject:
    """A trainable whose training is a function of the test."""

    Config = Config
    InputError = ValueError
    metrics: ClassVar[dict[str, str]] = {"loss": "min"}
    throughput = None
    fit_function: Fit
    scores: ClassVar[dict[str, float] | Exception] = {"test/score": 0.5}

    def prepare(self, config: Any) -> list[Any]:
        return []

    def check(self, config: Any, workers: int, metrics: Sequence[str]) -> None:
        pass

    def fit(self, config: Any, context: WorkerContext) -> None:
        type(self).fit_function(context)

    def evaluate(self, config: Any, checkpoint: Path) -> dict[str, float]:
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores

    def export(self, config: Any, checkpoint: Path, directory: Path) -> dict[str, Any]:
        return {}


class Method:
    """A method of an actor, called in this process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function

    def options(self, **options: Any) -> "Method":
        return self


class ReadyMailbox:
    """A mailbox that keeps what it is told, and lets a trial continue up to an epoch."""

    def __init__(self, last_epoch: int) -> None:
        self.messages: list[TrialReport] = []
        self.tell = Method(lambda number, message: self._keep(message))
        self.report = Method(self._report)
        self.finish = self.train = self.end = Method(lambda: None)
        self._last_epoch = last_epoch

    def _keep(self, message: dict[str, Any]) -> None:
        report = decode(message)
        assert report is not None
        self.messages.append(report)

    def _report(self, number: int, rank: int, message: dict[str, Any]) -> bool:
        self._keep(message)
        return int(message["epoch"]) < self._last_epoch


def save(folder: Path) -> None:
    (folder / "state").write_text("1")


def train(context: WorkerContext) -> None:
    for epoch in range(len(context.reports) + 1, 4):
        context.report({"epoch": epoch, "loss": 1.0 / epoch}, save)


def train_without_checkpoint(context: WorkerContext) -> None:
    context.report({"epoch": 1, "loss": 1.0}, None)


def report_again_after_the_stop(context: WorkerContext) -> None:
    with contextlib.suppress(BaseException):
        train(context)
    context.report({"epoch": 9, "loss": 0.0}, save)


def fail_after_the_stop(context: WorkerContext) -> None:
    try:
        train(context)
    finally:
        raise RuntimeError("cannot clean up")


def swallow_the_stop(context: WorkerContext) -> None:
    with contextlib.suppress(BaseException):
        train(context)


def raise_error(context: WorkerContext) -> None:
    raise ValueError("no batch has two identities")


def raise_device_error(context: WorkerContext) -> None:
    raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    dotted = f"{__name__}:Subject"
    return TrialSpec("job", "0123456789", dotted, str(tmp_path), None, 1, 1.0, 0.0, 60.0, False, 100)


def test_checkpoints_belong_to_the_values_of_their_trial(spec: TrialSpec) -> None:
    def owner(**values: Any) -> str:
        return spec.trial_folder(0, values).owner

    assert owner(x=1, name="a") == owner(name="a", x=1.0)  # enqueued, and read from the study
    assert len({owner(x=1), owner(x=1.5), owner(x=True), owner(x="1"), owner(y=1), owner()}) == 6
    assert all(mark.startswith("01234567-") for mark in (owner(x=1), owner()))


@pytest.fixture
def run(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[TrialReport]]:
    """Run a trial with this training; return what the lane hears of it."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker.ray, "get", lambda value: value)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: "cpu")
    monkeypatch.setattr(worker, "mark_worker", lambda job, trial, ended: None)

    def run(
        fit: Fit, *, last_epoch: int = 99, checkpoint: str | None = None, **changes: Any
    ) -> list[TrialReport]:
        Subject.fit_function = staticmethod(fit)  # type: ignore[assignment]
        mailbox = ReadyMailbox(last_epoch)
        spec.trial_folder(0, {}).create()
        job = TrialJob(0, {}, {}, checkpoint, trained=False)
        worker._TrialRun(replace(spec, **changes), mailbox, 0, job).run()
        return mailbox.messages

    return run


def epochs(messages: Sequence[TrialReport]) -> list[int]:
    return [message.epoch for message in messages if isinstance(message, EpochEnded)]


def test_trial_reports_its_epochs_and_its_checkpoint(run: Any, spec: TrialSpec) -> None:
    started, *reports, last = run(train)
    assert started == Started() and epochs(reports) == [1, 2, 3]
    assert last == Trained(spec.trial_folder(0, {}).last_checkpoint() or "")
    assert len(list(Path(spec.trial_folder(0, {}).path).glob("checkpoint_*.complete"))) == 1


def test_trial_of_a_job_that_scores_is_scored(run: Any) -> None:
    *_, trained, scored = run(train, scores_trials=True)
    assert isinstance(trained, Trained) and scored == Scored({"test/score": 0.5})


def test_trial_that_cannot_be_scored_fails(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "scores", OSError("the targets are out of reach"))
    *_, last = run(train, scores_trials=True)
    assert last.reason == "it could not be scored: OSError: the targets are out of reach"


def test_trial_that_is_stopped_says_nothing_more(run: Any) -> None:
    messages = run(train, last_epoch=2)
    assert epochs(messages) == [1, 2] and isinstance(messages[-1], EpochEnded)


@pytest.mark.parametrize("fit", [report_again_after_the_stop, fail_after_the_stop, swallow_the_stop])
def test_training_that_resists_its_stop_says_nothing_more(run: Any, fit: Fit) -> None:
    messages = run(fit, last_epoch=2)
    assert epochs(messages) == [1, 2] and isinstance(messages[-1], EpochEnded)


def test_trial_that_raises_fails_and_keeps_its_process(run: Any) -> None:
    *_, last = run(raise_error)
    assert isinstance(last, Failed) and last.reason == "ValueError: no batch has two identities"
    assert "raise_error" in last.log


def test_error_of_the_device_ends_the_process(run: Any) -> None:
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(raise_device_error)


def test_error_of_one_of_two_workers_ends_both(run: Any) -> None:
    with pytest.raises(ValueError, match="no batch"):
        run(raise_error, workers=2)


@pytest.mark.parametrize(
    ("fit", "lacking"), [(train_without_checkpoint, "checkpoint"), (lambda context: None, "report")]
)
def test_trial_without_report_or_checkpoint_fails(run: Any, fit: Fit, lacking: str) -> None:
    *_, last = run(fit)
    assert last == Failed(f"it ended without a {lacking}")


def test_trial_resumes_from_a_copy_of_its_checkpoint(run: Any, spec: TrialSpec) -> None:
    run(train, last_epoch=2)
    checkpoint = spec.trial_folder(0, {}).last_checkpoint()
    folders: list[Path | None] = []

    def resume(context: WorkerContext) -> None:
        folders.append(context.restore())
        assert folders[0] is not None and (folders[0] / "state").read_text() == "1"
        train(context)

    messages = run(resume, checkpoint=checkpoint)
    assert epochs(messages) == [1, 2, 3] and isinstance(messages[-1], Trained)
    assert str(folders[0]) != checkpoint
    assert folders[0] is not None and not folders[0].exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        *(
            ("reported.json", content, ": ")
            for content in (None, b"", b"[{", b"\xff\xfe", b"3", b'{"schema": 2}', b'{"schema": {}}')
        ),
        ("reported.json", b'{"schema": 2, "reports": []}', " has changed"),
        ("state", None, " is missing"),
        ("state", b"", " has changed"),
        ("state", b"2", " has changed"),
    ],
)
def test_checkpoint_with_a_damaged_file_is_named_and_set_aside(
    run: Any, spec: TrialSpec, name: str, content: bytes | None, problem: str
) -> None:
    run(train, last_epoch=2)
    checkpoint = spec.trial_folder(0, {}).last_checkpoint()
    assert checkpoint is not None
    file = Path(checkpoint) / name
    file.unlink() if content is None else file.write_bytes(content)
    named = rf"{Path(checkpoint).name} is damaged \({name}{problem}.*\) and not used"
    with pytest.raises(StorageError, match=named) as failure:
        run(lambda context: context.restore() and None, checkpoint=checkpoint)
    assert failure.value.missing
    assert spec.trial_folder(0, {}).last_checkpoint() is None and Path(checkpoint).exists()


ENDING = """
import atexit, threading, time
from orchestrator.execution.worker import _scratch_folder

def save():
    with _scratch_folder() as folder:
        (folder / "state").write_text("1")
        saving.set()
        time.sleep(1)
        print(*(file.name for file in folder.iterdir()), flush=True)

saving = threading.Event()
atexit.register(time.sleep, 3)  # the end of a process of Ray takes time
threading.Thread(target=save, daemon=True).start()
saving.wait()
"""


def test_process_that_ends_while_it_saves_leaves_the_files_alone() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=True)
    assert done.stdout == "state\n"


def test_error_while_the_process_ends_says_nothing_about_the_trial(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended

    def fail(context: WorkerContext) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(worker.os, "_exit", end)
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    with pytest.raises(Ended):
        run(fail)


def test_checkpoint_of_a_later_version_fails_the_trial_and_stays(run: Any, spec: TrialSpec) -> None:
    run(train, last_epoch=2)
    checkpoint = spec.trial_folder(0, {}).last_checkpoint()
    (Path(str(checkpoint)) / "reported.json").write_text('{"schema": 99, "reports": []}')
    *_, last = run(lambda context: context.restore() and None, checkpoint=checkpoint)
    assert isinstance(last, Failed) and "upgrade" in last.reason
    assert spec.trial_folder(0, {}).last_checkpoint() == checkpoint


def test_reports_that_are_not_valid_are_left_out_on_resume(run: Any, spec: TrialSpec) -> None:
    """An earlier version kept reports as the trainable made them, and could not continue after such a one."""
    run(train, last_epoch=2)
    checkpoint = spec.trial_folder(0, {}).last_checkpoint()
    reports = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 10**400}]
    (Path(str(checkpoint)) / "reported.json").write_text(json.dumps({"schema": 2, "reports": reports}))
    Path(f"{checkpoint}.complete").write_bytes(b"")  # as earlier versions left it

    def resume(context: WorkerContext) -> None:
        context.restore()
        context.report({"epoch": 3, "loss": 0.5}, save)

    messages = run(resume, checkpoint=checkpoint)
    assert epochs(messages) == [1, 3] and isinstance(messages[-1], Trained)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"epoch": 2, "loss": 10**400}, "loss is too large for a float"),
        ({"epoch": 2, "loss": None}, "loss must be a number, not null"),
        ({"epoch": 2, "loss": "0.5"}, "loss must be a number, not '0.5'"),
        ({"epoch": 2, "loss": [1, 2]}, "loss must be a number, not [1, 2]"),
        ({"loss": 1.0}, "a report must contain epoch"),
        ({"epoch": 1, "loss": 1.0}, "epoch is 1; expected a whole number from 2 to 3"),
        ({"epoch": 4, "loss": 1.0}, "epoch is 4; expected a whole number from 2 to 3"),
        ({"epoch": 2.5, "loss": 1.0}, "epoch is 2.5; expected a whole number from 2 to 3"),
        ({"epoch": math.nan, "loss": 1.0}, "epoch is nan; expected a whole number from 2 to 3"),
        (
            {"epoch": 2, "acc (%)": 1.0},
            "there is a metric with the invalid name 'acc (%)'; "
            "expected at most 250 letters, digits, spaces and any of /_-.:",
        ),
        ([2, 1.0], "metrics must be a mapping, not [2, 1.0]"),
    ],
)
def test_report_that_is_not_valid_fails_the_trial(run: Any, report: Any, reason: str) -> None:
    def fit(context: WorkerContext) -> None:
        context.report({"epoch": 1, "loss": 1.0}, save)
        context.report(report, save)

    *messages, last = run(fit)
    assert epochs(messages) == [1]
    assert isinstance(last, Failed) and last.reason == f"ValueError: {reason}"


def test_report_of_tensors_and_arrays_is_recorded(run: Any) -> None:
    def fit(context: WorkerContext) -> None:
        context.report({"epoch": np.int64(1), "loss": np.float32(0.5), "other": torch.tensor(2)}, save)

    ended = next(message for message in run(fit) if isinstance(message, EpochEnded))
    assert ended.metrics == {"loss": 0.5, "other": 2.0}


def test_no_except_clause_for_errors_catches_a_stop() -> None:
    assert not issubclass(TrialStopped, Exception)


def test_training_knows_the_metrics_that_the_job_needs(run: Any) -> None:
    needed: list[str] = []

    def fit(context: WorkerContext) -> None:
        needed.extend(context.metrics)
        raise_error(context)

    run(fit, metrics=("val/mAP", "model/milliseconds"))
    assert needed == ["val/mAP", "model/milliseconds"]


def test_worker_imports_neither_mlflow_nor_optuna() -> None:
    program = (
        "import sys; from orchestrator.execution import lane, tasks, worker; "
        "print({'matplotlib', 'mlflow', 'optuna', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n", done.stderr


def test_trial_that_changes_nothing_does_not_import_the_compiler() -> None:
    program = (
        "import sys; from orchestrator.execution.isolation import isolated\n"
        "with isolated([0]): pass\n"
        "print('torch' in sys.modules, 'torch._inductor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n", done.stderr
