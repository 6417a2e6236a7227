"""The study of a sweep: suggests trials with an Optuna sampler and stops them with an Optuna pruner."""

import copy
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.components import describe_raised
from orchestrator.config.sweep import Sweep
from orchestrator.console.tables import format_estimate, format_number
from orchestrator.errors import InputError, SweepError
from orchestrator.storage.directory import JobDirectory
from orchestrator.study import attributes
from orchestrator.study.base import Study, Suggestion
from orchestrator.study.selection import (
    Mode,
    best_trial,
    best_trials,
    infeasible_line,
    infeasible_trials,
    is_foreign,
    objective_errors,
    own_trials,
    standard_error,
    top_trials,
    was_ended_elsewhere,
)
from orchestrator.study.trial_report import EpochEnded, Trained, TrialReport, trial_name
from orchestrator.study.warm_start import TransferredTrial

_log = logging.getLogger(__name__)

_REHEARSED = 50
"""Most suggestions of a rehearsal."""

_RUNG = "completed_rung_"
"""Prefix of the system attributes in which Optuna's successive halving keeps its rungs."""

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class SearchStudy(Study):
    """The search of a sweep."""

    def __init__(self, sweep: Sweep, directory: JobDirectory) -> None:
        self.sweep = sweep
        self.wall, self.gpu_hours = sweep.budget.wall, sweep.budget.gpu_hours
        self.max_failures = sweep.budget.failures
        super().__init__(
            sweep,
            directory,
            directions=[objective.direction for objective in sweep.objective],
            pruner=sweep.scheduler.build(sweep.epochs),
        )
        # A sampler calls it when nothing is left to suggest. Optuna's own ends its `optimize` loop.
        self.study.stop = self._end_search  # type: ignore[method-assign]
        self._exhausted = attributes.EXHAUSTED in self.study.user_attrs
        if not any(attributes.STARTED in trial.user_attrs for trial in self.trials):
            for number in self._interrupted:  # earlier versions started them
                self._set(number, attributes.STARTED, True)
        # Kept up to date from here on: a look at all trials for each trial would be quadratic.
        self._counts = Counter(_STATES[trial.state] for trial in self.started_trials)
        self._pareto_set: list[FrozenTrial] = []
        self._without_gain = 0
        started = self.started_trials
        for trial in sorted(started, key=self._order):
            if trial.state.is_finished() and not was_ended_elsewhere(trial):
                self._note_end(trial)
        self._infeasible = len(infeasible_trials(started))
        self._epochs: dict[int, int] = {}
        """Epochs of the trials that run, by number."""

    @property
    def started_trials(self) -> list[FrozenTrial]:
        """All trials but enqueued ones that wait, and transferred ones."""
        own = [trial for trial in own_trials(self.trials) if trial.state != TrialState.WAITING]
        return [trial for trial in own if not is_foreign(trial)]

    @property
    def is_seeded(self) -> bool:
        """Whether the enqueued points and the trials of earlier sweeps are all in it."""
        return attributes.SEEDED in self.study.user_attrs

    def seed(self, transferred: Iterable[TransferredTrial]) -> None:
        """Add the enqueued points and the trials of earlier sweeps that are not in the study yet."""
        present = [trial.user_attrs for trial in self.trials]
        points = {attrs.get(attributes.POINT) for attrs in present}
        for point, values in self.sweep.enqueue.items():
            if point not in points:
                self.study.enqueue_trial(values, user_attrs={attributes.POINT: point})
        sources = {(attrs.get(attributes.SOURCE), attrs.get(attributes.SOURCE_NUMBER)) for attrs in present}
        for trial in transferred:
            if (trial.source, trial.number) not in sources:
                self.study.add_trial(_created(trial))
        self.study.set_user_attr(attributes.SEEDED, True)

    @property
    def total(self) -> int:
        """The number of trials in the budget."""
        return self.sweep.budget.trials

    def count(self) -> dict[str, int]:
        """Return the number of trials by state: running, complete, pruned, failed."""
        return {state: self._counts[state] for state in _STATES.values()}

    def remaining(self) -> int:
        """Return how many trials have not ended: running, interrupted and not yet suggested."""
        new = 0 if self._exhausted else max(0, self.total - self._counts.total())
        return self._counts["running"] + new

    def is_finished(self) -> bool:
        """Return whether the budget is spent, in trials or in trials without gain."""
        return self.remaining() == 0 or (self.has_stagnated() and self._counts["running"] == 0)

    @property
    def modes(self) -> list[Mode]:
        """Whether a higher or a lower value is better, for each objective."""
        return [objective.mode for objective in self.sweep.objective]

    def best(self) -> FrozenTrial | None:
        """Return the best trial; of a Pareto set that with the best value of the first objective.

        None when no complete trial satisfies the constraints.
        """
        return best_trial(self._pareto_set, *self.modes)

    def pareto_set(self) -> list[FrozenTrial]:
        """Return the best trials for several objectives, the best value of the first one first."""
        return list(self._pareto_set)

    def outcome_fault(self) -> str:
        """Return why there is no best trial: none is complete, or satisfies the constraints."""
        fault = super().outcome_fault()
        return fault if fault or self._pareto_set else infeasible_line(self.started_trials)

    def finalists(self, top: int) -> list[FrozenTrial]:
        """Return the best trials, the best one first; of several objectives, those of the Pareto set."""
        return top_trials(self.started_trials, top, *self.modes)

    def objective(self, trial: FrozenTrial) -> float | None:
        """Return the value of the first objective of a complete trial."""
        return float(trial.values[0]) if trial.state == TrialState.COMPLETE else None

    def best_objective(self) -> dict[str, float]:
        """Return the best value of the first objective."""
        best = self.best()
        return {} if best is None else {self.sweep.objective[0].metric: best.values[0]}

    def headline(self) -> str:
        """Return the best trial so far, the size of the Pareto set, and the number of infeasible trials."""
        parts = ["best none yet"]
        if (best := self.best()) is not None:
            first = self.sweep.objective[0].metric
            value = self._format(best.values[0], standard_error(best, first))
            parts = [f"best {value} ({trial_name(best.number)})"]
            if len(self.sweep.objective) > 1:
                parts.append(f"{len(self._pareto_set)} in the Pareto set")
        return ", ".join(parts + [f"{self._infeasible} infeasible"] * bool(self._infeasible))

    def describe(self, trial: FrozenTrial) -> str:
        """Return the objectives of a complete trial and what it violates, else why it ended."""
        if trial.state == TrialState.COMPLETE:
            metrics = [objective.metric for objective in self.sweep.objective]
            errors = objective_errors(trial, metrics)
            values = zip(metrics, trial.values, strict=True)
            texts = [f"{metric} {format_estimate(value, errors.get(metric))}" for metric, value in values]
            violated = trial.user_attrs.get(attributes.VIOLATED)
            return ", ".join(texts) + (f"; infeasible: {violated}" if violated else "")
        reason = attributes.reason(trial) or "it resumes when the command is rerun"
        if trial.last_step is not None:
            return f"{reason}, {self._format(trial.intermediate_values[trial.last_step])}"
        return str(reason)

    def has_stagnated(self) -> bool:
        """Return whether none of the last ``budget.no_gain_for`` ended trials was the best one.

        With several objectives, whether none of them entered the Pareto set.
        """
        patience = self.sweep.budget.no_gain_for
        return patience is not None and bool(self._pareto_set) and self._without_gain >= patience

    def ask(self) -> Suggestion | None:
        """Return the next trial, interrupted ones first, or None when the budget is spent."""
        while self._interrupted:
            number = self._interrupted.pop(0)
            self.study.sampler = self.sweep.sampler.build(offset=number)
            # A driver may have died between two values of a suggestion. The recorded values stay, and the
            # sampler suggests the others as it would have.
            suggestion = None
            with self.accepting_end(number), self.transaction():
                suggestion = self._suggest(self._trial(number))
            if suggestion is not None:
                return suggestion
        while self._counts.total() < self.total and not self.has_stagnated() and not self._exhausted:
            with self.transaction():
                suggestion = self._suggest(self._start())
            if suggestion is not None:
                return suggestion
        return None

    def _start(self) -> optuna.Trial:
        """Start the next trial, an enqueued one first."""
        # A new sampler for each trial makes a suggestion a function of the study alone, so a resumed
        # sweep suggests what an undisturbed one would have.
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        self.study.sampler = self.sweep.sampler.build(
            offset=waiting[0].number if waiting else len(self.trials)
        )
        trial = self.study.ask()
        self._set(trial.number, attributes.STARTED, True)
        self._live[trial.number] = trial
        self._counts["running"] += 1
        return trial

    def should_stop(self, number: int, report: EpochEnded) -> bool:
        """Report one epoch to the pruner; return whether the trial has to stop now."""
        epoch, trial = report.epoch, self._trial(number)
        for metric in self.sweep.required_metrics():
            value = report.metrics.get(metric)
            if value is None or not math.isfinite(value):
                fault = "missing" if value is None else "not finite"
                self._verdicts[number] = (TrialState.FAIL, f"{metric} is {fault} in epoch {epoch}")
                return True
        if len(self.sweep.objective) > 1:
            return False  # Optuna keeps no intermediate values for several objectives
        # The verdict is recorded before the trial is told, so that it survives this driver.
        with self.transaction():
            if epoch > (self.trial(number).last_step or 0):
                trial.report(float(report.metrics[self.sweep.objective[0].metric]), step=epoch)
            if self._last_judged(number) < epoch < self._last_epoch(number):
                if self.study.pruner.prune(self.study, self._before_verdict(number, epoch)):
                    self._set(number, attributes.PRUNED, f"stopped early, after epoch {epoch}")
                self._set(number, attributes.JUDGED, epoch)
        reason = self.trial(number).user_attrs.get(attributes.PRUNED)
        if reason is not None:
            self._verdicts[number] = (TrialState.PRUNED, reason)
        return reason is not None

    def record_completion(self, number: int, last: TrialReport | None) -> str | None:
        """Record the last values of the objectives, or return what the trial lacks."""
        epochs = attributes.epochs(self.trial(number))
        if not epochs:
            return "it ended without a report"
        if not isinstance(last, Trained):
            return "it did not train to its end"
        metrics = epochs[max(epochs)]
        values = [metrics[objective.metric] for objective in self.sweep.objective]
        self._tell(number, values=values)
        return None

    def _suggest(self, trial: optuna.Trial) -> Suggestion | None:
        """Suggest the values of a trial; one whose values are invalid together fails, and gives None."""
        try:
            values = self.sweep.space.suggest(trial)
        except (SweepError, StorageInternalError, UpdateFinishedTrialError, SQLAlchemyError, OSError):
            raise
        except Exception as error:  # whatever a sampler raises
            name, reason = self.sweep.sampler.name, describe_raised(error)
            raise SweepError(f"sampler: {name} failed to suggest trial {trial.number}: {reason}") from error
        try:
            config = self.sweep.trial_config(values)
        except InputError as error:
            self._finish(trial.number, TrialState.FAIL, str(error))
            return None
        return Suggestion(trial.number, values, config.model_dump(mode="json", by_alias=True))

    def _last_judged(self, number: int) -> int:
        """Return the last epoch that the pruner judged; without a pruner, the last one there is."""
        if self.sweep.scheduler.name == "none":
            return self.sweep.epochs
        return int(self.trial(number).user_attrs.get(attributes.JUDGED, 0))

    def _before_verdict(self, number: int, epoch: int) -> FrozenTrial:
        """Return a trial as the pruner has to see it at an epoch.

        A driver may die after the pruner recorded its rung and before the verdict was recorded. What the
        pruner recorded at this epoch is hidden, so that it judges again.
        """
        trial = copy.copy(self.trial(number))
        before = sum(rung < epoch for rung in self.sweep.scheduler.rungs(self.sweep.epochs))
        trial.system_attrs = {
            key: value
            for key, value in trial.system_attrs.items()
            if not key.startswith(_RUNG) or int(key.removeprefix(_RUNG)) < before
        }
        return trial

    def _format(self, value: float, error: float | None = None) -> str:
        return f"{self.sweep.objective[0].metric} {format_estimate(value, error)}"

    def _last_epoch(self, number: int) -> int:
        """Return the number of epochs of a trial."""
        if number not in self._epochs:
            config = self.sweep.trial_config(self.trial(number).params)
            # `epochs` was checked when the trainable was loaded.
            self._epochs[number] = int(config.epochs)  # type: ignore[attr-defined]
        return self._epochs[number]

    def _end_search(self) -> None:
        if self._exhausted:
            return
        self._exhausted = True
        if self.sweep.sampler.name == "brute_force":
            self.study.set_user_attr(attributes.EXHAUSTED, True)
            _log.info("every combination was suggested; the sweep ends with the trials that run")
        else:
            _log.info("%s ends the search; the trials that run go on", self.sweep.sampler.name)

    def _tell(self, number: int, **result: Any) -> None:
        if result.get("state") != TrialState.FAIL:
            self._judge(number)
        super()._tell(number, **result)

    def _note_ended(self, number: int) -> None:
        super()._note_ended(number)
        self._epochs.pop(number, None)
        trial = self.trial(number)
        self._counts["running"] -= 1
        if is_foreign(trial):
            return  # there is no model of it
        self._counts[_STATES[trial.state]] += 1
        if was_ended_elsewhere(trial):
            return
        self._infeasible += len(infeasible_trials([trial]))
        self._note_end(trial)

    def _note_end(self, trial: FrozenTrial) -> None:
        """Take an ended trial into the Pareto set, or count that it does not gain."""
        self._without_gain += 1
        # The best of all trials so far are the best of the earlier best ones and this one.
        self._pareto_set = best_trials([*self._pareto_set, trial], *self.modes)
        if any(member is trial for member in self._pareto_set):
            self._without_gain = 0

    def _judge(self, number: int) -> None:
        """Record how far the last epoch of a trial is outside of each bound, for the sampler and the choice.

        Optuna keeps it in the study, so that the next suggestion depends on the study alone.
        """
        trial = self.trial(number)
        metrics: Mapping[str, float] = next(reversed(attributes.epochs(trial).values()), {})
        violated = []
        for constraint in self.sweep.constraints:
            if (value := metrics.get(constraint.metric)) is None:
                continue
            for bound, outside in constraint.violations(value).items():
                if bound not in trial.constraints:  # a driver may have died after it
                    self._trial(number).set_constraint(bound, outside)
                if outside > 0:
                    limit = bound.removeprefix(f"{constraint.metric} ")
                    violated.append(f"{constraint.metric} is {format_number(value)}, not {limit}")
        if violated:
            self._set(number, attributes.VIOLATED, "; ".join(violated))

    @staticmethod
    def _order(trial: FrozenTrial) -> int:
        return int(trial.user_attrs.get(attributes.ORDER, 0)) if trial.state.is_finished() else 0


