"""Training methods: a new one is one class in one file, listed in ``METHODS``."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trainables.methods.alignment import AlignmentMethod, CrossModalityConfig
from trainables.methods.batch import Batch
from trainables.methods.losses import LossConfig
from trainables.methods.method import Method
from trainables.methods.sequence import SequenceMethod
from trainables.network.embedder import NetworkConfig
from trainables.network.normalisation import convert_batch_norm

__all__ = [
    "METHODS",
    "Batch",
    "CrossModalityConfig",
    "LossConfig",
    "Method",
    "MethodConfig",
    "MethodName",
    "build_method",
]

MethodName = Literal["sequence", "alignment"]


class MethodConfig(BaseModel):
    """What `build_method` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: MethodName = Field("alignment", description="training method")
    network: NetworkConfig = Field(default_factory=NetworkConfig, description="the network that is trained")
    loss: LossConfig = Field(default_factory=LossConfig, description="identity losses of either modality")
    alignment: CrossModalityConfig = Field(
        default_factory=CrossModalityConfig, description="from still images to pseudo sequences"
    )


METHODS: dict[MethodName, Callable[[MethodConfig, int, int], Method]] = {
    "sequence": lambda config, sequences, _: SequenceMethod(config.network, config.loss, sequences),
    "alignment": lambda config, sequences, images: AlignmentMethod(
        config.network, config.loss, config.alignment, sequences, images
    ),
}


def build_method(config: MethodConfig, identities_sequences: int, identities_images: int) -> Method:
    """Build the method with random weights; its batch norm counts the batch of all workers."""
    method = METHODS[config.name](config, identities_sequences, identities_images)
    convert_batch_norm(method)
    return method
