"""``python -m trainables.retrieve``: files of features, rankings, resuming, and how it refuses."""

import errno
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import trainables.retrieve as commands
from orchestrator.tracking.registry import default_address
from tests.support.command_line import enable_signals
from tests.support.paths import ROOT
from tests.support.tiny_sets import FRAMES, PEOPLE
from trainables.errors import DataError
from trainables.evaluation.gallery import Gallery, Row, judge, nearest
from trainables.export import stored_model
from trainables.export.export import export
from trainables.export.stored_model import StoredModel
from trainables.network.embedder import NetworkConfig, SequenceEmbedder
from trainables.retrieve import main

CALIBRATION = {
    "thresholds": [
        {"false_match_rate": 0.01, "distance": 0.5, "interval": [0, 0.02], "missed": 0.1},
        {"false_match_rate": 0.001, "distance": 0.2, "interval": [0, 0.002], "missed": 0.3},
    ],
    "not_stated": [],
    "set": "walkers",
    "identities": 60,
    "impostor_pairs": 7080,
    "genuine_pairs": 60,
}


def save_model(folder, calibration=CALIBRATION, seed=0):
    torch.manual_seed(seed)
    config = NetworkConfig.model_validate({"height": 32, "width": 16, "encoder": {"name": "residual"}})
    mlflow.pyfunc.save_model(
        folder / "model", **export(SequenceEmbedder(config).eval(), folder / "export", calibration)
    )
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    none = {"thresholds": [], "not_stated": ["data.validation is 0"]}
    return save_model(tmp_path_factory.mktemp("other"), none, seed=1)


@pytest.fixture(scope="module")
def gallery(model, tmp_path_factory, request):
    """The file of features of a tiny set of two cameras, and the folder of the set."""
    folder = request.getfixturevalue("written")("prid2011")
    file = tmp_path_factory.mktemp("gallery") / "prid.parquet"
    assert main(["embed", str(model), "prid2011", str(folder), str(file)]) == 0
    return file, folder


@pytest.fixture
def crops(gallery, tmp_path):
    """A plain folder of two crops and of two folders of crops."""
    root = tmp_path / "crops"
    root.mkdir()
    for camera in ("cam_a", "cam_b"):
        shutil.copytree(gallery[1] / "multi_shot" / camera / "person_0001", root / camera)
        shutil.copy(gallery[1] / "multi_shot" / camera / "person_0002/0001.png", root / f"{camera}.png")
    return root


