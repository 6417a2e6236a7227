"""Augmentation of training sequences: by default random shift, horizontal flip and erasing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from trainables import components


class AugmentationConfig(BaseModel):
    """Config of the augmentation, which applies to training only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, components.component_name(lambda name: find_augmentation(name))] = Field(
        "standard", description="augmentation: standard, or package.module:Class"
    )
    crop: float = Field(
        0.125, ge=0, le=0.5, description="shift by up to half this fraction of each side, either way"
    )
    flip: bool = Field(True, description="mirror half of the sequences left to right")
    erase: float = Field(0.0, ge=0, le=1, description="probability of blanking a random rectangle")
    options: Annotated[
        SerializeAsAny[components.Options],
        components.options_of("name", lambda name: find_augmentation(name)),
    ] = Field(
        default_factory=components.Options, validate_default=True, description="options of the augmentation"
    )


class Augmentation(ABC):
    """Base class of augmentations, which change one training sequence or still image at a time.

    A config names an augmentation as ``augmentation.name`` and its options as ``augmentation.options``.
    `trainables.testing.check_augmentation` checks an augmentation.

    Args:
        config: config of the augmentation; ``config.options`` is an instance of ``Options``.
        seed: seed of every draw, together with the number of the sequence.
    """

    Options: ClassVar[type[components.Options]] = components.Options
    """Model of ``augmentation.options``."""

    def __init__(self, config: AugmentationConfig, seed: Sequence[int]) -> None:
        self.config, self.seed = config, tuple(seed)

    def rng(self, number: int) -> np.random.Generator:
        """Return the random stream of a sequence, the same in every worker and process."""
        return np.random.default_rng([*self.seed, number])

    @abstractmethod
    def __call__(
        self, frames: NDArray[np.uint8], flow: NDArray[np.float32] | None, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Return augmented copies of ``frames`` and ``flow``, of the same shapes and types.

        Args:
            frames: RGB ``[time, height, width, 3]``.
            flow: optical flow to the next frame in pixels, ``[time, height, width, 2]``, or None.
            number: position of the sequence in the epoch, for `rng`.
        """


class StandardAugmentation(Augmentation):
    """Random shift, horizontal flip and erasing, the same for all frames of a sequence."""

    def __call__(
        self, frames: NDArray[np.uint8], flow: NDArray[np.float32] | None, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Return copies of ``frames`` and ``flow`` with the same changes.

        A shift repeats the border and keeps the size. A flip also changes the sign of horizontal flow.
        """
        rng = self.rng(number)
        height, width = frames.shape[1:3]
        rows, columns = self._shifted(height, rng), self._shifted(width, rng)
        mirrored = self.config.flip and rng.random() < 0.5
        if mirrored:
            columns = columns[::-1]
        frames = frames[:, rows[:, None], columns]
        if flow is not None:
            flow = flow[:, rows[:, None], columns]
            if mirrored:
                flow[..., 0] *= -1
        if self.config.erase and rng.random() < self.config.erase:
            top, left, bottom, right = _rectangle(height, width, rng)
            frames[:, top:bottom, left:right] = frames.mean(axis=(0, 1, 2)).astype(np.uint8)
            if flow is not None:
                flow[:, top:bottom, left:right] = 0
        return frames, flow

    def _shifted(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the source index of each of ``size`` rows or columns under a random shift."""
        reach = round(self.config.crop * size / 2)
        shifted = np.arange(size) + rng.integers(-reach, reach + 1)
        return shifted.clip(0, size - 1)


AUGMENTATIONS: Mapping[str, type[Augmentation]] = {"standard": StandardAugmentation}
"""Augmentations by their short name."""


def find_augmentation(name: str) -> type[Augmentation]:
    """Return the class of the augmentation ``name``.

    Raises:
        ValueError: there is no such augmentation.
    """
    return components.find("augmentation", name, AUGMENTATIONS, Augmentation)


def build_augmentation(config: AugmentationConfig, seed: Sequence[int]) -> Augmentation:
    """Build the augmentation of a config."""
    return find_augmentation(config.name)(config, seed)


def _rectangle(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of 2-33 % of the frame (Zhong et al., Random Erasing, AAAI 2020)."""
    area, ratio = rng.uniform(0.02, 0.33) * height * width, np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    tall = min(height, max(1, round(float(np.sqrt(area * ratio)))))
    wide = min(width, max(1, round(float(np.sqrt(area / ratio)))))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return top, left, top + tall, left + wide
