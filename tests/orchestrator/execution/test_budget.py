"""Ray Tune stops all trials once a budget is spent, too many failed, or the driver has to end."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray.tune.search import Searcher

from orchestrator.config.sweep import Sweep
from orchestrator.errors import StorageError
from orchestrator.execution.budget import BudgetStopper
from orchestrator.interrupt import Interrupt
from orchestrator.storage.lease import BudgetUsage, Lease
from orchestrator.storage.local import LocalStore
from orchestrator.study.trial_report import EpochEnded, Failed, Halted, encode
from tests.support.studies import TuneLoop, epoch_ended, finish, open_study
from tests.support.sweep_files import load_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path, "study", budget={"trials": 6, "failures": 2})


def with_budget(sweep: Sweep, **changes: float | None) -> Sweep:
    return sweep.model_copy(update={"budget": sweep.budget.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("budget", "seconds", "gpu_seconds", "expected"),
    [
        ({"wall": 60.0}, 59.0, 5.0, ""),
        ({"wall": 60.0}, 60.0, 5.0, "the wall budget of 0:01:00 is spent"),
        ({"gpu_hours": 0.5}, 1e6, 1799.0, ""),
        ({"gpu_hours": 0.5}, 1e6, 1800.0, "the budget of 0.5 GPU hours is spent"),
    ],
)
def test_stopper_counts_what_all_drivers_used(
    sweep: Sweep, tmp_path: Path, budget: dict[str, float], seconds: float, gpu_seconds: float, expected: str
) -> None:
    interrupt, store = Interrupt(), LocalStore(tmp_path)
    with Lease(store, "study", "sweep study", interrupt) as earlier:
        earlier.record.used.seconds, earlier.record.used.gpu_seconds = seconds - 5, gpu_seconds - 5
    with Lease(store, "study", "sweep study", interrupt) as lease:
        lease.record.used.seconds += 5
        lease.record.used.gpu_seconds += 5
        stopper = BudgetStopper(open_study(with_budget(sweep, **budget)), lease.record.used, interrupt)
        assert stopper.spent_reason() == expected
        assert stopper.stop_all() == bool(expected)


def test_stopper_after_failures_in_a_row_gives_their_reason(sweep: Sweep) -> None:
    study = open_study(sweep)
    stopper, loop = BudgetStopper(study, BudgetUsage(), Interrupt()), TuneLoop(study)
    for fails in (True, False, True, True):
        assert not stopper.stop_all()
        point = loop.suggest()
        loop.report(point, epoch_ended(4, 0.5))
        loop.end(Failed("no") if fails else finish(loop, point, 4))
    assert stopper.failure_reason() == (
        "the last 2 trials failed, 2 of them with: no; "
        "fix the cause and rerun the command (limit: budget.failures)"
    )
    assert stopper.stop_all()


@pytest.mark.parametrize("step", ["report", "end", "suggest"])
def test_stopper_ends_all_trials_once_the_study_fails(
    sweep: Sweep, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune takes the error for one of the trial, which it would start again."""
    study = open_study(sweep)
    loop, stopper = TuneLoop(study), BudgetStopper(study, BudgetUsage(), Interrupt())
    point = loop.suggest()

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise StorageError("study: its objects are gone")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="objects are gone"):
        for method in ("ask", "record_epoch", "on_trial_end"):
            patch.setattr(study, method, fail)
        match step:
            case "report":
                loop.report(point, epoch_ended(1, 0.5))
            case "end":
                loop.end(Failed("no"))
            case "suggest":
                loop.suggest("b")
    assert stopper.stop_all() and str(study.fault) == "study: its objects are gone"
    before = study.trials
    assert not loop.report(point, epoch_ended(1, 0.5))
    loop.end(None, died=True)
    assert loop.suggest("b") == Searcher.FINISHED and study.trials == before


def test_stopper_of_the_next_driver_counts_failures_anew(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    for _ in range(2):
        loop.suggest()
        loop.end(Failed("no"))
    assert BudgetStopper(study, BudgetUsage(), Interrupt()).stop_all()
    assert not BudgetStopper(open_study(sweep), BudgetUsage(), Interrupt()).stop_all()


def test_stopper_without_a_limit_ignores_failures(sweep: Sweep) -> None:
    study = open_study(with_budget(sweep, failures=None))
    loop = TuneLoop(study)
    for _ in range(6):
        loop.suggest()
        loop.end(Failed("no"))
    assert BudgetStopper(study, BudgetUsage(), Interrupt()).failure_reason() == ""


def test_stopper_stops_all_after_a_report_that_halts(sweep: Sweep) -> None:
    stopper = BudgetStopper(open_study(sweep), BudgetUsage(), Interrupt())
    assert not stopper("trial", encode(Halted("storage: no space left")))
    assert stopper.halt_reason == "storage: no space left"
    assert stopper.stop_all()


def test_stopper_never_stops_a_single_trial(sweep: Sweep) -> None:
    stopper = BudgetStopper(open_study(sweep), BudgetUsage(), Interrupt())
    assert not stopper("trial", encode(EpochEnded(1, {"val/score": 0.5})))
    assert not stopper.stop_all()


def test_stopper_of_an_interrupted_driver_stops_all(sweep: Sweep) -> None:
    interrupt = Interrupt()
    stopper = BudgetStopper(open_study(sweep), BudgetUsage(), interrupt)
    interrupt.reason = "SIGTERM"
    assert stopper.stop_all()
