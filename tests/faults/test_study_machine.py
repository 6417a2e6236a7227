"""Searcher, scheduler and study against a model, in sequences that hypothesis generates.

Drivers die between any two steps, reports are repeated, trials end in every way. There are ``FAULT_STEPS``
(default 50) steps in each of ``FAULT_RUNS`` (default 150) sequences.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.attributes import epochs
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Failed, Halted, Trained, encode
from tests.support.sweep_files import load_sweep

EPOCHS, TRIALS = 4, 8
SWEEP: dict[str, Any] = {
    "config": {"epochs": EPOCHS},
    "search": {"x": {"uniform": [-3, 3]}, "steps": {"int": [1, 3]}},
    "sampler": {"tpe": {"seed": 3, "n_startup_trials": 2}},
    "scheduler": {"asha": {"grace": 1, "reduction": 2}},
    "budget": {"trials": TRIALS},
    "enqueue": {"first": {"x": 1.5}},
}


class TuneTrial:
    """The part of a Ray Tune trial that the scheduler looks at."""

    def __init__(self, suggestion: Any) -> None:
        self.config = suggestion


class StudyMachine(RuleBasedStateMachine):
    """One sweep; the model holds what each trial reported and how it ended, by number."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.values: dict[int, dict[str, Any]] = {}
        self.reported: dict[int, list[float]] = {}
        self.ended: dict[int, TrialState] = {}
        self.running: dict[int, Any] = {}
        """Suggestions that the present driver runs, by number, each with its Tune trial."""
        self.deaths: Counter[int] = Counter()
        """How often the process of a trial died under the present driver."""

    @initialize()
    def begin(self) -> None:
        self.sweep = load_sweep(self.folder, "machine", **SWEEP)
        (self.folder / "store" / "machine").mkdir(parents=True)
        self.open()

    def open(self) -> None:
        self.study = SearchStudy(self.sweep, JobDirectory(self.sweep))
        if not self.study.is_seeded:
            self.study.seed([])
        self.searcher, self.scheduler = StudySearcher(self.study), StudyScheduler(self.study)

    @rule()
    def the_driver_dies(self) -> None:
        self.running.clear()
        self.deaths.clear()
        self.open()

    @rule()
    def suggest(self) -> None:
        interrupted = [n for n in self.values if n not in self.ended and n not in self.running]
        suggestion = self.searcher.suggest(f"id-{len(self.values)}-{len(self.running)}-{len(self.ended)}")
        if suggestion == Searcher.FINISHED:
            assert not interrupted and len(self.values) == TRIALS
            return
        assert isinstance(suggestion, dict)
        number = suggestion["number"]
        assert number not in self.ended and number not in self.running
        assert number == interrupted[0] if interrupted else number == len(self.values)
        assert self.values.setdefault(number, suggestion["values"]) == suggestion["values"]
        assert number or suggestion["values"]["x"] == 1.5
        self.reported.setdefault(number, [])
        self.running[number] = (suggestion, next(iter(reversed(self.searcher._numbers))))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), score=st.floats(-1, 1), again=st.booleans())
    def report(self, data: st.DataObject, score: float, again: bool) -> None:
        """Report the next epoch, or repeat all earlier reports."""
        number = data.draw(st.sampled_from(sorted(self.running)))
        reported = self.reported[number]
        if again:
            for epoch, value in enumerate(reported, 1):
                if self.end_epoch(number, epoch, value):
                    return
        elif len(reported) < EPOCHS:
            reported.append(score)
            self.end_epoch(number, len(reported), score)

    def end_epoch(self, number: int, epoch: int, score: float) -> bool:
        suggestion, trial = self.running[number]
        checkpoint = f"{self.folder}/store/machine/trials/checkpoint_{epoch}"
        result = encode(EpochEnded(epoch, {"val/score": score}, checkpoint))
        stop = self.scheduler.on_trial_result(None, TuneTrial(suggestion), result) == TrialScheduler.STOP
        if not stop and epoch == EPOCHS:
            result = encode(Trained(checkpoint))
            self.scheduler.on_trial_result(None, TuneTrial(suggestion), result)
        if stop or epoch == EPOCHS:
            self.searcher.on_trial_complete(trial, result)
            failed = not math.isfinite(score)
            assert failed or not stop or epoch < EPOCHS
            self.end(
                number,
                TrialState.FAIL if failed else TrialState.PRUNED if stop else TrialState.COMPLETE,
            )
        return stop or epoch == EPOCHS

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def report_nan(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        if len(self.reported[number]) < EPOCHS:
            self.end_epoch(number, len(self.reported[number]) + 1, math.nan)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), died=st.booleans())
    def fail(self, data: st.DataObject, died: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.searcher.on_trial_complete(self.running[number][1], None if died else encode(Failed("no")), died)
        self.deaths[number] += died
        if died and self.deaths[number] < 3:
            del self.running[number]  # it resumes
        else:
            self.end(number, TrialState.FAIL)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def halt(self, data: st.DataObject) -> None:
        """No space is left: the trial stays unfinished, and the driver ends."""
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.searcher.on_trial_complete(self.running.pop(number)[1], encode(Halted("no space")))
        self.the_driver_dies()

    @precondition(lambda self: len(self.ended) > 5)
    @rule()
    def the_budget_is_spent(self) -> None:
        unfinished = [number for number in self.values if number not in self.ended]
        assert self.study.prune_running("the wall budget is spent") == unfinished
        for number in unfinished:
            self.running.setdefault(number, None)
            self.end(number, TrialState.PRUNED)
        self.the_driver_dies()

    def end(self, number: int, state: TrialState) -> None:
        self.ended[number] = state
        del self.running[number]

    @invariant()
    def study_equals_model(self) -> None:
        if not hasattr(self, "study"):
            return
        trials = {trial.number: trial for trial in self.study.started_trials}
        assert sorted(trials) == sorted(self.values) == list(range(len(self.values)))
        assert len(trials) <= TRIALS
        for number, trial in trials.items():
            assert trial.state == self.ended.get(number, TrialState.RUNNING)
            assert trial.params == self.values[number]
            scores = dict(enumerate(self.reported[number], 1))
            assert trial.intermediate_values == scores
            finite = {
                epoch: metrics["val/score"]
                for epoch, metrics in epochs(trial).items()
                if not math.isnan(metrics["val/score"])
            }
            assert finite == scores
            if trial.state == TrialState.COMPLETE:
                assert trial.values == [self.reported[number][-1]]
            if trial.state == TrialState.FAIL:
                assert trial.user_attrs["reason"]
        orders = [trial.user_attrs["order"] for trial in trials.values() if trial.state.is_finished()]
        assert len(set(orders)) == len(self.ended)
        assert self.study.remaining() == TRIALS - len(self.ended)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestStudyMachine = pytest.mark.faults(pytest.mark.timeout(3600)(StudyMachine.TestCase))
TestStudyMachine.settings = settings(
    max_examples=int(os.environ.get("FAULT_RUNS", "150")),
    stateful_step_count=int(os.environ.get("FAULT_STEPS", "50")),
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
