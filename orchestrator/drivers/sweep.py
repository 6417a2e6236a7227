"""The driver of a sweep: search, then score, register and report the best trial."""

import logging
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import ray.train
from mlflow.entities.model_registry import ModelVersion
from optuna.trial import FrozenTrial
from pydantic import BaseModel
from rich.console import RenderableType

from orchestrator.config.sections import Budget
from orchestrator.config.sweep import Sweep
from orchestrator.console.progress import Progress
from orchestrator.console.tables import format_number, pairs
from orchestrator.drivers.base import Driver, Outcome, run_ids
from orchestrator.drivers.plan import sweep_plan
from orchestrator.errors import InputError, SweepError
from orchestrator.execution.cluster import Cluster
from orchestrator.execution.failures import explain
from orchestrator.execution.tasks import evaluate, score_version, trainable_task
from orchestrator.interrupt import Interrupt
from orchestrator.report.sweep import write_report
from orchestrator.study import warm_start
from orchestrator.study.base import Study
from orchestrator.study.search import SearchStudy, rehearse_sampler
from orchestrator.study.trial_report import trial_name
from orchestrator.study.warm_start import TransferredTrial
from orchestrator.tracking import preflight
from orchestrator.tracking.evidence import gather
from orchestrator.tracking.gate import Rule, TargetResults, check_rule, make_rule
from orchestrator.tracking.model_registry import RegisteredModel, check_registry, register
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import Comparable, DataSetRecord

_log = logging.getLogger(__name__)


class BestTrial(BaseModel):
    """The trial whose model was scored and registered."""

    trial: int
    parameters: dict[str, Any]


class SweepOutcome(Outcome):
    """The outcome of a sweep."""

    sweep: str
    budget: dict[str, Any]
    trials: dict[str, int]
    best: BestTrial
    objective: dict[str, float]
    scores: dict[str, float]
    model: RegisteredModel | None


