"""The digest of a journal: readers of it see the same study as readers of all segments."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from orchestrator.storage import s3_journal
from orchestrator.storage.local import LocalStore
from orchestrator.storage.s3_journal import S3Journal, S3Study

NAME = "job/study"
INDEX = f"{NAME}.digest/index.json"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """The store of a study of 8 ended trials in short segments, most of them in the digest."""
    monkeypatch.setattr(s3_journal, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(s3_journal, "_DIGEST_SEGMENTS", 3)
    store = LocalStore(tmp_path)
    study = optuna.create_study(study_name="job", storage=open_storage(store))
    study.set_user_attr("schema", 2)
    study.enqueue_trial({"x": 0.25})
    for _ in range(8):
        run_trial(study)
    assert store.read(INDEX) is not None
    return store


def open_storage(store: LocalStore) -> S3Study:
    return S3Study(S3Journal(store, NAME))


def run_trial(study: optuna.Study) -> None:
    """Run a trial while another one stays unfinished."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    other = study.ask()
    for step in range(1, 4):
        trial.report(0.5, step)
        trial.set_user_attr(f"epoch {step}", {"time": step})
    study.tell(trial, state=TrialState.PRUNED)
    study.tell(other, 0.5)
    study._storage.on_trial_end()


def test_other_objects_beside_the_segments_are_ignored(store: LocalStore) -> None:
    before = read(store)
    store.write(f"{NAME}/.probe", b"")
    assert read(store) == before


def read(store: LocalStore) -> list[FrozenTrial]:
    study = optuna.load_study(study_name="job", storage=open_storage(store))
    assert study.user_attrs == {"schema": 2}
    trials: list[FrozenTrial] = study.get_trials()
    return trials


def without_digest(store: LocalStore) -> list[FrozenTrial]:
    index = Path(store.path) / INDEX
    content = index.read_bytes()
    index.unlink()
    trials = read(store)
    index.write_bytes(content)
    return trials


def test_journal_with_a_digest_reads_few_segments(store: LocalStore) -> None:
    index = store.read(INDEX)
    assert index is not None
    segments = len(store.list_files(f"{NAME}/"))
    assert segments - json.loads(index[0])["segments"] <= s3_journal._DIGEST_SEGMENTS < segments


def test_journal_with_a_digest_has_the_same_study(store: LocalStore) -> None:
    trials = read(store)
    assert len(trials) == 16 and trials == without_digest(store)


def test_journal_with_a_digest_is_continued(store: LocalStore) -> None:
    for _ in range(3):
        run_trial(optuna.load_study(study_name="job", storage=open_storage(store)))
    trials = read(store)
    assert len(trials) == 22 and trials == without_digest(store)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1, "segments": 999}', '{"schema": 2}'])
def test_journal_with_a_damaged_digest_ignores_it(store: LocalStore, content: str) -> None:
    expected = without_digest(store)
    store.write(INDEX, content.encode())
    assert read(store) == expected


def test_journal_without_a_part_of_its_digest_ignores_it(store: LocalStore) -> None:
    (part, *_) = [name for name in store.list_files(f"{NAME}.digest/") if name != INDEX]
    expected = without_digest(store)
    (Path(store.path) / part).unlink()
    assert read(store) == expected


def test_journal_ignores_a_digest_of_other_segments(store: LocalStore) -> None:
    index = store.read(INDEX)
    assert index is not None
    last = f"{NAME}/{json.loads(index[0])['segments'] - 1:08d}.jsonl"
    segment = store.read(last)
    assert segment is not None
    operation = {"op_code": 2, "worker_id": "an earlier version", "study_id": 0, "user_attr": {"a": 1}}
    store.write(last, segment[0] + b"\n" + json.dumps(operation).encode())
    study = optuna.load_study(study_name="job", storage=open_storage(store))
    assert study.user_attrs == {"schema": 2, "a": 1}


def test_transaction_of_a_journal_is_one_write(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(store)
    study = optuna.load_study(study_name="job", storage=storage)
    writes: list[str] = []
    original = LocalStore.compare_and_swap
    monkeypatch.setattr(
        LocalStore,
        "compare_and_swap",
        lambda *a: writes.append(a[1]) or original(*a),  # type: ignore[func-returns-value]
    )
    with storage.transaction(), storage.transaction():
        trial = study.ask()
        trial.set_user_attr("point", "last")
        assert not writes
    assert len(writes) == 1
    assert read(store)[trial.number].user_attrs == {"point": "last"}
