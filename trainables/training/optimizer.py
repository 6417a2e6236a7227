"""The optimizer and its learning-rate schedule, which depends only on the step."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch


class OptimizerConfig(BaseModel):
    """Config of the optimizer and its learning-rate schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="decay of weights, not of biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; first-moment decay of adamw")
    clip: float = Field(5.0, gt=0, description="maximum L2 norm of the gradient")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up to the peak learning rate")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="decay after warm-up to 0, or none")

    def build(self, model: "torch.nn.Module") -> "torch.optim.Optimizer":
        """Build the optimizer of ``model``; parameters of fewer than two dimensions get no weight decay."""
        import torch

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(self.momentum, 0.999))

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Return the learning rate at the 0-based ``step`` of a training of ``epochs``."""
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
