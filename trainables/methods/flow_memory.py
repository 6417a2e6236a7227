"""Optical flow of training sequences, remembered for still images. All of it is our interpretation."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.methods.gather import gather
from trainables.network.embedder import NetworkConfig

RGB = 3
"""Channels of a frame without optical flow."""


class FlowMemory(nn.Module, ABC):
    """Base class of what remembers the optical flow of the sequences seen in training.

    Flow is 0 before any sequence was seen. All workers keep the same state, so that a checkpoint holds it.
    """

    @torch.no_grad()
    def observe(self, flow: Tensor) -> None:
        """Note the flow of a worker's share of a batch, ``[sequence, time, 2, height, width]``."""
        self._observe(flow)

    @abstractmethod
    def draw(self, images: int) -> Tensor:
        """Return the flow of consecutive frames for each image, ``[image, time, 2, height, width]``."""

    @abstractmethod
    def _observe(self, flow: Tensor) -> None: ...


class MeanFlow(FlowMemory):
    """The mean flow of the training sequences at each point, for one frame."""

    mean: Tensor
    batches: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, height, width))
        self.register_buffer("batches", torch.zeros(()))

    def draw(self, images: int) -> Tensor:
        """Return the mean for each image; see `FlowMemory`."""
        return self.mean.expand(images, 1, -1, -1, -1)

    def _observe(self, flow: Tensor) -> None:
        mean = gather(flow.flatten(0, 1).mean(dim=0, keepdim=True)).mean(dim=0)
        self.batches += 1
        self.mean += (mean - self.mean) / self.batches


class FlowBank(FlowMemory):
    """The flow of ``time`` frames in the middle of each sequence of the last batches.

    People are cropped alike, so the flow of one fits another one roughly: it has the distribution of real
    flow, but does not depend on the image that it is drawn for. It is that of augmented sequences, with the
    boxes that ``augmentation.erase`` empties. Batches of the phase on images alone count as well.

    ``bank`` is float32 ``[SIZE, time, 2, height, width]``: 3 MB at 64 x 48 for two frames, 59 MB at 128 x 64
    for 14. It is part of every checkpoint.
    """

    SIZE = 64
    """Sequences whose flow is kept."""

    bank: Tensor

    def __init__(self, time: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(self.SIZE, time, 2, height, width))

    def draw(self, images: int) -> Tensor:
        """Return the flow of a random sequence for each image; see `FlowMemory`."""
        return self.bank[torch.randint(self.SIZE, (images,), device=self.bank.device)]

    def _observe(self, flow: Tensor) -> None:
        time = self.bank.shape[1]
        start = (flow.shape[1] - time) // 2
        new = gather(flow[:, start : start + time])[-self.SIZE :]
        self.bank.copy_(torch.cat([self.bank[len(new) :], new]))


def build_still_flow(kind: Literal["zero", "mean", "borrowed"], network: NetworkConfig) -> FlowMemory | None:
    """Build what ``alignment.still_flow`` names; None for ``zero``, and for a network without flow."""
    if kind == "zero" or network.channels == RGB:
        return None
    if kind == "mean":
        return MeanFlow(network.height, network.width)
    return FlowBank(1, network.height, network.width)


def observe_flow(method: nn.Module, sequences: Tensor) -> None:
    """Show the flow of ``[sequence, time, 5, height, width]`` to every flow memory in ``method``."""
    for module in method.modules():
        if isinstance(module, FlowMemory):
            module.observe(sequences[:, :, RGB:])
