"""The study tells Optuna the truth about every trial, and a new driver continues from it alone."""

import math
import os.path
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.config import sweep as config
from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError
from orchestrator.execution.runner import Limits
from orchestrator.execution.trial import FAILURE
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Lease
from orchestrator.storage.s3 import Folder
from orchestrator.study.base import SweepStudy
from orchestrator.study.warm_start import Fitted

FOLDER = "/sweeps/study"

SWEEP = """
name: study
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 4}
search: {x: {uniform: [-3, 3]}, steps: {int: [1, 3]}}
objective: {metric: val/score}
sampler: {tpe: {seed: 3, n_startup_trials: 2}}
scheduler: {asha: {grace: 1, reduction: 2}}
budget: {trials: 6}
"""


class TuneTrial:
    """The part of a Ray Tune trial that the scheduler looks at."""

    def __init__(self, point: Any) -> None:
        self.config = point


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    file = tmp_path / "study.yaml"
    file.write_text(SWEEP)
    (tmp_path / "store" / "study").mkdir(parents=True)
    return config.read(file, [config.Override("storage", str(tmp_path / "store"), "--storage")])


def open_study(sweep: Sweep, storage: Path | None = None) -> SweepStudy:
    """The study as a driver opens it."""
    if storage is not None:
        (storage / "study").mkdir(parents=True, exist_ok=True)
        sweep = sweep.model_copy(update={"storage": str(storage)})
    return SweepStudy(sweep, JobDirectory(sweep))


def result(epoch: int, score: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "val/score": score,
        "train/loss": -score,
        "names": ["epoch", "val/score", "train/loss"],
        "checkpoint_path": f"{FOLDER}/checkpoint_{epoch}",
    }


def run(study: SweepStudy, scores: list[float]) -> TrialState:
    """One trial through searcher and scheduler, as Ray Tune calls them; it reports these scores."""
    searcher, scheduler = StudySearcher(study), StudyScheduler(study)
    point = searcher.suggest("a")
    assert isinstance(point, dict)
    for epoch, score in enumerate(scores, 1):
        last = result(epoch, score)
        if scheduler.on_trial_result(None, TuneTrial(point), last) == TrialScheduler.STOP:
            break
    searcher.on_trial_complete("a", last)
    return study.trials[point["number"]].state


@pytest.mark.parametrize(
    ("study", "line"),
    [
        (None, r"^warm_start: .*/other has no study yet$"),
        (b"not a database", r"^warm_start: .*/other cannot be read: file is not a database$"),
    ],
)
def test_a_sweep_whose_study_is_of_no_use_is_none_to_learn_from(
    sweep: Sweep, tmp_path: Path, study: bytes | None, line: str
) -> None:
    other = tmp_path / "store/other"
    other.mkdir()
    (other / "sweep.json").write_text('{"id": "1", "resolved": {}}')
    if study is not None:
        (other / "study.db").write_bytes(study * 500)
    with pytest.raises(InputError, match=line):
        JobDirectory(sweep).neighbour("other")


def test_a_study_is_not_begun_anew_over_the_checkpoints_of_one_that_is_gone(
    sweep: Sweep, tmp_path: Path
) -> None:
    (tmp_path / "store/study/trials/trial-0000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^study: no trial is in it, but .*/study/trials holds checkpoints"):
        open_study(sweep)


def test_a_trial_that_reaches_its_last_epoch_is_complete(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run(study, [0.1, 0.2, 0.3, 0.4]) == TrialState.COMPLETE
    best = study.best()
    assert best is not None
    assert best.values == [0.4]
    assert best.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert os.path.normpath(study.checkpoint(best.number).path) == f"{FOLDER}/checkpoint_4"


def test_the_worse_of_two_is_pruned_at_the_first_rung(sweep: Sweep) -> None:
    study = open_study(sweep)
    run(study, [0.5, 0.5, 0.5, 0.5])
    assert run(study, [0.1, 0.9, 0.9, 0.9]) == TrialState.PRUNED
    assert study.trials[1].intermediate_values == {1: 0.1}
    assert "after epoch 1" in study.trials[1].user_attrs["reason"]


def test_the_last_epoch_is_never_pruned(sweep: Sweep) -> None:
    study = open_study(sweep)
    run(study, [0.5, 0.5, 0.5, 0.9])
    assert run(study, [0.6, 0.6, 0.6, 0.1]) == TrialState.COMPLETE


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_fails_the_trial(sweep: Sweep, score: float) -> None:
    study = open_study(sweep)
    assert run(study, [0.5, score]) == TrialState.FAIL
    assert study.trials[0].user_attrs["reason"] == "val/score is not finite in epoch 2"
    assert study.best() is None


def test_a_score_that_is_not_reported_fails_the_trial(sweep: Sweep) -> None:
    study = open_study(sweep)
    searcher, scheduler = StudySearcher(study), StudyScheduler(study)
    point = searcher.suggest("a")
    last = {"epoch": 1, "train/loss": 1.0, "names": ["epoch", "train/loss"]}
    assert scheduler.on_trial_result(None, TuneTrial(point), last) == TrialScheduler.STOP
    searcher.on_trial_complete("a", last)
    assert study.trials[0].user_attrs["reason"] == "val/score is missing in epoch 1"


def test_failures_keep_their_reason(sweep: Sweep) -> None:
    study = open_study(sweep)
    searcher, scheduler = StudySearcher(study), StudyScheduler(study)
    for trial_id in "ab":
        point = searcher.suggest(trial_id)
    failure = {FAILURE: "RuntimeError: no", "log": "..."}
    assert scheduler.on_trial_result(None, TuneTrial(point), failure) == TrialScheduler.CONTINUE
    searcher.on_trial_complete("a", failure)
    searcher.on_trial_complete("b", error=True)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in study.trials] == [
        "RuntimeError: no",
        "its process died again and again",
    ]


