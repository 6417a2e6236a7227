"""Tests of the exported model in a process that can import neither this project nor pickles."""

import io
import json
import os
import stat
import subprocess
import sys
import tracemalloc
from unittest.mock import Mock

import mlflow
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import normalize

from tests.support.paths import EXAMPLES
from trainables.data.loading import as_tensor
from trainables.errors import DataError
from trainables.evaluation.published import PublishedEmbedder
from trainables.export.export import CARD, FOLDER, PROGRAM, WEIGHTS, example_sequence, export
from trainables.network import images
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.network.flow import optical_flow
from trainables.network.weights import load_weights

HEIGHT, WIDTH = 32, 24
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
loaded = {name: mlflow.pyfunc.load_model(f"models:/{name}/1") for name in models}
for name, model in loaded.items():
    features |= {f"{name} {shape}": model.predict(inputs[shape]) for shape in inputs.files}
    assert model.get_raw_model().name == name and model.get_raw_model().version == "1"
np.savez(outputs, **features)
"""

MODELS = {
    "mclaughlin2016": {"encoder": {"name": "mclaughlin2016"}, "flow": "dis"},
    "residual": {"encoder": {"name": "residual"}, "rnn": {"cell": "gru"}, "pooling": "max"},
    "lstm": {"rnn": {"cell": "lstm", "direction": "both", "layers": 2}, "pooling": "attention"},
    "example": {"encoder": {"name": "my_encoders:PatchEncoder", "options": {"channels": 24}}},
}


@pytest.fixture(scope="module")
def embedders():
    torch.manual_seed(0)
    size = {"height": HEIGHT, "width": WIDTH}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        configs = {name: NetworkConfig.model_validate(MODELS[name] | size) for name in MODELS}
        yield {name: SequenceEmbedder(config).eval() for name, config in configs.items()}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = {
        "one frame": (2, 1, HEIGHT, WIDTH),
        "three frames": (1, 3, HEIGHT, WIDTH),
        "seventeen frames": (3, 17, HEIGHT, WIDTH),
        "larger": (2, 4, 65, 53),
        "smaller": (1, 2, 16, 12),
    }
    return {name: rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def stored(embedders, tmp_path_factory):
    """The folder of a store to which every model is logged, and its address."""
    folder = tmp_path_factory.mktemp("export")
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("export", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("export")
    with mlflow.start_run():
        for name, embedder in embedders.items():
            arguments = export(embedder, folder / name)
            mlflow.pyfunc.log_model(name=name, registered_model_name=name, **arguments)
    return folder, uri


@pytest.fixture(scope="module")
def features(embedders, inputs, stored):
    """Load all models into one process that cannot import the project, and use them."""
    folder, uri = stored
    (folder / "elsewhere").mkdir()
    np.savez(folder / "inputs.npz", **inputs)
    files = [str(folder / name) for name in ("inputs.npz", "outputs.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, uri, *files, *embedders],
        cwd=folder / "elsewhere",
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return np.load(folder / "outputs.npz")


@pytest.fixture(scope="module")
def model(stored):
    mlflow.set_tracking_uri(stored[1])
    return mlflow.pyfunc.load_model("models:/residual/1")


def expected_features(embedder, frames):
    """Return what training and scoring would compute: frames are packed, then embedded."""
    packed = np.stack(
        [[images.resize(Image.fromarray(frame), HEIGHT, WIDTH) for frame in sequence] for sequence in frames]
    )
    has_flow = embedder.config.flow == "dis"
    flow = [optical_flow(sequence).astype(np.float16).astype(np.float32) for sequence in packed]
    with torch.inference_mode():
        return normalize(embedder(as_tensor(packed, np.stack(flow) if has_flow else None)))


@pytest.mark.parametrize("name", MODELS)
def test_model_without_the_project_equals_the_embedder(name, embedders, inputs, features):
    embedder = embedders[name]
    for shape, frames in inputs.items():
        output = features[f"{name} {shape}"]
        assert output.dtype == np.float32
        assert output.shape == (len(frames), embedder.dimension)
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(output, expected_features(embedder, frames), atol=1e-5)


def test_model_takes_sequences_of_any_lengths_and_sizes(model, inputs):
    sequences = [*inputs["larger"], *inputs["seventeen frames"], inputs["smaller"][0]]
    together = model.predict([*sequences, [sequences[0][0], sequences[-1][1]]])
    assert together.shape == (7, 128)
    for row, sequence in enumerate(sequences):
        np.testing.assert_allclose(together[row], model.predict([list(sequence)])[0], atol=1e-5)


def test_model_takes_encoded_images_as_bytes_and_base64(model):
    files = example_sequence(3)
    arrays = [np.array(images.decode(file)) for file in files]
    expected = model.predict([arrays])
    text = mlflow.models.convert_input_example_to_serving_input([files])
    for frames in (files, json.loads(text)["inputs"][0], [files[0], *arrays[1:]]):
        np.testing.assert_array_equal(model.predict({"sequences": [frames]}), expected)
    np.testing.assert_array_equal(model.predict([[array.tolist() for array in arrays]]), expected)


def test_model_input_example_is_a_drawn_crop(model):
    assert model.predict(model.input_example).shape == (1, 128)
    assert model.metadata.get_input_schema().input_names() == ["sequences"]


def blank_png(height, width):
    """Return a PNG file of one bit for each pixel, which is small."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


