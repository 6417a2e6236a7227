"""What every training method offers to the loop."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from trainables.data.batch import Batch
from trainables.methods.alignment_network import CrossModalityConfig
from trainables.methods.losses import LossConfig, ModalityLoss
from trainables.network.embedder import NetworkConfig, SequenceEmbedder


class MethodConfig(BaseModel):
    """Everything that a method is made from, beside the numbers of identities."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkConfig = Field(default_factory=NetworkConfig, description="the network that is trained")
    loss: LossConfig = Field(default_factory=LossConfig, description="identity losses of either modality")
    alignment: CrossModalityConfig = Field(
        default_factory=CrossModalityConfig, description="from still images to pseudo sequences"
    )


class Method(nn.Module, ABC):
    """The embedder with all that only training needs; the loop wraps it in DistributedDataParallel.

    ``sequences`` and ``images`` are the numbers of training identities of either modality. Every parameter
    takes part in every step: a module whose terms all weigh 0 is never made, and what a phase leaves out is
    `idle`.
    """

    uses_images: ClassVar[bool] = True
    """Whether batches hold still images."""
    phase: int = 1
    """0 while images are trained on alone, 1 afterwards; the loop sets it before every step."""
    progress: float = 0.0
    """How much of the phase is done, 0..1; the loop sets it before every step."""

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__()
        self.config = config
        self.embedder = SequenceEmbedder(config.network)
        self.video = ModalityLoss(self.embedder.dimension, sequences, config.loss)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str] | None:
        """Names of the losses that every step gives beside ``loss``, after images alone; None: not known.

        Others are refused as objectives, so a subclass that gives other losses says so here.
        """
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalar losses of the global batch, unweighted, and their weighted total as ``loss``.

        ``batch`` is this worker's share, of the same size on every worker. Every worker returns the same
        values, and the mean of their gradients is the gradient on the global batch.
        """

    def frames(self, batch: Batch) -> int:
        """Frames of ``batch`` that a step of this phase trains on."""
        images = 0 if batch.images is None else len(batch.images)
        return images + (batch.sequences.shape[:2].numel() if self.phase else 0)


def idle(module: nn.Module) -> Tensor:
    """A 0 that depends on every parameter of ``module``: data parallelism wants a gradient for each."""
    zeros = [0 * parameter.sum() for parameter in module.parameters() if parameter.requires_grad]
    return torch.stack(zeros).sum()
