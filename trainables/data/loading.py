"""Loading of packed tracklets as the batches of an epoch, for any number of workers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.data.augmentation import AugmentationConfig, build_augmentation
from trainables.data.batch import Batch
from trainables.data.parts import Part
from trainables.data.sampling import BatchConfig, Clip, find_sampler, share

_WHITE = np.float32(255)


def as_tensor(frames: NDArray[np.uint8], flow: NDArray[np.float32] | None) -> Tensor:
    """Join RGB ``[..., height, width, 3]`` and flow ``[..., height, width, 2]`` into one tensor.

    The result is float32 ``[..., 3 or 5, height, width]``: RGB in 0..1, flow in pixels per frame.
    """
    return _join(np.divide(frames, _WHITE, dtype=np.float32), flow)


def _join(colours: NDArray[np.float32], flow: NDArray[np.float32] | None) -> Tensor:
    """Join colours in 0..1 and flow as `as_tensor` does."""
    arrays = (colours,) if flow is None else (colours, flow)
    tensors = [torch.from_numpy(array).movedim(-1, -3) for array in arrays]
    return tensors[0] if flow is None else torch.cat(tensors, dim=-3)


class Modality:
    """Pool of the sequences, or of the images, of several parts, from which clips are drawn.

    Identities and cameras of different parts are distinct. They are numbered from 0 in sorted order.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        batch: BatchConfig,
        augmentation: AugmentationConfig,
        *,
        per_batch: int,
        per_identity: int,
        frames: int,
        seed: Sequence[int],
    ) -> None:
        self._items = [(part.pack, int(tracklet)) for part in parts for tracklet in part.tracklets]
        self._augmentation, self._seed, self._frames = augmentation, (*seed, 1), frames
        identities, cameras = (
            np.concatenate([[f"{i}/{name}" for name in getattr(part, field)] for i, part in enumerate(parts)])
            for field in ("identities", "cameras")
        )
        names, self._identities = np.unique(identities, return_inverse=True)
        self._cameras = np.unique(cameras, return_inverse=True)[1]
        self.identities = len(names)
        self.sampler = find_sampler(batch.sampler)(
            np.arange(len(self._items)),
            identities,
            cameras,
            np.concatenate([part.lengths for part in parts]),
            per_batch=per_batch,
            per_identity=per_identity,
            frames=frames,
            seed=(*seed, 0),
            options=batch.sampler_options,
        )

    def load(self, clips: Sequence[Clip], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Load frames ``[clip, time, channel, height, width]``, identities and cameras ``[clip]``."""
        if any(len(clip.frames) != self._frames for clip in clips):
            lengths = sorted({len(clip.frames) for clip in clips})
            raise TypeError(f"the batch sampler returns clips of {lengths} frames, not {self._frames}")
        augmentation = build_augmentation(self._augmentation, (*self._seed, epoch))
        pack = self._items[0][0]
        shape = (len(clips), self._frames, pack.height, pack.width)
        colours = np.empty((*shape, 3), np.float32)
        flows = np.empty((*shape, 2), np.float32) if pack.has_flow else None
        for position, clip in enumerate(clips):
            pack, tracklet = self._items[clip.tracklet]
            flow = pack.flow(tracklet, clip.frames) if pack.has_flow else None
            frames = pack.frames(tracklet, clip.frames)
            augmented = augmentation(frames, flow, clip.number)
            _check_unchanged_shapes((frames, flow), augmented)
            # A division at once into the batch saves a copy of all frames in bytes.
            np.divide(augmented[0], _WHITE, out=colours[position])
            if flows is not None:
                flows[position] = augmented[1]
        tracklets = [clip.tracklet for clip in clips]
        identities, cameras = self._identities[tracklets], self._cameras[tracklets]
        return _join(colours, flows), torch.from_numpy(identities), torch.from_numpy(cameras)


def _check_unchanged_shapes(
    before: Sequence[NDArray[Any] | None], after: Sequence[NDArray[Any] | None]
) -> None:
    """Raise TypeError for an augmentation that changes shapes or types."""
    expected, actual = (
        [array if array is None else (array.shape, array.dtype) for array in arrays]
        for arrays in (before, after)
    )
    if actual != expected:
        raise TypeError(
            f"the augmentation returns frames and flow of shapes and types {actual}, not {expected}"
        )


class Batches(Dataset[Batch]):
    """Data set of worker ``rank``'s share of every global batch, with the key (epoch, batch).

    An epoch shows every identity of the sequences ``batch.passes`` times.

    Raises:
        DataError: a batch needs more identities than there are, or does not divide into equal shares.
    """

    def __init__(
        self,
        sequences: Sequence[Part],
        images: Sequence[Part],
        batch: BatchConfig,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        rank: int,
        workers: int,
    ) -> None:
        batch.check_shares(workers, images=bool(images))
        self._rank, self._workers = rank, workers
        self.frames = batch.frames
        self.sequences = Modality(
            sequences,
            batch,
            augmentation,
            per_batch=batch.identities,
            per_identity=batch.sequences,
            frames=batch.frames,
            seed=(seed, 0),
        )
        self.images = None
        if images:
            self.images = Modality(
                images,
                batch,
                augmentation,
                per_batch=batch.image_identities,
                per_identity=batch.images,
                frames=1,
                seed=(seed, 1),
            )
        self.per_epoch = batch.passes * self.sequences.sampler.batches_per_pass()
        self._plan: tuple[int, list[list[Clip]], list[list[Clip]]] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Load this worker's share of global batch ``key[1]`` of epoch ``key[0]``."""
        epoch, number = key
        if self._plan is None or self._plan[0] != epoch:
            images = self.images.sampler.epoch(epoch, self.per_epoch) if self.images else []
            self._plan = epoch, self.sequences.sampler.epoch(epoch, self.per_epoch), images
        _, sequences, images = self._plan
        own = share(sequences[number], self._rank, self._workers)
        frames, identities, cameras = self.sequences.load(own, epoch)
        if self.images is None:
            return Batch(frames, identities, cameras)
        own = share(images[number], self._rank, self._workers)
        stills, image_identities, image_cameras = self.images.load(own, epoch)
        return Batch(frames, identities, cameras, stills[:, 0, :3], image_identities, image_cameras)


class _Epoch(Sampler[tuple[int, int]]):
    """Sampler of the keys of one epoch."""

    def __init__(self, batches: int) -> None:
        self.epoch, self._batches = 0, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, number) for number in range(self._batches))

    def __len__(self) -> int:
        return self._batches


class Loader:
    """Loader of the batches of successive epochs.

    ``processes`` subprocesses load batches in advance; with 0, the caller's process loads them on demand.
    """

    def __init__(self, batches: Batches, device: torch.device, processes: int) -> None:
        self._epoch, self._device = _Epoch(batches.per_epoch), device
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=self._epoch,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="forkserver" if processes else None,
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` on the device."""
        self._epoch.epoch = epoch
        for batch in self._loader:
            yield batch.to(self._device)