PICTURE = np.zeros((16, 8, 3), np.uint8)
REFUSED = {
    "a path": ([["/etc/passwd"]], "sequence 0, frame 0: a text that is not base64"),
    "a data address": (
        [["data:image/jpeg;base64,AAAA"]],
        "expected its base64 text alone, which follows the comma",
    ),
    "an address": ([["https://example.org/1.jpg"]], "paths and addresses are not read"),
    "floats": (np.zeros((1, 1, 16, 8, 3)), "float64 [1, 1, 16, 8, 3]; expected uint8 RGB"),
    "listed floats": ([[[[[0.5, 0.5, 0.5]] * 8] * 8]], "a list of float64 values; expected uint8"),
    "large numbers": ([[[[[0, 256, 0]] * 8] * 8]], "values from 0 to 256; expected 0 to 255"),
    "one pixel": ([[PICTURE], [PICTURE, PICTURE[:1, :1]]], "sequence 1, frame 1: 1 x 1 pixels"),
    "channels first": ([[PICTURE.transpose(2, 0, 1)]], "uint8 [3, 16, 8]; expected"),
    "four channels": (np.zeros((1, 1, 16, 8, 4), np.uint8), "uint8 [1, 1, 16, 8, 4]; expected"),
    "one sequence": ([b"\xff\xd8"], "sequence 0 is of type bytes; expected a list of frames"),
    "one text": ("abc", "the input is of type str"),
    "no sequences": ([], "the list of sequences is empty"),
    "no frames": ([[PICTURE], []], "sequence 1 has no frames"),
    "half a JPEG": ([[example_sequence(2)[0][:300]]], "frame 0: truncated (JPEG without its end marker)"),
    "a GIF": (
        [[b"GIF89a\x01\x00\x01\x00\x80\x00\x00"]],
        "(unknown image format); expected the content of a JPEG or PNG file",
    ),
    "a large PNG": (
        [[blank_png(9000, 9000)]],
        "frame 0: too large (9,000 x 9,000, more than 67,108,864 pixels); expected",
    ),
    "a huge PNG": ([[blank_png(20000, 10000)]], "frame 0: too large (Image size (200000000 pixels) exceeds"),
    "another name": ({"frames": [[PICTURE]]}, "no 'sequences' in the input"),
    "another key": (
        {"sequences": [[PICTURE]], "channels": "BGR"},
        "unknown key 'channels'; expected 'sequences' alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_model_refuses_what_is_no_picture_in_a_line(case, model):
    wrong, reason = REFUSED[case]
    with pytest.raises(ValueError) as error:
        model.predict(wrong)
    assert reason in str(error.value)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_model_error_keeps_its_message_on_the_server(model):
    with pytest.raises(mlflow.MlflowException) as error:
        model.predict([])
    error.value.message = "Failed to predict data '[]'"  # as the server does, with the whole input
    answer = json.loads(error.value.serialize_as_json())
    assert answer["message"] == "the list of sequences is empty"
    assert error.value.get_http_status_code() == 400


def test_model_many_large_frames_take_bounded_memory(model):
    frame = np.zeros((640, 320, 3), np.uint8)
    model.predict([[frame]])
    tracemalloc.start()
    try:
        model.predict([[frame] * 300])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * frame.nbytes  # a copy of all frames would be 300


def test_export_names_the_package_by_its_content(embedders, tmp_path):
    first, again, other = (
        export(embedders[name], tmp_path / folder)["loader_module"]
        for name, folder in (("residual", "a"), ("lstm", "b"), ("example", "c"))
    )
    assert first == again != other


def test_model_damaged_weights_are_refused(embedders, tmp_path):
    arguments = export(embedders["residual"], tmp_path / "export")
    mlflow.pyfunc.save_model(tmp_path / "model", **arguments)
    weights = tmp_path / "model/data/model/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="the files are damaged"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_published_embedder_names_the_missing_package(embedders, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    mlflow.pyfunc.save_model(folder, **export(embedders["mclaughlin2016"], tmp_path / "export"))
    assert PublishedEmbedder.load(folder).dimension == 128
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it was not installed
    with pytest.raises(DataError, match=r"^model: .*/model cannot be loaded: ModuleNotFoundError: .*cv2"):
        PublishedEmbedder.load(folder)


@pytest.mark.parametrize("error", [RuntimeError("another version of torchvision"), yaml.YAMLError("damaged")])
def test_published_embedder_refuses_what_does_not_load(error, tmp_path, monkeypatch):
    (tmp_path / "network.json").write_text("{}")
    monkeypatch.setattr(mlflow.pyfunc, "load_model", Mock(side_effect=error))
    with pytest.raises(DataError, match=f"cannot be loaded: {type(error).__name__}: {error}"):
        PublishedEmbedder.load(tmp_path)


def test_model_tells_its_facts(model, stored):
    raw = model.get_raw_model()
    facts = model.metadata.metadata
    assert (raw.name, raw.version, raw.dimension) == ("residual", "1", 128)
    assert raw.checksum == facts["checksum"] and len(raw.checksum) == 64
    assert facts["input"] == {"sequences": ["batch", "time", "height", "width", "RGB"]}
    assert raw.thresholds == {} and facts["calibration"]["not_stated"] == ["the model was not calibrated"]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_exported_weights_are_initial_weights_of_the_same_encoder(name, embedders, stored):
    torch.manual_seed(1)
    other = SequenceEmbedder(embedders[name].config)
    load_weights(other.encoder, stored[0] / name / FOLDER / WEIGHTS)
    expected = embedders[name].encoder.layers.state_dict()
    torch.testing.assert_close(other.encoder.layers.state_dict(), expected)


def test_model_files_are_readable_by_everybody(stored):
    files = [path for path in (stored[0] / "artifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in files)
    assert all(path.stat().st_mode & stat.S_IROTH for path in files)


def test_model_file_names_no_folder_of_this_machine(embedders, tmp_path):
    arguments = export(embedders["residual"], tmp_path / "export")
    mlflow.pyfunc.save_model(tmp_path / "model", **arguments)
    assert str(tmp_path) not in (tmp_path / "model/MLmodel").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_program_of_every_network_has_free_batch_and_time(name, embedders, stored):
    embedder = embedders[name]
    program = torch.export.load(stored[0] / name / "model" / PROGRAM).module()
    for batch, time in ((1, 1), (2, 2), (4, 7)):
        frames = torch.rand(batch, time, embedder.config.channels, HEIGHT, WIDTH)
        with torch.inference_mode():
            torch.testing.assert_close(program(frames), embedder(frames), rtol=1e-4, atol=1e-4)


def test_program_that_cannot_be_made_is_named_in_a_line(embedders, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(torch.export, "export", fail)
    program = export(embedders["residual"], tmp_path)["metadata"]["program"]
    assert program == "torch.export cannot express this network: no way"
    assert program in (tmp_path / "model" / CARD).read_text()
    assert not (tmp_path / "model" / PROGRAM).exists()


def test_export_has_no_pickle_and_pins_requirements(tmp_path):
    arguments = export(SequenceEmbedder(NetworkConfig()), tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".py", ".json", ".safetensors", ".md", ".pt2"}
    stored = json.loads((tmp_path / "model/network.json").read_text())
    assert NetworkConfig.model_validate(stored) == NetworkConfig()
    names = [line.partition("==")[0] for line in arguments["pip_requirements"]]
    assert names == ["mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch"]
    assert all("==" in line and "+" not in line for line in arguments["pip_requirements"])
