"""Checkpoints in a bucket that fails: an upload is complete, or it raises."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import pytest

from orchestrator.execution import checkpoints
from orchestrator.execution.checkpoints import TrialFolder
from tests.support.servers import FaultyProxy, Seaweed

pytestmark = pytest.mark.faults
CONTENT = {"reported.json": b"[1]" * 50, "parts/weights.bin": bytes(range(256)) * 1000}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def open_bucket(seaweed: Seaweed, endpoint: str) -> pyarrow.fs.FileSystem:
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
def test_upload_that_does_not_raise_is_complete(
    rates: dict[str, float], seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_MAX_UPLOADS", 1)
    for name, content in CONTENT.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    outcomes: Counter[str] = Counter()
    with FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy:
        proxy.plan(seed=3, rates=rates)
        folder = TrialFolder(
            open_bucket(seaweed, proxy.endpoint), f"{seaweed.bucket}/{'-'.join(rates)}", "owner"
        )
        open_bucket(seaweed, seaweed.endpoint).create_dir(folder.path)
        bucket = open_bucket(seaweed, seaweed.endpoint)
        for number in range(300):
            if number >= 15 and outcomes["complete"] >= 3:
                break
            try:
                uploaded = folder.save(tmp_path / "local", number)
            except OSError:
                outcomes["refused"] += 1
                continue
            outcomes["complete"] += 1
            assert replace(folder, filesystem=bucket).last_checkpoint() == uploaded
            for name, content in CONTENT.items():
                with bucket.open_input_stream(f"{uploaded}/{name}") as file:
                    assert file.read() == content, (number, name)
        assert sum(proxy.counts()[kind] for kind in rates) > 5
    assert outcomes["complete"] >= 3


def test_upload_after_two_faults_succeeds(seaweed: Seaweed, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "state.json").write_text("{}")
    with FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy:
        folder = TrialFolder(open_bucket(seaweed, proxy.endpoint), f"{seaweed.bucket}/again", "owner")
        open_bucket(seaweed, seaweed.endpoint).create_dir(folder.path)
        proxy.plan(rates={"expired": 1.0}, limit=2)
        uploaded = folder.save(tmp_path / "local", 1)
        assert proxy.counts()["expired"] == 2
        assert folder.last_checkpoint() == uploaded
    with open_bucket(seaweed, seaweed.endpoint).open_input_stream(f"{uploaded}/state.json") as file:
        assert file.read() == b"{}"


def test_upload_to_unshared_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "elsewhere/job/trials/a"), "owner")
    with pytest.raises(ValueError, match="all nodes have to share it"):
        folder.save(tmp_path, 1)
    assert not (tmp_path / "elsewhere").exists()
