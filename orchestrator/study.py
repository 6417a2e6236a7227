"""The Optuna study of a job: the one record of what was suggested and how it ended.

Ray Tune asks it for trials (`StudySearcher`), asks it when to stop one (`StudyScheduler`), and both write
to persistent storage before Tune goes on, so that a new driver continues from the study alone.
"""

import dataclasses
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.config import Job, Sweep
from orchestrator.errors import InputError
from orchestrator.trial import FAILURE, SCORES, TRAINED, is_epoch, name

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One trial to run: its number in the study, the values that make it, and its whole config."""

    number: int
    values: dict[str, Any]
    config: dict[str, Any]
    checkpoint: str | None = None
    """Of a trial that was trained already and only has to be scored."""


class Study(ABC):
    """What Ray Tune and those who watch ask of a study: which trials are left, and how each one went.

    Kept under ``directory/study.db``. A trial that a dead driver left RUNNING goes on under its own number,
    from its last checkpoint.
    """

    scored: ClassVar[bool] = False
    """Whether every trial is scored on the targets as soon as it is trained."""

    wall: float | None = None
    """Seconds after which trials are stopped."""

    def __init__(self, job: Job, directory: Path, **options: Any) -> None:
        self._directory = directory
        self.study = optuna.create_study(
            study_name=job.name,
            storage=f"sqlite:///{directory / 'study.db'}",
            load_if_exists=True,
            **options,
        )
        self._live: dict[int, optuna.Trial] = {}
        self._verdicts: dict[int, tuple[TrialState, str]] = {}
        self._interrupted = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial ever suggested, by number."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    @property
    @abstractmethod
    def total(self) -> int:
        """How many trials there are going to be."""

    @abstractmethod
    def count(self) -> dict[str, int]:
        """Trials by state: running, complete, failed, ..."""

    @abstractmethod
    def left(self) -> int:
        """How many trials are still to end: running, interrupted and not suggested yet."""

    def ended(self) -> bool:
        """Whether there is nothing more to run."""
        return self.left() == 0

    @abstractmethod
    def ask(self) -> Suggestion | None:
        """The next trial, interrupted ones first, or None when there is none."""

    @abstractmethod
    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Record one epoch of a trial; returns whether the trial has to stop now."""

    @abstractmethod
    def complete(self, number: int, result: Mapping[str, Any]) -> str | None:
        """Tell that a trial did all that it had to do, or say what is missing."""

    @abstractmethod
    def standing(self) -> str:
        """How the study stands, in a few words."""

    @abstractmethod
    def describe(self, ended: FrozenTrial) -> str:
        """How a trial ended, in one line."""

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded as the parameters of a trial with these ``values``."""
        return dict(values)

    def objective(self, ended: FrozenTrial) -> float | None:
        """The one value that trials are ranked by, where they are."""
        return None

    def best_objective(self) -> dict[str, float]:
        """The best value so far, by its metric."""
        return {}

    def scores(self, ended: FrozenTrial) -> dict[str, float]:
        """Scores of a trial on the targets, where it was scored."""
        return dict(ended.user_attrs.get(SCORES, {}))

    def trained(self, number: int, checkpoint: str) -> None:
        """Record the folder of a trial's last checkpoint."""
        self._trial(number).set_user_attr("checkpoint", os.path.relpath(checkpoint, self._directory))

    def score(self, number: int, scores: Mapping[str, float]) -> None:
        """Record the scores of a trial's last checkpoint."""
        self._trial(number).set_user_attr(SCORES, dict(scores))

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
        elif missing := self.complete(number, result or {}):
            self._tell(number, TrialState.FAIL, missing)

    def checkpoint(self, number: int) -> Path:
        """The folder of a trained trial's last checkpoint."""
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

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._live:  # asked by an earlier driver
            self._live[number] = optuna.Trial(self.study, self.trials[number]._trial_id)
        return self._live[number]


