"""The parts of Ray Tune that ask the study: which trial comes next, and whether one goes on."""

import dataclasses
import json
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.execution.trial import SCORES, TRAINED, is_epoch
from orchestrator.study.base import Study


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
        if is_epoch(result):
            self._study.record(number, result)
            if self._study.report(number, result):
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)
