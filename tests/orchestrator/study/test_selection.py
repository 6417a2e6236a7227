"""Which trials are the best."""

import random
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from orchestrator.study import attributes
from orchestrator.study.selection import best_trial, best_trials, top_trials, uncertainty_note


def trial(number: int, *values: float, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    ended = optuna.trial.create_trial(state=state, values=list(values) or None, user_attrs=attrs)
    ended.number = number
    return ended


def reported(number: int, score: float, error: float | None) -> FrozenTrial:
    """Return a complete trial with the standard error of its score in its last epoch."""
    ended = trial(number, score)
    errors = {} if error is None else {"val/score/error": error}
    ended.set_user_attr(attributes.epoch_key(1), {"time": 0, "val/score": 0.0, "val/score/error": 9.0})
    ended.set_user_attr(attributes.epoch_key(2), {"time": 1, "val/score": score, **errors})
    return ended


def best(mode: Literal["max", "min"], *trials: FrozenTrial) -> int | None:
    selected = best_trial(trials, mode)
    return None if selected is None else selected.number


@pytest.mark.parametrize(("mode", "number"), [("max", 1), ("min", 2)])
def test_best_trial_follows_the_mode(mode: Literal["max", "min"], number: int) -> None:
    assert best(mode, trial(0, 0.5), trial(1, 0.9), trial(2, -0.1)) == number


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_trial_of_equal_ones_is_the_earliest(mode: Literal["max", "min"]) -> None:
    assert best(mode, trial(0, 0.5), trial(1, 0.5), trial(2, 0.5)) == 0


@pytest.mark.parametrize(("mode", "number"), [("max", 1), ("min", 0)])
def test_best_trial_of_several_objectives_has_the_best_first(
    mode: Literal["max", "min"], number: int
) -> None:
    assert best(mode, trial(0, 0.1, 9.0), trial(1, 0.2, 1.0)) == number


@pytest.mark.parametrize(
    "state", [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
)
def test_best_trial_is_a_complete_one(state: TrialState) -> None:
    assert best("max", trial(0, state=state), trial(1, 0.1)) == 1


def test_best_trial_without_a_complete_one_is_none() -> None:
    assert best("max", trial(0, state=TrialState.PRUNED)) is None
    assert best("max") is None


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_trial_with_infinite_values_is_an_extreme(mode: Literal["max", "min"]) -> None:
    infinite = float("inf") if mode == "max" else float("-inf")
    assert best(mode, trial(0, 0.5), trial(1, infinite)) == 1


def numbers(top: int, *modes: Literal["max", "min"]) -> list[int]:
    trials = [trial(0, 0.3, 1.0), trial(1, 0.9, 9.0), trial(2, 0.5, 9.0), trial(3, 0.9, 9.0)]
    return [each.number for each in top_trials(trials, top, *modes)]


def test_top_trials_of_one_objective_are_the_best_in_order() -> None:
    assert numbers(3, "max") == [1, 3, 2]
    assert numbers(9, "max") == [1, 3, 2, 0]


def test_top_trials_of_several_objectives_are_of_the_pareto_set() -> None:
    assert numbers(3, "max", "min") == [1, 0]
    assert numbers(1, "max", "min") == [1]


def test_best_trials_are_the_pareto_set_of_optuna() -> None:
    rng = random.Random(0)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(60):
        study.add_trial(optuna.trial.create_trial(values=[rng.random(), rng.random()]))
    chosen = best_trials(study.trials, "max", "min")
    assert {each.number for each in chosen} == {each.number for each in study.best_trials}
    assert [each.values[0] for each in chosen] == sorted((each.values[0] for each in chosen), reverse=True)


def test_best_trials_of_equal_ones_has_the_earliest() -> None:
    trials = [trial(2, 0.5, 1.0), trial(1, 0.5, 1.0), trial(3, 0.4, 0.5)]
    assert [each.number for each in best_trials(trials, "max", "min")] == [1, 3]


def test_trial_that_violates_a_constraint_is_not_among_the_best() -> None:
    violating = trial(0, 0.9, **{attributes.VIOLATED: "cost is 9, not at most 5"})
    assert [each.number for each in best_trials([violating, trial(1, 0.1)], "max")] == [1]
    assert best_trials([violating], "max") == []


def test_uncertainty_note_states_error_and_lead() -> None:
    note = uncertainty_note([reported(0, 0.80, 0.02), reported(1, 0.81, 0.03)], "val/score", "max")
    assert note == (
        "val/score of trial-0001 has a standard error of 0.03, more than its lead of 0.01 over trial-0000: "
        "other validation data may give another best trial"
    )


@pytest.mark.parametrize(
    "trials",
    [
        [reported(0, 0.5, 0.02), reported(1, 0.81, 0.03)],
        [reported(0, 0.80, 0.02), reported(1, 0.81, None)],
        [reported(0, 0.80, 0.02)],
        [],
    ],
    ids=["smaller", "unknown", "alone", "none"],
)
def test_uncertainty_note_is_empty_without_doubt(trials: list[FrozenTrial]) -> None:
    assert uncertainty_note(trials, "val/score", "max") == ""
