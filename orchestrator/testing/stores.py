"""The conformance suite for stores."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # optuna and Arrow, which the other suites do not need
    from orchestrator.storage.base import Store

_WRITERS = 4
"""Writers that compete for one file."""


def check_store(store: "Store") -> None:
    """Check that a store keeps the contract of `orchestrator.storage.base.Store`.

    The files that it writes stay in the store, each below a folder ``check-<id>``.

    Raises:
        AssertionError: it does not.
        StorageError: the store does not answer.
    """
    for check in (
        _check_missing_files,
        _check_write,
        _check_compare_and_swap,
        _check_competing_writers,
        _check_list_files,
        _check_list_folders,
        _check_lock,
        _check_rename,
        _check_publish,
        _check_study,
        _check_check,
    ):
        check(store, f"check-{uuid.uuid4().hex[:12]}")


def _check_missing_files(store: "Store", job: str) -> None:
    assert store.read(f"{job}/file") is None, "read of a missing file returns None"
    assert store.list_files(f"{job}/") == [], "list_files without a match returns an empty list"
    assert not store.is_locked(job), "a lock that no process ever took is not held"
    store.rename(job, f"{job}-renamed")
    assert store.list_files(job) == [], "rename of a missing folder does nothing"


def _check_write(store: "Store", job: str) -> None:
    name = f"{job}/folder/file"
    versions = []
    for content in (b"first", b"", bytes(range(256))):
        store.write(name, content)
        version = _content_and_version(store, name, content)
        assert version == _content_and_version(store, name, content), "a version depends on the file alone"
        versions.append(version)
    assert len(set(versions)) == len(versions), "the version changes with the content"


def _check_compare_and_swap(store: "Store", job: str) -> None:
    name = f"{job}/file"
    assert store.compare_and_swap(name, b"early", "a version") is None, "a version of a missing file is wrong"
    assert store.read(name) is None, "a refused compare_and_swap writes nothing"
    first = store.compare_and_swap(name, b"first", None)
    assert first is not None, "compare_and_swap with None writes a missing file"
    assert first == _content_and_version(store, name, b"first"), "it returns the version that read returns"
    assert store.compare_and_swap(name, b"again", None) is None, "compare_and_swap with None spares a file"
    second = store.compare_and_swap(name, b"second", first)
    assert second is not None and second != first, "compare_and_swap with the version that is there writes"
    assert store.compare_and_swap(name, b"late", first) is None, "compare_and_swap with an old version fails"
    assert second == _content_and_version(store, name, b"second"), "a refused compare_and_swap writes nothing"
    store.write(name, b"third")
    assert store.compare_and_swap(name, b"late", second) is None, "compare_and_swap notices a write"
    assert store.list_files(f"{job}/") == [name], "list_files returns no files of the store itself"


def _check_competing_writers(store: "Store", job: str) -> None:
    name, seen = f"{job}/file", None
    contents = [f"writer {number}".encode() for number in range(_WRITERS)]
    for _ in range(3):

        def swap(content: bytes, seen: str | None = seen) -> str | None:
            return store.compare_and_swap(name, content, seen)

        with ThreadPoolExecutor(_WRITERS) as pool:
            versions = dict(zip(contents, pool.map(swap, contents), strict=True))
        winners = [content for content, version in versions.items() if version is not None]
        assert len(winners) == 1, f"of {_WRITERS} writers that saw the same version one wins: {winners}"
        (winner,) = winners
        seen = _content_and_version(store, name, winner)
        assert seen == versions[winner], "the file is that of the writer that won"
        contents = [content + b" again" for content in contents]


def _check_list_files(store: "Store", job: str) -> None:
    names = [f"{job}/b/2", f"{job}/a", f"{job}/b/10/c", f"{job}/bc", f"{job}-other/b", f".{job}.record"]
    for name in names:
        store.write(name, b"content")
    for prefix in (job, f"{job}/", f"{job}/b", f"{job}/b/", f"{job}/b/1", f".{job}.", f"{job}/none"):
        expected = sorted(name for name in names if name.startswith(prefix))
        assert store.list_files(prefix) == expected, f"list_files returns all files, sorted: {prefix}"


def _check_list_folders(store: "Store", job: str) -> None:
    for name in (f"{job}/b/2", f"{job}-other/a", f".{job}.record"):
        store.write(name, b"content")
    folders = [name for name in store.list_folders() if name.startswith((job, f".{job}"))]
    assert folders == [job, f"{job}-other"], "list_folders returns the folders at the top, sorted"


def _check_lock(store: "Store", job: str) -> None:
    with store.lock(job):
        assert store.is_locked(job) is (None if store.heartbeat_only else True), "is_locked sees a lock"
        assert _is_refused(lambda: store.lock(job)) is not store.heartbeat_only, "a second lock is refused"
        assert not _is_refused(lambda: store.lock(f"{job}-other")), "a lock concerns one name"
    assert store.is_locked(job) is (None if store.heartbeat_only else False), "a lock ends with its block"
    assert not _is_refused(lambda: store.lock(job)), "a lock can be taken again"


def _check_rename(store: "Store", job: str) -> None:
    for name in (f"{job}/a", f"{job}/b/c", f"{job}-other/a"):
        store.write(name, name.encode())
    store.rename(job, f"{job}.renamed")
    assert store.list_files(f"{job}/") == [], "rename leaves no file"
    assert store.list_files(f"{job}.renamed/") == [f"{job}.renamed/a", f"{job}.renamed/b/c"]
    _content_and_version(store, f"{job}.renamed/b/c", f"{job}/b/c".encode())
    _content_and_version(store, f"{job}-other/a", f"{job}-other/a".encode())


def _check_publish(store: "Store", job: str) -> None:
    with store.workspace(job) as folder:
        for part in ("report.html", "figures/a.svg"):
            file = folder / part
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(part.encode())
            store.publish(file, f"{job}/{part}")
    for part in ("report.html", "figures/a.svg"):
        _content_and_version(store, f"{job}/{part}", part.encode())
    assert store.locate(f"{job}/report.html") == f"{store.uri}/{job}/report.html", "locate begins with uri"


def _check_study(store: "Store", job: str) -> None:
    import optuna

    with store.workspace(job):
        study = optuna.create_study(study_name=job, storage=store.study_storage(job), direction="maximize")
        study.set_user_attr("key", [1, "two"])
        for value in (0.25, 0.5):
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            trial.report(value, step=1)
            study.tell(trial, value)
        study.ask()
        again = optuna.load_study(study_name=job, storage=store.study_storage(job))
        assert again.user_attrs == {"key": [1, "two"]}, "a study keeps its attributes"
        assert again.trials == study.trials, "a study keeps its trials"
        assert [trial.state.name for trial in again.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    file = store.study_file(job)
    assert file is None or (isinstance(file, Path) and file.exists()), "study_file is the file of the study"


def _check_check(store: "Store", job: str) -> None:
    before = store.list_files("")
    store.check()
    assert store.list_files("") == before, "check writes nothing"


def _content_and_version(store: "Store", name: str, content: bytes) -> str:
    """Check the content of a file, and return its version."""
    file = store.read(name)
    assert file is not None, f"{name} exists"
    assert file[0] == content, f"{name} holds {content!r}, not {file[0]!r}"
    return file[1]


def _is_refused(lock: Callable[[], AbstractContextManager[None]]) -> bool:
    from orchestrator.storage.base import LockedError

    try:
        with lock():
            return False
    except LockedError:
        return True
