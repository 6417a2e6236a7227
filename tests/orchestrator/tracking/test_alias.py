"""One alias, many promoters: killed, suspended and continued between any two of their requests."""

import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.tracking.alias import Alias, Change, is_lease, record_tag
from tests.support.model_store import ModelStore, Process

MODEL, PATIENCE = "reid", 4.0
DONE = "decision"


def store_with(versions: int) -> ModelStore:
    store = ModelStore()
    store.create_registered_model(MODEL)
    store.versions = {(MODEL, str(number)): {} for number in range(1, versions + 1)}
    return store


def promoter(store: ModelStore, version: int, score: Mapping[int, float], owner: str = "") -> Process:
    """A process that promotes a version if its score is higher than that of the champion."""

    def propose(holder: int | None) -> Callable[[int], Change]:
        better = holder is None or score[version] > score[holder]
        verdict = "promoted" if better else "declined"

        def change(number: int) -> Change:
            record = json.dumps({"verdict": verdict, "against": holder})
            tags = {record_tag("champion", number): record, DONE: verdict}
            return Change(version, {"champion" if better else "challenger": version}, tags)

        return change

    def run(process: Process) -> None:
        name = owner or f"promoter {id(process)}"
        alias = Alias(process, MODEL, "champion", PATIENCE, process.clock, process.sleep, name)
        alias.change(propose, lambda tags: DONE in tags, version)

    return Process(store, run)


def settle(store: ModelStore) -> None:
    """Let a reader look, who settles what is left."""

    def run(process: Process) -> None:
        Alias(process, MODEL, "champion", PATIENCE, process.clock, process.sleep).settle()

    finish(Process(store, run))


def finish(*processes: Process) -> None:
    """Let processes continue in turn until all have ended."""
    for _ in range(3000):
        waiting = [process for process in processes if not process.ended]
        if not waiting:
            break
        for process in waiting:
            process.step()
    assert all(process.ended for process in processes)
    for process in processes:
        if process.error:
            raise process.error


def records(store: ModelStore) -> dict[int, list[dict[str, str]]]:
    return {
        int(version): [json.loads(text) for key, text in tags.items() if key.startswith("champion.change.")]
        for (_, version), tags in store.versions.items()
    }


def check(store: ModelStore, score: Mapping[int, float], ended: list[int]) -> None:
    """Check what has to hold once all have ended, and a reader has looked."""
    found, champion = records(store), store.models[MODEL].aliases.get("champion")
    assert all(len(each) <= 1 for each in found.values()), "a version has one record"
    assert all(len(found[version]) == 1 for version in ended), "who went on to the end has a record"
    decided = [version for version, each in found.items() if each]
    assert champion is not None or not decided
    if champion is not None:
        assert found[int(champion)][0]["verdict"] == "promoted"
        assert score[int(champion)] == max(score[version] for version in decided), "the best one is champion"
    assert [name for name in store.models if is_lease(name)] == []
    tags = [key for key in store.models[MODEL].tags if ".closed." not in key and ".late." not in key]
    assert tags == [] and sum(".closed." in key for key in store.models[MODEL].tags) <= 2


def test_first_version_takes_the_alias() -> None:
    store = store_with(1)
    finish(promoter(store, 1, {1: 0.5}))
    check(store, {1: 0.5}, [1])
    assert store.models[MODEL].aliases == {"champion": "1"}


def test_worse_version_becomes_the_challenger() -> None:
    store, score = store_with(2), {1: 0.5, 2: 0.4}
    finish(promoter(store, 1, score))
    finish(promoter(store, 2, score))
    assert store.models[MODEL].aliases == {"champion": "1", "challenger": "2"}


def steps_of_one() -> int:
    store = store_with(1)
    process, steps = promoter(store, 1, {1: 0.5}), 0
    while not process.ended:
        process.step()
        steps += 1
    return steps


@pytest.mark.parametrize("dies", [True, False], ids=["dead", "suspended"])
@pytest.mark.parametrize("better", [2, 1])
def test_promoter_stopped_at_any_step_changes_nothing_late(dies: bool, better: int) -> None:
    """Promoter 1 stops before each of its requests, promoter 2 finishes, and 1 is dead or continues."""
    score = {1: 0.6 if better == 1 else 0.4, 2: 0.5, 3: 0.1}
    for stop in range(1, steps_of_one() + 1):
        store = store_with(3)
        first, second = promoter(store, 1, score), promoter(store, 2, score)
        for _ in range(stop):
            first.step()
        finish(second)
        if dies:
            first.kill()
        else:
            finish(first)
        finish(promoter(store, 3, score))
        check(store, score, [2, 3] if dies else [1, 2, 3])


