"""Selection of the best trial, the same for drivers, reports and commands that read a study."""

from collections.abc import Iterable
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from orchestrator.study import attributes


def own_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials without those that were transferred from earlier sweeps."""
    return [trial for trial in trials if attributes.SOURCE not in trial.user_attrs]


def best_trials(trials: Iterable[FrozenTrial], mode: Literal["max", "min"], top: int) -> list[FrozenTrial]:
    """Return the ``top`` complete trials with the best values of the first objective, the best one first.

    ``mode`` is ``max`` if a higher value of it is better, else ``min``. Of equal trials the earlier is first.
    """
    sign = -1 if mode == "max" else 1
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))[:top]


def best_trial(trials: Iterable[FrozenTrial], mode: Literal["max", "min"]) -> FrozenTrial | None:
    """Return the complete trial with the best value of the first objective, the earliest of equal ones.

    ``mode`` is ``max`` if a higher value of it is better, else ``min``. Returns None when no trial
    is complete.
    """
    sign = 1 if mode == "max" else -1
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: sign * trial.values[0], default=None)
