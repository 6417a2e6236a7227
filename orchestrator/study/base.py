"""The Optuna study of a job: the one record of what was suggested and how it ended.

Ray Tune asks it for trials and when to stop one (`orchestrator.execution.tune_adapters`), and it writes to persistent storage
before Tune goes on, so that a new driver continues from the study alone.
"""

import copy
import logging
import math
import posixpath
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna
import ray.train
from optuna.trial import FrozenTrial, TrialState
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

from orchestrator.config.sweep import Job, Sweep
from orchestrator.errors import InputError
from orchestrator.execution.trial import FAILURE, HALT, LOG, NAMES, SCORES, name
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.warm_start import Fitted

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


_EPOCH = "epoch "
"""User attributes of a trial that begin so hold one report each: its time (ms) and the metrics."""

SOURCE = "source"
"""User attribute of a trial that was taken over from an earlier sweep: which one."""

POINT = "point"
"""User attribute of a trial with the name of the point, among those to try first, that it was."""

_BEGUN = "begun"

_JUDGED = "judged"
"""User attribute of a trial with the last epoch that its pruner judged."""

_STOPPED = "stopped"
"""User attribute of a trial that its pruner gave up: the reason, which outlives a driver that dies of it."""

_RUNG = "completed_rung_"
"""System attributes of a trial that begin so are those of Optuna's successive halving."""

_TAIL = 4000
"""Characters kept of the log of a trial that failed."""


def epochs(trial: FrozenTrial) -> dict[int, dict[str, float]]:
    """Every report of a trial by epoch: its metrics, and under ``time`` when it was made (ms)."""
    found = {
        int(key.removeprefix(_EPOCH)): value
        for key, value in trial.user_attrs.items()
        if key.startswith(_EPOCH)
    }
    return dict(sorted(found.items()))


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

    It lies in the directory of the job and holds all that was ever reported: MLflow is brought up to date
    from it. A trial that a dead driver left RUNNING goes on under its own number, from its last checkpoint.
    """

    scored: ClassVar[bool] = False
    """Whether every trial is scored on the targets as soon as it is trained."""

    wall: float | None = None
    """Seconds after which trials are stopped."""

    gpu_hours: float | None = None
    """Hours that workers may hold GPUs."""

    most_failures: int | None = None
    """Failed trials in a row after which there is no point in going on."""

    def __init__(self, job: Job, directory: JobDirectory, **options: Any) -> None:
        self._directory = directory
        self._storage = directory.study_storage()
        self.study = optuna.create_study(
            study_name=job.name, storage=self._storage, load_if_exists=True, **options
        )
        self._known: list[FrozenTrial] | None = None
        if not self.trials and directory.holds_checkpoints():
            raise InputError(
                f"study: no trial is in it, but {directory.locate('trials')} holds checkpoints, from which "
                "new trials would go on; put the study back, or start over with --fresh"
            )
        self._live: dict[int, optuna.Trial] = {}
        self._verdicts: dict[int, tuple[TrialState, str]] = {}
        self._interrupted = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]
        self._ended = sum(trial.state.is_finished() for trial in self.trials)
        self.failing: list[str] = []
        """Why the last trials in a row failed, since this driver began."""

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial of the study, by number."""
        if self._known is None:
            self._known = self.study.get_trials(deepcopy=False)
        return self._known

    @property
    def suggested(self) -> list[FrozenTrial]:
        """The trials of this job that were begun, by number."""
        return self.trials

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

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values that make a trial."""
        return dict(trial.params)

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

    def record(self, number: int, result: Mapping[str, Any]) -> None:
        """Keep all metrics of an epoch, before anybody else is told; one that is known stays as it is."""
        key = f"{_EPOCH}{int(result['epoch'])}"
        if key not in self.trials[number].user_attrs:
            metrics = {metric: float(result[metric]) for metric in result[NAMES] if metric != "epoch"}
            self._note(number, key, {"time": int(time.time() * 1000), **metrics})

    def trained(self, number: int, checkpoint: str) -> None:
        """Record the folder of a trial's last checkpoint."""
        self._note(number, "checkpoint", posixpath.relpath(checkpoint, self._directory.root))

    def score(self, number: int, scores: Mapping[str, float]) -> None:
        """Record the scores of a trial's last checkpoint."""
        self._note(number, SCORES, dict(scores))

    def end(self, number: int, result: Mapping[str, Any] | None, died: bool = False) -> None:
        """Tell how a trial ended: COMPLETE, PRUNED, or FAIL with its reason.

        Ray Tune does not call this for a trial that an interruption stops: it stays RUNNING, and the next
        driver continues it. So does one that could not go on for want of space.
        """
        if result and HALT in result:
            return
        if died:
            self._tell(number, TrialState.FAIL, "its process died again and again")
        elif result and FAILURE in result:
            self._note(number, LOG, str(result.get(LOG, ""))[-_TAIL:])
            self._tell(number, TrialState.FAIL, result[FAILURE])
        elif number in self._verdicts:
            self._tell(number, *self._verdicts.pop(number))
        elif missing := self.complete(number, result or {}):
            self._tell(number, TrialState.FAIL, missing)
        ended = self.trials[number]
        if ended.state == TrialState.FAIL:
            self.failing.append(str(ended.user_attrs.get("reason")))
        else:
            self.failing.clear()

    def checkpoint(self, number: int) -> ray.train.Checkpoint:
        """A trained trial's last checkpoint."""
        return self._directory.checkpoint(str(self.trials[number].user_attrs["checkpoint"]))

    def close(self, reason: str) -> list[int]:
        """Prune every trial that still runs, since the budget ended it; returns their numbers."""
        running = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]
        for number in running:
            self._tell(number, TrialState.PRUNED, reason)
        return running

    def _tell(self, number: int, state: TrialState, reason: str) -> None:
        self._note(number, "reason", reason)
        self._finish(number, state=state)

    def _finish(self, number: int, **how: Any) -> None:
        self._ended += 1
        self._note(number, "order", self._ended)  # clocks may be set back; this goes on
        self.study.tell(number, **how)
        self._live.pop(number, None)
        self._known = None

    def _note(self, number: int, key: str, value: Any) -> None:
        self._trial(number).set_user_attr(key, value)
        self._known = None

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._live:  # asked by an earlier driver
            self._live[number] = optuna.Trial(self.study, self.trials[number]._trial_id)
        return self._live[number]


