"""An exported model as an embedder, so that it is scored by the same code as a checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any, Self

import mlflow.pyfunc
import numpy as np
import torch
from torch import Tensor

from trainables.errors import DataError, one_line


class PublishedEmbedder:
    """A model as `trainables.export` writes it, used as its users use it: through ``predict``.

    Models of earlier versions of this project are read too: they take the same input.
    """

    def __init__(self, predict: Any, height: int, width: int) -> None:
        self._predict = predict
        self.height, self.width = height, width
        probe = np.zeros((1, 1, height, width, 3), np.uint8)
        self.dimension = int(np.asarray(predict(probe)).shape[1])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the model in the folder of an MLflow model.

        Raises:
            DataError: it is no model of this project, or needs a package that is not installed. The message
                is one line.
        """
        _forget_code(folder)
        described = next(folder.rglob("network.json"), None)
        if described is None:
            raise DataError(f"model: {folder} holds no model of this project: no network.json")
        try:
            network = json.loads(described.read_text(encoding="utf-8"))
            model = mlflow.pyfunc.load_model(str(folder))
            return cls(model.predict, int(network["height"]), int(network["width"]))
        except Exception as error:  # loading and probing run code of the model, which may raise any error
            reason = f"{type(error).__name__}: {one_line(error)}"[:300]
            raise DataError(f"model: {folder} cannot be loaded: {reason}") from error

    def eval(self) -> None:
        """Do nothing: an exported model is always in evaluation mode."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Map ``[batch, time, 3, height, width]`` in 0..1 to features ``[batch, dimension]``."""
        raw = (frames * 255).round().to(torch.uint8).movedim(2, -1).cpu().numpy()
        return torch.from_numpy(np.asarray(self._predict(raw), np.float32)).to(frames.device)


def _forget_code(folder: Path) -> None:
    """Forget imported packages of the names that a model brings, which may be those of another version."""
    brought = {path.name for path in folder.glob("code/*") if path.is_dir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in brought]:
        del sys.modules[name]
