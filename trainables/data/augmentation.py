"""Random crop jitter, horizontal flip and erasing: one draw for all the frames of a sequence."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class AugmentationConfig(BaseModel):
    """How much a training sequence is disturbed; nothing is disturbed when embedding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: float = Field(
        0.125, ge=0, le=0.5, description="shift by up to half this fraction of each side, either way"
    )
    flip: bool = Field(True, description="mirror half of the sequences left to right")
    erase: float = Field(0.0, ge=0, le=1, description="probability of blanking a random rectangle")


class Augmentation:
    """Draws one disturbance per sequence from ``(*seed, number)``, whatever worker or process computes it."""

    def __init__(self, config: AugmentationConfig, seed: Sequence[int]) -> None:
        self._config = config
        self._seed = tuple(seed)

    def __call__(
        self, frames: NDArray[np.uint8], flow: NDArray[np.float32] | None, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Disturb ``frames [time, height, width, 3]`` and ``flow [time, height, width, 2]`` (pixels) alike.

        A shift repeats the border and keeps the size. A flip also changes the sign of horizontal flow.
        """
        rng = np.random.default_rng([*self._seed, number])
        height, width = frames.shape[1:3]
        rows, columns = self._shifted(height, rng), self._shifted(width, rng)
        mirrored = self._config.flip and rng.random() < 0.5
        if mirrored:
            columns = columns[::-1]
        frames = frames[:, rows[:, None], columns]
        if flow is not None:
            flow = flow[:, rows[:, None], columns]
            if mirrored:
                flow[..., 0] *= -1
        if self._config.erase and rng.random() < self._config.erase:
            top, left, bottom, right = _rectangle(height, width, rng)
            frames[:, top:bottom, left:right] = frames.mean(axis=(0, 1, 2)).astype(np.uint8)
            if flow is not None:
                flow[:, top:bottom, left:right] = 0
        return frames, flow

    def _shifted(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Source index of each of ``size`` rows or columns under a random shift."""
        reach = round(self._config.crop * size / 2)
        shifted = np.arange(size) + rng.integers(-reach, reach + 1)
        return shifted.clip(0, size - 1)


def _rectangle(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of 2-33 % of the frame (Zhong et al., Random Erasing, AAAI 2020)."""
    area, ratio = rng.uniform(0.02, 0.33) * height * width, np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    tall = min(height, max(1, round(float(np.sqrt(area * ratio)))))
    wide = min(width, max(1, round(float(np.sqrt(area / ratio)))))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return top, left, top + tall, left + wide
