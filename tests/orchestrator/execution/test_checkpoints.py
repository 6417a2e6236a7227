"""The folder of a trial: which checkpoint counts, and what is deleted."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.fs
import pytest
import ray.train

from orchestrator.errors import InputError, StorageError, is_refused
from orchestrator.execution.checkpoints import TrialFolder, opened, storage_errors


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "trial-0000"), "owner")
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
    assert (
        TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "none"), "owner").last_checkpoint() is None
    )


def test_saved_checkpoint_has_all_files_and_is_the_last(folder: TrialFolder, source: Path) -> None:
    folder.save(source, 9)
    last = Path(folder.save(source, 10))
    assert folder.last_checkpoint() == str(last)
    assert (last / "state.json").read_text() == "{}" and (last / "parts/weights").read_bytes() == b"123"


def test_checkpoint_of_another_trial_of_the_same_number_does_not_count(
    folder: TrialFolder, source: Path
) -> None:
    lost, trial = replace(folder, owner="job-1"), replace(folder, owner="job-2")
    saved = lost.save(source, 3)
    assert (lost.last_checkpoint(), trial.last_checkpoint()) == (saved, None)
    earlier = replace(folder, owner="job").save(source, 2)  # of version 0.1.0, which names only the job
    assert trial.last_checkpoint() == earlier and replace(folder, owner="other-2").last_checkpoint() is None


def test_opened_checkpoint_is_checked(folder: TrialFolder, source: Path) -> None:
    saved = Path(folder.save(source, 1))
    checkpoint = ray.train.Checkpoint(str(saved), folder.filesystem)
    (saved / "curves.json").write_text("added by the scoring")
    with opened(checkpoint) as files:
        assert (files / "parts/weights").read_bytes() == b"123"
    (saved / "parts/weights").write_bytes(b"124")
    with pytest.raises(InputError, match=f"{saved.name} is damaged .parts/weights has changed"):
        opened(checkpoint).__enter__()


def test_checkpoint_that_is_being_deleted_is_not_used(folder: TrialFolder, source: Path) -> None:
    saved = folder.save(source, 1)
    Path(f"{saved}.complete").unlink()
    with pytest.raises(InputError, match=r"\(it was deleted\)"):
        opened(ray.train.Checkpoint(saved, folder.filesystem)).__enter__()


@pytest.mark.parametrize("marker", [b"", b"{", b"[1, 2]", b"3"])
def test_checkpoint_without_readable_checksums_is_used(
    folder: TrialFolder, source: Path, marker: bytes
) -> None:
    saved = folder.save(source, 1)
    Path(f"{saved}.complete").write_bytes(marker)
    with opened(ray.train.Checkpoint(saved, folder.filesystem)) as files:
        assert (files / "state.json").exists()


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


def test_all_but_one_are_deleted_except_what_may_be_in_upload(folder: TrialFolder, source: Path) -> None:
    paths = [folder.save(source, epoch) for epoch in (1, 2, 3, 3, 4)]
    for path in (paths[0], paths[4]):
        Path(f"{path}.complete").unlink()
    folder.delete_all_but(paths[2])
    assert checkpoints(folder) == [Path(path).name for path in (paths[2], paths[4])]
    assert folder.last_checkpoint() == paths[2]


def test_checkpoint_of_a_job_that_was_started_over_does_not_count(folder: TrialFolder, source: Path) -> None:
    kept = folder.save(source, 1)
    replace(folder, owner="another").save(source, 9)
    assert folder.last_checkpoint() == kept


def test_checkpoints_of_version_0_1_0_count(folder: TrialFolder, source: Path) -> None:
    listed, other = (f"checkpoint_2026-01-01_00-00-0{second}.5" for second in range(2))
    for name in (listed, other):
        (Path(folder.path) / name).mkdir()
    content = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": listed}]})
    folder.write("checkpoint_manager_snapshot.json", content.encode())
    assert folder.last_checkpoint() == f"{folder.path}/{listed}"
    later = folder.save(source, 3)
    folder.delete_all_but(later)
    assert folder.last_checkpoint() == later and checkpoints(folder) == [Path(later).name]


def test_folder_that_is_gone_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "job").mkdir()
    folder = TrialFolder(pyarrow.fs.LocalFileSystem(), str(tmp_path / "job/trials/trial-0000"), "owner")
    with pytest.raises(ValueError, match=r"job/trials/trial-0000 is gone; was it moved or deleted"):
        folder.save(source, 1)


def test_refused_upload_is_not_repeated(
    folder: TrialFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(self: TrialFolder, file: Path, target: str) -> None:
        tries.append(target)
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied.")

    monkeypatch.setattr(TrialFolder, "_copy", refuse)
    with pytest.raises(StorageError, match="ACCESS_DENIED") as raised, storage_errors():
        folder.save(source, 1)
    assert raised.value.refused and len(tries) == 1
    assert pickle.loads(pickle.dumps(raised.value)).refused


class Undeletable(pyarrow.fs.FSSpecHandler):  # type: ignore[misc]
    """A local file system that permits no deletion."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("file"))

    def delete_file(self, path: str) -> None:
        raise PermissionError(path)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied."), True),
        (PermissionError("/folder"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), False),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken"), False),
        (OSError("AWS Error NETWORK_CONNECTION during PutObject operation"), False),
    ],
)
def test_refusal_is_an_answer_that_says_so(error: OSError, refused: bool) -> None:
    assert is_refused(error) is refused


def test_probe_of_a_storage_that_deletes_nothing_has_one_name(folder: TrialFolder) -> None:
    bucket = replace(folder, filesystem=pyarrow.fs.PyFileSystem(Undeletable()))
    assert bucket.can_be_written() and bucket.can_be_written()
    assert [file.name for file in Path(folder.path).parent.iterdir() if file.is_file()] == ["probe"]


def test_hangs_are_the_files_with_stacks(folder: TrialFolder) -> None:
    replace(folder, owner="another").record_hang("worker", b"of a lost trial with other values")
    folder.record_hang("worker", b"stacks")
    (name,) = folder.hangs()
    assert folder.read(name) == "stacks"
