"""Base class and config of training methods."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from trainables import components
from trainables.data.batch import Batch
from trainables.methods.alignment_network import CrossModalityConfig
from trainables.methods.losses import LossConfig, ModalityLoss
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.section import Section


class MethodConfig(Section):
    """Config of a method: its network, losses, alignment and options."""

    network: NetworkConfig = Field(default_factory=NetworkConfig, description="the network to train")
    loss: LossConfig = Field(default_factory=LossConfig, description="identity losses of each modality")
    alignment: CrossModalityConfig = Field(
        default_factory=CrossModalityConfig, description="generation of pseudo sequences from still images"
    )
    options: SerializeAsAny[components.Options] = Field(
        default_factory=components.Options, description="options of the method"
    )


class Method(nn.Module, ABC):
    """Embedder together with its losses and whatever else only training needs.

    A config names a method as ``method`` and its options as ``method_options``.
    `trainables.testing.check_method` checks a method.

    The training loop wraps a method in DistributedDataParallel, so every step must use every parameter: do
    not build a module whose terms all weigh 0, and pass the modules that a phase does not use to `idle`.

    Args:
        config: config of the method; ``config.options`` is an instance of ``Options``.
        sequences: number of training identities of the sequences.
        images: number of training identities of the images; 0 without images.
    """

    Options: ClassVar[type[components.Options]] = components.Options
    """Model of ``method_options``."""
    possible_terms: ClassVar[tuple[str, ...]] = ()
    """Names of all losses that a step may return besides ``loss``, under any config."""
    uses_images: ClassVar[bool] = True
    """Whether batches contain still images."""
    phase: int = 1
    """0 while training on images alone, 1 afterwards; the training loop sets it before every step."""
    progress: float = 0.0
    """Completed fraction of the phase, 0..1; the training loop sets it before every step."""

    def __init__(self, config: MethodConfig, sequences: int, images: int) -> None:
        super().__init__()
        self.config = config
        self.embedder = SequenceEmbedder(config.network)
        self.video = ModalityLoss(self.embedder.dimension, sequences, config.loss)

    @classmethod
    def terms(cls, config: MethodConfig) -> set[str] | None:
        """Return the names of the losses that every step of phase 1 reports besides ``loss``.

        No other loss is accepted as an objective, so a subclass that reports more must name them here. None
        means that the losses vary from step to step; then every objective is accepted.
        """
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return unweighted scalar losses of the global batch, and their weighted total as ``loss``.

        ``batch`` is this worker's share; all shares have the same size. Every worker returns the same values,
        and the mean of the workers' gradients is the gradient on the global batch.
        """

    def frames(self, batch: Batch) -> int:
        """Return the number of frames in ``batch`` that a step of this phase trains on."""
        images = 0 if batch.images is None else len(batch.images)
        return images + (batch.sequences.shape[:2].numel() if self.phase else 0)

    def take_parts(self) -> dict[str, Tensor]:
        """Return the parts of each `ModalityLoss` in the last step, such as ``video/verification``, once."""
        found: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, ModalityLoss):
                found |= {f"{name}/{part}": value for part, value in module.parts.items()}
                module.parts = {}
        return found


def idle(module: nn.Module) -> Tensor:
    """Return a zero-valued term that depends on every parameter, so that DDP finds a gradient for each."""
    zeros = [0 * parameter.sum() for parameter in module.parameters() if parameter.requires_grad]
    return torch.stack(zeros).sum()
