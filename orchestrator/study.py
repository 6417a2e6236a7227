"""The Optuna study of a sweep: the one record of what was suggested and how it ended.

Ray Tune asks it for trials (`StudySearcher`), asks it when to stop one (`StudyScheduler`), and both write
to persistent storage before Tune goes on, so that a new driver continues from the study alone.
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.config import Sweep
from orchestrator.errors import InputError
from orchestrator.trial import FAILURE

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One point of the search space to train: the study's trial number and the value of each path."""

    number: int
    values: dict[str, Any]


class SweepStudy:
    """Asks, tells and prunes in one Optuna study under ``directory/study.db``."""

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        self.sweep = sweep
        self._directory = directory
        self.study = optuna.create_study(
            study_name=sweep.name,
            storage=f"sqlite:///{directory / 'study.db'}",
            directions=[objective.direction for objective in sweep.objective],
            pruner=sweep.scheduler.build(sweep.epochs),
            load_if_exists=True,
        )
        self._live: dict[int, optuna.Trial] = {}
        self._verdicts: dict[int, tuple[TrialState, str]] = {}
        # A trial that a dead driver left RUNNING goes on under its own number, from its last checkpoint.
        self._interrupted = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial ever suggested, by number."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def count(self) -> dict[str, int]:
        """Trials by state: running, complete, pruned, failed."""
        names = {
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }
        counts = dict.fromkeys(names.values(), 0)
        for trial in self.trials:
            if trial.state in names:
                counts[names[trial.state]] += 1
        return counts

    def left(self) -> int:
        """How many trials are still to end: running, interrupted and not suggested yet."""
        return self.count()["running"] + max(0, self.sweep.budget.trials - len(self.trials))

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value of the first objective, or None when none is complete."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self.sweep.objective[0].mode == "max" else -1
        return max(complete, key=lambda trial: sign * trial.values[0], default=None)

    def gained_nothing(self) -> bool:
        """Whether the last ``budget.no_gain_for`` finished trials brought no better first objective."""
        patience, best = self.sweep.budget.no_gain_for, self.best()
        if patience is None or best is None:
            return False
        ended = [trial for trial in self.trials if trial.datetime_complete is not None]
        later = [t for t in ended if t.datetime_complete > best.datetime_complete]  # type: ignore[operator]
        return len(later) >= patience

    def ask(self) -> Suggestion | None:
        """The next trial, interrupted ones first, or None when the budget is spent."""
        if self._interrupted:
            number = self._interrupted.pop(0)
            return Suggestion(number, dict(self.trials[number].params))
        while len(self.trials) < self.sweep.budget.trials and not self.gained_nothing():
            # A sampler of its own for each trial makes a suggestion a function of the study alone, so that a
            # continued sweep suggests what the undisturbed one would have.
            self.study.sampler = self.sweep.sampler.build(offset=len(self.trials))
            trial = self.study.ask()
            self._live[trial.number] = trial
            values = self.sweep.space.suggest(trial)
            try:
                self.sweep.trial_config(values)
            except InputError as error:  # values that are valid one by one, but not together
                self._tell(trial.number, TrialState.FAIL, str(error))
            else:
                return Suggestion(trial.number, values)
        return None

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Record one epoch of a trial; returns whether the trial has to stop now."""
        epoch = int(result["epoch"])
        trial = self._trial(number)
        values = []
        for objective in self.sweep.objective:
            value = result.get(objective.metric)
            if value is None or not math.isfinite(value):
                fault = "missing" if value is None else "not finite"
                self._verdicts[number] = (TrialState.FAIL, f"{objective.metric} is {fault} in epoch {epoch}")
                return True
            values.append(float(value))
        if len(values) > 1:
            return False  # Optuna keeps no intermediate values for several objectives.
        if epoch > (self.trials[number].last_step or 0):
            trial.report(values[0], step=epoch)
            if epoch < self._epochs(number) and trial.should_prune():
                # A pruner judges an epoch once: what it said has to outlive this driver.
                trial.set_user_attr("reason", f"stopped early, after epoch {epoch}")
        reason = self.trials[number].user_attrs.get("reason")
        if reason is not None:
            self._verdicts[number] = (TrialState.PRUNED, reason)
        return reason is not None

    def end(self, number: int, result: Mapping[str, Any] | None, died: bool = False) -> None:
        """Tell how a trial ended: COMPLETE, PRUNED, or FAIL with its reason.

        Ray Tune does not call this for a trial that an interruption stops: it stays RUNNING, and the next
        driver continues it.
        """
        if died:
            self._tell(number, TrialState.FAIL, "its process died")
        elif result and FAILURE in result:
            self._tell(number, TrialState.FAIL, result[FAILURE])
        elif number in self._verdicts:
            self._tell(number, *self._verdicts.pop(number))
        elif not result or "epoch" not in result:
            self._tell(number, TrialState.FAIL, "it ended without a report")
        elif CHECKPOINT_PATH_KEY not in result:
            self._tell(number, TrialState.FAIL, "it ended without a checkpoint")
        else:
            checkpoint = os.path.relpath(result[CHECKPOINT_PATH_KEY], self._directory)
            self._trial(number).set_user_attr("checkpoint", checkpoint)
            self.study.tell(number, [float(result[objective.metric]) for objective in self.sweep.objective])

    def checkpoint(self, number: int) -> Path:
        """The folder of a complete trial's last checkpoint."""
        return self._directory / str(self.trials[number].user_attrs["checkpoint"])

    def close(self, reason: str) -> list[int]:
        """Prune every trial that still runs, since the budget ended it; returns their numbers."""
        running = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]
        for number in running:
            self._tell(number, TrialState.PRUNED, reason)
        return running

    def _tell(self, number: int, state: TrialState, reason: str) -> None:
        self._trial(number).set_user_attr("reason", reason)
        self.study.tell(number, state=state)
        del self._live[number]

    def _epochs(self, number: int) -> int:
        config: Any = self.sweep.trial_config(self.trials[number].params)
        return int(config.epochs)

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._live:  # asked by an earlier driver
            self._live[number] = optuna.Trial(self.study, self.trials[number]._trial_id)
        return self._live[number]


class NotSnapshotted:
    """Tune pickles its parts into snapshots that a sweep never reads: it continues from the study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(NotSnapshotted, Searcher):
    """Hands the study's suggestions to Ray Tune and tells the study how each trial ended."""

    def __init__(self, study: SweepStudy) -> None:
        super().__init__()
        self._study = study
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next point, as the config of a Tune trial, or that there is none."""
        suggestion = self._study.ask()
        if suggestion is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = suggestion.number
        config = self._study.sweep.trial_config(suggestion.values).model_dump(mode="json")
        return {"number": suggestion.number, "values": suggestion.values, "config": config}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended."""
        self._study.end(self._numbers.pop(trial_id), result, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is persistent."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is persistent."""


class StudyScheduler(NotSnapshotted, FIFOScheduler):
    """Starts trials in the order of the study and stops those that its pruner gives up."""

    def __init__(self, study: SweepStudy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record one report and decide whether the trial goes on."""
        if FAILURE in result or not self._study.report(trial.config["number"], result):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)
