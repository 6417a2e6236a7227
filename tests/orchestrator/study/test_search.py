"""The study records the truth about every trial, and a new driver resumes from it alone."""

import math
import os.path
import sqlite3
from pathlib import Path
from typing import Any, NoReturn

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from orchestrator.config.sweep import Sweep
from orchestrator.errors import InputError, SweepError
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import BudgetUsage
from orchestrator.storage.records import write_record
from orchestrator.study.search import SearchStudy, rehearse_sampler
from orchestrator.study.trial_report import EpochEnded, Failed, Halted, Started, Trained
from orchestrator.study.warm_start import TransferredTrial
from tests.support.example_trainable import Record
from tests.support.studies import TuneLoop, epoch_ended, finish, open_study, run_trial
from tests.support.sweep_files import load_sweep

FOLDER = "/sweeps/study"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return load_sweep(
        tmp_path,
        "study",
        config={"epochs": 4},
        search={"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 3]}},
        sampler={"tpe": {"seed": 3, "n_startup_trials": 2}},
        scheduler={"asha": {"grace": 1, "reduction": 2}},
        budget={"trials": 6},
    )


def with_budget(sweep: Sweep, **changes: Any) -> Sweep:
    return sweep.model_copy(update={"budget": sweep.budget.model_copy(update=changes)})


def reason(study: SearchStudy, number: int = 0) -> str:
    return str(study.trials[number].user_attrs["reason"])


def start_trial(study: SearchStudy, *scores: float) -> Any:
    """Start a trial that reports these scores and does not end; return its point."""
    loop = TuneLoop(study)
    point = loop.suggest()
    for epoch, score in enumerate(scores, 1):
        loop.report(point, epoch_ended(epoch, score))
    return point


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"^warm_start: .*/other has no study yet$"),
        (b"", r"^warm_start: .*/other has no study yet$"),
        (b"no database", r"^warm_start: study: .*/other/study.db cannot be read: file is not a database$"),
    ],
)
def test_neighbour_without_a_readable_study_is_refused(
    sweep: Sweep, tmp_path: Path, content: bytes | None, line: str
) -> None:
    other = tmp_path / "store/other"
    other.mkdir(parents=True)
    record(other, sweep)
    if content is not None:
        (other / "study.db").write_bytes(content * 500)
    before = contents(other)
    with pytest.raises(InputError, match=line):
        JobDirectory(sweep).read_neighbour("other")
    assert contents(other) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def record(folder: Path, sweep: Sweep) -> None:
    """Write the record of a sweep."""
    (folder / "sweep.json").write_bytes(write_record({"id": "1", "resolved": sweep.resolved()}))


def test_neighbour_with_a_damaged_table_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    other = load_sweep(tmp_path, "other")
    run_trial(open_study(other), [0.5])
    record(tmp_path / "store/other", other)
    with sqlite3.connect(tmp_path / "store/other/study.db") as connection:
        connection.execute("ALTER TABLE trial_values RENAME COLUMN value TO lost")
    before = contents(tmp_path / "store/other")
    with pytest.raises(
        InputError, match=r"other/study.db cannot be read: no such column: trial_values.value$"
    ):
        JobDirectory(sweep).read_neighbour("other")
    assert contents(tmp_path / "store/other") == before


def test_study_that_is_gone_from_its_checkpoints_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    checkpoint = tmp_path / "store/study/trials/trial-0000/checkpoint_1/state.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(InputError, match=r"^study: it holds no trial, but .*/study/trials holds checkpoints"):
        open_study(sweep)


def test_content_of_the_data_may_not_change_once_a_trial_has_not_failed(sweep: Sweep) -> None:
    def record(**digests: str) -> dict[str, list[Record]]:
        return {"config": [Record(name, digest=digest) for name, digest in digests.items()]}

    study = open_study(sweep)
    for digest in ("a", "b"):  # no trial has used it yet
        study.check_data(record(parabola=digest))
    loop = TuneLoop(study)
    loop.suggest()
    loop.end(Failed("the data is at fault", ""))
    study.check_data(record(parabola="c"))  # corrected
    start_trial(study, 0.5)
    study = open_study(sweep)
    study.check_data(record(parabola="c", line="d"))
    study.check_data({"another config": [Record(digest="e")]})
    with pytest.raises(InputError, match=r"^data sets parabola, line: the content has changed since earlier"):
        study.check_data(record(parabola="x", line="y"))
    study.study.set_user_attr("data", ["damaged"])
    study.check_data(record(parabola="x"))


