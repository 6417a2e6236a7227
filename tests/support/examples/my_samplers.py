"""my_samplers.py, for batch.sampler: my_samplers:WeightedSampler"""

import numpy as np
from pydantic import Field

from trainables.components import Options
from trainables.data.sampling import BatchSampler, Clip


class WeightedOptions(Options):
    power: float = Field(0.5, ge=0, le=1, description="0: identities are drawn evenly; 1: by tracklets")


class WeightedSampler(BatchSampler):
    """Draws identities with many tracklets more often."""

    Options = WeightedOptions

    def epoch(self, epoch: int, batches: int) -> list[list[Clip]]:
        rng, plan = self.rng(epoch), []
        tracklets = [np.concatenate(cameras) for cameras in self.views]
        weights = np.array([len(own) for own in tracklets]) ** self.options.power
        for batch in range(batches):
            drawn = rng.choice(len(weights), self.per_batch, replace=False, p=weights / weights.sum())
            positions = [p for i in drawn for p in rng.choice(tracklets[i], self.per_identity)]
            first = batch * len(positions)
            plan.append([self.clip(p, first + k, rng) for k, p in enumerate(positions)])
        return plan