def refused(capsys, *arguments, code=2):
    """Return the one line with which a command refuses."""
    assert main([str(argument) for argument in arguments]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def rankings(capsys, *arguments):
    assert main(["rank", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_embed_writes_columns_and_the_model(gallery, model):
    file, folder = gallery
    content = pq.read_table(file)
    assert content.column_names == ["tracklet", "identity", "camera", "path", "key", "frames", "embedding"]
    assert len(content) == 2 * PEOPLE and set(content["frames"].to_pylist()) == {FRAMES}
    assert set(content["camera"].to_pylist()) == {"a", "b"}
    assert all((folder / path).is_file() for path in content["path"].to_pylist())
    metadata = {key.decode(): value.decode() for key, value in content.schema.metadata.items()}
    facts = json.loads((model / "data/model/model.json").read_text())
    assert metadata["model_checksum"] == facts["checksum"]
    assert (metadata["model"], metadata["model_name"]) == (str(model), "model")
    assert (metadata["embedding_dimension"], metadata["layout"]) == ("128", "prid2011")


def test_embed_equals_the_model_on_the_frames(gallery, model):
    file, folder = gallery
    loaded = mlflow.pyfunc.load_model(str(model))
    for row in pq.read_table(file).to_pylist()[:3]:
        files = sorted((folder / row["path"]).parent.iterdir())
        np.testing.assert_allclose(
            row["embedding"], loaded.predict([[path.read_bytes() for path in files]])[0], atol=1e-5
        )


def test_embed_crops_has_a_tracklet_per_image_and_folder(crops, model, tmp_path):
    file = tmp_path / "crops.parquet"
    assert main(["embed", str(model), "crops", str(crops), str(file)]) == 0
    rows = pq.read_table(file).to_pylist()
    assert [(row["path"], row["frames"]) for row in rows] == [
        ("cam_a.png", 1),
        ("cam_b.png", 1),
        (f"cam_a/{FRAMES // 2 + 1:04}.png", FRAMES),
        (f"cam_b/{FRAMES // 2 + 1:04}.png", FRAMES),
    ]
    assert all(row["identity"] is None and row["camera"] is None for row in rows)


def test_embed_killed_command_resumes_with_its_parts(gallery, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_FRAMES_AT_ONCE", 2 * FRAMES)  # two tracklets in a part
    load, loaded = commands.load_frames, []

    def die_after_five(tracklet, *arguments):
        if len(loaded) == 5:
            raise KeyboardInterrupt
        loaded.append(tracklet)
        return load(tracklet, *arguments)

    file = tmp_path / "prid.parquet"
    command = ["embed", str(model), "prid2011", str(gallery[1]), str(file)]
    monkeypatch.setattr(commands.console, "in_threads", map)
    monkeypatch.setattr(commands, "load_frames", die_after_five)
    assert main(command) == 130 and not file.exists()
    again = []
    monkeypatch.setattr(
        commands, "load_frames", lambda tracklet, *rest: again.append(tracklet) or load(tracklet, *rest)
    )
    assert main(command) == 0
    assert len(again) == 2 * PEOPLE - 4
    assert not list(tmp_path.glob("*.parts"))
    whole, resumed = (pq.read_table(path).to_pylist() for path in (gallery[0], file))
    assert [row["path"] for row in resumed] == [row["path"] for row in whole]
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)
    capsys.readouterr()
    assert main(command) == 0 and "complete already" in capsys.readouterr().out


def test_embed_parts_of_another_model_are_not_used(
    gallery, model, other_model, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "prid.parquet"
    monkeypatch.setattr(commands, "_FRAMES_AT_ONCE", 1)
    monkeypatch.setattr(commands.Parts, "join", lambda self, count: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["embed", str(other_model), "prid2011", str(gallery[1]), str(file)]) == 130
    monkeypatch.undo()
    command = ["embed", str(model), "prid2011", str(gallery[1]), str(file)]
    assert "holds a part of other features" in refused(capsys, *command)
    shutil.rmtree(f"{file}.parts")
    assert main(command) == 0
    assert pq.read_table(file).equals(pq.read_table(gallery[0]))


def test_embed_unreadable_frame_is_named_or_skipped(crops, model, tmp_path, capsys):
    damaged = crops / "cam_a.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    command = ["embed", model, "crops", crops, tmp_path / "crops.parquet"]
    assert str(damaged) in refused(capsys, *command)
    assert main([*map(str, command), "--skip-unreadable"]) == 0
    assert len(pq.read_table(command[-1])) == 3
    assert "; 1 without a readable image left out" in capsys.readouterr().out.replace("\n", " ")


def test_rank_finds_the_query_itself_first(gallery, capsys):
    file, folder = gallery
    for query in (folder / "multi_shot/cam_a/person_0003", file):
        record = rankings(capsys, file, query, "--top", "3")[0]
        assert len(record["candidates"]) == 3
        assert record["candidates"][0]["distance"] < 1e-3
        assert record["decision"] == "match"
    assert record["query"] == record["candidates"][0]["path"]


def test_rank_takes_a_single_image(gallery, capsys):
    image = gallery[1] / "multi_shot/cam_a/person_0003/0001.png"
    (record,) = rankings(capsys, gallery[0], image)
    assert record["query"] == str(image) and len(record["candidates"]) == 10
    distances = [candidate["distance"] for candidate in record["candidates"]]
    assert distances == sorted(distances)


def test_rank_equals_a_brute_force_search(gallery, capsys, monkeypatch):
    monkeypatch.setattr("trainables.evaluation.gallery._ROWS_AT_ONCE", 5)
    monkeypatch.setattr(commands, "_QUERIES_AT_ONCE", 3)
    rows = pq.read_table(gallery[0]).to_pylist()
    features = np.array([row["embedding"] for row in rows])
    records = rankings(capsys, gallery[0], gallery[0], "--top", "4")
    assert [record["query"] for record in records] == [row["path"] for row in rows]
    for feature, record in zip(features, records, strict=True):
        distances = np.linalg.norm(features - feature, axis=1)
        expected = np.sort(distances)[:4]
        found = [candidate["distance"] for candidate in record["candidates"]]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nearest_takes_bounded_memory_for_any_top():
    features = np.random.default_rng(0).random((10_000, 256), np.float32)
    gallery = SimpleNamespace(features=lambda: iter([features]))
    tracemalloc.start()
    try:
        found = nearest(features[:16], gallery, top=len(features))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(matches) for matches in found] == [len(features)] * 16
    assert [matches[0].number for matches in found] == list(range(16))
    assert peak < 100e6  # the differences of all pairs would be 328 MB


def test_rank_with_a_large_top_takes_few_queries_at_once(gallery, capsys, monkeypatch):
    blocks = []
    monkeypatch.setattr(commands, "_MATCHES_AT_ONCE", 9)
    monkeypatch.setattr(
        commands, "nearest", lambda queries, *rest: blocks.append(len(queries)) or nearest(queries, *rest)
    )
    assert len(rankings(capsys, gallery[0], gallery[0], "--top", "4")) == 2 * PEOPLE
    assert blocks == [2] * PEOPLE


def test_queries_of_a_file_are_read_in_one_pass(gallery, monkeypatch):
    scan = Mock(side_effect=pq.ParquetFile.iter_batches)
    monkeypatch.setattr(commands, "_QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **names: scan(*args, **names))
    queries = list(commands.queries_of(Gallery(gallery[0])))
    assert scan.call_count == 1
    rows = pq.read_table(gallery[0]).to_pylist()
    assert [query.name for query in queries] == [row["path"] for row in rows]
    np.testing.assert_array_equal([query.feature for query in queries], [row["embedding"] for row in rows])


@pytest.mark.parametrize(
    ("distance", "decision", "reason"),
    [
        (0.1, "match", "within 0.200, the threshold at 0.1%"),
        (0.3, "match", "within 0.500, the threshold at 1.0%"),
        (
            0.6,
            "no match",
            "the nearest is farther than 0.500, the threshold at 1.0%;"
            " 10% of pairs of the same identity are also farther",
        ),
    ],
)
def test_judge_uses_the_thresholds(gallery, distance, decision, reason):
    verdict = judge(distance, Gallery(gallery[0]))
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_judge_in_a_large_gallery_counts_chance(gallery, monkeypatch):
    monkeypatch.setattr(Gallery, "__len__", lambda self: 5000)
    verdict = judge(0.3, Gallery(gallery[0]))
    assert verdict.decision == "possible"
    assert verdict.reason.endswith("about 50 of 5,000 others are, by chance")


def test_judge_without_thresholds_says_why(gallery, other_model, tmp_path):
    file = tmp_path / "other.parquet"
    assert main(["embed", str(other_model), "prid2011", str(gallery[1]), str(file)]) == 0
    verdict = judge(0.1, Gallery(file))
    assert (verdict.decision, verdict.reason) == (
        "unknown",
        "the model has no thresholds: data.validation is 0",
    )


def test_rank_sheet_draws_every_query(gallery, tmp_path, capsys):
    sheet = tmp_path / "sheets/ranking.png"
    assert main(["rank", *map(str, (gallery[0], gallery[0])), "--top", "3", "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.height > 2 * PEOPLE * 128
    assert "no match" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        (Row("person_0386", "b", "cam_b/person_0386/0005.png", None), ("person_0386", "b")),
        (Row(None, None, "b_person_0386/0005.png", None), ("b_person_0386", "0005.png")),
        (Row(None, None, "crop.jpg", None), ("crop.jpg", "")),
        (Row(None, None, "1136C5T9001F006.jpg", None), ("1136C5T9001", "F006.jpg")),
    ],
)
def test_tracklets_of_a_sheet_are_told_apart(row, labels):
    assert commands._labels(row) == labels


def test_rank_sheet_has_a_bounded_width(gallery, tmp_path, monkeypatch):
    def width(top):
        sheet = tmp_path / f"{top}.jpg"
        assert main(["rank", *map(str, (gallery[0], gallery[0])), "--top", top, "--sheet", str(sheet)]) == 0
        with Image.open(sheet) as image:
            return image.width

    monkeypatch.setattr(commands, "_ON_SHEET", 10)
    assert width("9") < width("10") == width("12")


def test_rank_refuses_features_of_another_model(gallery, other_model, tmp_path, capsys):
    file = tmp_path / "other.parquet"
    assert main(["embed", str(other_model), "prid2011", str(gallery[1]), str(file)]) == 0
    capsys.readouterr()
    assert "features of another model than those of" in refused(capsys, "rank", gallery[0], file)
    query = gallery[1] / "multi_shot/cam_a/person_0003"
    line = refused(capsys, "rank", gallery[0], query, "--model", other_model)
    assert "embed both with one model" in line


def test_embed_refuses_a_file_of_other_features(gallery, other_model, capsys):
    command = ("embed", other_model, "prid2011", gallery[1], gallery[0])
    before = gallery[0].read_bytes()
    assert "has other features, of another model or folder; choose another name" in refused(capsys, *command)
    assert gallery[0].read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("rank", "no.parquet", "x.png"), "no.parquet: no such file; expected a file that `embed` wrote"),
        (("rank", "bad.parquet", "x.png"), "expected a file that `embed` wrote"),
        (("rank", "GALLERY", "no.png"), "no.png: no such file; expected an image, a folder of images"),
        (("rank", "GALLERY", "bad.txt"), "bad.txt: not an image"),
        (("rank", "GALLERY", 300 * "x"), f"{300 * 'x'}: File name too long"),
        (("rank", 300 * "x", "bad.txt"), f"{300 * 'x'}: File name too long"),
        (
            ("embed", ".", "crops", ".", "x.parquet"),
            ".: no file MLmodel in it; expected NAME@ALIAS or NAME/VERSION",
        ),
        (("embed", "MODEL", "crops", "none", "x.parquet"), "none: no such folder; expected a folder"),
        (("embed", "MODEL", "crops", "empty", "x.parquet"), "empty: holds no images"),
        (("embed", "MODEL", "prid", ".", "x.parquet"), "did you mean 'prid2011'?"),
        (
            ("embed", "MODEL", "crop", ".", "x.parquet"),
            "no layout 'crop'; did you mean 'crops'? expected crops,",
        ),
        (
            ("embed", "models:/reid", "crops", "one", "x.parquet"),
            "models:/reid: no such model or folder; expected",
        ),
        (
            ("embed", "reid", "crops", "one", "x.parquet"),
            "reid: no such model or folder; expected NAME@ALIAS",
        ),
        (
            ("embed", "reid@champion", "crops", "one", "x.parquet"),
            "no MLflow database HOME/reid-sweeps/mlflow.db",
        ),
        *(
            (("embed", "models:/reid/1", "crops", "one", "x.parquet", "--tracking", address), "is neither")
            for address in ("localhost:5000", "./mlruns", "file:///mlruns", "databricks", "SQLITE:////x.db")
        ),
    ],
)
def test_command_bad_input_is_one_line(arguments, line, gallery, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", "HOME")
    for folder in ("empty", "one"):
        Path(folder).mkdir()
    Image.new("RGB", (8, 16)).save("one/1.png")
    Path("bad.parquet").write_bytes(b"PAR1")
    Path("bad.txt").touch()
    names = {"GALLERY": gallery[0], "MODEL": model}
    before = sorted(tmp_path.rglob("*"))
    assert line in refused(capsys, *(names.get(argument, argument) for argument in arguments))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://host.invalid:5000", "host name not known"),
        ("SILENT", "no answer in time"),
    ],
)
def test_server_that_does_not_answer_is_one_line(address, reason, crops, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stored_model, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = address.replace("SILENT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        out = tmp_path / "x.parquet"
        line = refused(capsys, "embed", "models:/reid/1", "crops", crops, out, "--tracking", address, code=3)
    assert line.startswith(f"error: --tracking: the MLflow server at {address} does not answer: {reason}; is")


def test_server_without_tls_is_told(crops, tmp_path, capsys):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"https://127.0.0.1:{server.server_port}"
        out = tmp_path / "x.parquet"
        line = refused(capsys, "embed", "reid/1", "crops", crops, out, "--tracking", address, code=3)
    assert "does not answer: [SSL" in line


def test_server_that_is_not_mlflow_is_told(crops, tmp_path, capsys, monkeypatch):
    handler = http.server.SimpleHTTPRequestHandler
    monkeypatch.setattr(handler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        line = refused(
            capsys, "embed", "models:/reid/1", "crops", crops, tmp_path / "x.parquet", "--tracking", address
        )
        server.shutdown()
    assert "the server answers with status 404; is it an MLflow server?" in line


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_damaged_gallery_is_refused(position, gallery, tmp_path, capsys):
    content = bytearray(gallery[0].read_bytes())
    # The columns lie before the metadata at the end of the file, and the features are the largest part.
    start = int(position * pq.ParquetFile(gallery[0]).metadata.row_group(0).total_byte_size)
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    file = tmp_path / "damaged.parquet"
    file.write_bytes(content)
    assert "remove it, and embed again" in refused(capsys, "rank", file, gallery[0])
    assert "remove it, and embed again" in refused(capsys, "rank", gallery[0], file)


def test_embed_looks_at_a_file_that_is_complete(gallery, model, capsys):
    content = bytearray(gallery[0].read_bytes())
    middle = pq.ParquetFile(gallery[0]).metadata.row_group(0).total_byte_size // 2
    content[middle] ^= 255
    file = gallery[0].with_name("changed.parquet")
    file.write_bytes(content)
    assert "is damaged" in refused(capsys, "embed", model, "prid2011", gallery[1], file)


def test_sheet_overwrites_no_picture(gallery, tmp_path, capsys):
    query = tmp_path / "query.png"
    shutil.copy(gallery[1] / "multi_shot/cam_a/person_0003/0001.png", query)
    before = query.read_bytes()
    assert "would overwrite an image of" in refused(capsys, "rank", gallery[0], query, "--sheet", query)
    shown = gallery[1] / "multi_shot/cam_a/person_0003/0001.png"
    assert "would overwrite an image of" in refused(capsys, "rank", gallery[0], query, "--sheet", shown)
    assert query.read_bytes() == before and shown.stat().st_size == len(before)


def test_picture_that_is_too_small_is_refused(crops, gallery, model, tmp_path, capsys):
    Image.new("RGB", (7, 16)).save(crops / "small.png")
    line = "small.png: 16 x 7 pixels; expected at least 8 x 8"
    assert line in refused(capsys, "rank", gallery[0], crops / "small.png")
    assert line in refused(capsys, "embed", model, "crops", crops, tmp_path / "x.parquet")


def test_sheet_without_the_images_is_refused_before_ranking(gallery, tmp_path, capsys):
    options = ("rank", gallery[0], gallery[0], "--sheet", tmp_path / "sheet.png", "--images", tmp_path)
    assert f"--images {tmp_path}: {tmp_path}/multi_shot/" in refused(capsys, *options)
    assert not list(tmp_path.iterdir())


def test_folder_of_videos_is_not_missed_silently(crops, model, tmp_path, capsys):
    (crops / "videos").mkdir()
    (crops / "videos/1.mp4").touch()
    line = refused(capsys, "embed", model, "crops", crops, tmp_path / "x.parquet")
    assert f"{crops}/videos/1.mp4: this format is not read" in line


@pytest.mark.parametrize("command", ["retrieve", "data"])
def test_ctrl_c_while_a_command_starts_has_no_traceback(command, tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", f"trainables.{command}", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        preexec_fn=enable_signals,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_usage_mistake_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["rank", "a.parquet", "b.png", "--top", "0"])
    error = capsys.readouterr().err
    assert error == "error: argument --top: '0': expected a whole number above 0; see --help\n"


def test_rank_unreadable_folder_is_one_line(gallery, tmp_path, capsys, monkeypatch):
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    monkeypatch.setattr(Path, "iterdir", Mock(side_effect=denied))
    assert refused(capsys, "rank", gallery[0], tmp_path) == f"error: {tmp_path}: Permission denied"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("flavors:", "flavors: [", "is damaged: ParserError: while parsing"),
        (
            "metadata:",
            "metadata: 5\nother:",
            "is damaged: AttributeError: 'int' object has no attribute 'get'",
        ),
        ("checksum:", "checksums:", "is damaged: KeyError: 'checksum'"),
    ],
)
def test_model_with_a_damaged_mlmodel_is_one_line(old, new, line, model, tmp_path, capsys):
    damaged = Path(shutil.copytree(model, tmp_path / "model"))
    description = damaged / "MLmodel"
    description.write_text(description.read_text().replace(old, new))
    (tmp_path / "crops").mkdir()
    Image.new("RGB", (8, 16)).save(tmp_path / "crops/1.png")
    out = tmp_path / "x.parquet"
    refusal = refused(capsys, "embed", damaged, "crops", tmp_path / "crops", out)
    assert refusal.startswith(f"error: {damaged}: {line}")
    assert not list(tmp_path.glob("x.parquet*"))


def test_model_with_damaged_weights_is_one_line(model, tmp_path, monkeypatch):
    damage = SafetensorError("Error while deserializing header: invalid JSON")
    monkeypatch.setattr(mlflow.pyfunc, "load_model", Mock(side_effect=damage))
    with pytest.raises(DataError, match=r"^m: is damaged: SafetensorError: Error while .* invalid JSON$"):
        StoredModel(model, "m", "m", None)


def test_default_store_is_that_of_sweeps(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Path(stored_model._DEFAULT_STORE).expanduser()
    assert default_address() == f"sqlite:///{store}"


def test_model_of_a_registry_is_found_by_alias_and_version(gallery, model, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("reid")
    client.create_model_version("reid", str(model))
    client.set_registered_model_alias("reid", "champion", "1")
    file = tmp_path / "prid.parquet"
    common = ("prid2011", gallery[1], file, "--tracking", uri)
    assert main([str(word) for word in ("embed", "reid@champion", *common)]) == 0
    about = Gallery(file).about
    assert (about.model, about.model_name, about.model_version) == ("models:/reid/1", "reid", "1")
    query = gallery[1] / "multi_shot/cam_a/person_0003"
    capsys.readouterr()
    assert rankings(capsys, file, query, "--tracking", uri)[0]["decision"] == "match"
    for name, hint in (
        ("models:/reid@champoin", "no such alias; did you mean 'champion'?"),
        ("models:/ried@champion", "no such model; did you mean 'reid'?"),
        ("models:/reid/7", "no such version; versions: 1"),
    ):
        assert hint in refused(capsys, "embed", name, *common)
