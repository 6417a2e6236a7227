"""A checkpoint as a model that MLflow loads without this project and without pickle."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from safetensors.torch import save_file

import trainables.network
from trainables.network.embedder import SequenceEmbedder

PACKAGE = "multi_shot_reid_network"
"""Name under which the network's code travels."""


def export(embedder: SequenceEmbedder, directory: Path) -> dict[str, Any]:
    """Write the model's files into ``directory``; gives the arguments of ``mlflow.pyfunc.log_model``.

    The model maps uint8 RGB ``[batch, time, height, width, 3]`` of any size to float32 ``[batch, feature]``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / PACKAGE
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(trainables.network.__path__[0]), package, ignore=ignored, dirs_exist_ok=True)
    weights, network = directory / "weights.safetensors", directory / "network.json"
    state = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
    save_file(state, weights)
    # The file that training started from may not be there where the model is loaded.
    stored = embedder.config.model_dump_json(indent=2, exclude={"encoder": {"weights"}})
    network.write_text(stored, encoding="utf-8")
    needed = ["mlflow", "numpy", "pydantic", "safetensors", "torch"]
    if embedder.config.encoder.name.startswith("timm/"):
        needed.append("timm")
    if embedder.config.flow != "none":
        needed.append("opencv-python-headless")
    return {
        "python_model": str(Path(__file__).with_name("pyfunc_model.py")),
        "artifacts": {"weights": str(weights), "network": str(network)},
        "code_paths": [str(package)],
        # A local version such as 2.13.0+cpu is a choice of this machine, not of the model.
        "pip_requirements": [f"{name}=={version(name).partition('+')[0]}" for name in needed],
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, -1, 3))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, embedder.dimension))]),
        ),
        "input_example": np.zeros((1, 2, 16, 8, 3), np.uint8),
    }