def test_code_that_changes_between_trials_is_noted(sweep: Sweep) -> None:
    study = open_study(sweep)
    study.note_code({"mine": "a"})
    study.note_code({"mine": "b"})  # no trial has used it yet
    assert study.changed_code(upcoming=True) == []
    run_trial(study, [0.5])
    study = open_study(sweep)
    study.note_code({"mine": "c", "added": "a"})
    (line,) = study.changed_code(upcoming=True)
    assert line.startswith("the code of mine has changed between trials of this sweep")
    assert study.changed_code() == [], "no trial has ended with it"
    study.note_code({"mine": "b", "added": "a"})  # put back
    assert study.changed_code(upcoming=True) == []
    study.note_code({"mine": "c", "added": "a"})
    run_trial(study, [0.5])
    study.note_code({"mine": "b", "added": "a"})
    assert study.changed_code() == [line], "trials of the other code remain"
    study.study.set_user_attr("code", ["damaged"])
    assert study.changed_code() == []


def test_trial_that_reaches_its_last_epoch_is_complete(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run_trial(study, [0.1, 0.2, 0.3, 0.4]) == TrialState.COMPLETE
    best = study.best()
    assert best is not None
    assert best.values == [0.4]
    assert best.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def test_complete_trial_keeps_its_last_checkpoint(sweep: Sweep, tmp_path: Path) -> None:
    study = open_study(sweep)
    run_trial(study, [0.1, 0.2, 0.3, 0.4])
    assert os.path.normpath(study.checkpoint(0).path) == f"{FOLDER}/checkpoint_4"


def test_worse_of_two_trials_is_pruned_at_the_first_rung(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_trial(study, [0.5, 0.5, 0.5, 0.5])
    assert run_trial(study, [0.1, 0.9, 0.9, 0.9]) == TrialState.PRUNED
    assert study.trials[1].intermediate_values == {1: 0.1}
    assert reason(study, 1) == "stopped early, after epoch 1"


def test_trial_in_its_last_epoch_is_never_pruned(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_trial(study, [0.5, 0.5, 0.5, 0.9])
    assert run_trial(study, [0.6, 0.6, 0.6, 0.1]) == TrialState.COMPLETE


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_objective_that_is_not_finite_fails_the_trial(sweep: Sweep, score: float) -> None:
    study = open_study(sweep)
    assert run_trial(study, [0.5, score]) == TrialState.FAIL
    assert reason(study) == "val/score is not finite in epoch 2"
    assert study.best() is None


def test_objective_that_is_not_reported_fails_the_trial(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest()
    last = EpochEnded(1, {"train/loss": 1.0})
    assert not loop.report(point, last)
    loop.end(last)
    assert reason(study) == "val/score is missing in epoch 1"


def test_trial_that_failed_keeps_its_reason_and_log(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    failure = Failed("RuntimeError: no", log="x" * 5000 + "the end")
    assert not loop.report(loop.suggest(), failure)
    loop.end(failure)
    assert study.trials[0].state == TrialState.FAIL
    assert reason(study) == "RuntimeError: no"
    log = study.trials[0].user_attrs["log"]
    assert len(log) == 4000 and log.endswith("the end")


def test_trial_whose_process_died_repeatedly_fails(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    for _ in range(3):
        assert study.trials == [] or study.trials[0].state == TrialState.RUNNING
        assert loop.suggest()["number"] == 0
        loop.end(None, died=True)
    assert study.trials[0].state == TrialState.FAIL
    assert reason(study) == "its process died repeatedly"


def test_trial_that_was_halted_stays_unfinished(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest()
    loop.end(Halted("storage: no space left"))
    assert study.trials[0].state == TrialState.RUNNING
    assert study.recent_failures == []
    assert open_study(sweep).ask() is not None and study.remaining() == sweep.budget.trials
    assert point["number"] == 0


def test_new_driver_resumes_an_interrupted_trial(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_trial(study, [0.1, 0.2, 0.3, 0.4])
    point = start_trial(study, 0.5)  # and the driver dies

    again = open_study(sweep)
    assert again.remaining() == sweep.budget.trials - 1
    assert TuneLoop(again).suggest() == point
    assert again.trials[point["number"]].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("heard", [0, 2, 4])
def test_reports_repeated_after_a_resume_count_once(sweep: Sweep, heard: int) -> None:
    scores = [0.1, 0.2, 0.3, 0.4]
    start_trial(open_study(sweep), *scores[:heard])
    study = open_study(sweep)
    assert run_trial(study, scores) == TrialState.COMPLETE
    assert study.trials[0].intermediate_values == dict(enumerate(scores, 1))


def test_epoch_reported_again_keeps_its_first_metrics(sweep: Sweep) -> None:
    study = open_study(sweep)
    study.ask()
    study.record_epoch(0, epoch_ended(1, 0.5))
    first = study.trials[0].user_attrs["epoch 1"]
    study.record_epoch(0, epoch_ended(1, 0.9))
    assert study.trials[0].user_attrs["epoch 1"] == first
    assert first["val/score"] == 0.5


def test_pruning_that_a_dead_driver_recorded_holds(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_trial(study, [0.5, 0.5, 0.5, 0.5])
    start_trial(study, 0.1)
    assert run_trial(open_study(sweep), [0.1, 0.9, 0.9, 0.9]) == TrialState.PRUNED


def test_failure_that_a_dead_driver_did_not_tell_stays_one(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError

    study = open_study(sweep)
    point = start_trial(study, 0.5)
    monkeypatch.setattr(study.study, "tell", die)  # the driver dies after it noted the reason
    with pytest.raises(ZeroDivisionError):
        study.on_trial_end(0, Failed("RuntimeError: no"))
    again = open_study(sweep)
    loop = TuneLoop(again)
    assert loop.suggest() == point
    assert loop.report(point, epoch_ended(1, 0.5))
    loop.end(Failed("RuntimeError: no"))
    assert again.trials[0].state == TrialState.FAIL


def test_trial_that_ends_before_its_last_epoch_is_complete(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run_trial(study, [0.1, 0.2]) == TrialState.COMPLETE
    assert study.trials[0].values == [0.2]


@pytest.mark.parametrize("last", [None, Started(), Trained("/x")])
def test_trial_without_a_report_of_an_epoch_fails(sweep: Sweep, last: Any) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    loop.suggest()
    loop.end(last)
    assert study.trials[0].state == TrialState.FAIL
    assert reason(study) == "it ended without a report"


def test_trial_whose_last_report_is_an_epoch_fails(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    loop.report(loop.suggest(), epoch_ended(4, 1.0))
    loop.end(epoch_ended(4, 1.0))
    assert study.trials[0].state == TrialState.FAIL
    assert reason(study) == "it did not train to its end"


def test_values_that_are_invalid_together_fail_unstarted(sweep: Sweep) -> None:
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


def test_resumed_study_suggests_what_an_undisturbed_one_does(sweep: Sweep, tmp_path: Path) -> None:
    suggested = []
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        study = open_study(sweep, folder)
        for number in range(sweep.budget.trials):
            run_trial(study, [float(number)] * 4)
            if restarts:
                study = open_study(sweep, folder)
        suggested.append([trial.params for trial in study.trials])
    assert suggested[0] == suggested[1]
    assert len({params["x"] for params in suggested[0]}) == sweep.budget.trials


def test_search_ends_with_its_budget_of_trials(sweep: Sweep) -> None:
    study = open_study(sweep)
    for _ in range(sweep.budget.trials):
        assert not study.is_finished()
        run_trial(study, [0.5] * 4)
    assert study.remaining() == 0 and study.is_finished()
    assert TuneLoop(study).suggest() == Searcher.FINISHED


def test_search_ends_after_trials_without_gain(sweep: Sweep) -> None:
    study = open_study(with_budget(sweep, no_gain_for=2))
    for score in (0.5, 0.4, 0.3):
        assert not study.has_stagnated()
        run_trial(study, [score] * 4)
    assert study.has_stagnated() and study.is_finished()
    assert TuneLoop(study).suggest() == Searcher.FINISHED


@pytest.fixture
def seeded(sweep: Sweep) -> SearchStudy:
    """A study with one enqueued point and one transferred trial, seeded twice as after a driver died."""
    study = open_study(sweep.model_copy(update={"enqueue": {"paper": {"x": 1.0}}}))
    uniform, integer = (sweep.search[path].distribution() for path in ("x", "steps"))
    prior = TransferredTrial({"x": 2.0, "steps": 3}, {"x": uniform, "steps": integer}, [9.0], "before", 4)
    for _ in range(2):
        study.seed([prior])
    return study


def test_search_starts_from_its_enqueued_point(seeded: SearchStudy) -> None:
    assert run_trial(seeded, [0.5] * 4) == TrialState.COMPLETE
    (trial,) = seeded.started_trials
    assert trial.user_attrs["point"] == "paper" and trial.params["x"] == 1.0


def test_seed_repeated_after_a_dead_driver_adds_nothing(seeded: SearchStudy) -> None:
    assert len(seeded.trials) == 2
    assert seeded.is_seeded


def test_transferred_trial_is_never_the_best(seeded: SearchStudy) -> None:
    run_trial(seeded, [0.5] * 4)
    best = seeded.best()
    assert best is not None and best.number == 0  # the transferred trial has a better value, but no model


def test_transferred_trials_do_not_count_in_the_budget(seeded: SearchStudy) -> None:
    while seeded.remaining():
        run_trial(seeded, [0.5] * 4)
    assert len(seeded.started_trials) == seeded.sweep.budget.trials


def test_running_trials_are_pruned_when_the_budget_is_spent(sweep: Sweep) -> None:
    study = open_study(sweep)
    study.ask()
    assert study.prune_running("no time left") == [0]
    assert study.count() == {"running": 0, "complete": 0, "pruned": 1, "failed": 0}
    assert reason(study) == "no time left"


def test_headline_names_the_best_trial(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert study.headline() == "best none yet"
    run_trial(study, [0.123456] * 4)
    assert study.headline() == "best val/score 0.1235 (trial-0000)"


def test_description_of_each_state_says_how_a_trial_ended(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_trial(study, [0.5, 0.5, 0.5, 0.25])
    run_trial(study, [0.1])
    study.ask()
    assert [study.describe(trial) for trial in study.trials] == [
        "val/score 0.25",
        "stopped early, after epoch 1, val/score 0.1",
        "it resumes when the command is rerun",
    ]


def test_failures_in_a_row_are_remembered_until_a_success(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    for text in ("first", "second"):
        loop.suggest()
        loop.end(Failed(text))
    assert study.recent_failures == ["first", "second"]
    run_trial(study, [0.5] * 4)
    assert study.recent_failures == []


def test_study_of_a_newer_schema_is_refused(sweep: Sweep) -> None:
    open_study(sweep).study.set_user_attr("schema", 3)
    with pytest.raises(InputError) as refusal:
        open_study(sweep)
    assert str(refusal.value) == (
        "study: it has schema 3, and this version reads up to 2; "
        "upgrade multi-shot-reid to the version that wrote it"
    )


def test_study_of_schema_1_is_resumed_and_marked(sweep: Sweep) -> None:
    Path(sweep.storage, sweep.name).mkdir(parents=True)
    storage = JobDirectory(sweep).study_storage()
    optuna.create_study(study_name="study", storage=storage, direction="maximize")
    study = open_study(sweep)
    assert study.study.user_attrs["schema"] == 2
    assert run_trial(study, [0.5] * 4) == TrialState.COMPLETE


def test_search_ends_when_every_combination_was_suggested(tmp_path: Path) -> None:
    sweep = load_sweep(
        tmp_path,
        "study",
        config={"epochs": 1},
        search={"steps": {"int": [1, 2]}},
        sampler="brute_force",
        budget={"trials": 5},
    )
    study = open_study(sweep)
    assert [run_trial(study, [0.5]), run_trial(study, [0.6])] == [TrialState.COMPLETE] * 2
    assert sorted(trial.params["steps"] for trial in study.trials) == [1, 2]
    assert study.is_finished() and TuneLoop(study).suggest() == Searcher.FINISHED
    assert open_study(sweep).is_finished()


class FailingSampler(optuna.samplers.RandomSampler):
    """Fails from its fourth trial on."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if trial.number >= 3:
            raise ArithmeticError("no more ideas")
        return super().sample_independent(study, trial, name, distribution)


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        ({"tpe": {"seed": 0, "n_ei_candidates": 0}}, r"sampler: tpe fails at suggestion 11: "),
        (
            f"{__name__}:FailingSampler",
            r"FailingSampler fails at suggestion 4: ArithmeticError: no more ideas",
        ),
    ],
)
def test_sampler_that_will_fail_is_refused(tmp_path: Path, sampler: Any, reason: str) -> None:
    sweep = load_sweep(tmp_path, "study", sampler=sampler, budget={"trials": 20})
    with pytest.raises(InputError, match=reason):
        rehearse_sampler(sweep)


def test_rehearsal_is_not_longer_than_the_sweep(tmp_path: Path) -> None:
    sampler = f"{__name__}:FailingSampler"
    rehearse_sampler(load_sweep(tmp_path, "study", sampler=sampler, budget={"trials": 3}))
    with pytest.raises(InputError, match="fails at suggestion 4"):
        rehearse_sampler(load_sweep(tmp_path, "study", sampler=sampler, budget={"trials": 4}))


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii", "qmc", "brute_force", "cmaes"])
def test_rehearsal_of_a_sampler_passes_and_writes_nothing(tmp_path: Path, sampler: str) -> None:
    rehearse_sampler(load_sweep(tmp_path, "study", search={"steps": {"int": [1, 3]}}, sampler=sampler))
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_sampler_that_fails_later_ends_the_sweep_with_its_reason(tmp_path: Path) -> None:
    study = open_study(
        load_sweep(tmp_path, "study", config={"epochs": 1}, sampler=f"{__name__}:FailingSampler")
    )
    for _ in range(3):
        run_trial(study, [0.5])
    with pytest.raises(
        SweepError, match=r"FailingSampler failed to suggest trial 3: ArithmeticError: no more"
    ):
        TuneLoop(study).suggest()


def run_metrics(study: SearchStudy, *epochs: dict[str, float]) -> TrialState:
    """Run one trial that reports these metrics; return its state."""
    loop = TuneLoop(study)
    point = loop.suggest()
    last: Any = None
    for epoch, metrics in enumerate(epochs, 1):
        last = EpochEnded(epoch, metrics, checkpoint=f"{FOLDER}/checkpoint_{epoch}")
        if not loop.report(point, last):
            break
    else:
        last = finish(loop, point, len(epochs))
    loop.end(last)
    return study.trials[point["number"]].state


def scored(score: float, rate: float, **errors: float) -> dict[str, float]:
    return {"val/score": score, "rate": rate, **{f"val/score/{key}": each for key, each in errors.items()}}


@pytest.fixture
def pareto(tmp_path: Path) -> Sweep:
    return load_sweep(
        tmp_path,
        "study",
        config={"epochs": 1},
        objective=[{"metric": "val/score"}, {"metric": "rate"}],
        budget={"trials": 9, "no_gain_for": 2},
    )


def test_headline_shows_the_standard_error(sweep: Sweep) -> None:
    study = open_study(sweep)
    run_metrics(study, scored(0.8123, 1, error=0.0314))
    assert study.headline() == "best val/score 0.8123 ± 0.031 (trial-0000)"
    assert study.describe(study.trials[0]) == "val/score 0.8123 ± 0.031"


def test_pareto_set_has_the_trials_that_none_dominates(pareto: Sweep) -> None:
    study = open_study(pareto)
    for score, rate in ((0.5, 5), (0.9, 1), (0.4, 4), (0.6, 3)):
        run_metrics(study, scored(score, rate))
    assert [trial.number for trial in study.pareto_set()] == [1, 3, 0]
    assert study.headline() == "best val/score 0.9 (trial-0001), 3 in the Pareto set"
    assert [trial.number for trial in open_study(pareto).pareto_set()] == [1, 3, 0]


@pytest.mark.parametrize("resumed", [False, True])
def test_search_ends_after_trials_outside_the_pareto_set(pareto: Sweep, resumed: bool) -> None:
    study = open_study(pareto)
    stagnated = []
    for score, rate in ((0.5, 5), (0.4, 4), (0.1, 9), (0.5, 5), (0.1, 1)):
        run_metrics(study, scored(score, rate))
        study = open_study(pareto) if resumed else study
        stagnated.append(study.has_stagnated())
    assert stagnated == [False, False, False, False, True]  # the third trial gains, an equal one does not


def constrained(folder: Path, **changes: Any) -> Sweep:
    return load_sweep(
        folder,
        "study",
        **{
            "config": {"epochs": 1},
            "search": {"x": {"uniform": [-3, 3]}, "y": {"uniform": [-3, 3]}},
            "constraints": [{"metric": "rate", "at_most": 5, "at_least": 1}],
            "sampler": {"tpe": {"seed": 3, "n_startup_trials": 2}},
            **changes,
        },
    )


def test_best_trial_satisfies_the_constraints(tmp_path: Path) -> None:
    study = open_study(constrained(tmp_path))
    for score, rate in ((0.9, 7), (0.5, 5), (0.8, 0.5)):
        run_metrics(study, scored(score, rate))
    best = study.best()
    assert best is not None and best.number == 1
    assert study.headline() == "best val/score 0.5 (trial-0001), 2 infeasible"
    assert study.describe(study.trials[0]) == "val/score 0.9; infeasible: rate is 7, not at most 5"
    assert open_study(constrained(tmp_path)).headline() == study.headline()


def test_constraints_reach_the_sampler(tmp_path: Path) -> None:
    study = open_study(constrained(tmp_path))
    run_metrics(study, scored(0.9, 7))
    assert study.trials[0].constraints == {"rate at most 5": 2.0, "rate at least 1": -6.0}
    assert study.study.best_trials == []  # as Optuna judges it


def test_pruned_trial_tells_the_sampler_its_constraints(tmp_path: Path) -> None:
    sweep = constrained(tmp_path, config={"epochs": 4}, scheduler={"asha": {"grace": 1, "reduction": 2}})
    study = open_study(sweep)
    run_metrics(study, *[scored(0.9, 2)] * 4)
    assert run_metrics(study, scored(0.1, 7)) == TrialState.PRUNED
    assert study.trials[1].constraints["rate at most 5"] == 2.0
    assert study.headline() == "best val/score 0.9 (trial-0000)"


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_resumed_study_with_constraints_suggests_the_same(tmp_path: Path, sampler: str) -> None:
    suggested = []
    for restarts in (False, True):
        sweep = constrained(
            tmp_path, sampler={sampler: {"seed": 3, "n_startup_trials": 2}}, budget={"trials": 6}
        )
        folder = tmp_path / str(restarts)
        study = open_study(sweep, folder)
        for number in range(6):
            run_metrics(study, scored(float(number), 3.0 + number))
            if restarts:
                study = open_study(sweep, folder)
        suggested.append([trial.params for trial in study.trials])
    assert suggested[0] == suggested[1]


def test_constraints_change_what_the_sampler_suggests(tmp_path: Path) -> None:
    suggested = []
    for bound in (1.5, 99):
        sweep = constrained(
            tmp_path, constraints=[{"metric": "rate", "at_most": bound}], budget={"trials": 5}
        )
        study = open_study(sweep, tmp_path / str(bound))
        for number in range(5):
            run_metrics(study, scored(float(number), float(number)))
        suggested.append([trial.params for trial in study.trials])
    assert suggested[0] != suggested[1]


def test_driver_that_died_after_a_constraint_judges_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError

    sweep = constrained(tmp_path)
    study = open_study(sweep)
    study.ask()
    report = EpochEnded(1, scored(0.9, 7), checkpoint="/x")
    study.record_epoch(0, report)
    study._trial(0).set_constraint("rate at most 5", 2.0)  # and not yet the other one
    monkeypatch.setattr(study.study, "tell", die)
    with pytest.raises(ZeroDivisionError):
        study.on_trial_end(0, Trained("/x"))
    again = open_study(sweep)
    loop = TuneLoop(again)
    point = loop.suggest()
    loop.report(point, report)
    loop.end(finish(loop, point, 1))
    assert again.trials[0].constraints == {"rate at most 5": 2.0, "rate at least 1": -6.0}


def test_metric_of_a_constraint_that_is_missing_fails_the_trial(tmp_path: Path) -> None:
    study = open_study(constrained(tmp_path))
    assert run_metrics(study, {"val/score": 0.5}) == TrialState.FAIL
    assert reason(study) == "rate is missing in epoch 1"


def test_search_without_a_feasible_trial_has_no_outcome(tmp_path: Path) -> None:
    study = open_study(constrained(tmp_path, budget={"trials": 2}))
    for rate in (7, 6):
        run_metrics(study, scored(0.5, rate))
    assert study.best() is None
    assert study.outcome_fault() == (
        "none of 2 complete trials satisfies the constraints; of the last one, rate is 6, not at most 5; "
        "raise budget.trials, or start over with other constraints"
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsgaii", "nsgaiii", "random", "qmc"])
def test_rehearsal_with_constraints_gives_the_sampler_their_values(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies: list[optuna.Study] = []
    create = optuna.create_study

    def remembered(**options: Any) -> optuna.Study:
        studies.append(create(**options))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", remembered)
    rehearse_sampler(constrained(tmp_path, sampler=sampler, budget={"trials": 13}))
    trials = studies[0].trials
    assert len(trials) == 12
    assert all(trial.constraints.keys() == {"rate at most 5", "rate at least 1"} for trial in trials)


def test_transferred_trials_have_their_constraints(tmp_path: Path) -> None:
    sweep = constrained(tmp_path)
    distributions = {path: sweep.search[path].distribution() for path in ("x", "y")}
    prior = TransferredTrial(
        {"x": 1.0, "y": 2.0},
        distributions,
        [9.0],
        "before",
        4,
        {"rate at most 5": 1.0, "rate at least 1": -5.0},
    )
    study = open_study(sweep)
    study.seed([prior])
    assert study.trials[0].constraints == prior.constraints


def test_ray_jobs_of_a_lost_record_are_in_the_study(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path)
    open_study(sweep).complete_ray_jobs(["session/01", "session/02"])
    after_loss = ["session/03"]
    open_study(sweep).complete_ray_jobs(after_loss)
    assert after_loss == ["session/01", "session/02", "session/03"]
    study = open_study(sweep)
    study.study.set_user_attr("ray_jobs", 3)  # damaged
    study.complete_ray_jobs(after_loss)
    assert study.study.user_attrs["ray_jobs"] == after_loss


def test_recorded_usage_is_that_of_all_drivers(sweep: Sweep) -> None:
    assert open_study(sweep).recorded_usage().seconds == 0
    open_study(sweep).record_usage(BudgetUsage(seconds=90))
    study = open_study(sweep)
    assert study.recorded_usage().seconds == 90
    study.study.set_user_attr("used", "damaged")
    assert study.recorded_usage().seconds == 0


def other_program(sweep: Sweep) -> optuna.Study:
    """The study of a sweep as another program opens it, such as optuna-dashboard."""
    return optuna.load_study(
        study_name=sweep.name, storage=f"sqlite:///{sweep.storage}/{sweep.name}/study.db"
    )


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE])
def test_trial_that_another_program_ends_is_stopped_and_the_search_goes_on(
    sweep: Sweep, state: TrialState, caplog: pytest.LogCaptureFixture
) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest()
    assert loop.report(point, epoch_ended(1, 0.5))
    other_program(sweep).tell(0, 9.0 if state == TrialState.COMPLETE else None, state=state)
    last = epoch_ended(2, 0.6)
    assert not loop.report(point, last)
    loop.end(last)
    assert f"another program has ended trial-0000 in the study, as {state.name}" in caplog.text
    assert study.trial(0).state == state and study.count()["running"] == 0
    if state != TrialState.COMPLETE:
        assert study.describe(study.trial(0)).startswith("another program ended it in the study")
    assert run_trial(study, [0.7, 0.7, 0.8, 0.8]) == TrialState.COMPLETE
    assert [trial.number for trial in study.trials] == [0, 1]
    for reopened in (study, open_study(sweep)):
        assert reopened.best() is not None and reopened.best().number == 1
        assert reopened.count()["complete"] == 1


def test_trial_that_another_program_completes_first_is_not_the_best_of_the_next_driver(sweep: Sweep) -> None:
    loop = TuneLoop(open_study(sweep))
    loop.report(loop.suggest(), epoch_ended(1, 0.5))
    other_program(sweep).tell(0, 9.0)
    study = open_study(sweep)
    assert study.best() is None and study.count()["complete"] == 0
    assert run_trial(study, [0.7, 0.7, 0.8, 0.8]) == TrialState.COMPLETE
    assert study.best() is not None and study.best().number == 1


def test_trial_that_another_program_ends_last_is_not_recorded_again(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest()
    for epoch in range(1, 5):
        loop.report(point, epoch_ended(epoch, 0.5))
    last = finish(loop, point, 4)
    other_program(sweep).tell(0, state=TrialState.FAIL)
    loop.end(last)
    assert study.trial(0).state == TrialState.FAIL and study.count()["failed"] == 1
    assert study.recent_failures == []  # it says nothing about the trainable


def test_trial_that_another_program_completes_at_its_end_does_not_count_after_a_restart(sweep: Sweep) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest()
    for epoch in range(1, 5):
        loop.report(point, epoch_ended(epoch, 0.5))
    finish(loop, point, 4)
    study.record_checkpoint(0, f"{sweep.name}/trials/a")  # the driver dies after it
    other_program(sweep).tell(0, 9.0)
    study = open_study(sweep)
    assert study.best() is None and study.count()["complete"] == 0


def test_trials_that_another_program_runs_are_left_alone(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run_trial(study, [0.1, 0.2, 0.3, 0.4]) == TrialState.COMPLETE
    assert other_program(sweep).ask().number == 1
    study = open_study(sweep)
    assert study.count()["running"] == 0 and study.remaining() == study.total - 1
    loop = TuneLoop(study)
    assert loop.suggest()["number"] == 2
    assert study.prune_running("no time is left") == [2]
    assert study.trial(1).state == TrialState.RUNNING


def test_running_trial_of_an_earlier_version_is_resumed(sweep: Sweep) -> None:
    loop = TuneLoop(open_study(sweep))
    loop.suggest()
    file = sqlite3.connect(f"{sweep.storage}/{sweep.name}/study.db")
    with file:
        assert file.execute("DELETE FROM trial_user_attributes WHERE key = 'started'").rowcount == 1
    file.close()
    for _ in range(2):
        study = open_study(sweep)
        assert study.count()["running"] == 1
    loop = TuneLoop(study)
    assert loop.suggest()["number"] == 0


def test_enqueued_point_that_another_program_ends_is_not_suggested(sweep: Sweep) -> None:
    study = open_study(sweep)
    study.study.enqueue_trial({"x": 1.0})
    study.study.enqueue_trial({"x": 2.0})
    assert [trial.number for trial in study.trials] == [0, 1]
    other = other_program(sweep)
    for trial in other.trials:
        other._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    first, second = study.ask(), study.ask()
    assert first is not None and second is not None
    assert (first.number, second.number) == (2, 3) and first.values != second.values


def test_ends_elsewhere_are_no_trials_without_gain(sweep: Sweep) -> None:
    patient = with_budget(sweep, no_gain_for=2)
    study = open_study(patient)
    assert run_trial(study, [0.1, 0.2, 0.3, 0.9]) == TrialState.COMPLETE
    loop = TuneLoop(study)
    for _ in range(2):
        point = loop.suggest()
        other_program(sweep).tell(point["number"], state=TrialState.FAIL)
        loop.end(Failed("RuntimeError: no"))
    for opened in (study, open_study(patient)):
        assert not opened.has_stagnated() and opened.count()["failed"] == 2


def test_trials_that_another_program_adds_are_not_those_of_the_sweep(sweep: Sweep) -> None:
    study = open_study(sweep)
    assert run_trial(study, [0.1, 0.2, 0.3, 0.4]) == TrialState.COMPLETE
    trial = optuna.trial.create_trial(value=9.0, params={}, distributions={})
    other_program(sweep).add_trial(trial)
    assert run_trial(study, [0.1, 0.2, 0.3, 0.5]) == TrialState.COMPLETE
    for opened in (study, open_study(sweep)):
        assert [trial.number for trial in opened.trials] == [0, 1, 2]
        assert [trial.number for trial in opened.started_trials] == [0, 2]
        assert opened.best() is not None and opened.best().number == 2
        assert opened.count()["complete"] == 2


@pytest.mark.parametrize("died", [False, True])
def test_trial_that_ends_after_another_program_has_ended_it_counts_once(sweep: Sweep, died: bool) -> None:
    study = open_study(sweep)
    loop = TuneLoop(study)
    point = loop.suggest("a")
    other = other_program(sweep)
    other.tell(0, state=TrialState.FAIL)
    other.enqueue_trial({"x": 1.0, "steps": 2})  # the next suggestion reads all trials anew
    assert loop.suggest("b")["number"] == 2
    loop.end(Failed("RuntimeError: no"), "a", died=died)
    if died:  # it starts again, and ends with its first report
        assert loop.suggest("a")["number"] == point["number"] == 0
        assert not loop.report(point, epoch_ended(1, 0.5))
        loop.end(epoch_ended(1, 0.5), "a", died=died)
    assert study.count()["failed"] == 1 and study.count()["running"] == 1
