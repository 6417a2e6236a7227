"""Export of a network as a model that MLflow loads without this project and without pickle."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array
from PIL import Image
from safetensors.torch import save_file

import trainables.network
from trainables.data.walkers.cameras import draw_camera, draw_tracklet
from trainables.data.walkers.drawing import draw_walker
from trainables.export import encoder_module, model_card, pyfunc_model
from trainables.export.model_card import Provenance
from trainables.export.pyfunc_model import FACTS, INPUT, NETWORK, WEIGHTS
from trainables.export.torch_program import save_program
from trainables.network.embedder import SequenceEmbedder

FAMILY = "multi-shot-reid"
"""Name of this kind of model in its metadata."""
SCHEMA = 1
"""Version of the facts in ``model.json`` and in the metadata. Models without it are of release 0.1.0."""
PACKAGE = "multi_shot_reid_network"
"""Start of the name of the package with the network's code; a hash of the code follows."""
FOLDER = "model"
PROGRAM, CARD = "network.pt2", "README.md"

UNCALIBRATED: Mapping[str, Any] = {"thresholds": [], "not_stated": ["the model was not calibrated"]}


def export(
    embedder: SequenceEmbedder,
    directory: Path,
    calibration: Mapping[str, Any] = UNCALIBRATED,
    provenance: Provenance | None = None,
) -> dict[str, Any]:
    """Write the model's files to ``directory``; return the arguments of ``mlflow.pyfunc.log_model``.

    The model maps sequences of pictures to float32 ``[batch, feature]``; see `pyfunc_model.EmbeddingModel`.
    The files are the package of the network, named by its content so that two versions can be loaded in one
    process, and a folder with weights, config, facts, model card, and the program of `torch_program`.

    Args:
        embedder: the network.
        directory: folder to write to.
        calibration: JSON form of `trainables.evaluation.calibration.Calibration`.
        provenance: how the model was made, for its card.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    package, encoder = _write_package(embedder, directory)
    config = _write_network(embedder, folder, encoder)
    no_program = save_program(embedder, folder / PROGRAM)
    facts = _facts(embedder, folder, package, calibration, no_program)
    (folder / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    (folder / CARD).write_text(model_card.render(facts, config, provenance), encoding="utf-8")
    for file in directory.rglob("*"):  # safetensors writes files that only their owner can read
        file.chmod(0o755 if file.is_dir() else 0o644)
    return {
        "loader_module": f"{package}.{Path(pyfunc_model.__file__).stem}",
        "data_path": str(folder),
        "code_paths": [str(directory / package)],
        "pip_requirements": _requirements(embedder),
        "signature": _signature(embedder.dimension),
        "input_example": {INPUT: [example_sequence()]},
        "metadata": facts,
    }


def example_sequence(frames: int = 4) -> list[bytes]:
    """Return a generated walker as a sequence of JPEG files."""
    rng = np.random.default_rng(0)
    camera = draw_camera(rng, view=0.5, difficulty=0.5)
    return [_jpeg(frame) for frame in draw_tracklet(draw_walker(rng), camera, frames, rng)]


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()


def _signature(dimension: int) -> ModelSignature:
    """Return the signature: a named list of lists of frames, and named features.

    MLflow has no type for a frame that is an array or an encoded image, and no names of axes; the metadata
    has them. Without the flag, MLflow would turn the input into a table, which refuses arrays, and would
    cast numbers of a request to the type of the signature, floats in 0..1 among them. The model checks its
    input.
    """
    signature = ModelSignature(
        inputs=Schema([ColSpec(Array(Array(AnyType())), name=INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dimension), name="features")]),
    )
    signature._is_signature_from_type_hint = True
    return signature


def _write_package(embedder: SequenceEmbedder, directory: Path) -> tuple[str, str]:
    """Write the package of the network; return its name, and the name of the encoder in it."""
    root = Path(trainables.network.__path__[0])
    files = {file.name: file.read_text(encoding="utf-8") for file in sorted(root.glob("*.py"))}
    loader = Path(pyfunc_model.__file__)
    files[loader.name] = loader.read_text(encoding="utf-8")
    encoder = embedder.config.encoder.name
    if encoder_module.is_outside(encoder):
        encoder_module.required_packages(encoder)
        files[encoder_module.COPY] = encoder_module.source(encoder)
    content = json.dumps(files, sort_keys=True).encode()
    package = directory / f"{PACKAGE}_{hashlib.sha256(content).hexdigest()[:12]}"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir()
    for name, source in files.items():
        renamed = re.sub(rf"\b{re.escape(encoder_module.NETWORK)}\b", package.name, source)
        (package / name).write_text(renamed, encoding="utf-8")
    if encoder_module.is_outside(encoder):
        encoder = f"{package.name}.{Path(encoder_module.COPY).stem}:{encoder.partition(':')[2]}"
    return package.name, encoder


def _write_network(embedder: SequenceEmbedder, folder: Path, encoder: str) -> dict[str, Any]:
    """Write weights and config of the network; return the config."""
    state = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    # The file of initial weights may not exist on the machine that loads the model.
    config = embedder.config.model_dump(mode="json", exclude={"encoder": {"weights"}})
    config["encoder"]["name"] = encoder
    (folder / NETWORK).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return config


def _requirements(embedder: SequenceEmbedder) -> list[str]:
    names = ["mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch"]
    encoder = embedder.config.encoder.name
    if encoder.startswith("timm/"):
        names.append("timm")
    if encoder_module.is_outside(encoder):
        names += [name for name in encoder_module.required_packages(encoder) if name.lower() not in names]
    if embedder.config.flow != "none":
        names.append("opencv-python-headless")
    # A local version such as 2.13.0+cpu belongs to this machine, not to the model.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _facts(
    embedder: SequenceEmbedder,
    folder: Path,
    package: str,
    calibration: Mapping[str, Any],
    no_program: str | None,
) -> dict[str, Any]:
    """Return what the model tells about itself; values are those of JSON."""
    config = embedder.config
    return {
        "family": FAMILY,
        "schema": SCHEMA,
        "package": package,
        "checksum": pyfunc_model.checksum(folder, package),
        "dimension": embedder.dimension,
        "height": config.height,
        "width": config.width,
        "input": {INPUT: ["batch", "time", "height", "width", "RGB"]},
        "output": {"features": ["batch", "dimension"]},
        "distance": "Euclidean distance of two features: 0 to 2, smaller means more likely the same identity",
        "calibration": dict(calibration),
        "program": no_program or PROGRAM,
    }
