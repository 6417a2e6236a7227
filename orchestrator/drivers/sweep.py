"""The driver of a sweep: search, then score, register and report the best trial."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import RenderableType

from orchestrator.config import finals
from orchestrator.config.comparison import Cell
from orchestrator.config.sections import Budget
from orchestrator.config.sweep import Sweep
from orchestrator.console.progress import Progress
from orchestrator.console.tables import (
    format_megabytes,
)
from orchestrator.drivers.base import Driver, run_ids
from orchestrator.drivers.candidates import Candidate, Registration, register_candidate, score
from orchestrator.drivers.comparison import ComparisonDriver
from orchestrator.drivers.finals import FinalsDriver, FinalsOutcome
from orchestrator.drivers.pictures import ScoredRun, illustrate
from orchestrator.drivers.plan import sweep_plan
from orchestrator.drivers.sweep_outcome import BestTrial, SweepOutcome
from orchestrator.errors import ExitCode, InputError, StorageError
from orchestrator.execution.cluster import Cluster
from orchestrator.interrupt import Interrupt
from orchestrator.report.sweep import write_report
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Activity, Lease
from orchestrator.study import warm_start
from orchestrator.study.base import Study
from orchestrator.study.cleaning import Cleaner
from orchestrator.study.finals import write_matrix
from orchestrator.study.search import SearchStudy, rehearse_sampler
from orchestrator.study.selection import (
    describe_trial,
    infeasible_trials,
    objective_errors,
    uncertainty_note,
)
from orchestrator.study.trial_report import FINALS, trial_name
from orchestrator.study.warm_start import TransferredTrial
from orchestrator.tracking.gate import changed_settings, check_rule, make_rule
from orchestrator.tracking.model_registry import RegisteredModel, alias_holder, check_registry, is_gone
from orchestrator.tracking.tracker import Tracker
from orchestrator.trainable import Comparable, DataSetRecord

_log = logging.getLogger(__name__)


class SweepDriver(Driver[SweepOutcome]):
    """Searches, then scores, registers and reports the best trial."""

    outcome_type = SweepOutcome

    def __init__(self, sweep: Sweep, progress: Progress, interrupt: Interrupt) -> None:
        super().__init__(sweep, progress, interrupt)
        self._sweep = sweep
        self._transferred: list[TransferredTrial] | None = None
        self._finals: FinalsDriver | None = None
        self._winner: FinalsOutcome | None = None
        self._crossed: list[dict[str, Any]] = []
        self._trouble: list[str] = []
        self._left_out: list[Cell] = []

    def is_final(self, outcome: SweepOutcome) -> bool:
        """Return whether it was made with the budget, the finals and the registered model of the file."""
        defaults = {name: field.default for name, field in Budget.model_fields.items()}
        same_budget = {**defaults, **outcome.budget} == self._sweep.budget.model_dump()
        registered = None if outcome.model is None else (outcome.model.name, outcome.model.alias)
        registry = self._sweep.registry
        same_registry = registry is None or registered == (registry.model, registry.alias)
        same_finals = outcome.finals == self._finals_settings()
        return same_budget and same_registry and same_finals and not outcome.trouble

    def exit_code(self, outcome: SweepOutcome) -> int:
        """Return FAILED if something did not work on other training sets, which a rerun tries again."""
        return ExitCode.FAILED if outcome.trouble else ExitCode.DONE

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
        self._check_names()
        self._left_out = self._missing_splits()
        if new:
            with self._progress.activity(f"trying the sampler {self._sweep.sampler.name}"):
                rehearse_sampler(self._sweep)
            self._transferred = self._transfer()

    def check_tracking(self, tracker: Tracker) -> None:
        """Check that files can be kept, and a version be registered."""
        super().check_tracking(tracker)
        if (registry := self._sweep.registry) is not None:
            check_registry(tracker, registry.model, registry.alias, self._sweep.trainable)

    def open_study(self) -> SearchStudy:
        """Open the study of the search, and seed a new one."""
        study = self.checked(lambda: SearchStudy(self._sweep, self._directory))
        if not study.is_seeded:
            study.seed(self._transfer() if self._transferred is None else self._transferred)
        return study

    def follow_up(self, study: Study, joined: Cluster, lease: Lease) -> int:
        """Run the finals, if the file has them; return their exit code."""
        assert isinstance(study, SearchStudy)
        sweep = self._sweep
        if sweep.finals is None:
            return ExitCode.DONE
        best = {trial_name(trial.number): trial.params for trial in study.finalists(sweep.finals.top)}
        runs = sweep.final_runs(best, self._directory.record["id"])
        _log.info("finals: training %s again, %d runs", ", ".join(best), len(runs.cells))
        lease.on_heartbeat = lambda seconds: Activity(trials={FINALS: f"see {runs.name}"})
        self._finals = FinalsDriver(runs, self._registration, self._progress, self._interrupt)
        code, self._winner = self._finals.run_within(joined, runs.sweep_id)
        crossed = self._winner and sweep.crossed_runs(self._winner.parameters, self._left_out, runs.sweep_id)
        if code or not crossed:
            return code
        _log.info("finals: training the winner on %s", ", ".join(crossed.variants))
        driver = ComparisonDriver(crossed, self._progress, self._interrupt)
        code, outcome = driver.run_within(joined, runs.sweep_id)
        if code == ExitCode.INTERRUPTED:
            return code
        self._crossed = outcome.rows if outcome else []
        if code:  # its own log has said why
            failed = f"{crossed.name} failed; rerun the command to try it again"
            self._trouble = (outcome and outcome.trouble) or [failed]
        return ExitCode.DONE

    def conclude(self, study: Study, data_sets: Sequence[DataSetRecord], tracker: Tracker) -> SweepOutcome:
        """Score and register the best trial, unless the finals did so with theirs, and write the report."""
        assert isinstance(study, SearchStudy)
        sweep, best = self._sweep, study.best()
        assert best is not None, "at least one trial is complete"
        winner = self._winner
        if winner is None:
            candidate = self._candidate(study, best)
            scores = self._score(candidate)
            model = self._register(candidate, scores, tracker)
        else:
            scores, model = winner.scores, winner.model
        metrics, single = [objective.metric for objective in sweep.objective], len(sweep.objective) == 1
        note = uncertainty_note(study.started_trials, metrics[0], study.modes[0]) if single else ""
        outcome = SweepOutcome(
            sweep=sweep.name,
            budget=sweep.budget.model_dump(),
            trials=study.count(),
            best=BestTrial(trial=best.number, parameters=best.params),
            objective={o.metric: value for o, value in zip(sweep.objective, best.values, strict=True)},
            scores=scores,
            tracking=sweep.tracking.uri,
            report=self._directory.locate("report.html"),
            model=model,
            finals=self._finals_settings(),
            winner=winner,
            crossed=tuple(self._crossed),
            trouble=self._trouble,
            errors=objective_errors(best, metrics),
            pareto_set=[] if single else [describe_trial(each, metrics) for each in study.pareto_set()],
            infeasible=len(infeasible_trials(study.started_trials)),
            notes=[*([note] if note else []), *study.changed_code(), *(winner.notes if winner else [])],
        )
        self._write_report(outcome, study, data_sets, tracker)
        return outcome

    def clean_up(self, study: Study) -> None:
        """Delete the checkpoints of all trials but the best ones, unless the file keeps them."""
        assert isinstance(study, SearchStudy)
        if self._sweep.checkpoints == "all":
            return
        kept = {trial_name(trial.number) for trial in study.pareto_set()}
        cleaner = Cleaner(self._directory.store)
        try:
            with self._progress.activity("deleting checkpoints that are not needed"):
                removable = cleaner.checkpoints_but(self._sweep.name, kept)
                if removable is not None:
                    cleaner.remove(removable)
        except StorageError as error:
            _log.warning("%s; python -m orchestrator.clean deletes what is left", error)
        else:
            if removable is not None:
                _log.info("deleted %s, %s", removable.what, format_megabytes(removable.bytes))

    def metrics(self, outcome: SweepOutcome) -> dict[str, float]:
        """Return scores of the candidate, means of the finals, and the best objectives with errors."""
        return outcome.metrics

    def note(self, outcome: SweepOutcome) -> str:
        """Return parameters and scores of the candidate, the Pareto set, and the finals."""
        return outcome.as_markdown()

    def summarise(self, outcome: SweepOutcome) -> None:
        """Show counts, best trial, model, parameters, scores and commands."""
        outcome.show(self._progress)

    def registry_changes(self, outcome: SweepOutcome) -> list[str]:
        """Return what the outcome does not show: a version deleted, an alias moved, a gate changed."""
        model = outcome.model
        jobs = [outcome.sweep + finals.FINALS, outcome.sweep] if outcome.winner else [outcome.sweep]
        if model is None:
            return []
        if not is_gone(outcome.tracking, model, jobs[0]):
            holder, lines = alias_holder(outcome.tracking, model), []
            if model.promoted and holder not in (None, model.version):
                lines.append(f"the alias {model.alias} of {model.name} is that of version {holder} now")
            if model.decision and self._registration:
                changed = changed_settings(self._registration.rule, model.decision)
                stays = f"the decision about {model.name} version {model.version} stays as it was"
                lines += [f"registry.gate: {setting}; {stays}" for setting in changed]
            return lines
        files = " and ".join(self._directory.store.locate(f"{job}/outcome.json") for job in jobs)
        return [
            f"warning: {model.name} version {model.version} was deleted from the registry; remove {files}, "
            "and rerun the command to register the model again"
        ]

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
                    prior = warm_start.from_study(*self._directory.read_neighbour(source))
            trials, left_out = warm_start.transfer(sweep, prior, transferred)
            for line in warm_start.describe(trials, left_out, source):
                _log.info("%s", line)
            transferred += trials
        return transferred

    def _missing_splits(self) -> list[Cell]:
        """Return the splits that training sets of the finals do not have; raises InputError."""
        sweep, missing = self._sweep, []
        runs = sweep.crossed_runs({})
        if runs is None:
            return []
        faults: dict[str, Exception] = {}
        for cell in runs.cells:
            try:
                sweep.implementation.check(runs.cell_config(cell), sweep.resources.workers, [])
            except sweep.implementation.InputError as error:
                missing.append(cell)
                faults[cell.variant] = error
        for name, fault in faults.items():
            left_out = [cell for cell in missing if cell.variant == name]
            if all(cell in left_out for cell in runs.cells if cell.variant == name):
                raise InputError(f"finals: {name} cannot be trained on: {fault}")
            _log.info("finals: %d runs on %s are left out: %s", len(left_out), name, fault)
        return missing

    def _finals_settings(self) -> dict[str, Any] | None:
        finals = self._sweep.finals
        return None if finals is None else finals.model_dump(mode="json")

    def _candidate(self, study: SearchStudy, best: FrozenTrial) -> Candidate:
        config = self._sweep.trial_config(best.params)
        return Candidate(
            best.number, trial_name(best.number), best.params, config, study.checkpoint(best.number)
        )

    def _score(self, candidate: Candidate) -> dict[str, float]:
        """Return the scores of a trial on the targets; raises SweepError."""
        with self._progress.activity(f"scoring {candidate.name} on the targets"):
            (scores,) = score(self._sweep, [candidate])
            return scores

    def _register(
        self, candidate: Candidate, scores: Mapping[str, float], tracker: Tracker
    ) -> RegisteredModel | None:
        """Register the model of a trial, if the file has a registry; raises TrackingError."""
        registration = self._registration
        if registration is None:
            return None
        with self.explained_data():
            return register_candidate(self._sweep, candidate, scores, registration, tracker, self._progress)

    @property
    def _registration(self) -> Registration | None:
        """Registry and gate of the file."""
        sweep = self._sweep
        if sweep.registry is None:
            return None
        rule = make_rule(sweep.registry.gate, sweep.objective[0].metric, sweep.trial_metrics)
        return Registration(sweep.registry, rule)

    def _check_names(self) -> None:
        """Check that the names of the finals are not those of other jobs; raises InputError."""
        sweep = self._sweep
        jobs = [sweep.final_runs({"finals": {}}), sweep.crossed_runs({})] if sweep.finals else []
        for job in filter(None, jobs):
            JobDirectory(job).check_follow_up()

    def _check_gate(self) -> None:
        """Check the gate against the targets, as far as the trainable tells their metrics."""
        sweep = self._sweep
        if self._registration is not None and isinstance(sweep.implementation, Comparable):
            with self.explained_data():
                metrics = sweep.implementation.target_metrics(sweep.trial_config({}))
            check_rule(self._registration.rule, metrics)

    def _illustrate(self, outcome: SweepOutcome, study: SearchStudy, folder: Path) -> str:
        """Let the trainable draw pictures of what was scored; return what failed, or nothing."""
        if self._finals is not None and outcome.winner is not None:
            scored = self._finals.scored_runs(outcome.winner)
        else:
            scored = [self._candidate(study, study.trial(outcome.best.trial))]
        variant = outcome.candidate.partition(" ")[0]
        runs = [ScoredRun(variant, one.name, one.values, one.checkpoint) for one in scored]
        return illustrate(self._sweep, [variant], runs, folder, self._progress)

    def _write_report(
        self, outcome: SweepOutcome, study: SearchStudy, data_sets: Sequence[DataSetRecord], tracker: Tracker
    ) -> None:
        started = min(trial.datetime_start for trial in study.started_trials if trial.datetime_start)
        pictures = self._directory.path / "pictures"
        failure = self._illustrate(outcome, study, pictures)
        summary = {
            "name": outcome.sweep,
            "started": f"{started:%Y-%m-%d %H:%M}",
            "duration": study.recorded_usage().seconds,
            "metric": next(iter(outcome.objective)),
            "sweep_id": tracker.sweep_id,
            "scores": outcome.scores,
            "data_sets": data_sets,
            "model": str(outcome.model or "not registered"),
            "tables": outcome.tables,
            "gate": outcome.model.decision if outcome.model else None,
            "candidate": outcome.candidate,
            "parameters": outcome.parameters,
            "pictures": sorted(pictures.glob("*.png")),
            "notes": [
                line
                for line in [*outcome.notes, failure, *outcome.failures, tracker.delivery_problem()]
                if line
            ],
            "errors": outcome.errors,
            "pareto_set": outcome.pareto_set,
            "infeasible": outcome.infeasible,
            "commands": outcome.commands,
            "runs": run_ids(study, tracker),
        }
        with self._progress.activity("writing the report"):
            files = [self._directory.path / "report.html"]
            write_report(study.study, summary, files[0])
            if outcome.matrix:
                files.append(self._directory.path / "matrix.csv")
                write_matrix(outcome.matrix, files[1])
            self.publish(*files)
            for file in files:
                tracker.log_file(file)