def test_a_new_driver_continues_an_interrupted_trial_under_its_number(sweep: Sweep) -> None:
    study = open_study(sweep)
    run(study, [0.1, 0.2, 0.3, 0.4])
    point = StudySearcher(study).suggest("b")
    assert isinstance(point, dict)
    StudyScheduler(study).on_trial_result(None, TuneTrial(point), result(1, 0.5))  # and the driver dies

    again = open_study(sweep)
    assert again.left() == sweep.budget.trials - 1
    assert StudySearcher(again).suggest("c") == point
    assert again.trials[point["number"]].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("heard", [0, 2, 4])
def test_reports_made_again_on_resume_count_once(sweep: Sweep, heard: int) -> None:
    scores = [0.1, 0.2, 0.3, 0.4]
    point = StudySearcher(first := open_study(sweep)).suggest("a")
    for epoch in range(1, heard + 1):
        StudyScheduler(first).on_trial_result(None, TuneTrial(point), result(epoch, scores[epoch - 1]))
    study = open_study(sweep)
    assert run(study, scores) == TrialState.COMPLETE
    assert study.trials[0].intermediate_values == dict(enumerate(scores, 1))


def test_a_verdict_that_a_dying_driver_did_not_carry_out_stands(sweep: Sweep) -> None:
    study = open_study(sweep)
    run(study, [0.5, 0.5, 0.5, 0.5])
    point = StudySearcher(study).suggest("b")
    StudyScheduler(study).on_trial_result(None, TuneTrial(point), result(1, 0.1))
    again = open_study(sweep)
    assert run(again, [0.1, 0.9, 0.9, 0.9]) == TrialState.PRUNED


