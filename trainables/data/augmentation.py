"""Augmentation of training sequences: by default random shift, horizontal flip and erasing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from trainables import components
from trainables.network.section import Section


class AugmentationConfig(Section):
    """Config of the augmentation, which applies to training only."""

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
        down, right = self._shift(height, rng), self._shift(width, rng)
        mirrored = self.config.flip and rng.random() < 0.5
        frames, flow = shift_and_mirror(frames, flow, down, right, mirrored)
        if self.config.erase and rng.random() < self.config.erase:
            rows, columns = _rectangle(height, width, rng)
            frames[:, rows, columns] = _mean_colour(frames)
            if flow is not None:
                flow[:, rows, columns] = 0
        return frames, flow

    def _shift(self, size: int, rng: np.random.Generator) -> int:
        """Return a random shift in pixels along a side of ``size`` pixels."""
        reach = round(self.config.crop * size / 2)
        return int(rng.integers(-reach, reach + 1))


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


def shift_and_mirror(
    frames: NDArray[np.uint8], flow: NDArray[np.float32] | None, down: int, right: int, mirrored: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return shifted and optionally mirrored copies of ``frames`` and ``flow``, of the same shapes.

    The border is repeated. Mirroring, which follows the shift, also changes the sign of horizontal flow.

    Args:
        frames: RGB ``[..., height, width, 3]``.
        flow: optical flow ``[..., height, width, 2]``, or None.
        down: rows between a pixel and its source, which is below it if positive.
        right: columns between a pixel and its source, which is right of it if positive.
        mirrored: whether left and right change places.
    """
    frames = _moved(frames, down, right, mirrored)
    if flow is not None:
        flow = _moved(flow, down, right, mirrored)
        if mirrored:
            flow[..., 0] *= -1
    return frames, flow


def _moved(images: NDArray[Any], down: int, right: int, mirrored: bool) -> NDArray[Any]:
    # OpenCV moves the columns of all images at once, as of one tall image: 10 times as fast as index arrays.
    height, width, channels = images.shape[-3:]
    rows = (np.arange(height) + down).clip(0, height - 1)
    moved: NDArray[Any] = images.take(rows, axis=-3).reshape(-1, width, channels)
    if right:
        inner = moved[:, max(right, 0) : width + min(right, 0)]
        moved = cv2.copyMakeBorder(inner, 0, 0, max(-right, 0), max(right, 0), cv2.BORDER_REPLICATE)
    if mirrored:
        moved = cv2.flip(moved, 1)
    return moved.reshape(images.shape)


def _mean_colour(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean RGB, rounded down."""
    total = cv2.sumElems(frames.reshape(-1, *frames.shape[-2:]))[:3]
    return (np.array(total) / (frames.size // 3)).astype(np.uint8)


def _rectangle(height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return rows and columns of 2-33 % of the frame (Zhong et al., Random Erasing, AAAI 2020)."""
    area, ratio = rng.uniform(0.02, 0.33) * height * width, np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    tall = min(height, max(1, round(float(np.sqrt(area * ratio)))))
    wide = min(width, max(1, round(float(np.sqrt(area / ratio)))))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return slice(top, top + tall), slice(left, left + wide)
