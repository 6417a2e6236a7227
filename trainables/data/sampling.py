"""Which tracklets and frames make up each batch: identity-balanced, and a function of (seed, epoch) alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trainables.data.tracklet import DataError


class BatchConfig(BaseModel):
    """Size of one global batch: shared out over the workers, so the optimisation does not depend on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identities: int = Field(8, ge=2, description="identities whose sequences make up a batch (P)")
    sequences: int = Field(2, ge=2, description="sequences per identity, from different cameras (K)")
    frames: int = Field(8, ge=1, description="consecutive frames per sequence (T)")
    image_identities: int = Field(16, ge=2, description="identities whose images make up a batch")
    images: int = Field(2, ge=2, description="images per identity, from different cameras")
    passes: int = Field(1, ge=1, le=1000, description="times an epoch shows every identity of the sequences")

    def check_shares(self, workers: int, *, images: bool) -> None:
        """Raise ``DataError`` when a batch does not divide into equal shares for the workers."""
        sizes = {"identities x sequences": self.identities * self.sequences}
        if images:
            sizes["image_identities x images"] = self.image_identities * self.images
        for field, size in sizes.items():
            if size % workers:
                raise DataError(f"batch.{field} is {size}: no equal shares for {workers} workers")


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of one tracklet, in the order in which they are shown."""

    tracklet: int
    frames: NDArray[np.int64]
    number: int
    """Position in the epoch over all workers: names the random stream of its augmentation."""


class IdentitySampler:
    """P x K batches: P identities, K clips each, with every camera of an identity taken before any repeats.

    ``identities``, ``cameras`` and ``lengths`` (frames) describe the ``tracklets`` that may be drawn.
    One pass shows every identity once, in random order; the batch that a pass does not fill is filled from
    the next. No identity stands twice in a batch.

    Raises ``DataError`` when there are fewer identities than ``per_batch``.
    """

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
    ) -> None:
        by_identity: dict[str, dict[str, list[int]]] = {}
        for position, (identity, camera) in enumerate(zip(identities, cameras, strict=True)):
            by_identity.setdefault(str(identity), {}).setdefault(str(camera), []).append(position)
        if len(by_identity) < per_batch:
            raise DataError(
                f"a batch of {per_batch} identities needs as many to train on: there are {len(by_identity)}"
            )
        self._views = [list(by_identity[identity].values()) for identity in sorted(by_identity)]
        self._tracklets = np.asarray(tracklets)
        self._lengths = lengths
        self._per_batch, self._per_identity, self._frames = per_batch, per_identity, frames
        self._seed = tuple(seed)

    def batches_per_pass(self) -> int:
        """Batches that show every identity at least once."""
        return -(-len(self._views) // self._per_batch)

    def epoch(self, epoch: int, batches: int) -> list[list[Clip]]:
        """The global batches of ``epoch``, each ``per_batch * per_identity`` clips, identity by identity."""
        rng = np.random.default_rng([*self._seed, epoch])
        stream: list[int] = []
        plan: list[list[Clip]] = []
        for batch in range(batches):
            chosen: list[int] = []
            while len(chosen) < self._per_batch:
                fresh = next((identity for identity in stream if identity not in chosen), None)
                if fresh is None:
                    stream += rng.permutation(len(self._views)).tolist()
                else:
                    chosen.append(fresh)
                    stream.remove(fresh)
            clips: list[Clip] = []
            for identity in chosen:
                for position in self._draw(identity, rng):
                    number = batch * self._per_batch * self._per_identity + len(clips)
                    window = self._window(int(self._lengths[position]), rng)
                    clips.append(Clip(int(self._tracklets[position]), window, number))
            plan.append(clips)
        return plan

    def _draw(self, identity: int, rng: np.random.Generator) -> list[int]:
        """K tracklets of ``identity``, round after round over its cameras; they repeat when they run out."""
        drawn: list[int] = []
        while len(drawn) < self._per_identity:
            left = [rng.permutation(tracklets).tolist() for tracklets in self._views[identity]]
            while left and len(drawn) < self._per_identity:
                for view in rng.permutation(len(left)):
                    drawn.append(left[view].pop())
                left = [tracklets for tracklets in left if tracklets]
        return drawn[: self._per_identity]

    def _window(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """T consecutive frames at a random start; a shorter tracklet is played round and round."""
        start = rng.integers(max(length - self._frames, 0) + 1)
        return np.asarray((start + np.arange(self._frames)) % length)


def share(clips: list[Clip], rank: int, workers: int) -> list[Clip]:
    """The clips of a global batch that worker ``rank`` computes: an equal, contiguous slice."""
    size = len(clips) // workers
    return clips[rank * size : (rank + 1) * size]
