"""The smallest trial that is worth the name: a linear layer, a few epochs, a checkpoint after each."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class TinyConfig(BaseModel):
    """A learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    epochs: int = Field(3, ge=1)
    rate: float = Field(0.1, gt=0)


class TinyTrainable:
    """Trains ``Linear(8, 1)`` with SGD; without training, if ``epochs`` is 1."""

    Config = TinyConfig
    InputError = ValueError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"loss": "min", "begin": "min"}
    throughput: str | None = None

    def prepare(self, config: TinyConfig) -> list[Any]:
        """Return no data sets."""
        return []

    def check(self, config: TinyConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Accept every config."""

    def fit(self, config: TinyConfig, context: Any) -> None:
        """Train, and report when it began (Unix time)."""
        begin = time.time()
        if config.epochs == 1:
            context.report({"epoch": 1, "loss": config.rate, "begin": begin}, lambda folder: None)
            return
        import torch

        model = torch.nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.rate)
        for epoch in range(1, config.epochs + 1):
            inputs = torch.randn(32, 8)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            context.report(
                {"epoch": epoch, "loss": float(loss.detach()), "begin": begin},
                lambda folder: torch.save(model.state_dict(), folder / "model.pt"),
            )

    def evaluate(self, config: TinyConfig, checkpoint: Path) -> dict[str, float]:
        """Return no scores."""
        return {}

    def export(self, config: TinyConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Export nothing: no sweep of the benchmarks registers a model."""
        raise NotImplementedError