def test_a_failure_that_a_dying_driver_did_not_tell_stays_one(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(sweep)
    point = StudySearcher(study).suggest("a")
    assert isinstance(point, dict)
    StudyScheduler(study).on_trial_result(None, TuneTrial(point), result(1, 0.5))
    monkeypatch.setattr(study.study, "tell", lambda *_, **__: 1 / 0)  # it dies after it noted the reason
    with pytest.raises(ZeroDivisionError):
        study.end(0, {FAILURE: "RuntimeError: no"})
    again = open_study(sweep)
    searcher, scheduler = StudySearcher(again), StudyScheduler(again)
    assert searcher.suggest("b") == point
    assert scheduler.on_trial_result(None, TuneTrial(point), result(1, 0.5)) == TrialScheduler.CONTINUE
    searcher.on_trial_complete("b", {FAILURE: "RuntimeError: no"})
    assert again.trials[0].state == TrialState.FAIL


def test_a_trial_that_ends_early_by_itself_is_complete(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run(study, [0.1, 0.2]) == TrialState.COMPLETE
    assert study.trials[0].values == [0.2]


def test_a_trial_without_report_or_checkpoint_fails(sweep: Sweep) -> None:
    study = open_study(sweep)
    searcher = StudySearcher(study)
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", {"done": True})
    searcher.on_trial_complete("b", {"epoch": 4, "val/score": 1.0})
    reasons = [trial.user_attrs["reason"] for trial in study.trials]
    assert reasons == ["it ended without a report", "it ended without a checkpoint"]


def test_values_that_do_not_go_together_fail_without_a_run(sweep: Sweep) -> None:
    def refuse(values: dict[str, Any]) -> Any:
        if values and values["steps"] < 3:
            raise InputError("config: too few steps")
        return sweep.trial_config(values)

    picky = sweep.model_copy()
    object.__setattr__(picky, "trial_config", refuse)
    study = open_study(picky)
    while (suggestion := study.ask()) is not None:
        assert suggestion.values["steps"] == 3
    states = [(trial.state, trial.params["steps"]) for trial in study.trials]
    assert len(states) == sweep.budget.trials
    assert all((state == TrialState.FAIL) == (steps < 3) for state, steps in states)
    assert {state for state, _ in states} == {TrialState.FAIL, TrialState.RUNNING}


def test_a_continued_study_suggests_what_the_undisturbed_one_does(sweep: Sweep, tmp_path: Path) -> None:
    suggested = []
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        study = open_study(sweep, folder)
        for number in range(sweep.budget.trials):
            run(study, [float(number)] * 4)
            if restarts:
                study = open_study(sweep, folder)
        suggested.append([trial.params for trial in study.trials])
    assert suggested[0] == suggested[1]
    assert len({params["x"] for params in suggested[0]}) == sweep.budget.trials


def test_the_budget_ends_the_search(sweep: Sweep) -> None:
    study = open_study(sweep)
    for _ in range(sweep.budget.trials):
        run(study, [0.5] * 4)
    assert study.left() == 0
    assert StudySearcher(study).suggest("z") == Searcher.FINISHED


def test_trials_without_gain_end_the_search(sweep: Sweep) -> None:
    patient = sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"no_gain_for": 2})})
    study = open_study(patient)
    for score in (0.5, 0.4, 0.3):
        assert not study.gained_nothing()
        run(study, [score] * 4)
    assert study.gained_nothing()
    assert StudySearcher(study).suggest("z") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("budget", "seconds", "gpu_seconds", "expected"),
    [
        ({"wall": 60.0}, 59.0, 0.0, ""),
        ({"wall": 60.0}, 60.0, 0.0, "the wall budget of 0:01:00 is spent"),
        ({"gpu_hours": 0.5}, 1e6, 1799.0, ""),
        ({"gpu_hours": 0.5}, 1e6, 1800.0, "the budget of 0.5 GPU hours is spent"),
    ],
)
def test_what_all_runs_of_the_command_spent_counts(
    sweep: Sweep, tmp_path: Path, budget: dict[str, float], seconds: float, gpu_seconds: float, expected: str
) -> None:
    with Lease(Folder(tmp_path), "study", "sweep study", print) as earlier:
        earlier.record.spent.seconds, earlier.record.spent.gpu_seconds = seconds - 5, gpu_seconds - 5
    limited = sweep.model_copy(update={"budget": sweep.budget.model_copy(update=budget)})
    with Lease(Folder(tmp_path), "study", "sweep study", print) as lease:
        lease.record.spent.seconds += 5
        lease.record.spent.gpu_seconds += 5
        limits = Limits(open_study(limited), lease)
        assert limits.spent() == expected
        assert limits.stop_all() == bool(expected)


def test_only_failures_in_a_row_end_the_search(sweep: Sweep, tmp_path: Path) -> None:
    strict = sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"failures": 2})})
    study = open_study(strict)
    with Lease(Folder(tmp_path), "study", "sweep study", print) as lease:
        limits = Limits(study, lease)
        for fails in (True, False, True, True):
            assert not limits.stop_all()
            searcher = StudySearcher(study)
            searcher.suggest("a")
            searcher.on_trial_complete("a", {FAILURE: "no"} if fails else result(4, 0.5))
        assert limits.failing().startswith("the last 2 trials failed, 2 of them with: no")
        assert not Limits(open_study(strict), lease).stop_all()  # the next driver starts to count anew


def test_the_search_starts_from_named_points_and_earlier_trials(sweep: Sweep) -> None:
    point = {"x": 1.0}
    study = open_study(sweep.model_copy(update={"enqueue": {"paper": point}}))
    uniform, integer = (sweep.search[path].distribution() for path in ("x", "steps"))
    earlier = Fitted({"x": 2.0, "steps": 3}, {"x": uniform, "steps": integer}, [9.0], "before", 4)
    for _ in range(2):  # a driver that died between two of them begins again
        study.begin([earlier])
    assert run(study, [0.5] * 4) == TrialState.COMPLETE
    assert study.suggested[0].user_attrs["point"] == "paper" and study.suggested[0].params["x"] == 1.0
    assert len(study.suggested) == 1 and len(study.trials) == 2
    best = study.best()
    assert best is not None and best.number == 0  # earlier trials have no model here
    while study.left():
        run(study, [0.5] * 4)
    assert len(study.suggested) == sweep.budget.trials


def test_what_still_runs_when_the_budget_is_spent_is_pruned(sweep: Sweep) -> None:
    study = open_study(sweep)
    study.ask()
    assert study.close("no time left") == [0]
    assert study.count() == {"running": 0, "complete": 0, "pruned": 1, "failed": 0}
