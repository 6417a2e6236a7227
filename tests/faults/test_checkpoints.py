"""Checkpoints in a bucket that fails: whole, or not there."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
import ray.train

from orchestrator.execution import checkpoints
from orchestrator.execution.checkpoints import TrialFolder
from tests.support.servers import FaultyProxy, Seaweed

pytestmark = pytest.mark.faults
CONTENT = {"reported.json": b"[1]" * 50, "parts/weights.bin": bytes(range(256)) * 1000}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def opened(seaweed: Seaweed, endpoint: str) -> pyarrow.fs.FileSystem:
    keys = {"access_key": seaweed.access_key, "secret_key": seaweed.secret_key}
    return pyarrow.fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1", **keys)


@pytest.mark.parametrize(
    "rates",
    [
        {"expired": 0.15},
        {"error": 0.1, "slow_down": 0.1},
        {"lost_answer": 0.15, "cut_answer": 0.1},
        {"cut_request": 0.2},
    ],
    ids=lambda rates: "-".join(rates),
)
def test_an_upload_that_does_not_raise_is_whole(
    rates: dict[str, float], seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_UPLOADS", 1)
    for name, content in CONTENT.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    checkpoint = ray.train.Checkpoint.from_directory(tmp_path / "local")
    seen: Counter[str] = Counter()
    with FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy:
        proxy.plan(seed=3, rates=rates)
        folder = TrialFolder(opened(seaweed, proxy.endpoint), f"{seaweed.bucket}/{'-'.join(rates)}")
        opened(seaweed, seaweed.endpoint).create_dir(folder.path)
        for number in range(15):
            try:
                made = folder.upload(checkpoint, f"checkpoint_{number}")
            except OSError:
                seen["refused"] += 1
                continue
            seen["whole"] += 1
            there = opened(seaweed, seaweed.endpoint)
            for name, content in CONTENT.items():
                with there.open_input_stream(f"{made.path}/{name}") as file:
                    assert file.read() == content, (number, name)
        assert sum(proxy.counts()[kind] for kind in rates) > 5
    assert seen["whole"]


def test_an_upload_is_tried_again(seaweed: Seaweed, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy:
        folder = TrialFolder(opened(seaweed, proxy.endpoint), f"{seaweed.bucket}/again")
        opened(seaweed, seaweed.endpoint).create_dir(folder.path)
        proxy.plan(rates={"expired": 1.0}, limit=2)
        made = folder.upload(ray.train.Checkpoint.from_directory(tmp_path), "checkpoint_0")
        assert proxy.counts()["expired"] == 2
    with opened(seaweed, seaweed.endpoint).open_input_stream(f"{made.path}/state.json") as file:
        assert file.read() == b"{}"


def test_a_folder_that_not_all_nodes_share_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="all nodes have to share it"):
        folder.upload(ray.train.Checkpoint.from_directory(tmp_path), "checkpoint_0")
    assert not (tmp_path / "elsewhere").exists()


def test_checkpoints_that_nobody_registered_go_unless_they_may_be_in_the_making(tmp_path: Path) -> None:
    half, registered, making = (f"checkpoint_2026-01-01_00-00-0{second}.5" for second in range(3))
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path))
    for name in (half, registered, making):
        (tmp_path / name).mkdir()
    folder.forget_unregistered()
    assert len(folder.names("checkpoint_2")) == 3  # before the first one is registered
    listed = {"checkpoint_results": [{"checkpoint_dir_name": registered}]}
    folder.write("checkpoint_manager_snapshot.json", json.dumps(listed).encode())
    folder.forget_unregistered()
    assert sorted(folder.names("checkpoint_2")) == [registered, making]
