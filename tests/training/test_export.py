"""The exported model in a process that has neither this project nor pickle."""

import json
import os
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from trainables.data.loading import as_tensor
from trainables.export import export
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
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
given = np.load(sys.argv[3])
np.savez(sys.argv[4], **{name: model.predict(given[name]) for name in given.files})
try:
    model.predict(np.zeros((1, 1, 8, 8, 4), np.uint8))
except Exception as error:
    print(error)
"""


def sequences(height, width):
    rng = np.random.default_rng(0)
    shapes = {
        "one frame": (2, 1, height, width),
        "three frames": (1, 3, height, width),
        "seventeen frames": (3, 17, height, width),
        "larger": (2, 4, 2 * height + 1, 2 * width + 5),
        "smaller": (1, 2, height // 2, width // 2),
    }
    return {name: rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("encoder", "flow"), [("mclaughlin2016", "dis"), ("residual", "none")], ids=["mclaughlin-flow", "residual"]
)
def test_loads_without_the_project_and_equals_the_embedder(tmp_path, encoder, flow):
    torch.manual_seed(0)
    config = NetworkConfig.model_validate({"encoder": {"name": encoder}, "height": 32, "width": 24, "flow": flow})
    embedder = SequenceEmbedder(config).eval()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("export", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("export")
    with mlflow.start_run():
        arguments = export(embedder, tmp_path / "model")
        logged = mlflow.pyfunc.log_model(name="model", **arguments)
    version = mlflow.register_model(logged.model_uri, "multi-shot-reid").version

    given = sequences(32, 24)
    np.savez(tmp_path / "given.npz", **given)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, uri, f"models:/multi-shot-reid/{version}"]
        + [str(tmp_path / "given.npz"), str(tmp_path / "found.npz")],
        cwd=elsewhere,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert "[1, 1, 8, 8, 4]" in ran.stdout or "(-1, -1, -1, -1, 3)" in ran.stdout
    found = np.load(tmp_path / "found.npz")
    for name, frames in given.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), 1, rtol=1e-5)
        if frames.shape[2:4] == (32, 24):
            flows = np.stack([optical_flow(sequence) for sequence in frames]) if flow == "dis" else None
            with torch.inference_mode():
                expected = normalize(embedder(as_tensor(frames, flows)))
            np.testing.assert_allclose(found[name], expected, atol=1e-5)
        else:
            assert found[name].shape == (len(frames), 128)


def test_what_is_written_has_no_pickle_and_pins_what_it_needs(tmp_path):
    arguments = export(SequenceEmbedder(NetworkConfig()), tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".py", ".json", ".safetensors"}
    stored = json.loads((tmp_path / "network.json").read_text())
    assert NetworkConfig.model_validate(stored) == NetworkConfig()
    assert [line.partition("==")[0] for line in arguments["pip_requirements"]] == [
        "mlflow",
        "numpy",
        "pydantic",
        "safetensors",
        "torch",
    ]
    assert all("==" in line and "+" not in line for line in arguments["pip_requirements"])
