"""All stores keep one contract, and the check of it finds the stores that do not."""

import errno
import os
from pathlib import Path

import boto3
import optuna
import pytest

from orchestrator.errors import InputError, StorageError, UnreachableError
from orchestrator.storage.directory import open_store
from orchestrator.storage.local import LocalStore
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.s3_journal import S3Journal
from orchestrator.testing import check_store
from tests.support.servers import FaultyProxy, Seaweed


def s3_store(server: Seaweed, prefix: str) -> S3Store:
    store = S3Store(f"s3://{server.bucket}/{prefix}")
    store.check()
    return store


def test_local_store_keeps_the_contract(tmp_path: Path) -> None:
    check_store(LocalStore(tmp_path / "not" / "yet"))


@pytest.mark.parametrize("prefix", ["sweeps/team", ""])
def test_s3_store_keeps_the_contract(seaweed: Seaweed, prefix: str) -> None:
    check_store(s3_store(seaweed, prefix))


class BlindStore(LocalStore):
    """Ignores the version that a writer has seen."""

    def compare_and_swap(self, name: str, content: bytes, seen: str | None) -> str | None:
        self.write(name, content)
        file = self.read(name)
        return None if file is None else file[1]


class UnsortedStore(LocalStore):
    """Lists files in the wrong order."""

    def list_files(self, prefix: str) -> list[str]:
        return super().list_files(prefix)[::-1]


class GreedyStore(LocalStore):
    """Lists files of other jobs too."""

    def list_files(self, prefix: str) -> list[str]:
        return super().list_files(prefix.rstrip("/"))


class DeepStore(LocalStore):
    """Lists the folders below the top, too."""

    def list_folders(self) -> list[str]:
        return sorted({file.rpartition("/")[0] for file in self.list_files("")} - {""})


class CopyingStore(LocalStore):
    """Leaves the old files when it renames a folder."""

    def rename(self, name: str, other: str) -> None:
        for file in self.list_files(f"{name}/"):
            content = self.read(file)
            assert content is not None
            self.write(other + file.removeprefix(name), content[0])


class OpenStore(LocalStore):
    """Has no locks, and does not say so."""

    def is_locked(self, name: str) -> bool | None:
        return None


class ForgetfulStore(LocalStore):
    """Does not keep what is published."""

    def publish(self, file: Path, name: str) -> None:
        file.unlink()


@pytest.mark.parametrize(
    ("store_type", "line"),
    [
        (BlindStore, "a version of a missing file is wrong"),
        (UnsortedStore, "list_files returns all files, sorted"),
        (GreedyStore, "list_files returns all files, sorted"),
        (DeepStore, "list_folders returns the folders at the top"),
        (CopyingStore, "rename leaves no file"),
        (OpenStore, "is_locked sees a lock"),
        (ForgetfulStore, "report.html exists"),
    ],
)
def test_check_store_finds_a_broken_store(store_type: type[LocalStore], line: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=line):
        check_store(store_type(tmp_path))


def test_local_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"^storage: {tmp_path}/file is a file, not a folder$"):
        LocalStore(tmp_path / "file" / "folder").check()


def test_local_store_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=rf"^storage: {tmp_path}/file"):
        LocalStore(tmp_path / "file").write("name", b"")


def test_local_store_whose_link_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    link.symlink_to(tmp_path / "first")
    store = LocalStore(link)
    with store.lock("job"):
        store.write("job/record", b"1")
        link.unlink()
        link.symlink_to(tmp_path / "second")
        line = f"storage: {link} is another folder than at the start"
        assert store.replaced() == line
        with pytest.raises(StorageError, match=f"^{line}$"):
            store.write("job/record", b"2")
    assert not list((tmp_path / "second").rglob("record"))
    with store.lock("job"):
        store.write("job/record", b"2")


