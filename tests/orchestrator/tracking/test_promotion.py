"""The judge: stored results, a champion that is scored anew, and versions that cannot be compared."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.sections import Gate
from orchestrator.errors import InputError, TrackingError
from orchestrator.tracking import evidence as evidences
from orchestrator.tracking.alias import Alias
from orchestrator.tracking.evidence import Evidence
from orchestrator.tracking.gate import Decision, Difference, Rule, TargetResults
from orchestrator.tracking.promotion import Judge, Record, champion_before, promote, records_of
from tests.support.model_store import ModelStore

RULE = Rule(gate=Gate(), metric="mAP")
LOW, HIGH = (0.1, 0.2, 0.3, 0.4, 0.5) * 2, (0.5, 0.6, 0.7, 0.8, 0.9) * 2


def evidence(values: tuple[float, ...], data: str = "d1") -> Evidence:
    names = tuple("abcdefghij")
    results = TargetResults(
        data=data, protocol="p", version="1", queries=names, identities=names, metrics={"mAP": values}
    )
    return Evidence(trainable="a:B", config={}, rule=RULE, results={"prid": results}, trained_on={})


class Scorer:
    """Scores a champion anew, and counts how often."""

    def __init__(self, outcome: Mapping[str, TargetResults] | Exception) -> None:
        self.outcome, self.calls = outcome, 0

    def __call__(self, version: Any) -> Mapping[str, TargetResults]:
        self.calls += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """Version 1 is a champion with low results of other data."""
    store = ModelStore()
    store.create_registered_model("reid")
    store.versions = {("reid", "1"): {"trainable": "a:B"}, ("reid", "2"): {}}
    known = {"1": evidence(LOW, data="other")}
    monkeypatch.setattr(evidences, "read", lambda client, version: known[version.version])
    return store


def judge(store: ModelStore, scorer: Scorer | None = None, trainable: str = "a:B") -> Judge:
    candidate = evidence(HIGH).model_copy(update={"trainable": trainable})
    return Judge(store, "reid", 2, candidate, RULE, scorer)


def test_champion_of_other_data_is_scored_anew_once(store: ModelStore) -> None:
    results = evidence(LOW).results
    assert results is not None
    scorer = Scorer(results)
    judged = judge(store, scorer)
    assert judged.decide(1).promoted and judged.decide(1) is judged.decide(1)
    assert scorer.calls == 1


def test_champion_that_cannot_be_scored_keeps_the_alias(store: ModelStore) -> None:
    decision = judge(store, Scorer(InputError("version 1 could not be scored: no model"))).decide(1)
    assert not decision.promoted and "prid: version 1 could not be scored: no model" in decision.reason


def test_champion_of_another_family_is_refused(store: ModelStore) -> None:
    with pytest.raises(InputError, match="version 1 of reid is a model of a:B, and not of c:D"):
        judge(store, trainable="c:D").decide(1)


def test_champion_deleted_before_it_is_read_is_one_line(store: ModelStore) -> None:
    del store.versions["reid", "1"]
    with pytest.raises(
        TrackingError, match=r"^registry: version 1 of reid was deleted while it was compared"
    ):
        judge(store).decide(1)


def test_champion_deleted_after_the_comparison_is_one_line(store: ModelStore) -> None:
    judged = judge(store, Scorer(InputError("gone")))
    judged.decide(1)
    with pytest.raises(TrackingError, match="version 1 of reid was deleted while it was compared"):
        judged.decide(None)


def test_results_of_versions_are_read_as_they_were_written() -> None:
    kept: dict[str, str] = {}
    client = SimpleNamespace(
        log_text=lambda run, text, file: kept.update({file: text}),
        list_artifacts=lambda run, path: [SimpleNamespace(path=file) for file in kept],
        download_artifacts=lambda run, file, folder: _write(f"{folder}/results.json", kept[file]),
    )
    evidences.write(client, "run", evidence(HIGH))
    version = SimpleNamespace(run_id="run", name="reid", version="2", tags={})
    assert evidences.read(client, version) == evidence(HIGH)


def test_results_of_an_early_version_are_its_tags() -> None:
    tags = {"score.test/prid/mAP": "0.5", "data.prid": "d1"}
    version = SimpleNamespace(run_id="", name="reid", version="1", tags=tags)
    found = evidences.read(SimpleNamespace(), version)
    assert (found.scores, found.data, found.results) == ({"test/prid/mAP": 0.5}, {"prid": "d1"}, None)


DIFFERENCE = Difference(
    candidate=1 / 3, champion=2 / 7, difference=1 / 3 - 2 / 7, interval=(-1 / 7, 1 / 9), queries=12345
)
LONG = {
    "problems": {"not_compared": {f"target-{number}": '"no such file" ' * 60 for number in range(100)}},
    "targets": {"targets": {f"target-{number}": DIFFERENCE for number in range(100)}},
    "reason": {"reason": "\N{GRINNING FACE}" * 10_000},
    "notes": {"notes": tuple("zu lang, ä " * 50 for _ in range(100))},
    "metric": {"metric": "m" * 10_000},
}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_record_of_a_long_decision_fits_into_the_tags_of_mlflow(
    store: ModelStore, long: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    keep = store.set_registered_model_tag

    def measure(name: str, key: str, value: str) -> None:
        lengths.append(len(value))
        keep(name, key, value)

    monkeypatch.setattr(store, "set_registered_model_tag", measure)
    decision = Decision(verdict="declined", reason="worse", method="scores alone").model_copy(update=long)
    version = store.get_model_version("reid", "2")
    record = promote(store, version, Alias(store, "reid", "champion"), lambda _: decision, by={"user": "u"})
    assert max(lengths) < 4000
    assert (record.verdict, record.by) == ("declined", {"user": "u"})
    assert record.notes[-1] == "shortened: the whole decision does not fit into a record"
    if "targets" in long:
        assert 5 <= len(record.targets) < 100 and record.targets["target-0"] == DIFFERENCE


def test_record_of_a_decision_that_fits_is_complete(store: ModelStore) -> None:
    targets = {f"target-{number}": DIFFERENCE for number in range(8)}
    decision = Decision(verdict="promoted", reason="better", method="scores alone", targets=targets)
    version = store.get_model_version("reid", "2")
    record = promote(store, version, Alias(store, "reid", "champion"), lambda _: decision, by={})
    assert record.targets == targets and record.notes == ()


def test_gate_decides_once_for_each_alias(store: ModelStore) -> None:
    version = store.get_model_version("reid", "2")
    decision = Decision(verdict="promoted", reason="better", method="scores alone")
    for alias in ("champion", "staging", "champion"):
        promote(store, version, Alias(store, "reid", alias), lambda _: decision, by={})
    found = store.get_model_version("reid", "2")
    assert [len(records_of(found, alias)) for alias in ("champion", "staging")] == [1, 1]
    assert store.get_registered_model("reid").aliases == {"champion": "2", "staging": "2"}


def test_record_of_a_later_release_is_read(store: ModelStore) -> None:
    content = record(2, 1).model_dump() | {"action": "moved by a vote", "verdict": "postponed", "votes": 3}
    store.set_model_version_tag("reid", "2", "champion.change.2", json.dumps(content))
    (found,) = records_of(store.get_model_version("reid", "2"), "champion")
    assert (found.action, found.verdict) == ("moved by a vote", "postponed")
    assert champion_before([record(1, None), found], 1, {1, 2}) is None


def test_damaged_record_is_one_line(store: ModelStore) -> None:
    store.set_model_version_tag("reid", "2", "champion.change.2", '{"alias": "champion"}')
    with pytest.raises(TrackingError, match=r"^registry: the tag champion\.change\.2 .* is damaged.*$"):
        records_of(store.get_model_version("reid", "2"), "champion")


def record(version: int, champion: int | None) -> Record:
    return Record(
        alias="champion",
        number=version,
        version=version,
        action="gate",
        verdict="promoted",
        reason="",
        champion=champion,
        at="",
        by={},
    )


def _write(file: str, text: str) -> str:
    with open(file, "w", encoding="utf-8") as target:
        target.write(text)
    return file