def _created(trial: TransferredTrial) -> FrozenTrial:
    """Return a transferred trial as Optuna adds it to a study."""
    created: FrozenTrial = optuna.trial.create_trial(
        params=trial.params,
        distributions=trial.distributions,
        values=trial.values,
        user_attrs={attributes.SOURCE: trial.source, attributes.SOURCE_NUMBER: trial.number},
    )
    for bound, outside in trial.constraints.items():
        created.set_constraint(bound, outside)
    return created


def rehearse_sampler(sweep: Sweep) -> None:
    """Let the sampler suggest some trials, beyond those that it draws at random at first.

    Raises:
        InputError: the sampler fails.
    """
    study = optuna.create_study(directions=[objective.direction for objective in sweep.objective])
    ended: list[int] = []
    study.stop = lambda: ended.append(1)  # type: ignore[method-assign]
    startup = sweep.sampler.arguments.get("n_startup_trials", 10)
    trials = min(_REHEARSED, sweep.budget.trials, startup + 2 if isinstance(startup, int) else _REHEARSED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(trials):
            try:
                study.sampler = sweep.sampler.build(offset=number)
                trial = study.ask()
                sweep.space.suggest(trial)
                report = {"time": number, **dict.fromkeys(sweep.required_metrics(), 0.0)}
                trial.set_user_attr(attributes.epoch_key(1), report)
                for constraint in sweep.constraints:
                    for bound in constraint.violations(0.0):
                        trial.set_constraint(bound, math.sin(number))
                study.tell(trial, [math.sin(number + i) for i in range(len(sweep.objective))])
            except Exception as error:  # whatever a sampler raises
                reason = describe_raised(error)
                raise InputError(
                    f"sampler: {sweep.sampler.name} fails at suggestion {number + 1}: {reason}"
                ) from error
            if ended:
                return
