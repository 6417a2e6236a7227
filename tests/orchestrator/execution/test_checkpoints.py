"""The folder of a trial: which checkpoint counts, and what is deleted."""

import json
from pathlib import Path

import pyarrow.fs
import pytest

from orchestrator.execution.checkpoints import TrialFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "trial-0000"))
    folder.create()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "local" / "parts").mkdir(parents=True)
    (tmp_path / "local" / "state.json").write_text("{}")
    (tmp_path / "local" / "parts" / "weights").write_bytes(b"123")
    return tmp_path / "local"


def checkpoints(folder: TrialFolder) -> list[str]:
    return sorted(path.name for path in Path(folder.path).glob("checkpoint_*") if path.is_dir())


def test_new_folder_has_no_checkpoint(folder: TrialFolder) -> None:
    assert folder.last_checkpoint() is None and folder.hangs() == []


def test_folder_that_does_not_exist_has_no_checkpoint(tmp_path: Path) -> None:
    assert TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "none")).last_checkpoint() is None


def test_saved_checkpoint_has_all_files_and_is_the_last(folder: TrialFolder, source: Path) -> None:
    folder.save(source, 9)
    last = Path(folder.save(source, 10))
    assert folder.last_checkpoint() == str(last)
    assert (last / "state.json").read_text() == "{}" and (last / "parts/weights").read_bytes() == b"123"


def test_checkpoint_without_its_last_file_does_not_count(folder: TrialFolder, source: Path) -> None:
    complete, partial = folder.save(source, 1), folder.save(source, 2)
    Path(f"{partial}.complete").unlink()
    assert folder.last_checkpoint() == complete


def test_two_checkpoints_of_an_epoch_do_not_share_files(folder: TrialFolder, source: Path) -> None:
    assert folder.save(source, 4) != folder.save(source, 4)


def test_deleted_checkpoint_does_not_count(folder: TrialFolder, source: Path) -> None:
    first, second = folder.save(source, 1), folder.save(source, 2)
    folder.delete(second)
    assert folder.last_checkpoint() == first and not Path(second).exists()
    folder.delete(second)  # as when an attempt deletes what another one has deleted


def test_incomplete_checkpoints_before_the_last_are_deleted(folder: TrialFolder, source: Path) -> None:
    paths = [folder.save(source, epoch) for epoch in range(1, 5)]
    Path(f"{paths[0]}.complete").unlink()
    Path(f"{paths[3]}.complete").unlink()
    folder.delete_incomplete()
    assert checkpoints(folder) == [Path(path).name for path in paths[2:]]  # the last one may be in upload
    assert folder.last_checkpoint() == paths[2]


def test_checkpoints_of_version_0_1_0_count(folder: TrialFolder, source: Path) -> None:
    listed, other = (f"checkpoint_2026-01-01_00-00-0{second}.5" for second in range(2))
    for name in (listed, other):
        (Path(folder.path) / name).mkdir()
    content = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": listed}]})
    folder.write("checkpoint_manager_snapshot.json", content.encode())
    assert folder.last_checkpoint() == f"{folder.path}/{listed}"
    later = folder.save(source, 3)
    folder.delete_incomplete()
    assert folder.last_checkpoint() == later and checkpoints(folder) == [Path(later).name]


def test_hangs_are_the_files_with_stacks(folder: TrialFolder) -> None:
    folder.record_hang("worker", b"stacks")
    (name,) = folder.hangs()
    assert folder.read(name) == "stacks"
