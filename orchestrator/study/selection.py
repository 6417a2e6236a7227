"""Selection of the best trials, the same for drivers, reports and commands that read a study.

The best trials are the Pareto set: complete trials that satisfy the constraints, and that no other one
dominates. With one objective that is one trial.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from orchestrator.study import attributes
from orchestrator.study.trial_report import trial_name
from orchestrator.trainable import ERROR

Mode = Literal["max", "min"]

_MARKS = {attributes.ORDER, attributes.CHECKPOINT}
"""User attributes of which drivers write at least one to each complete trial."""

ATTRIBUTES = (attributes.SOURCE, attributes.VIOLATED, attributes.STARTED, *_MARKS)
"""The user attributes of trials that a selection needs."""


def own_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that drivers of the sweep ran.

    Trials that were transferred from earlier sweeps are not among them, nor running and complete ones that
    other programs added: where drivers have left marks on trials, those have none.
    """
    trials = list(trials)
    is_marked = any(_MARKS & trial.user_attrs.keys() for trial in trials)
    starts_are_marked = any(attributes.STARTED in trial.user_attrs for trial in trials)
    return [
        trial
        for trial in trials
        if attributes.SOURCE not in trial.user_attrs
        and not (is_marked and is_foreign(trial))
        and not (starts_are_marked and trial.state == TrialState.RUNNING and not _is_started(trial))
    ]


def is_foreign(trial: FrozenTrial) -> bool:
    """Return whether another program made or ended a complete trial: it lacks the marks of a driver."""
    if trial.state != TrialState.COMPLETE:
        return False
    return was_ended_elsewhere(trial) or not _MARKS & trial.user_attrs.keys()


def was_ended_elsewhere(trial: FrozenTrial) -> bool:
    """Return whether a driver started a trial of a sweep and another program ended it."""
    return trial.state.is_finished() and _is_started(trial) and attributes.ORDER not in trial.user_attrs


def _is_started(trial: FrozenTrial) -> bool:
    """Return whether a driver has marked a trial as started, as earlier versions did not."""
    return attributes.STARTED in trial.user_attrs


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial satisfies the constraints of its sweep, as far as it was judged."""
    return attributes.VIOLATED not in trial.user_attrs


def infeasible_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials that violate a constraint."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE and not is_feasible(trial)]


def best_trials(trials: Iterable[FrozenTrial], *modes: Mode) -> list[FrozenTrial]:
    """Return the Pareto set, the best value of the first objective first; of equal trials the earliest.

    Args:
        trials: of a sweep; only complete ones that satisfy the constraints can be in the set.
        modes: for each objective, ``max`` if a higher value is better, else ``min``. Objectives without a
            mode do not count.
    """
    signs = [1 if mode == "max" else -1 for mode in modes]
    front: list[tuple[list[float], FrozenTrial]] = []
    eligible = (trial for trial in trials if trial.state == TrialState.COMPLETE and is_feasible(trial))
    for trial in sorted(eligible, key=lambda trial: trial.number):
        gains = [sign * value for sign, value in zip(signs, trial.values, strict=False)]
        if not any(_reaches(others, gains) for others, _ in front):
            front = [member for member in front if not _reaches(gains, member[0])] + [(gains, trial)]
    return [trial for _, trial in sorted(front, key=lambda member: -member[0][0])]


def top_trials(trials: Sequence[FrozenTrial], top: int, *modes: Mode) -> list[FrozenTrial]:
    """Return the ``top`` best trials; of several objectives, at most as many of the Pareto set."""
    if len(modes) > 1:
        return best_trials(trials, *modes)[:top]
    rest, best = list(trials), list[FrozenTrial]()
    while len(best) < top and (trial := best_trial(rest, *modes)) is not None:
        best.append(trial)
        rest.remove(trial)
    return best


def best_trial(trials: Iterable[FrozenTrial], *modes: Mode) -> FrozenTrial | None:
    """Return the one of the `best_trials` with the best value of the first objective, or None."""
    return next(iter(best_trials(trials, *modes)), None)


def standard_error(trial: FrozenTrial, metric: str) -> float | None:
    """Return the standard error of a metric in the last epoch of a trial, where it was reported."""
    last: Mapping[str, float] = next(reversed(attributes.epochs(trial).values()), {})
    return last.get(metric + ERROR)


def objective_errors(trial: FrozenTrial, metrics: Iterable[str]) -> dict[str, float]:
    """Return the standard errors of those metrics that have one, by metric."""
    errors = {metric: standard_error(trial, metric) for metric in metrics}
    return {metric: error for metric, error in errors.items() if error is not None}


def uncertainty_note(trials: Sequence[FrozenTrial], metric: str, mode: Mode) -> str:
    """Return a warning if the standard error of the best trial exceeds its lead, else an empty text.

    It is for one objective, and for trials that are complete records of the study.
    """
    best = best_trial(trials, mode)
    if best is None or (error := standard_error(best, metric)) is None:
        return ""
    runner_up = best_trial((trial for trial in trials if trial is not best), mode)
    if runner_up is None or error <= (lead := abs(best.values[0] - runner_up.values[0])):
        return ""
    return (
        f"{metric} of {trial_name(best.number)} has a standard error of {error:.2g}, more than its lead of "
        f"{lead:.2g} over {trial_name(runner_up.number)}: other validation data may give another best trial"
    )


def describe_trial(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, Any]:
    """Return number, objectives with their standard errors, and parameters of a trial, as plain values."""
    return {
        "trial": trial_name(trial.number),
        **dict(zip(objectives, trial.values, strict=True)),
        "errors": objective_errors(trial, objectives),
        "parameters": dict(trial.params),
    }


def infeasible_line(trials: Sequence[FrozenTrial]) -> str:
    """Return why no complete trial of several can be the best."""
    reasons = [str(trial.user_attrs[attributes.VIOLATED]) for trial in infeasible_trials(trials)]
    return (
        f"none of {len(reasons)} complete trials satisfies the constraints; of the last one, {reasons[-1]}; "
        "raise budget.trials, or start over with other constraints"
    )


def _reaches(gains: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether no gain is below the other: of different gains, the first dominate."""
    return all(gain >= other for gain, other in zip(gains, others, strict=True))