def test_late_move_is_undone_by_the_next_reader() -> None:
    """Promoter 1 stops right before its move and dies right after it, when 2 has long been champion."""
    store, score = store_with(2), {1: 0.4, 2: 0.5}
    first = promoter(store, 1, score)
    while not any(".intent." in key for key in store.models[MODEL].tags):
        first.step()
    first.step()  # it has seen that its change is open
    finish(promoter(store, 2, score))
    first.step()
    first.kill()
    assert store.models[MODEL].aliases["champion"] == "1"
    settle(store)
    assert store.models[MODEL].aliases["champion"] == "2"
    check(store, score, [2])


def test_decision_that_a_dead_promoter_left_is_completed_with_its_challenger() -> None:
    store, score = store_with(2), {1: 0.5, 2: 0.4}
    finish(promoter(store, 1, score))
    second = promoter(store, 2, score)
    while not any(".intent." in key for key in store.models[MODEL].tags):
        second.step()
    second.kill()
    finish(promoter(store, 2, score))
    assert store.models[MODEL].aliases == {"champion": "1", "challenger": "2"}
    assert [len(found) for found in records(store).values()] == [1, 1]


@pytest.mark.parametrize("takeovers", [1, 2])
def test_first_move_of_all_that_comes_late_does_not_count(takeovers: int) -> None:
    """Promoter 1 stops right before its move, and continues after others have taken its change over."""
    store, score = store_with(3), {1: 0.6, 2: 0.5, 3: 0.4}
    first = promoter(store, 1, score)
    while not any(".intent." in key for key in store.models[MODEL].tags):
        first.step()
    first.step()  # it has seen that its change is open
    others = []
    for number in range(2, takeovers + 2):
        others.append(promoter(store, number, score))
        while not any(name.endswith(f".{number}") for name in store.models if is_lease(name)):
            others[-1].step()
    first.step()
    assert store.models[MODEL].aliases["champion"] == "1"
    finish(*others, first)
    settle(store)
    check(store, score, list(range(1, takeovers + 2)))


def test_dead_holder_of_another_login_is_taken_over() -> None:
    """Its lease can neither be read nor deleted, and does not block the others."""
    store, score = store_with(3), {1: 0.4, 2: 0.5, 3: 0.6}
    first = promoter(store, 1, score)
    first.login = "other"
    while not any(".intent." in key for key in store.models[MODEL].tags):
        first.step()
    first.kill()
    finish(promoter(store, 2, score))
    finish(promoter(store, 3, score))
    assert store.models[MODEL].aliases["champion"] == "3"
    assert [len(found) for found in records(store).values()] == [0, 1, 1]
    assert [name for name in store.models if is_lease(name)] == [f"{MODEL}.lease.champion.1"]


def test_lease_of_the_same_owner_is_taken_over_at_once() -> None:
    store, score = store_with(1), {1: 0.4}
    first, again = promoter(store, 1, score, owner="sweep 1"), promoter(store, 1, score, owner="sweep 1")
    while not any(map(is_lease, store.models)):
        first.step()
    first.kill()
    finish(again)
    assert again.time == 0
    check(store, score, [1])


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_interleaving_leaves_the_best_as_champion(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 4))
    order = data.draw(st.permutations(range(1, count + 1)))
    score = {version: float(place) for version, place in zip(range(1, count + 1), order, strict=True)}
    store = store_with(count + 1)
    processes = {version: promoter(store, version, score) for version in score}
    dead: set[int] = set()
    for version, steps, kills in data.draw(
        st.lists(st.tuples(st.integers(1, count), st.integers(1, 20), st.integers(0, 9)), max_size=25)
    ):
        for _ in range(steps):
            if not processes[version].ended:
                processes[version].step()
        if kills == 0 and not processes[version].ended:
            processes[version].kill()
            dead.add(version)
    finish(*(process for version, process in processes.items() if version not in dead))
    score[count + 1] = 0.0
    finish(promoter(store, count + 1, score))
    settle(store)
    check(store, score, [version for version in score if version not in dead])