class SweepStudy(Study):
    """The search of a sweep: asks, tells and prunes."""

    def __init__(self, sweep: Sweep, directory: JobDirectory) -> None:
        self.sweep = sweep
        self.wall, self.gpu_hours = sweep.budget.wall, sweep.budget.gpu_hours
        self.most_failures = sweep.budget.failures
        super().__init__(
            sweep,
            directory,
            directions=[objective.direction for objective in sweep.objective],
            pruner=sweep.scheduler.build(sweep.epochs),
        )

    @property
    def suggested(self) -> list[FrozenTrial]:
        """All but those that wait to be tried first, and those of earlier sweeps."""
        return [
            trial
            for trial in self.trials
            if trial.state != TrialState.WAITING and SOURCE not in trial.user_attrs
        ]

    @property
    def begun(self) -> bool:
        """Whether the points to try first and the trials of earlier sweeps are all in it."""
        return _BEGUN in self.study.user_attrs

    def begin(self, earlier: Iterable[Fitted]) -> None:
        """Add the points to try first and trials of earlier sweeps; those of a driver that died once."""
        known = [trial.user_attrs for trial in self.trials]
        points = {attributes.get(POINT) for attributes in known}
        for point, values in self.sweep.enqueue.items():
            if point not in points:
                self.study.enqueue_trial(values, user_attrs={POINT: point})
        sources = {(attributes.get(SOURCE), attributes.get("number")) for attributes in known}
        for each in earlier:
            if (each.source, each.number) not in sources:
                self.study.add_trial(
                    optuna.trial.create_trial(
                        params=each.params,
                        distributions=each.distributions,
                        values=each.values,
                        user_attrs={SOURCE: each.source, "number": each.number},
                    )
                )
        self.study.set_user_attr(_BEGUN, True)
        self._known = None

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
        for trial in self.suggested:
            counts[names[trial.state]] += 1
        return counts

    def left(self) -> int:
        """How many trials are still to end: running, interrupted and not suggested yet."""
        return self.count()["running"] + max(0, self.total - len(self.suggested))

    def ended(self) -> bool:
        """Whether the budget is spent, in trials or in trials without gain."""
        return self.left() == 0 or (self.gained_nothing() and self.count()["running"] == 0)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value of the first objective, or None when none is complete."""
        complete = [trial for trial in self.suggested if trial.state == TrialState.COMPLETE]
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
        since = int(best.user_attrs.get("order", 0))
        later = sum(int(trial.user_attrs.get("order", 0)) > since for trial in self.suggested)
        return later >= patience

    def ask(self) -> Suggestion | None:
        """The next trial, interrupted ones first, or None when the budget is spent."""
        while self._interrupted:
            number = self._interrupted.pop(0)
            self.study.sampler = self.sweep.sampler.build(offset=number)
            # A driver may die between two values of a suggestion: those that are there stay, and the sampler
            # gives the others as it would have.
            if (suggestion := self._suggest(self._trial(number))) is not None:
                return suggestion
        while len(self.suggested) < self.total and not self.gained_nothing():
            # A sampler of its own for each trial makes a suggestion a function of the study alone, so that a
            # continued sweep suggests what the undisturbed one would have.
            waiting = (trial.number for trial in self.trials if trial.state == TrialState.WAITING)
            self.study.sampler = self.sweep.sampler.build(offset=next(waiting, len(self.trials)))
            trial = self.study.ask()
            self._live[trial.number] = trial
            if (suggestion := self._suggest(trial)) is not None:
                return suggestion
        return None

    def _suggest(self, trial: optuna.Trial) -> Suggestion | None:
        """Give a trial its values; tells of one whose values are valid one by one, but not together."""
        values = self.sweep.space.suggest(trial)
        self._known = None
        try:
            config = self.sweep.trial_config(values)
        except InputError as error:
            self._tell(trial.number, TrialState.FAIL, str(error))
            return None
        return Suggestion(trial.number, values, config.model_dump(mode="json"))

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
            self._known = None
        if self._judged(number) < epoch < self._epochs(number):
            # What the pruner says has to outlive this driver.
            if self.study.pruner.prune(self.study, self._unjudged(number, epoch)):
                self._note(number, _STOPPED, f"stopped early, after epoch {epoch}")
            self._note(number, _JUDGED, epoch)
        reason = self.trials[number].user_attrs.get(_STOPPED)
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
        self._finish(number, values=[float(result[objective.metric]) for objective in self.sweep.objective])
        return None

    def _judged(self, number: int) -> int:
        """The last epoch that the pruner judged; where there is no pruner, all are."""
        if self.sweep.scheduler.name == "none":
            return self.sweep.epochs
        return int(self.trials[number].user_attrs.get(_JUDGED, 0))

    def _unjudged(self, number: int, epoch: int) -> FrozenTrial:
        """A trial as the pruner has to see it at an epoch.

        A driver may die after the pruner noted its rung and before anybody noted what it said: what it noted
        at this epoch is hidden, so that it judges again.
        """
        trial = copy.copy(self.trials[number])
        before = sum(rung < epoch for rung in self.sweep.scheduler.rungs(self.sweep.epochs))
        trial.system_attrs = {
            key: value
            for key, value in trial.system_attrs.items()
            if not key.startswith(_RUNG) or int(key.removeprefix(_RUNG)) < before
        }
        return trial

    def _value(self, value: float) -> str:
        return f"{self.sweep.objective[0].metric} {value:.4g}"

    def _epochs(self, number: int) -> int:
        config: Any = self.sweep.trial_config(self.trials[number].params)
        return int(config.epochs)
