"""The attempts of one trial, without Ray running."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs
import pytest

from orchestrator.errors import StorageError, TrialError
from orchestrator.execution import trial
from orchestrator.execution.checkpoints import TrialFolder
from orchestrator.execution.failures import MAX_ATTEMPTS, WorkersLostError
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.trial import Reports
from orchestrator.execution.worker import TrialSpec
from orchestrator.study.trial_report import (
    EpochEnded,
    Failed,
    Halted,
    Started,
    Trained,
    TrialReport,
    WorkersLost,
)

Attempt = tuple[Exception | None, str]
"""What an attempt raises, and the name of the worker that hung in it, if one did."""

RunTrial = Callable[..., list[TrialReport]]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialSpec:
    monkeypatch.setattr(trial, "_MIN_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(trial, "_MAX_PAUSE_SECONDS", 0.0)
    return TrialSpec(
        "job", "0123456789", "module:Class", str(tmp_path / "trials"), None, 1, 1.0, 0.0, 60.0, False, 100
    )


@pytest.fixture
def run_trial(spec: TrialSpec) -> RunTrial:
    """Run a trial with these attempts; return its reports."""

    def run_trial(*attempts: Attempt, jobs: list[TrialJob] | None = None) -> list[TrialReport]:
        remaining: Iterator[Attempt] = iter(attempts)

        def run(job: TrialJob) -> Reports:
            if jobs is not None:
                jobs.append(job)
            error, hung = next(remaining)
            if hung:
                spec.trial_folder(0, {}).record_hang(hung, f"stacks of {hung}".encode())
            if error is not None:
                raise error
            yield Trained("/trials/checkpoint")

        suggestion = {"number": 0, "values": {}, "config": {"x": 1}, "checkpoint": None}
        return [report for report in trial.run_trial(suggestion, spec, run) if report is not None]

    return run_trial


def lost(*, by_storage: bool = False) -> WorkersLostError:
    return WorkersLostError("its worker died", "log", by_storage=by_storage)


def test_trial_that_loses_its_workers_resumes(run_trial: RunTrial) -> None:
    reports = run_trial((lost(), ""), (lost(), ""), (None, ""))
    assert reports == [*[WorkersLost("its worker died")] * 2, Trained("/trials/checkpoint")]


def test_trial_that_hangs_twice_fails_with_the_stacks(run_trial: RunTrial) -> None:
    *_, last = run_trial((lost(), "a"), (lost(), "b"))
    assert last == Failed("it hung 2 times: no report for 60 s", "stacks of b")


def test_hang_while_the_storage_fails_counts(run_trial: RunTrial) -> None:
    *_, last = run_trial((lost(by_storage=True), "a"), (lost(), ""), (lost(), "b"))
    assert isinstance(last, Failed) and last.reason.startswith("it hung 2 times")


def test_trial_that_failed_is_not_tried_again(run_trial: RunTrial) -> None:
    assert run_trial((TrialError("no", "log"), "")) == [Failed("no", "log")]


def test_full_storage_halts_the_trial(run_trial: RunTrial) -> None:
    assert run_trial((StorageError("storage: full", full=True), "")) == [Halted("storage: full")]


@pytest.mark.parametrize("place", ["trials", "link"])
def test_storage_with_something_in_the_place_of_a_folder_halts_the_trial(
    place: str, run_trial: RunTrial, spec: TrialSpec, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("/nowhere") if place == "link" else (tmp_path / "trials").touch()
    filesystem, path = pyarrow.fs.LocalFileSystem(), tmp_path / place / "trial-0000"
    with pytest.raises(OSError) as raised:
        TrialFolder(filesystem, str(path)).create()
    assert run_trial((raised.value, "")) == [Halted(f"storage: {raised.value}")]


@pytest.mark.parametrize("error", [OSError("no answer"), lost(by_storage=True)])
def test_trial_that_alone_is_refused_by_the_storage_fails(error: Exception, run_trial: RunTrial) -> None:
    *retried, last = run_trial(*[(error, "")] * MAX_ATTEMPTS)
    assert len(retried) == MAX_ATTEMPTS - 1
    assert isinstance(last, Failed) and last.reason.endswith(f"{MAX_ATTEMPTS} times without progress")


def test_checkpoint_before_a_fault_of_the_storage_is_progress(
    run_trial: RunTrial, spec: TrialSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state.json").write_text("{}")
    attempts = 0

    def can_be_written(folder: TrialFolder) -> bool:
        nonlocal attempts
        attempts += 1
        folder.save(tmp_path, attempts)  # as the attempt did before the fault
        return True

    monkeypatch.setattr(TrialFolder, "can_be_written", can_be_written)
    reports = run_trial(*[(lost(by_storage=True), "")] * 3 * MAX_ATTEMPTS, (None, ""))
    assert reports[-1] == Trained("/trials/checkpoint")


def test_storage_that_does_not_answer_is_tried_again(
    run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialFolder, "can_be_written", lambda self: False)
    reports = run_trial(*[(OSError("no answer"), "")] * 20, (None, ""))
    assert reports == [*[WorkersLost("storage: no answer")] * 20, Trained("/trials/checkpoint")]


def test_next_attempt_continues_from_the_last_checkpoint(
    run_trial: RunTrial, spec: TrialSpec, tmp_path: Path
) -> None:
    (tmp_path / "state.json").write_text("{}")
    jobs: list[TrialJob] = []
    run_trial((lost(), ""), (None, ""), jobs=jobs)
    saved = spec.trial_folder(0, {}).save(tmp_path, 3)
    run_trial((None, ""), jobs=jobs)
    assert [job.checkpoint for job in jobs] == [None, None, saved]
    assert not any(job.trained for job in jobs)


def test_trial_that_loses_its_workers_while_scored_is_only_scored(spec: TrialSpec) -> None:
    jobs: list[TrialJob] = []

    def run(job: TrialJob) -> Reports:
        jobs.append(job)
        if len(jobs) == 1:
            yield Trained("/trials/checkpoint")
            raise lost()
        yield Started()

    suggestion = {"number": 0, "values": {}, "config": {}, "checkpoint": None}
    list(trial.run_trial(suggestion, spec, run))
    assert [(job.checkpoint, job.trained) for job in jobs] == [(None, False), ("/trials/checkpoint", True)]


def test_closing_the_reports_stops_the_trial(spec: TrialSpec) -> None:
    stopped = []

    def run(job: TrialJob) -> Reports:
        try:
            yield EpochEnded(1, {"loss": 1.0})
        except GeneratorExit:
            stopped.append(job.number)
            raise

    reports = trial.run_trial({"number": 7, "values": {}, "config": {}, "checkpoint": None}, spec, run)
    assert next(reports) == EpochEnded(1, {"loss": 1.0})
    reports.close()
    assert stopped == [7]
