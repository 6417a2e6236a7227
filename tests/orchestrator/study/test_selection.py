"""Which trial is the best."""

from typing import Literal

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from orchestrator.study.selection import best_trial, top_trials


def trial(number: int, *values: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    ended = optuna.trial.create_trial(state=state, values=list(values) or None)
    ended.number = number
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
