"""A trainable whose result depends on the state of its process, and which leaves that state changed."""

import os
import random
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class MessyConfig(BaseModel):
    """What a trial leaves behind."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    epochs: int = Field(2, ge=1)
    x: float = 0.0
    fault: Literal["none", "crash", "memory", "thread", "rank1"] = "none"


class MessyTrainable:
    """Adds up what it finds in its process: random numbers, threads, precision, environment, filters."""

    Config = MessyConfig
    InputError = ValueError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"score": "max", "pid": "max"}
    throughput: str | None = None

    def prepare(self, config: MessyConfig) -> list[Any]:
        """Return no data sets."""
        return []

    def check(self, config: MessyConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Accept every config."""

    def fit(self, config: MessyConfig, context: Any) -> None:
        """Report the sum, and then change the process."""
        import numpy as np
        import torch

        score = config.x + random.random() + float(np.random.random()) + float(torch.rand(()))
        score += (
            10 * torch.get_num_threads() + 100 * int("MESSY" in os.environ) + 1000 * len(warnings.filters)
        )
        score += 1e4 * int(torch.get_default_dtype() != torch.float32) + 1e5 * int(Path.cwd() == Path("/"))
        score += float((torch.linspace(0, 1, 1000) * torch.rand(1000)).sum())
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        os.environ["MESSY"] = "1"
        os.chdir("/")
        warnings.simplefilter("ignore")
        for epoch in range(1, config.epochs + 1):
            context.report(
                {"epoch": epoch, "score": score + random.random(), "pid": os.getpid()},
                lambda folder: (folder / "state").write_text("") and None,
            )
            if config.fault == "crash" or (config.fault == "rank1" and context.rank == 1):
                raise RuntimeError("crashed as asked")
            if config.fault == "memory":
                raise MemoryError("no memory left, as asked")
            if config.fault == "thread" and epoch == 1:
                threading.Thread(target=time.sleep, args=(3600,), name="left behind", daemon=True).start()

    def evaluate(self, config: MessyConfig, checkpoint: Path) -> dict[str, float]:
        """Return no scores."""
        return {}

    def export(self, config: MessyConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Export nothing."""
        raise NotImplementedError
