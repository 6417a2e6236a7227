from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from pydantic import BaseModel, Field


class MyPruner(BasePruner):
    """Stops a trial whose metric has not improved for ``patience`` epochs."""

    class Config(BaseModel, extra="forbid"):
        patience: int = Field(3, ge=1)

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        values = [sign * value for _, value in sorted(trial.intermediate_values.items())]
        before, latest = values[: -self._patience], values[-self._patience :]
        return bool(before) and max(latest) <= max(before)