class SweepStudy(Study):
    """The search of a sweep: asks, tells and prunes."""

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        self.sweep = sweep
        self.wall = sweep.budget.wall
        super().__init__(
            sweep,
            directory,
            directions=[objective.direction for objective in sweep.objective],
            pruner=sweep.scheduler.build(sweep.epochs),
        )

    @property
    def total(self) -> int:
        """As many as the budget has."""
        return self.sweep.budget.trials

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
        return self.count()["running"] + max(0, self.total - len(self.trials))

    def ended(self) -> bool:
        """Whether the budget is spent, in trials or in trials without gain."""
        return self.left() == 0 or (self.gained_nothing() and self.count()["running"] == 0)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value of the first objective, or None when none is complete."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1 if self.sweep.objective[0].mode == "max" else -1
        return max(complete, key=lambda trial: sign * trial.values[0], default=None)

    def objective(self, ended: FrozenTrial) -> float | None:
        """The value of the first objective of a complete trial."""
        return float(ended.values[0]) if ended.state == TrialState.COMPLETE else None

    def best_objective(self) -> dict[str, float]:
        """The best value of the first objective."""
        best = self.best()
        return {} if best is None else {self.sweep.objective[0].metric: best.values[0]}

    def standing(self) -> str:
        """The best trial so far."""
        best = self.best()
        return (
            "best none yet" if best is None else f"best {self._value(best.values[0])} ({name(best.number)})"
        )

    def describe(self, ended: FrozenTrial) -> str:
        """Its objectives, or why it has none."""
        if ended.state == TrialState.COMPLETE:
            values = zip(self.sweep.objective, ended.values, strict=True)
            return ", ".join(f"{objective.metric} {value:.4g}" for objective, value in values)
        reason = ended.user_attrs.get("reason", "it will go on when the sweep is continued")
        if ended.last_step is not None:
            return f"{reason}, {self._value(ended.intermediate_values[ended.last_step])}"
        return str(reason)

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
            values = dict(self.trials[number].params)
            return Suggestion(number, values, self.sweep.trial_config(values).model_dump(mode="json"))
        while len(self.trials) < self.sweep.budget.trials and not self.gained_nothing():
            # A sampler of its own for each trial makes a suggestion a function of the study alone, so that a
            # continued sweep suggests what the undisturbed one would have.
            self.study.sampler = self.sweep.sampler.build(offset=len(self.trials))
            trial = self.study.ask()
            self._live[trial.number] = trial
            values = self.sweep.space.suggest(trial)
            try:
                config = self.sweep.trial_config(values)
            except InputError as error:  # values that are valid one by one, but not together
                self._tell(trial.number, TrialState.FAIL, str(error))
            else:
                return Suggestion(trial.number, values, config.model_dump(mode="json"))
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

    def complete(self, number: int, result: Mapping[str, Any]) -> str | None:
        """Tell the last values of the objectives."""
        if "epoch" not in result:
            return "it ended without a report"
        if CHECKPOINT_PATH_KEY not in result:
            return "it ended without a checkpoint"
        self.trained(number, result[CHECKPOINT_PATH_KEY])
        self.study.tell(number, [float(result[objective.metric]) for objective in self.sweep.objective])
        return None

    def _value(self, value: float) -> str:
        return f"{self.sweep.objective[0].metric} {value:.4g}"

    def _epochs(self, number: int) -> int:
        config: Any = self.sweep.trial_config(self.trials[number].params)
        return int(config.epochs)


class NotSnapshotted:
    """Tune pickles its parts into snapshots that a job never reads: it continues from the study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(NotSnapshotted, Searcher):
    """Hands the study's suggestions to Ray Tune and tells the study how each trial ended."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next point, as the config of a Tune trial, or that there is none."""
        suggestion = self._study.ask()
        if suggestion is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = suggestion.number
        return dataclasses.asdict(suggestion)

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

    def __init__(self, study: Study) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record one report and decide whether the trial goes on."""
        number = trial.config["number"]
        if TRAINED in result:
            self._study.trained(number, result[TRAINED])
        if SCORES in result:
            self._study.score(number, json.loads(result[SCORES]))
        if is_epoch(result) and self._study.report(number, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)
