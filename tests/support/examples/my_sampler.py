import random
from typing import Any

from optuna.samplers import BaseSampler, RandomSampler
from pydantic import BaseModel, Field


class MySampler(BaseSampler):
    """Takes each value from the best trial with probability ``keep``, else at random."""

    class Config(BaseModel, extra="forbid"):
        seed: int = 0
        keep: float = Field(0.7, ge=0, le=1)

    def __init__(self, seed: int, keep: float) -> None:
        self._random, self._other, self._keep = random.Random(seed), RandomSampler(seed), keep

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        for best in study.best_trials[:1]:
            if name in best.params and self._random.random() < self._keep:
                return best.params[name]
        return self._other.sample_independent(study, trial, name, distribution)
