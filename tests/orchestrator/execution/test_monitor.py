"""The monitor of trials: the estimate of the time left, and what MLflow gets again after it lost it."""

from pathlib import Path

import pytest
from mlflow.entities import Run

from orchestrator.config.sweep import Sweep
from orchestrator.execution.monitor import Estimate
from orchestrator.study.trial_report import EpochEnded, TrialReport, WorkersLost, encode
from orchestrator.tracking.tracker import Tracker
from tests.benchmarks import many_trials


@pytest.fixture
def sweep(tmp_path: Path, sqlite_uri: str) -> Sweep:
    """A sweep of one trial of three epochs, which counts as delivered."""
    return many_trials.create(tmp_path, 1, 3, tracking={"uri": sqlite_uri, "experiment": tmp_path.name})


@pytest.fixture
def tracker(sweep: Sweep) -> Tracker:
    """The tracker of a driver that has ended; its client still works."""
    with many_trials.driver(sweep) as (_, _, tracker):
        return tracker


def runs(tracker: Tracker) -> list[Run]:
    which = f"tags.`sweep.id` = '{tracker.sweep_id}' AND tags.`run.kind` = 'trial'"
    return list(tracker.client.search_runs([tracker.experiment_id], which))


def resume(sweep: Sweep) -> list[Run]:
    """Let another driver catch up; return the runs of trials."""
    with many_trials.driver(sweep) as (_, monitor, tracker):
        monitor.catch_up()
        monitor.compare_delivered()
        assert tracker.flush() is None
        return runs(tracker)


def points(tracker: Tracker, run: Run) -> list[int]:
    return [point.step for point in tracker.client.get_metric_history(run.info.run_id, "val/score")]


def test_delivered_run_that_was_deleted_is_recorded_again(sweep: Sweep, tracker: Tracker) -> None:
    (before,) = runs(tracker)
    tracker.client.delete_run(before.info.run_id)
    (run,) = resume(sweep)
    assert run.info.run_id != before.info.run_id and run.info.status == "FINISHED"
    assert run.data.params == before.data.params and run.data.metrics == before.data.metrics
    assert points(tracker, run) == [1, 2, 3]


def test_delivered_run_of_another_state_is_put_right(sweep: Sweep, tracker: Tracker) -> None:
    (before,) = runs(tracker)
    tracker.client.set_tag(before.info.run_id, "trial.state", "FAIL")
    (run,) = resume(sweep)
    assert (run.info.run_id, run.data.tags["trial.state"]) == (before.info.run_id, "COMPLETE")
    assert points(tracker, run) == [1, 2, 3]


def test_delivered_run_that_is_right_is_left_alone(sweep: Sweep, tracker: Tracker) -> None:
    (before,) = runs(tracker)
    (run,) = resume(sweep)
    assert run.to_dictionary() == before.to_dictionary()


def test_runs_of_a_deleted_sweep_get_its_new_run(sweep: Sweep, tracker: Tracker) -> None:
    tracker.client.delete_run(tracker.parent_run_id)
    (run,) = resume(sweep)
    (again,) = resume(sweep)
    parent = run.data.tags["mlflow.parentRunId"]
    assert parent != tracker.parent_run_id and again.data.tags == run.data.tags
    assert tracker.client.get_run(parent).info.lifecycle_stage == "active"
    assert points(tracker, run) == [1, 2, 3]


def test_runs_of_trials_that_the_study_lost_are_set_aside(
    sweep: Sweep, tracker: Tracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = runs(tracker)
    monkeypatch.setattr("orchestrator.tracking.runs._PAGE", 2)
    here = (sweep.tracking.uri, sweep.tracking.experiment, sweep.name, tracker.sweep_id)
    with Tracker(*here, storage="another one") as copy, Tracker(*here) as later:
        copy.start_trial(9, "of a copy", {"x": 1.0})
        for number in (1, 2, 3):
            later.start_trial(number, "lost", {"x": 1.0})
        assert copy.flush() is later.flush() is None
    left = {run.data.tags["trial.number"]: run.info.run_id for run in resume(sweep)}
    assert left.keys() == {"0", "9"} and left["0"] == known.info.run_id
    assert "MLflow has trial-0001, trial-0002, trial-0003, which the study does not have" in caplog.text


def test_line_of_the_state_says_how_long_a_study_has_not_answered(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with many_trials.driver(sweep) as (loop, monitor, _):
        answer = monitor._study._storage.set_trial_user_attr

        def be_frozen(*arguments: object) -> None:
            clock[0] += 32
            lines.append(monitor.status_line())
            answer(*arguments)

        lines: list[str] = []
        monkeypatch.setattr(monitor._study._storage, "set_trial_user_attr", be_frozen)
        loop.run_trial()
        assert " | waiting for the study for 0:00:32" in lines[0]
        assert "waiting" not in monitor.status_line()


def test_activity_says_how_often_a_trial_lost_its_workers_and_why(
    sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    with many_trials.driver(sweep) as (loop, monitor, _):
        trial = many_trials.TuneTrial(loop._searcher.suggest("id"))
        monitor.on_trial_start(0, [], trial)

        def activity(*reports: TrialReport) -> str:
            for report in reports:
                monitor.on_trial_result(0, [], trial, encode(report))
            (text,) = monitor.on_heartbeat(1.0).trials.values()
            return text

        assert activity() == "waiting for its workers, epoch 0"
        assert monitor.status_line().endswith(" | 1 waiting for workers")
        text = activity(WorkersLost("its process died"), WorkersLost("its node died"))
        assert text == "waiting for its workers, epoch 0; lost its workers 2 times: its node died"
        assert [line.partition(": ")[2] for line in caplog.messages if "resumes" in line] == [
            "its process died",
            "its node died",
        ]
        caplog.clear()
        losses = [WorkersLost(f"storage: no checkpoint_000001_a-b_{attempt:08x}") for attempt in range(3)]
        assert "5 times: storage: no checkpoint_000001_a-b_00000002" in activity(*losses)
        (line,) = caplog.messages
        assert line.startswith("trial-0001 resumes from its last checkpoint: storage: no checkpoint_")
        # Its next epoch ends, and its checkpoint is refused again.
        caplog.clear()
        epoch = EpochEnded(1, {"val/score": 1.0, "train/loss": 1.0, "rate": 1.0})
        loop._scheduler.on_trial_result(None, trial, encode(epoch))
        assert ", epoch 1; lost its workers 1 time: storage: no" in activity(epoch, losses[0])
        assert caplog.messages == []


def test_estimate_is_by_the_mean_of_ended_trials_and_counts_down() -> None:
    estimate = Estimate()
    assert estimate.remaining(0, 4, 50.0) is None
    assert estimate.remaining(1, 3, 60.0) == 180.0
    assert estimate.remaining(1, 3, 70.0) == 170.0
    assert estimate.remaining(1, 3, 300.0) is None  # the next one takes longer than expected
    assert estimate.remaining(3, 1, 300.0) == 100.0
    assert estimate.remaining(4, 0, 400.0) == 0.0
