"""Losses and duplicates of a sweep with faults, by its study, MLflow runs and driver output."""

import re
from collections import Counter
from collections.abc import Sequence

import optuna
from mlflow import MlflowClient
from optuna.trial import TrialState

from orchestrator.study.attributes import REASON, epochs

_MLFLOW = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def count(study: optuna.Study, client: MlflowClient, experiment: str, drivers: Sequence[str]) -> Counter[str]:
    """Return the number of losses and duplicates of each kind; all are zero if nothing was lost or doubled.

    Args:
        study: of the sweep, whose trials are those of the example trainable.
        client: of the MLflow server.
        experiment: of the sweep.
        drivers: the output of each of its drivers, in order.
    """
    found = Counter(
        dict.fromkeys(
            (
                "trials lost",
                "trials doubled",
                "points lost",
                "points doubled",
                "points wrong",
                "runs duplicated",
                "runs lost",
                "states wrong",
                "trials failed",
            ),
            0,
        )
    )
    listed = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    runs = [run for run in listed if "trial.number" in run.data.tags]
    by_number = {int(run.data.tags["trial.number"]): run for run in runs}
    found["runs duplicated"] = len(listed) - len(by_number) - 1  # the sweep itself is one
    ended: set[str] = set()
    for name, what in re.findall(
        r"^(trial-\d+) (starts|complete|pruned|failed)\b", "\n".join(drivers), re.MULTILINE
    ):
        if what != "starts":
            ended.add(name)
        elif name in ended:
            found["trials doubled"] += 1
    for trial in study.trials:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            found["trials lost"] += 1
            continue
        run = by_number.get(trial.number)
        if run is None:
            found["runs lost"] += 1
            continue
        poisoned = "poisoned" in trial.user_attrs.get(REASON, "")
        found["trials failed"] += trial.state == TrialState.FAIL and not poisoned
        if run.data.tags["trial.state"] != trial.state.name or run.info.status != _MLFLOW[trial.state.name]:
            found["states wrong"] += 1
        reported = epochs(trial)
        expected = reported.keys() | set(range(1, max(reported, default=0) + 1))
        history = Counter(point.step for point in client.get_metric_history(run.info.run_id, "val/score"))
        found["points lost"] += len(expected - history.keys()) + len(expected - reported.keys())
        found["points doubled"] += sum(history.values()) - len(history)
        for point in client.get_metric_history(run.info.run_id, "val/score"):
            if point.value != _score(trial.params["x"], trial.params["steps"], point.step):
                found["points wrong"] += 1
    return found


def _score(x: float, steps: int, epoch: int) -> float:
    """Return the score of the example trainable without losses or repetitions, equal to the last bit."""
    y = 0.0
    for _ in range(steps * epoch):
        x, y = (x + 1) / 2, (y - 2) / 2
    return -((x - 1) ** 2 + (y + 2) ** 2)
