"""The optimizer and its learning-rate schedule, which depends only on the step."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainables.network.section import Section

if TYPE_CHECKING:
    import torch

    from trainables.methods import Method

FACTOR = "factor"
"""Key of a group of parameters: what their learning rate is multiplied by; 1 where it is missing."""


class OptimizerConfig(Section):
    """Config of the optimizer and its learning-rate schedule.

    McLaughlin et al. (CVPR 2016) train with SGD at a constant learning rate of 0.001. Gao and Nevatia
    (arXiv:1805.02104) use Adam at 0.0003 and the schedule ``step``, and torchreid offers a smaller rate for
    pre-trained encoders (``base_lr_mult``). Our defaults are AdamW with a cosine.
    """

    name: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="AdamW, Adam with L2 regularisation, or SGD with momentum"
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    encoder_factor: float = Field(
        1.0,
        ge=0,
        le=100,
        description="factor of the learning rate for the frame encoder, for example 0.1 with encoder.weights;"
        " 0 freezes it",
    )
    weight_decay: float = Field(5e-4, ge=0, le=1, description="decay of weights, not of biases and norms")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of sgd; first-moment decay of adamw and adam"
    )
    clip: float = Field(5.0, gt=0, description="maximum L2 norm of the gradient")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up to the peak learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="after warm-up: cosine to 0, steps of step_factor, or constant"
    )
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5,), min_length=1, description="with step: fractions of the training after which the rate drops"
    )
    step_factor: float = Field(
        0.1, gt=0, lt=1, description="with step: what the rate is multiplied by at each of step_at"
    )

    def build(self, method: "Method") -> "torch.optim.Optimizer":
        """Build the optimizer of ``method``; parameters of fewer than two dimensions get no weight decay."""
        import torch

        encoder = set(method.embedder.encoder.parameters()) if self.encoder_factor != 1 else set()
        groups = []
        for factor in (1.0, self.encoder_factor) if encoder else (1.0,):
            parameters = [
                parameter
                for parameter in method.parameters()
                if parameter.requires_grad and (parameter in encoder) == (factor != 1)
            ]
            groups += [
                {
                    "params": [p for p in parameters if p.ndim >= 2],
                    "weight_decay": self.weight_decay,
                    FACTOR: factor,
                },
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, FACTOR: factor},
            ]
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.learning_rate, betas=(self.momentum, 0.999))

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Return the learning rate at the 0-based ``step`` of a training of ``epochs``."""
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            drops = sum(step >= fraction * total for fraction in self.step_at)
            return self.learning_rate * self.step_factor**drops
        return self.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
