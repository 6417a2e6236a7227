"""User attributes of studies and trials: what Optuna has no field for. Their names are a format on disk."""

from optuna.trial import FrozenTrial, TrialState

SCHEMA = "schema"
"""Of a study: the version of its attributes. A study without it has version 1, with the same attributes."""

SCHEMA_VERSION = 2

SEEDED = "begun"
"""Of a study: true once the enqueued points and the trials of earlier sweeps are all in it."""

USED = "used"
"""Of a study: what of the budget was used, some time ago. It replaces a lost record of the driver."""

RAY_JOBS = "ray_jobs"
"""Of a study: the Ray jobs of its drivers. They complete those of a lost record of the driver."""

DATA = "data"
"""Of a study: the digests of the data sets by name, for each config that was prepared, by its hash."""

CODE = "code"
"""Of a study: for each module of trainable and components, the digests of its source in the order of use.

With each is the number of trials that had ended at its first use.
"""

EXHAUSTED = "exhausted"
"""Of a study: true once the sampler has suggested every combination."""

SOURCE = "source"
"""Of a trial transferred from an earlier sweep: that sweep, or ``mlflow:EXPERIMENT``."""

SOURCE_NUMBER = "number"
"""Of a transferred trial: its number in the earlier sweep."""

POINT = "point"
"""Of an enqueued trial: the name of its point in the sweep file."""

CELL = "cell"
"""Of a trial of a comparison: variant, split and seed."""

STARTED = "started"
"""Of a trial of a sweep: true, from the moment in which a driver starts it."""

REASON = "reason"
"""Of an ended trial: why it failed or was pruned, in one line."""

LOG = "log"
"""Of a failed trial: the end of its traceback."""

ORDER = "order"
"""Of an ended trial: how many trials had ended, including it. Clocks may be set back; this only grows."""

CHECKPOINT = "checkpoint"
"""Of a trained trial: its last checkpoint, relative to the directory of the job."""

SCORES = "scores"
"""Of a scored trial: its scores on the targets."""

FINAL_SCORES = "scores "
"""Of the study of finals, before the number of a run: its scores on the targets. Ended runs do not change."""

VIOLATED = "violated"
"""Of an ended trial of a search: the constraints that it violates, in one line; absent for none."""

LAST_METRICS = "last"
"""Of a trial of a comparison: the trainable's metrics in its last epoch."""

JUDGED = "judged"
"""Of a trial: the last epoch that the pruner judged."""

PRUNED = "stopped"
"""Of a trial that the pruner stopped: the reason. It is recorded before the trial is told to stop."""

_ENDED_ELSEWHERE = "another program ended it in the study"

_EPOCH = "epoch "


def epoch_key(epoch: int) -> str:
    """Return the attribute with the report of an epoch: its time (ms) and its metrics."""
    return f"{_EPOCH}{epoch}"


def epochs(trial: FrozenTrial) -> dict[int, dict[str, float]]:
    """Return the reports of a trial by epoch: its metrics, and under ``time`` when it was made (ms)."""
    reports = {
        int(key.removeprefix(_EPOCH)): report
        for key, report in trial.user_attrs.items()
        if key.startswith(_EPOCH)
    }
    return dict(sorted(reports.items()))


def reason(trial: FrozenTrial) -> str:
    """Return why a trial failed or was pruned, in one line; empty for others."""
    if trial.state not in (TrialState.FAIL, TrialState.PRUNED):
        return ""
    return str(trial.user_attrs.get(REASON, _ENDED_ELSEWHERE))