class SweepDriver(Driver[SweepOutcome]):
    """Searches, then scores, registers and reports the best trial."""

    outcome_type = SweepOutcome

    def __init__(self, sweep: Sweep, progress: Progress, interrupt: Interrupt) -> None:
        super().__init__(sweep, progress, interrupt)
        self._sweep = sweep
        self._transferred: list[TransferredTrial] | None = None

    def is_final(self, outcome: SweepOutcome) -> bool:
        """Return whether it was made with the budget of the file."""
        defaults = {name: field.default for name, field in Budget.model_fields.items()}
        return {**defaults, **outcome.budget} == self._sweep.budget.model_dump()

    def plan(self, joined: Cluster) -> RenderableType:
        """Return search space, budget and resources."""
        return sweep_plan(self._sweep, joined)

    def columns(self) -> dict[str, Any]:
        """Return the budget."""
        return {"trials": self._sweep.budget.trials}

    def check(self, new: bool) -> None:
        """Check the data, and for a new sweep the sampler and the earlier sweeps to learn from."""
        super().check(new)
        self._check_gate()
        if new:
            with self._progress.activity(f"trying the sampler {self._sweep.sampler.name}"):
                rehearse_sampler(self._sweep)
            self._transferred = self._transfer()

    def check_tracking(self, tracker: Tracker) -> None:
        """Check that files can be kept, and a version be registered."""
        super().check_tracking(tracker)
        if self._sweep.registry is not None:
            registry = self._sweep.registry
            check_registry(tracker, registry.model, registry.alias, self._sweep.trainable)

    def open_study(self) -> SearchStudy:
        """Open the study of the search, and seed a new one."""
        study = self.checked(lambda: SearchStudy(self._sweep, self._directory))
        if not study.is_seeded:
            study.seed(self._transfer() if self._transferred is None else self._transferred)
        return study

    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> SweepOutcome:
        """Score the best trial on the targets, register its model, and write the report."""
        assert isinstance(study, SearchStudy)
        sweep, best = self._sweep, study.best()
        assert best is not None, "at least one trial is complete"
        scores = self._score(study, best)
        outcome = SweepOutcome(
            sweep=sweep.name,
            budget=sweep.budget.model_dump(),
            trials=study.count(),
            best=BestTrial(trial=best.number, parameters=best.params),
            objective={o.metric: value for o, value in zip(sweep.objective, best.values, strict=True)},
            scores=scores,
            tracking=sweep.tracking.uri,
            report=self._directory.locate("report.html"),
            model=self._register(study, best, scores, tracker),
        )
        self._write_report(outcome, study, data_sets, tracker)
        return outcome

    def metrics(self, outcome: SweepOutcome) -> dict[str, float]:
        """Return scores and objectives of the best trial."""
        return {**outcome.scores, **outcome.objective}

    def note(self, outcome: SweepOutcome) -> str:
        """Return best parameters and scores."""
        lines = [f"Best: {trial_name(outcome.best.trial)}", "", "| parameter | value |", "|---|---|"]
        lines += [f"| {path} | {format_number(value)} |" for path, value in outcome.best.parameters.items()]
        lines += ["", "| score | value |", "|---|---|"]
        lines += [f"| {metric} | {format_number(value)} |" for metric, value in outcome.scores.items()]
        return "\n".join(lines)

    def summarise(self, outcome: SweepOutcome) -> None:
        """Show counts, best trial, model, parameters, scores and commands."""
        counts = outcome.trials
        rows = {
            "trials": f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed",
            "best trial": trial_name(outcome.best.trial),
        }
        rows |= {metric: format_number(value) for metric, value in outcome.objective.items()}
        if outcome.model:
            rows["model"] = str(outcome.model)
        self._progress.show(pairs(f"Sweep {outcome.sweep}", rows))
        for title, values in (("Best parameters", outcome.best.parameters), ("Scores", outcome.scores)):
            self._progress.show(pairs(title, {key: format_number(value) for key, value in values.items()}))
        for label, text in _commands(outcome).items():
            self._progress.print(f"{label}: {text}")

    def _transfer(self) -> list[TransferredTrial]:
        """Return the trials of earlier sweeps that fit into the search space, and log how many do."""
        sweep = self._sweep
        transferred: list[TransferredTrial] = []
        for source in sweep.warm_start:
            with self._progress.activity(f"reading {source}"):
                if source.startswith(warm_start.MLFLOW):
                    experiment = source.removeprefix(warm_start.MLFLOW)
                    prior = warm_start.from_mlflow(sweep.tracking.uri, experiment)
                else:
                    prior = warm_start.from_study(*self._directory.open_neighbour(source))
            trials, left_out = warm_start.transfer(sweep, prior, transferred)
            for line in warm_start.describe(trials, left_out, source):
                _log.info("%s", line)
            transferred += trials
        return transferred

    def _score(self, study: SearchStudy, best: FrozenTrial) -> dict[str, float]:
        """Return the scores of a trial on the targets; raises SweepError."""
        sweep, name = self._sweep, trial_name(best.number)
        config = sweep.trial_config(best.params).model_dump(mode="json")
        with self._progress.activity(f"scoring {name} on the targets"):
            task = trainable_task(evaluate, sweep.resources.cpus, sweep.resources.gpus, f"score {name}")
            try:
                scores: dict[str, float] = ray.get(
                    task.remote(sweep.trainable, config, study.checkpoint(best.number))
                )
            except ray.exceptions.RayError as error:
                raise SweepError(f"{name} could not be scored: {explain(error)}") from error
        return scores

    def _register(
        self,
        study: SearchStudy,
        best: FrozenTrial,
        scores: dict[str, float],
        tracker: Tracker,
    ) -> RegisteredModel | None:
        """Register the model of a trial, if the file has a registry; raises TrackingError."""
        return self._register_checkpoint(
            tracker, best.number, study.checkpoint(best.number), best.params, scores
        )

    def _register_checkpoint(
        self,
        tracker: Tracker,
        number: int,
        checkpoint: ray.train.Checkpoint,
        parameters: dict[str, Any],
        scores: dict[str, float],
    ) -> RegisteredModel | None:
        """Register a scored checkpoint, if the file has a registry; raises TrackingError.

        Args:
            tracker: of the job that trained it.
            number: the trial of that job.
            checkpoint: with the files that its scoring added.
            parameters: values of the config by path, over the fixed ones.
            scores: of the checkpoint on the targets.
        """
        sweep, registry = self._sweep, self._sweep.registry
        if registry is None:
            return None
        config = sweep.trial_config(parameters)
        with (
            self._progress.activity(f"registering the model of {trial_name(number)}"),
            tempfile.TemporaryDirectory() as folder,
            checkpoint.as_directory() as files,
            self.explained_data(),
        ):
            data_sets = sweep.implementation.prepare(config)
            data = {record.name: record.digest for record in data_sets}
            return register(
                tracker,
                number,
                sweep.implementation.export(config, Path(files), Path(folder)),
                model=registry.model,
                alias=registry.alias,
                evaluation=scores,
                record={"parameters": parameters, "data": data},
                evidence=gather(
                    sweep.trainable,
                    sweep.implementation,
                    config,
                    Path(files),
                    rule=self._rule(),
                    scores=scores,
                    data=data,
                ),
                score_model=lambda version: self._score_version(config, version, tracker.uri),
                data_sets=data_sets,
            )

    def _rule(self) -> Rule:
        """Return the gate of the file, with its metric."""
        sweep = self._sweep
        assert sweep.registry is not None
        return make_rule(sweep.registry.gate, sweep.objective[0].metric, sweep.implementation.metrics)

    def _check_gate(self) -> None:
        """Check the gate against the targets, as far as the trainable tells their metrics."""
        sweep = self._sweep
        if sweep.registry is not None and isinstance(sweep.implementation, Comparable):
            with self.explained_data():
                metrics = sweep.implementation.target_metrics(sweep.trial_config({}))
            check_rule(self._rule(), metrics)

    def _score_version(
        self, config: BaseModel, version: ModelVersion, uri: str
    ) -> Mapping[str, TargetResults]:
        """Score a registered version on the targets of a config; raises SweepError."""
        sweep, name = self._sweep, f"{version.name} version {version.version}"
        task = trainable_task(score_version, sweep.resources.cpus, sweep.resources.gpus, f"score {name}")
        with self._progress.activity(f"scoring {name} on the same targets"):
            try:
                results: Mapping[str, TargetResults] = ray.get(
                    task.remote(sweep.trainable, config.model_dump(mode="json"), uri, version)
                )
            except (InputError, sweep.implementation.InputError) as error:  # which Ray raises as they are
                raise InputError(f"{name} could not be scored: {explain(error)}") from error
            except ray.exceptions.RayError as error:
                raise SweepError(f"{name} could not be scored: {explain(error)}") from error
        return results

    def _write_report(
        self, outcome: SweepOutcome, study: SearchStudy, data_sets: Sequence[DataSetRecord], tracker: Tracker
    ) -> None:
        started = min(trial.datetime_start for trial in study.started_trials if trial.datetime_start)
        summary = {
            "name": outcome.sweep,
            "started": f"{started:%Y-%m-%d %H:%M}",
            "duration": (datetime.now() - started).total_seconds(),
            "metric": next(iter(outcome.objective)),
            "sweep_id": tracker.sweep_id,
            "scores": outcome.scores,
            "data_sets": data_sets,
            "model": str(outcome.model or "not registered"),
            "notes": [line for line in [tracker.delivery_problem()] if line],
            "commands": _commands(outcome),
            "runs": run_ids(study, tracker),
        }
        with self._progress.activity("writing the report"):
            file = self._directory.path / "report.html"
            write_report(study.study, summary, file)
            self.publish(file)
            tracker.log_file(file)


def _commands(outcome: SweepOutcome) -> dict[str, str]:
    """Return the commands that show the outcome of a sweep and use its model."""
    commands = {"MLflow": preflight.ui_command(outcome.tracking), "report": outcome.report}
    if outcome.model:
        commands["use the model"] = (
            f"MLFLOW_TRACKING_URI={shlex.quote(outcome.tracking)} python -c "
            f"\"import mlflow; model = mlflow.pyfunc.load_model('{outcome.model.uri}')\""
        )
    return commands
