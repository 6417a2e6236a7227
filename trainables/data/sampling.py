"""Batch samplers, which choose the tracklets and frames of each batch from (seed, epoch) alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from trainables import components
from trainables.errors import DataError
from trainables.network.section import Section


class BatchConfig(Section):
    """Config of the global batch, which workers share, so that training does not depend on their number."""

    identities: int = Field(8, ge=2, description="identities of the sequences in a batch (P)")
    sequences: int = Field(2, ge=2, description="sequences per identity, from different cameras (K)")
    frames: int = Field(8, ge=1, description="frames per sequence (T); those of a shorter tracklet repeat")
    image_identities: int = Field(16, ge=2, description="identities of the images in a batch")
    images: int = Field(2, ge=2, description="images per identity, from different cameras")
    passes: int = Field(1, ge=1, le=1000, description="passes of an epoch over the sequences' identities")
    sampler: Annotated[str, components.component_name(lambda name: find_sampler(name))] = Field(
        "identity", description="batch sampler: identity, or package.module:Class"
    )
    sampler_options: Annotated[
        SerializeAsAny[components.Options],
        components.options_of("sampler", lambda name: find_sampler(name)),
    ] = Field(default_factory=components.Options, validate_default=True, description="options of the sampler")

    def check_shares(self, workers: int, *, images: bool) -> None:
        """Check that the workers get equal shares of a batch.

        Raises:
            DataError: the size of a batch is not a multiple of ``workers``.
        """
        sizes = {"identities x sequences": self.identities * self.sequences}
        if images:
            sizes["image_identities x images"] = self.image_identities * self.images
        for field, size in sizes.items():
            if size % workers:
                raise DataError(f"batch.{field} is {size}; expected a multiple of the {workers} workers")


@dataclass(frozen=True, slots=True)
class Clip:
    """Indices of frames of one tracklet, in the order of the clip."""

    tracklet: int
    frames: NDArray[np.int64]
    number: int
    """Position in the epoch over all workers, which seeds the augmentation of the clip."""


class BatchSampler(ABC):
    """Base class of samplers of global batches: ``per_batch * per_identity`` clips of ``frames`` frames.

    A config names a sampler as ``batch.sampler`` and its options as ``batch.sampler_options``. One instance
    draws the sequences and another the images. `trainables.testing.check_sampler` checks a sampler.

    Args:
        tracklets: indices of the tracklets to draw from.
        identities: identity of each tracklet.
        cameras: camera of each tracklet.
        lengths: number of frames of each tracklet.
        per_batch: identities in a batch (P).
        per_identity: clips per identity (K).
        frames: frames per clip (T).
        seed: seed of every draw, together with the epoch.
        options: an instance of ``Options``.

    Raises:
        DataError: there are fewer identities than ``per_batch``.
    """

    Options: ClassVar[type[components.Options]] = components.Options
    """Model of ``batch.sampler_options``."""

    def __init__(
        self,
        tracklets: Sequence[int] | NDArray[np.int64],
        identities: NDArray[np.str_],
        cameras: NDArray[np.str_],
        lengths: NDArray[np.int64],
        *,
        per_batch: int,
        per_identity: int,
        frames: int,
        seed: Sequence[int],
        options: components.Options | None = None,
    ) -> None:
        by_identity: dict[str, dict[str, list[int]]] = {}
        for position, (identity, camera) in enumerate(zip(identities, cameras, strict=True)):
            by_identity.setdefault(str(identity), {}).setdefault(str(camera), []).append(position)
        if len(by_identity) < per_batch:
            raise DataError(
                f"a batch of {per_batch} identities needs at least as many training identities; there are"
                f" {len(by_identity)}"
            )
        self.views = [list(by_identity[identity].values()) for identity in sorted(by_identity)]
        """Positions in ``tracklets``, by identity and then by camera."""
        self.tracklets, self.lengths = np.asarray(tracklets), lengths
        self.per_batch, self.per_identity, self.frames = per_batch, per_identity, frames
        self.seed = tuple(seed)
        self.options = options or self.Options()

    def batches_per_pass(self) -> int:
        """Return the number of batches that count as one pass over all identities."""
        return -(-len(self.views) // self.per_batch)

    def rng(self, epoch: int) -> np.random.Generator:
        """Return the random stream of an epoch."""
        return np.random.default_rng([*self.seed, epoch])

    def clip(self, position: int, number: int, rng: np.random.Generator) -> Clip:
        """Return T consecutive frames of the tracklet at ``position``, from a random start.

        The frames of a shorter tracklet repeat. ``number`` is the position of the clip in the epoch.
        """
        length = int(self.lengths[position])
        start = rng.integers(max(length - self.frames, 0) + 1)
        return Clip(
            int(self.tracklets[position]), np.asarray((start + np.arange(self.frames)) % length), number
        )

    @abstractmethod
    def epoch(self, epoch: int, batches: int) -> list[list[Clip]]:
        """Return the global batches of ``epoch``, each of ``per_batch * per_identity`` clips.

        Every worker computes all batches and takes its share, so the result must depend on nothing but the
        arguments of the constructor, ``epoch`` and ``batches``. Clips are numbered from 0 through the epoch.
        """


class IdentityOptions(components.Options):
    """Options of the identity sampler."""

    clips: Literal["consecutive", "spread"] = Field(
        "consecutive",
        description="frames of a clip: consecutive, or spread over the tracklet, one from each of T parts",
    )


class IdentitySampler(BatchSampler):
    """Sampler of P x K batches: P identities with K clips each, from as many cameras as possible.

    One pass shows every identity once, in random order. If a pass does not fill its last batch, the next pass
    does. An identity is at most once in a batch.

    Clips of consecutive frames show how people walk (McLaughlin et al., CVPR 2016). Clips that are spread
    over the tracklet show more of its views (restricted random sampling, Li et al., CVPR 2018), but optical
    flow and the motion losses of alignment are those of neighbouring frames: they fit consecutive clips only.
    """

    Options = IdentityOptions

    def clip(self, position: int, number: int, rng: np.random.Generator) -> Clip:
        """Return T frames of the tracklet at ``position``, consecutive or spread over it."""
        length = int(self.lengths[position])
        spread = isinstance(self.options, IdentityOptions) and self.options.clips == "spread"
        if not spread or length <= self.frames:
            return super().clip(position, number, rng)
        # Part i of T has the frames from i * length / T on; one of them is drawn.
        edges = np.arange(self.frames + 1) * length // self.frames
        return Clip(int(self.tracklets[position]), rng.integers(edges[:-1], edges[1:]), number)

    def epoch(self, epoch: int, batches: int) -> list[list[Clip]]:
        """Return the global batches of ``epoch``; the clips of an identity are adjacent."""
        rng = self.rng(epoch)
        stream: list[int] = []
        plan: list[list[Clip]] = []
        for batch in range(batches):
            chosen: list[int] = []
            while len(chosen) < self.per_batch:
                fresh = next((identity for identity in stream if identity not in chosen), None)
                if fresh is None:
                    stream += rng.permutation(len(self.views)).tolist()
                else:
                    chosen.append(fresh)
                    stream.remove(fresh)
            clips: list[Clip] = []
            for identity in chosen:
                for position in self._draw(identity, rng):
                    number = batch * self.per_batch * self.per_identity + len(clips)
                    clips.append(self.clip(position, number, rng))
            plan.append(clips)
        return plan

    def _draw(self, identity: int, rng: np.random.Generator) -> list[int]:
        """Return K tracklets of ``identity``, from its cameras in turn, repeated if there are too few."""
        drawn: list[int] = []
        while len(drawn) < self.per_identity:
            left = [rng.permutation(tracklets).tolist() for tracklets in self.views[identity]]
            while left and len(drawn) < self.per_identity:
                for view in rng.permutation(len(left)):
                    drawn.append(left[view].pop())
                left = [tracklets for tracklets in left if tracklets]
        return drawn[: self.per_identity]


SAMPLERS: Mapping[str, type[BatchSampler]] = {"identity": IdentitySampler}
"""Batch samplers by their short name."""


def find_sampler(name: str) -> type[BatchSampler]:
    """Return the class of the batch sampler ``name``.

    Raises:
        ValueError: there is no such sampler.
    """
    return components.find("batch sampler", name, SAMPLERS, BatchSampler)


def share(clips: list[Clip], rank: int, workers: int) -> list[Clip]:
    """Return the clips of a global batch for worker ``rank``: an equal, contiguous slice."""
    size = len(clips) // workers
    return clips[rank * size : (rank + 1) * size]


def evenly_spaced(available: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` indices, or all, evenly spaced over ``range(available)`` with both its ends."""
    return np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)
