"""The exported model. MLflow runs this file to load the model, and this project need not be installed.

The model also contains the network's code (package ``multi_shot_reid_network``), weights and config.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

_FRAMES_AT_ONCE = 512
"""Frames embedded at a time, to bound memory."""


class EmbeddingModel(PythonModel):
    """Model from sequences to features; a smaller distance means more likely the same identity."""

    def load_context(self, context: Any) -> None:
        """Build the network from the model's files."""
        from multi_shot_reid_network.embedder import (  # type: ignore[import-not-found]
            NetworkConfig,
            SequenceEmbedder,
        )

        config = json.loads(Path(context.artifacts["network"]).read_text(encoding="utf-8"))
        self.config = NetworkConfig.model_validate(config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.embedder = SequenceEmbedder(self.config)
        self.embedder.load_state_dict(load_file(context.artifacts["weights"]))
        self.embedder.to(self.device).eval()

    @torch.inference_mode()
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Map uint8 RGB ``[batch, time, height, width, 3]`` to features ``[batch, feature]`` of L2 norm 1.

        Batch, time, height and width may have any size.

        Raises:
            ValueError: the input has another type or number of dimensions, or is empty.
        """
        frames = np.ascontiguousarray(model_input)
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(
                "the input must be non-empty uint8 RGB [batch, time, height, width, 3]; "
                f"it is {frames.dtype} {list(frames.shape)}"
            )
        size = max(1, _FRAMES_AT_ONCE // frames.shape[1])
        parts = [frames[start : start + size] for start in range(0, len(frames), size)]
        features = torch.cat([self._embed(self._prepare(part)) for part in parts])
        return normalize(features).cpu().numpy()

    def _prepare(self, frames: NDArray[np.uint8]) -> Tensor:
        """Map frames to the network's input ``[batch, time, channel, height, width]``."""
        from multi_shot_reid_network.preprocess import resize  # type: ignore[import-not-found]

        height, width = self.config.height, self.config.width
        raw = torch.from_numpy(frames).movedim(-1, 2).flatten(0, 1)
        parts = [resize(part / 255, height, width) for part in torch.split(raw, _FRAMES_AT_ONCE)]
        colours: Tensor = torch.cat(parts).reshape(*frames.shape[:2], 3, height, width)
        if self.config.flow == "none":
            return colours
        from multi_shot_reid_network.flow import optical_flow  # type: ignore[import-not-found]

        small = (colours * 255).round().byte().movedim(2, -1).contiguous().numpy()
        flow = torch.from_numpy(np.stack([optical_flow(sequence) for sequence in small]))
        return torch.cat([colours, flow.movedim(-1, 2)], dim=2)

    def _embed(self, sequences: Tensor) -> Tensor:
        """Map ``[batch, time, channel, height, width]`` to ``[batch, feature]`` in bounded memory."""
        frames = sequences.flatten(0, 1)
        parts = [frames[start : start + _FRAMES_AT_ONCE] for start in range(0, len(frames), _FRAMES_AT_ONCE)]
        steps = torch.cat([self.embedder.encode(part.to(self.device)) for part in parts])
        features: Tensor = self.embedder.aggregate(steps.reshape(*sequences.shape[:2], -1))
        return features


set_model(EmbeddingModel())