def test_local_store_names_a_folder_that_it_may_not_look_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another user; the superuser, who may run the tests, may look into every folder."""

    def refuse(path: Path, **_: object) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    for check in (LocalStore(tmp_path).check, lambda: LocalStore(tmp_path).check_folder("job")):
        with pytest.raises(InputError, match=rf"^storage: {tmp_path}(/job)?: Permission denied$"):
            check()


def test_local_store_reads_no_pipe(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "job").mkdir()
    for name in ("file", "job/study.db", ".job.lock"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(StorageError, match=r"file is not a regular file$"):
        store.read("file")
    with pytest.raises(StorageError, match=r"study.db is not a regular file$"):
        store.study_storage("job")
    assert store.is_locked("job") is False


def test_local_store_names_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    for name in ("file", "job/study.db"):
        (tmp_path / name).mkdir(parents=True)
    store = LocalStore(tmp_path)
    with pytest.raises(StorageError, match=r"file is a folder, where a file is expected; move the folder"):
        store.read("file")
    with pytest.raises(StorageError, match=r"study.db is a folder, where a file is expected"):
        store.study_storage("job")


def test_local_store_waits_for_a_study_that_is_locked(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    store = LocalStore(tmp_path)
    storage = store.study_storage("job")
    assert isinstance(storage, optuna.storages.RDBStorage)
    with storage.engine.connect() as connection:
        (milliseconds,) = connection.exec_driver_sql("PRAGMA busy_timeout").one()
    assert milliseconds == 20_000


def test_local_store_whose_folder_is_a_file_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=rf"^storage: {tmp_path}/file: Not a directory$"):
        LocalStore(tmp_path / "file").list_files("")


def test_local_store_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    LocalStore(tmp_path).write("job/file", b"content")
    assert os.listdir(tmp_path / "job") == ["file"]


def test_study_of_a_folder_in_a_bucket_is_told(seaweed: Seaweed) -> None:
    store = s3_store(seaweed, "moved")
    assert store.foreign_study("job") == ""
    store.write("job/study.db", b"")
    assert store.foreign_study("job").startswith("its study was written in a folder and cannot")
    store.write("job/study/000000.jsonl", b"")
    assert store.foreign_study("job") == ""


def test_s3_store_without_its_bucket_is_refused(seaweed: Seaweed) -> None:
    with pytest.raises(InputError, match=r"^storage: s3://none/x: there is no such bucket \(404\)$"):
        S3Store("s3://none/x").check()


@pytest.fixture
def new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 read the environment again."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.mark.usefixtures("new_session")
def test_s3_store_with_a_wrong_key_is_refused(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=r": the secret key is wrong \(403\)$"):
        S3Store(f"s3://{seaweed.bucket}").check()


@pytest.mark.usefixtures("new_session")
def test_s3_store_without_credentials_says_what_to_set(
    seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(InputError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        S3Store(f"s3://{seaweed.bucket}").check()


def test_s3_store_before_its_check_does_not_wait(seaweed: Seaweed) -> None:
    with pytest.raises(StorageError, match="there is no such bucket"):
        S3Store("s3://none/x").write("name", b"")


def test_s3_journal_with_a_second_writer_ends_the_first(seaweed: Seaweed) -> None:
    store = s3_store(seaweed, "journal")
    first = S3Journal(store, "job/study")
    first.append_logs([{"operation": 1}])
    second = S3Journal(store, "job/study")
    second.append_logs([{"operation": 2}])
    with pytest.raises(StorageError, match="another process writes to s3://sweeps/journal/job/study"):
        first.append_logs([{"operation": 3}])
    assert S3Journal(store, "job/study").read_logs(0) == [{"operation": 1}, {"operation": 2}]


def test_s3_journal_whose_objects_were_deleted_says_so(seaweed: Seaweed) -> None:
    store = s3_store(seaweed, "emptied")
    journal = S3Journal(store, "job/study")
    journal.append_logs([{"operation": 1}])
    for name in store.list_files("job/study"):
        store.delete(name)
    with pytest.raises(StorageError, match="objects of s3://sweeps/emptied/job/study are gone; restore them"):
        journal.append_logs([{"operation": 2}])


def test_store_of_a_malformed_bucket_is_refused() -> None:
    with pytest.raises(InputError, match=r"^storage: s3://a b/x: "):
        open_store("s3://a b/x").check()


@pytest.mark.parametrize("address", ["localhost:9000", "s3://bucket", "http://"])
def test_endpoint_that_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    line = f"^storage: s3://a/x: AWS_ENDPOINT_URL is '{address}'; expected an address such as http://"
    with pytest.raises(InputError, match=line):
        open_store("s3://a/x")


@pytest.mark.parametrize(("kind", "error"), [("expired", UnreachableError), ("denied", InputError)])
def test_s3_store_refused_at_the_start_says_whether_to_wait(
    seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[InputError]
) -> None:
    with FaultyProxy(seaweed.endpoint, tmp_path) as proxy:
        proxy.plan(rates={kind: 1.0})
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(InputError, match="403") as raised:
            s3_store(seaweed, "refused")
    assert type(raised.value) is error
