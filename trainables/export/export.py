"""Export of a network as a model that MLflow loads without this project and without pickle."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from safetensors.torch import save_file

import trainables.network
from trainables.export import encoder_module
from trainables.network.embedder import SequenceEmbedder

PACKAGE = "multi_shot_reid_network"
"""Package name of the network's code inside the model."""


def export(embedder: SequenceEmbedder, directory: Path) -> dict[str, Any]:
    """Write the model's files to ``directory``; return the arguments of ``mlflow.pyfunc.log_model``.

    The model maps uint8 RGB ``[batch, time, height, width, 3]`` of any size to float32 ``[batch, feature]``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / PACKAGE
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(trainables.network.__path__[0]), package, ignore=ignore, dirs_exist_ok=True)
    weights, network = directory / "weights.safetensors", directory / "network.json"
    state = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
    save_file(state, weights)
    # The file of initial weights may not exist on the machine that loads the model.
    config = embedder.config.model_dump(mode="json", exclude={"encoder": {"weights"}})
    requirements = ["mlflow", "numpy", "pydantic", "safetensors", "torch"]
    encoder = embedder.config.encoder.name
    if encoder.startswith("timm/"):
        requirements.append("timm")
    if encoder_module.is_outside(encoder):
        packages = encoder_module.required_packages(encoder)
        requirements += [name for name in packages if name not in requirements]
        config["encoder"]["name"] = encoder_module.copy_module(encoder, package)
    network.write_text(json.dumps(config, indent=2), encoding="utf-8")
    if embedder.config.flow != "none":
        requirements.append("opencv-python-headless")
    return {
        "python_model": str(Path(__file__).with_name("pyfunc_model.py")),
        "artifacts": {"weights": str(weights), "network": str(network)},
        "code_paths": [str(package)],
        # A local version such as 2.13.0+cpu belongs to this machine, not to the model.
        "pip_requirements": [f"{name}=={version(name).partition('+')[0]}" for name in requirements],
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, -1, 3))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, embedder.dimension))]),
        ),
        "input_example": np.zeros((1, 2, 16, 8, 3), np.uint8),
    }
