"""Config of one training, as written under ``config:`` in a sweep file."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    model_validator,
)

from trainables import components
from trainables.data.augmentation import AugmentationConfig
from trainables.data.config import DataConfig
from trainables.data.sampling import BatchConfig
from trainables.evaluation.embedding import EvaluationConfig
from trainables.methods import METHODS, CrossModalityConfig, LossConfig, MethodConfig, find_method
from trainables.methods.alignment import AlignmentMethod
from trainables.methods.joint import JointMethod
from trainables.methods.pretrain import PretrainMethod
from trainables.network.embedder import NetworkConfig
from trainables.network.encoders import EncoderConfig
from trainables.network.pooling import PoolingName
from trainables.network.recurrence import RecurrenceConfig
from trainables.network.section import Section
from trainables.training.optimizer import OptimizerConfig


class AlignmentConfig(Section):
    """Config of one training: data, network, method and optimisation."""

    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, batches, augmentation and dropout")
    epochs: int = Field(12, ge=1, description="epochs, each followed by validation and a checkpoint")
    method: Annotated[str, components.component_name(lambda name: find_method(name))] = Field(
        "alignment", description=f"training method: {', '.join(METHODS)}, or package.module:Class"
    )
    method_options: Annotated[
        SerializeAsAny[components.Options],
        components.options_of("method", lambda name: find_method(name)),
    ] = Field(default_factory=components.Options, validate_default=True, description="options of the method")
    pretrain_epochs: int = Field(
        0, ge=0, description="number of first epochs that train on images alone; 0 for method sequence"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of training; auto: bfloat16 on GPUs that support it and on CPUs with AMX",
    )
    compile: bool = Field(
        False, description="torch.compile the frame encoder: takes about a minute; not worthwhile on CPUs"
    )
    data: DataConfig = Field(description="data sets and their roles")
    batch: BatchConfig = Field(default_factory=BatchConfig, description="composition of a global batch")
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig, description="augmentation of training sequences and images"
    )
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="frame encoder")
    rnn: RecurrenceConfig = Field(default_factory=RecurrenceConfig, description="recurrent cell")
    pooling: PoolingName = Field("mean", description="pooling over time")
    loss: LossConfig = Field(default_factory=LossConfig, description="identity losses of each modality")
    alignment: CrossModalityConfig = Field(
        default_factory=CrossModalityConfig, description="generation of pseudo sequences from still images"
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="optimisation")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="frames and views of a tracklet that count in scores"
    )

    @property
    def image_sets(self) -> tuple[str, ...]:
        """Sets of ``data.images``; none if the method does not use images."""
        return self.data.images if find_method(self.method).uses_images else ()

    @property
    def phases(self) -> tuple[int, int]:
        """Numbers of epochs on images alone and after them; each phase has its own learning-rate schedule."""
        return self.pretrain_epochs, self.epochs - self.pretrain_epochs

    @property
    def losses(self) -> set[str] | None:
        """Names of the losses that every epoch reports besides the total; None if they vary."""
        terms = find_method(self.method).terms(self.method_config)
        return terms & {"pseudo"} if terms is not None and self.pretrain_epochs else terms

    @property
    def network(self) -> NetworkConfig:
        """Config of the embedder: everything that determines its shape."""
        return NetworkConfig(
            encoder=self.encoder,
            rnn=self.rnn,
            pooling=self.pooling,
            height=self.data.height,
            width=self.data.width,
            flow=self.data.flow,
        )

    @property
    def method_config(self) -> MethodConfig:
        """Config of the method."""
        return MethodConfig(
            network=self.network, loss=self.loss, alignment=self.alignment, options=self.method_options
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        method = find_method(self.method)
        if method.uses_images and not self.data.images:
            raise ValueError(
                f"method {self.method} trains on images: name sets in data.images, or write method: sequence"
            )
        if issubclass(method, AlignmentMethod) and self.alignment.length > self.batch.frames:
            raise ValueError(
                f"alignment.length is {self.alignment.length}, but batch.frames is {self.batch.frames};"
                " expected a length of at most batch.frames"
            )
        if self.alignment.still_flow != "zero" and self.data.flow == "none":
            raise ValueError(
                f"alignment.still_flow is {self.alignment.still_flow}, but data.flow is none, so no frame has"
                " optical flow; write data.flow: dis, or alignment.still_flow: zero"
            )
        if self.alignment.motion == "borrowed" and (
            self.data.flow == "none" or self.alignment.level != "pixel" or not self.alignment.mgm
        ):
            raise ValueError(
                "alignment.motion is borrowed, which moves frames by the flow of sequences in place of MGM;"
                " it needs data.flow: dis, alignment.level: pixel and alignment.mgm: true"
            )
        generated = issubclass(method, AlignmentMethod) and self.alignment.level == "pixel"
        if self.alignment.still_flow != "zero" and generated:
            raise ValueError(
                f"alignment.still_flow is {self.alignment.still_flow}, but alignment.level is pixel, which"
                " generates the flow; write alignment.still_flow: zero"
            )
        fewest = 1 if issubclass(method, PretrainMethod) else 0
        most = self.epochs - 1 if issubclass(method, JointMethod) else 0
        if not fewest <= self.pretrain_epochs <= most:
            expected = f"{fewest} to {most}" if fewest < most else str(most)
            raise ValueError(
                f"pretrain_epochs is {self.pretrain_epochs}; expected {expected} for method {self.method}"
                f" with {self.epochs} epochs"
            )
        if self.pretrain_epochs and self.alignment.weights.pseudo == 0:
            raise ValueError(
                "alignment.weights.pseudo is 0, but the pretrain_epochs train with this loss alone; raise it"
            )
        if self.evaluation.crops > 1 and self.augmentation.crop == 0:
            raise ValueError(
                f"evaluation.crops is {self.evaluation.crops}, but augmentation.crop is 0, so all crops would"
                " be the same; raise augmentation.crop, or write evaluation.crops: 1"
            )
        shortest = min(epochs for epochs in self.phases if epochs)
        if self.optimizer.warmup_epochs >= shortest:
            raise ValueError(
                f"optimizer.warmup_epochs is {self.optimizer.warmup_epochs}; expected at most {shortest - 1}"
                f" for a phase of {shortest} epochs"
            )
        return self
