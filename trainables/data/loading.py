"""From packed tracklets to the batches of an epoch, on any number of workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.data.augmentation import Augmentation, AugmentationConfig
from trainables.data.batch import Batch
from trainables.data.packing import Pack
from trainables.data.sampling import BatchConfig, Clip, IdentitySampler, share


@dataclass(frozen=True)
class Part:
    """Tracklets of one pack, by index."""

    pack: Pack
    tracklets: NDArray[np.int64]

    @property
    def identities(self) -> NDArray[np.str_]:
        """Identity of every tracklet of the part."""
        return self.pack.identities[self.tracklets]

    @property
    def cameras(self) -> NDArray[np.str_]:
        """Camera of every tracklet of the part."""
        return self.pack.cameras[self.tracklets]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of every tracklet of the part."""
        return self.pack.lengths[self.tracklets]


def as_tensor(frames: NDArray[np.uint8], flow: NDArray[np.float32] | None) -> Tensor:
    """RGB ``[..., height, width, 3]`` and flow ``[..., height, width, 2]`` as one tensor.

    The result is float32 ``[..., 3 or 5, height, width]``: RGB in 0..1, flow in pixels per frame.
    """
    colours = torch.from_numpy(frames).movedim(-1, -3) / 255
    if flow is None:
        return colours
    return torch.cat([colours, torch.from_numpy(flow).movedim(-1, -3)], dim=-3)


class Modality:
    """Sequences, or images, of several parts as one numbered pool to draw clips from.

    Identities and cameras of different parts are different; they are numbered from 0 in sorted order.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        augmentation: AugmentationConfig,
        *,
        per_batch: int,
        per_identity: int,
        frames: int,
        seed: Sequence[int],
    ) -> None:
        self._items = [(part.pack, int(tracklet)) for part in parts for tracklet in part.tracklets]
        self._augmentation, self._seed = augmentation, (*seed, 1)
        identities, cameras = (
            np.concatenate([[f"{i}/{name}" for name in getattr(part, field)] for i, part in enumerate(parts)])
            for field in ("identities", "cameras")
        )
        names, self._identities = np.unique(identities, return_inverse=True)
        self._cameras = np.unique(cameras, return_inverse=True)[1]
        self.identities = len(names)
        self.sampler = IdentitySampler(
            np.arange(len(self._items)),
            identities,
            cameras,
            np.concatenate([part.lengths for part in parts]),
            per_batch=per_batch,
            per_identity=per_identity,
            frames=frames,
            seed=(*seed, 0),
        )

    def load(self, clips: Sequence[Clip], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames ``[clip, time, channel, height, width]``, identities ``[clip]`` and cameras ``[clip]``."""
        augmentation = Augmentation(self._augmentation, (*self._seed, epoch))
        frames, flows = [], []
        for clip in clips:
            pack, tracklet = self._items[clip.tracklet]
            flow = pack.flow(tracklet, clip.frames) if pack.has_flow else None
            disturbed, flow = augmentation(pack.frames(tracklet, clip.frames), flow, clip.number)
            frames.append(disturbed)
            flows += [] if flow is None else [flow]
        drawn = [clip.tracklet for clip in clips]
        shown = as_tensor(np.stack(frames), np.stack(flows) if flows else None)
        identities, cameras = self._identities[drawn], self._cameras[drawn]
        return shown, torch.from_numpy(identities), torch.from_numpy(cameras)


class Batches(Dataset[Batch]):
    """Worker ``rank``'s share of every global batch; the key is (epoch, batch), so any place can be gone to.

    An epoch shows every identity of the sequences ``batch.passes`` times. Raises ``DataError`` when there are
    fewer identities than a batch takes, or a batch does not divide into equal shares.
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
        self.sequences = Modality(
            sequences,
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
                augmentation,
                per_batch=batch.image_identities,
                per_identity=batch.images,
                frames=1,
                seed=(seed, 1),
            )
        self.per_epoch = batch.passes * self.sequences.sampler.batches_per_pass()
        self._planned: tuple[int, list[list[Clip]], list[list[Clip]]] | None = None

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """This worker's share of global batch ``key[1]`` of epoch ``key[0]``."""
        epoch, number = key
        if self._planned is None or self._planned[0] != epoch:
            images = self.images.sampler.epoch(epoch, self.per_epoch) if self.images else []
            self._planned = epoch, self.sequences.sampler.epoch(epoch, self.per_epoch), images
        _, sequences, images = self._planned
        own = share(sequences[number], self._rank, self._workers)
        frames, identities, cameras = self.sequences.load(own, epoch)
        if self.images is None:
            return Batch(frames, identities, cameras)
        own = share(images[number], self._rank, self._workers)
        stills, people, views = self.images.load(own, epoch)
        return Batch(frames, identities, cameras, stills[:, 0, :3], people, views)


class _Epoch(Sampler[tuple[int, int]]):
    """The keys of one epoch."""

    def __init__(self, batches: int) -> None:
        self.epoch, self._batches = 0, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, number) for number in range(self._batches))

    def __len__(self) -> int:
        return self._batches


class Loader:
    """Batches of one epoch after another; ``processes`` make them ahead of time, 0 makes them when asked."""

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
        """The batches of ``epoch``, on the device."""
        self._epoch.epoch = epoch
        for batch in self._loader:
            yield batch.to(self._device)
