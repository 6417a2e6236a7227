"""A study and its trials as Ray Tune drives them, without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from orchestrator.config.sweep import Sweep
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.base import Study
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Trained, TrialReport, encode


class TuneTrial:
    """The part of a Ray Tune trial that the scheduler looks at."""

    def __init__(self, point: Any) -> None:
        self.config = point


class TuneLoop:
    """The searcher and the scheduler of a study, called as Ray Tune calls them."""

    def __init__(self, study: Study) -> None:
        self.searcher, self.scheduler = StudySearcher(study), StudyScheduler(study)

    def suggest(self, trial_id: str = "a") -> Any:
        """Return the next point, or Tune's sign that there is none."""
        return self.searcher.suggest(trial_id)

    def report(self, point: Any, report: TrialReport) -> bool:
        """Report for a point; return whether its trial continues."""
        decision = self.scheduler.on_trial_result(None, TuneTrial(point), encode(report))
        return decision == TrialScheduler.CONTINUE

    def end(self, last: TrialReport | None, trial_id: str = "a", died: bool = False) -> None:
        """End a trial after its last report."""
        self.searcher.on_trial_complete(trial_id, None if last is None else encode(last), error=died)


def open_study(sweep: Sweep, storage: Path | None = None) -> SearchStudy:
    """Open the study as a driver does, in another storage where one is given."""
    if storage is not None:
        sweep = sweep.model_copy(update={"storage": str(storage)})
    (Path(sweep.storage) / sweep.name).mkdir(parents=True, exist_ok=True)
    return SearchStudy(sweep, JobDirectory(sweep))


def epoch_ended(epoch: int, score: float, folder: str = "/sweeps/study") -> EpochEnded:
    """Return the report of an epoch of the example trainable."""
    metrics = {"val/score": score, "train/loss": -score}
    return EpochEnded(epoch, metrics, checkpoint=f"{folder}/checkpoint_{epoch}")


def finish(loop: TuneLoop, point: Any, epoch: int) -> Trained:
    """Report that a trial was trained to its end, with the checkpoint of an epoch."""
    last = Trained(f"/sweeps/study/checkpoint_{epoch}")
    assert not loop.report(point, last)
    return last


def run_trial(study: SearchStudy, scores: Sequence[float]) -> TrialState:
    """Run one trial that reports these scores until it is stopped; return its state."""
    loop = TuneLoop(study)
    point = loop.suggest()
    assert isinstance(point, dict)
    last: TrialReport | None = None
    for epoch, score in enumerate(scores, 1):
        last = epoch_ended(epoch, score)
        if not loop.report(point, last):
            break
    else:
        last = finish(loop, point, len(scores))
    loop.end(last)
    return study.trials[point["number"]].state
