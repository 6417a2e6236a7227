"""The whole config of one training, as written under ``config:`` in a sweep file."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainables.data.augmentation import AugmentationConfig
from trainables.data.sampling import BatchConfig
from trainables.data.sources import DataConfig
from trainables.evaluation.embedding import EvaluationConfig
from trainables.methods import METHODS, CrossModalityConfig, LossConfig, MethodConfig, find_method
from trainables.methods.alignment import AlignmentMethod
from trainables.methods.joint import JointMethod
from trainables.methods.pretrain import PretrainMethod
from trainables.network.embedder import NetworkConfig
from trainables.network.encoders import EncoderConfig
from trainables.network.pooling import PoolingName
from trainables.network.recurrence import RecurrenceConfig
from trainables.training.optimizer import OptimizerConfig


class AlignmentConfig(BaseModel):
    """One training: data, network, method, optimisation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, batches, augmentation and dropout")
    epochs: int = Field(12, ge=1, description="epochs, each followed by validation and a checkpoint")
    method: str = Field(
        "alignment", description=f"training method: {', '.join(METHODS)}, or package.module:Class"
    )
    pretrain_epochs: int = Field(
        0, ge=0, description="how many of the epochs, the first, are on images alone; not in method sequence"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of training; auto: bfloat16 on GPUs, float32 elsewhere"
    )
    compile: bool = Field(
        False, description="torch.compile for the frame encoder: a minute at the start; does not pay on CPUs"
    )
    data: DataConfig = Field(description="data sets and what each is for")
    batch: BatchConfig = Field(default_factory=BatchConfig, description="one global batch")
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig, description="disturbance of training sequences and images"
    )
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="frame encoder")
    rnn: RecurrenceConfig = Field(default_factory=RecurrenceConfig, description="recurrent cell")
    pooling: PoolingName = Field("mean", description="pooling over time")
    loss: LossConfig = Field(default_factory=LossConfig, description="identity losses of either modality")
    alignment: CrossModalityConfig = Field(
        default_factory=CrossModalityConfig, description="from still images to pseudo sequences"
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="optimisation")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="how tracklets are shown when a target is scored"
    )

    @property
    def trains_on_images(self) -> bool:
        """Whether the method uses the sets of ``data.images``."""
        return find_method(self.method).uses_images

    @property
    def phases(self) -> tuple[int, int]:
        """Epochs on images alone, and those after; the learning rate has its schedule in either."""
        return self.pretrain_epochs, self.epochs - self.pretrain_epochs

    @property
    def losses(self) -> set[str] | None:
        """Names of the losses that every epoch reports beside the total; None where they are not known."""
        terms = find_method(self.method).terms(self.of_method)
        return terms & {"pseudo"} if terms is not None and self.pretrain_epochs else terms

    @property
    def network(self) -> NetworkConfig:
        """Everything that fixes the shape of the embedder."""
        return NetworkConfig(
            encoder=self.encoder,
            rnn=self.rnn,
            pooling=self.pooling,
            height=self.data.height,
            width=self.data.width,
            flow=self.data.flow,
        )

    @property
    def of_method(self) -> MethodConfig:
        """What builds the method."""
        return MethodConfig(network=self.network, loss=self.loss, alignment=self.alignment)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        find_method(method)
        return method

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.trains_on_images and not self.data.images:
            raise ValueError(
                f"method {self.method} trains on images: name sets in data.images, or write method: sequence"
            )
        method = find_method(self.method)
        if issubclass(method, AlignmentMethod) and self.alignment.length > self.batch.frames:
            raise ValueError(
                f"alignment.length is {self.alignment.length}, which needs as many frames of real sequences: "
                f"batch.frames is {self.batch.frames}"
            )
        fewest = 1 if issubclass(method, PretrainMethod) else 0
        most = self.epochs - 1 if issubclass(method, JointMethod) else 0
        if not fewest <= self.pretrain_epochs <= most:
            raise ValueError(
                f"pretrain_epochs is {self.pretrain_epochs}: of {self.epochs} epochs, method {self.method} "
                f"wants at least {fewest} and at most {most} on images alone"
            )
        if self.pretrain_epochs and self.alignment.weights.pseudo == 0:
            raise ValueError("alignment.weights.pseudo is 0, but pretrain_epochs are for images alone")
        if self.evaluation.crops > 1 and self.augmentation.crop == 0:
            raise ValueError(
                f"evaluation.crops is {self.evaluation.crops}, but augmentation.crop is 0 and windows move as"
                " far as those of training; raise it, or write evaluation.crops: 1"
            )
        shortest = min(epochs for epochs in self.phases if epochs)
        if self.optimizer.warmup_epochs >= shortest:
            raise ValueError(
                f"optimizer.warmup_epochs is {self.optimizer.warmup_epochs}: at most {shortest - 1} for "
                f"a training of {shortest} epochs"
            )
        return self
