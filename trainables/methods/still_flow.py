"""Optical flow of still images, for networks that take flow. All of it is our interpretation."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.methods.gather import gather
from trainables.network.embedder import NetworkConfig

RGB = 3
"""Channels of a frame without optical flow."""


class StillFlow(nn.Module, ABC):
    """Base class of what gives still images optical flow, learned from the sequences seen in training.

    It is 0 before any sequence was seen. All workers keep the same state, so that a checkpoint holds it.
    """

    @torch.no_grad()
    def observe(self, flow: Tensor) -> None:
        """Note the flow of a worker's share of a batch, ``[sequence, time, 2, height, width]``."""
        self._observe(flow)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[image, 3, height, width]`` to ``[image, 5, height, width]``."""
        return torch.cat([images, self._of(len(images)).to(images.dtype)], dim=1)

    @abstractmethod
    def _observe(self, flow: Tensor) -> None: ...

    @abstractmethod
    def _of(self, images: int) -> Tensor:
        """Return the flow of a number of images, ``[image, 2, height, width]``."""


class MeanFlow(StillFlow):
    """The mean flow of the training sequences at each point."""

    mean: Tensor
    batches: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, height, width))
        self.register_buffer("batches", torch.zeros(()))

    def _observe(self, flow: Tensor) -> None:
        mean = gather(flow.flatten(0, 1).mean(dim=0, keepdim=True)).mean(dim=0)
        self.batches += 1
        self.mean += (mean - self.mean) / self.batches

    def _of(self, images: int) -> Tensor:
        return self.mean.expand(images, -1, -1, -1)


class BorrowedFlow(StillFlow):
    """For each image, the flow of a random sequence of the last batches, in the middle of the sequence.

    People are cropped alike, so the flow of one fits another one roughly: it has the distribution of real
    flow, but does not depend on the image.
    """

    SIZE = 64
    """Sequences whose flow is kept."""

    bank: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(self.SIZE, 2, height, width))

    def _observe(self, flow: Tensor) -> None:
        new = gather(flow[:, flow.shape[1] // 2])[-self.SIZE :]
        self.bank.copy_(torch.cat([self.bank[len(new) :], new]))

    def _of(self, images: int) -> Tensor:
        chosen = torch.randint(self.SIZE, (images,), device=self.bank.device)
        return self.bank[chosen]


def build_still_flow(kind: Literal["zero", "mean", "borrowed"], network: NetworkConfig) -> StillFlow | None:
    """Build what ``alignment.still_flow`` names; None for ``zero``, and for a network without flow."""
    if kind == "zero" or network.channels == RGB:
        return None
    return {"mean": MeanFlow, "borrowed": BorrowedFlow}[kind](network.height, network.width)
