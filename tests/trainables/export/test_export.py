"""Tests of the exported model in a process that can import neither this project nor pickles."""

import json
import os
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.support.paths import EXAMPLES
from trainables.data.loading import as_tensor
from trainables.export.export import export
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.flow import optical_flow

SCRIPT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trainables", "orchestrator"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import mlflow, numpy as np
uri, inputs, outputs, *models = sys.argv[1:]
mlflow.set_tracking_uri(uri)
inputs, features = np.load(inputs), {}
for name in models:
    model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    features |= {f"{name} {shape}": model.predict(inputs[shape]) for shape in inputs.files}
    try:
        model.predict(np.zeros((1, 1, 8, 8, 4), np.uint8))
    except Exception as error:
        print("refused:", error)
    for module in [module for module in sys.modules if module.startswith("multi_shot_reid_network")]:
        del sys.modules[module]
np.savez(outputs, **features)
"""

MODELS = {
    "mclaughlin2016": {"encoder": {"name": "mclaughlin2016"}, "flow": "dis"},
    "residual": {"encoder": {"name": "residual"}, "rnn": {"cell": "gru"}, "pooling": "max"},
    "example": {"encoder": {"name": "my_encoders:PatchEncoder", "options": {"channels": 24}}},
}


@pytest.fixture(scope="module")
def embedders():
    torch.manual_seed(0)
    size = {"height": 32, "width": 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        configs = {name: NetworkConfig.model_validate(MODELS[name] | size) for name in MODELS}
        yield {name: SequenceEmbedder(config).eval() for name, config in configs.items()}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = {
        "one frame": (2, 1, 32, 24),
        "three frames": (1, 3, 32, 24),
        "seventeen frames": (3, 17, 32, 24),
        "larger": (2, 4, 65, 53),
        "smaller": (1, 2, 16, 12),
    }
    return {name: rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def features(embedders, inputs, tmp_path_factory):
    """Log both models, then load and use them in a process that cannot import the project."""
    folder = tmp_path_factory.mktemp("export")
    uri, elsewhere = f"sqlite:///{folder}/mlflow.db", folder / "elsewhere"
    elsewhere.mkdir()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("export", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("export")
    with mlflow.start_run():
        for name, embedder in embedders.items():
            arguments = export(embedder, folder / name)
            mlflow.pyfunc.log_model(name=name, registered_model_name=name, **arguments)
    np.savez(folder / "inputs.npz", **inputs)
    files = [str(folder / name) for name in ("inputs.npz", "outputs.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, uri, *files, *embedders],
        cwd=elsewhere,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused:") == len(embedders)
    return np.load(folder / "outputs.npz")


@pytest.mark.parametrize("model", MODELS)
def test_model_without_the_project_equals_the_embedder(model, embedders, inputs, features):
    embedder = embedders[model]
    for shape, frames in inputs.items():
        output = features[f"{model} {shape}"]
        assert output.dtype == np.float32
        assert output.shape == (len(frames), embedder.dimension)
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, rtol=1e-5)
        if frames.shape[2:4] != (32, 24):
            continue
        has_flow = embedder.config.flow == "dis"
        flow = np.stack([optical_flow(sequence) for sequence in frames]) if has_flow else None
        with torch.inference_mode():
            expected = normalize(embedder(as_tensor(frames, flow)))
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_export_has_no_pickle_and_pins_requirements(tmp_path):
    arguments = export(SequenceEmbedder(NetworkConfig()), tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".py", ".json", ".safetensors"}
    stored = json.loads((tmp_path / "network.json").read_text())
    assert NetworkConfig.model_validate(stored) == NetworkConfig()
    names = [line.partition("==")[0] for line in arguments["pip_requirements"]]
    assert names == ["mlflow", "numpy", "pydantic", "safetensors", "torch"]
    assert all("==" in line and "+" not in line for line in arguments["pip_requirements"])
