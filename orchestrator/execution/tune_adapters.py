"""The parts of Ray Tune that delegate to the study: which trial comes next, and whether one continues."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.study.base import Study
from orchestrator.study.trial_report import EpochEnded, Scored, Trained, decode, is_last


class NotSnapshotted:
    """A stateless part of Tune: Tune pickles its parts into snapshots that are never read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextmanager
def _kept_fault(study: Study) -> Iterator[None]:
    """Keep the error that ends a block: Tune may take it for the death of a trial, and start that again."""
    try:
        yield
    except Exception as error:
        study.fault = error
        raise


class StudySearcher(NotSnapshotted, Searcher):
    """Hands the suggestions of the study to Ray Tune, and the end of each trial to the study."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next suggestion as the config of a Tune trial, or Tune's sign that there is none."""
        suggestion = None
        if self._study.fault is None:
            with _kept_fault(self._study):
                suggestion = self._study.ask()
        if suggestion is None:
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = suggestion.number
        return dataclasses.asdict(suggestion)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record in the study how a trial ended."""
        last = decode(result) if result else None
        if self._study.fault is None:
            with _kept_fault(self._study):
                self._study.on_trial_end(self._numbers.pop(trial_id), last, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is persistent."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is persistent."""


class StudyScheduler(NotSnapshotted, FIFOScheduler):
    """Starts trials in the order of the study, and stops those that its pruner stops."""

    def __init__(self, study: Study) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record one report, and decide whether the trial continues; it does not after its last report."""
        number, report = trial.config["number"], decode(result)
        if self._study.fault is not None:
            return str(TrialScheduler.STOP)
        with _kept_fault(self._study), self._study.accepting_end(number), self._study.transaction():
            match report:
                case Trained(checkpoint):
                    self._study.record_checkpoint(number, checkpoint)
                case Scored(scores):
                    self._study.record_scores(number, scores)
                case EpochEnded():
                    self._study.record_epoch(number, report)
                    if self._study.should_stop(number, report):
                        return str(TrialScheduler.STOP)
        is_over = report is not None and is_last(report, self._study.scores_trials)
        if is_over or self._study.trial(number).state.is_finished():
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)
