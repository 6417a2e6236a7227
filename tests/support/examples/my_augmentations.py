"""my_augmentations.py, for augmentation.name: my_augmentations:BrightnessAugmentation"""

import numpy as np
from pydantic import Field

from trainables.components import Options
from trainables.data.augmentation import StandardAugmentation


class BrightnessOptions(Options):
    strength: float = Field(0.2, ge=0, lt=1, description="largest change of brightness, as a fraction")


class BrightnessAugmentation(StandardAugmentation):
    """The standard augmentation, and one random brightness for all frames of a sequence."""

    Options = BrightnessOptions

    def __call__(self, frames, flow, number):
        frames, flow = super().__call__(frames, flow, number)
        strength = self.config.options.strength
        factor = np.random.default_rng([*self.seed, number, 1]).uniform(1 - strength, 1 + strength)
        return (frames * factor).clip(0, 255).astype(np.uint8), flow
