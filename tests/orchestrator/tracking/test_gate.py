"""The gate on known cases: what is promoted, what is not, and the sentence that says why."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from orchestrator.config.sections import Gate
from orchestrator.errors import InputError
from orchestrator.tracking.gate import (
    Decision,
    Entrant,
    Rule,
    TargetResults,
    changed_settings,
    check_rule,
    decide,
    make_rule,
    targets_to_score,
)

QUERIES = 200


def results(values: Any, metric: str = "mAP", **fields: Any) -> TargetResults:
    given = {"data": "d1", "protocol": "whole", "version": "1", **fields}
    names = tuple(f"q{number}" for number in range(len(values)))
    given = {"identities": names, **given}
    return TargetResults(queries=names, metrics={metric: tuple(values)}, **given)


def entrant(name: str, targets: Mapping[str, Any], **fields: Any) -> Entrant:
    found = {
        name: each if isinstance(each, TargetResults) else results(each) for name, each in targets.items()
    }
    metrics = {
        (target, metric): values for target, each in found.items() for metric, values in each.metrics.items()
    }
    scores = {
        f"test/{target}/{metric}": float(np.mean([value for value in values if value is not None]))
        for (target, metric), values in metrics.items()
    }
    return Entrant(name=name, scores=scores, results=found, **fields)


def rule(metric: str = "mAP", lower: frozenset[str] = frozenset(), **gate: Any) -> Rule:
    return Rule(gate=Gate(**gate), metric=metric, lower_is_better=lower)


def noise(seed: int, mean: float = 0.5) -> list[float]:
    return (mean + 0.2 * np.random.default_rng(seed).standard_normal(QUERIES)).tolist()


def shifted(values: list[float], by: float) -> list[float]:
    extra = 0.05 * np.random.default_rng(9).standard_normal(len(values))
    return (np.array(values) + by + extra).tolist()


def judged(candidate: Mapping[str, Any], champion: Mapping[str, Any], **gate: Any) -> Decision:
    return decide(rule(**gate), entrant("version 2", candidate), entrant("version 1", champion))


def test_first_version_is_promoted() -> None:
    decision = decide(rule(), entrant("version 1", {"a": noise(0)}), None)
    assert decision.promoted and decision.reason == "no version had this alias"


def test_clearly_better_version_is_promoted() -> None:
    decision = judged({"a": shifted(noise(0), 0.1)}, {"a": noise(0)})
    assert decision.promoted and decision.reason.startswith("better than version 1: mAP 0.")
    assert decision.overall and decision.overall.interval
    low, high = decision.overall.interval
    assert 0.08 < low < decision.overall.difference < high < 0.12


def test_pairs_of_queries_show_what_means_alone_do_not() -> None:
    """The gain is a twentieth of the spread of the queries, but all of them gain."""
    base = noise(0)
    assert judged({"a": [value + 0.01 for value in base]}, {"a": base}).promoted
    assert not judged({"a": noise(1, 0.51)}, {"a": base}).promoted


def test_equal_version_is_declined() -> None:
    decision = judged({"a": noise(0)}, {"a": noise(0)})
    assert not decision.promoted and decision.reason.startswith("not shown to be better than version 1")


def test_interval_covers_the_true_gain_as_often_as_it_says() -> None:
    """200 comparisons of two models with a known gain: the 90 % interval holds it 180 times, give or take."""
    held, gate = 0, rule(confidence=0.9)
    for seed in range(200):
        generator = np.random.default_rng(seed)
        base = generator.normal(0.5, 0.2, 60)
        gained = base + generator.normal(0.03, 0.1, 60)
        found = decide(gate, entrant("b", {"a": gained.tolist()}), entrant("a", {"a": base.tolist()}))
        assert found.overall and found.overall.interval
        held += found.overall.interval[0] <= 0.03 <= found.overall.interval[1]
    assert 168 <= held <= 192


def test_decision_is_the_same_every_time() -> None:
    first, second = (judged({"a": noise(1)}, {"a": noise(0)}) for _ in range(2))
    assert first == second and sum(first.histogram["counts"]) == 10_000


def test_loss_on_one_target_beyond_the_tolerance_is_declined() -> None:
    base = {"a": noise(0), "b": noise(1)}
    better = {"a": shifted(base["a"], 0.3), "b": shifted(base["b"], -0.05)}
    decision = judged(better, base)
    assert not decision.promoted and "mAP on b changes by -0.0" in decision.reason
    assert decision.reason.endswith("and the tolerance is 0.02")
    assert judged(better, base, tolerance=0.1).promoted


def test_worst_target_decides_where_asked() -> None:
    base = {"a": noise(0, 0.7), "b": noise(1, 0.3)}
    gains_on_the_best = {"a": shifted(base["a"], 0.1), "b": base["b"]}
    assert judged(gains_on_the_best, base).promoted
    assert not judged(gains_on_the_best, base, aggregate="worst").promoted
    assert judged({"a": base["a"], "b": shifted(base["b"], 0.1)}, base, aggregate="worst").promoted


def test_weights_of_targets_count() -> None:
    base = {"a": noise(0), "b": noise(1)}
    mixed = {"a": shifted(base["a"], 0.05), "b": shifted(base["b"], -0.015)}
    assert judged(mixed, base, aggregate={"a": 1, "b": 1}).promoted
    assert not judged(mixed, base, aggregate={"a": 1, "b": 9}).promoted


@pytest.mark.parametrize("champion", [True, False])
def test_floor_that_is_missed_declines(champion: bool) -> None:
    better = entrant("version 2", {"a": noise(0, 0.3)})
    other = entrant("version 1", {"a": noise(0, 0.1)}) if champion else None
    decision = decide(rule(floors={"test/a/mAP": 0.9}), better, other)
    assert not decision.promoted and "and its floor is 0.9" in decision.reason
    assert not decision.floors["test/a/mAP"].kept


def test_floor_that_is_not_scored_declines() -> None:
    decision = decide(rule(floors={"test/b/mAP": 0.1}), entrant("version 1", {"a": noise(0)}), None)
    assert decision.reason == "test/b/mAP was not scored, and its floor is 0.1"


def test_lower_is_better_for_a_loss() -> None:
    base = noise(0)
    candidate = entrant("b", {"a": results([value - 0.1 for value in base], "loss")})
    champion = entrant("a", {"a": results(base, "loss")})
    gate = rule("loss", frozenset({"loss"}))
    assert decide(gate, candidate, champion).promoted
    assert not decide(gate, champion, candidate).promoted


@pytest.mark.parametrize("field", ["data", "protocol", "version"])
def test_champion_scored_otherwise_has_to_be_scored_anew(field: str) -> None:
    candidate = entrant("version 2", {"a": shifted(noise(0), 0.1)})
    champion = entrant("version 1", {"a": results(noise(0), **{field: "other"})})
    assert targets_to_score(rule(), candidate, champion) == ["a"]
    decision = decide(rule(), candidate, champion)
    assert not decision.promoted and "not scored on the same data" in decision.not_compared["a"]


def test_champion_that_cannot_be_scored_stays_and_says_why() -> None:
    champion = entrant("version 1", {"a": results(noise(0), data="other")}, problem="its files are damaged")
    decision = decide(rule(), entrant("version 2", {"a": noise(0, 0.9)}), champion)
    assert not decision.promoted and decision.reason.endswith("a: its files are damaged")


def test_same_data_under_another_name_is_compared() -> None:
    candidate = entrant("version 2", {"new": shifted(noise(0), 0.1)})
    champion = entrant("version 1", {"old": noise(0)})
    assert targets_to_score(rule(), candidate, champion) == []
    assert decide(rule(), candidate, champion).promoted


def test_target_that_trained_the_champion_is_left_out() -> None:
    tested = {"a": {"mars": ["1", "2"]}, "b": {"prid": ["1"]}}
    base = {"a": noise(0), "b": noise(1)}
    better = {"a": shifted(base["a"], -0.3), "b": shifted(base["b"], 0.1)}
    candidate = entrant("version 2", better, tested_on=tested)
    champion = entrant("version 1", base, trained_on={"mars": ["2", "3"]})
    decision = decide(rule(), candidate, champion)
    assert decision.promoted and list(decision.targets) == ["b"]
    assert decision.not_compared == {"a": "version 1 was trained on 1 of its identities"}


def test_champion_that_trained_on_all_targets_stays() -> None:
    tested = {"a": {"mars": ["1"]}}
    candidate = entrant("version 2", {"a": noise(0, 0.9)}, tested_on=tested)
    champion = entrant("version 1", {"a": noise(0)}, trained_on={"mars": ["1"]})
    decision = decide(rule(), candidate, champion)
    assert not decision.promoted and decision.reason.startswith(
        "no target can be compared with version 1: a:"
    )


def test_unknown_training_of_the_champion_is_noted() -> None:
    (note,) = judged({"a": noise(0)}, {"a": noise(0)}).notes
    assert note == "it is not known which identities version 1 was trained on"


@pytest.mark.parametrize(("new", "promoted"), [(0.51, True), (0.5, False), (0.4, False)])
def test_scores_alone_have_to_be_strictly_better(new: float, promoted: bool) -> None:
    candidate = Entrant(name="version 2", scores={"test/a/mAP": new}, data={"a": "d1"})
    champion = Entrant(name="version 1", scores={"test/a/mAP": 0.5}, data={"a": "d1"})
    decision = decide(rule(), candidate, champion)
    assert decision.promoted is promoted and decision.method == "scores alone"
    assert "compared by the scores alone" in decision.notes[0]


def test_scores_on_other_data_are_not_compared() -> None:
    candidate = Entrant(name="version 2", scores={"test/a/mAP": 0.9}, data={"a": "d2"})
    champion = Entrant(name="version 1", scores={"test/a/mAP": 0.5}, data={"a": "d1"})
    assert not decide(rule(), candidate, champion).promoted


def test_no_gate_promotes_and_says_so() -> None:
    none = Rule(gate="none", metric="mAP")
    decision = decide(none, entrant("version 2", {"a": noise(0, 0.1)}), entrant("version 1", {"a": noise(0)}))
    assert decision.promoted and decision.method == "no gate" and "no gate is set" in decision.reason


def test_settings_that_a_decision_was_not_made_with_are_named() -> None:
    decision = judged({"a": noise(0)}, {"a": noise(1)}, floors={"test/a/mAP": 0.1})
    same = {"floors": {"test/a/mAP": 0.1}}
    assert changed_settings(rule(**same), decision) == []
    assert changed_settings(rule(confidence=0.9, **same), decision) == ["confidence 0.95, now 0.9"]
    assert changed_settings(rule("rank1"), decision) == [
        "metric mAP, now rank1",
        "floors {'test/a/mAP': 0.1}, now {}",
    ]
    assert changed_settings(Rule(gate="none", metric=""), decision) == ["a gate, now none"]
    ungated = decide(Rule(gate="none", metric=""), entrant("new", {}), None)
    assert changed_settings(Rule(gate="none", metric=""), ungated) == []
    assert changed_settings(rule(), ungated) == ["none, now a gate"]


def test_queries_that_do_not_count_for_both_are_left_out() -> None:
    candidate = entrant("version 2", {"a": results([None, 0.7, *[0.9] * 10])})
    champion = entrant("version 1", {"a": results([0.1, None, *[0.8] * 10])})
    decision = decide(rule(), candidate, champion)
    assert decision.targets["a"].queries == 10 and decision.promoted


def test_target_with_few_identities_is_not_compared() -> None:
    """Nine identities, of which one has two queries."""
    names = tuple("aabcdefghi")
    base, better = results([0.5] * 10, identities=names), results([0.9] * 10, identities=names)
    decision = judged({"a": better, "b": noise(0)}, {"a": base, "b": noise(0)})
    assert decision.not_compared == {"a": "9 of its identities count, fewer than 10"}
    decision = judged({"a": better}, {"a": base})
    assert decision.reason.endswith("with version 1: a: 9 of its identities count, fewer than 10")


def test_queries_of_one_identity_count_as_one_observation() -> None:
    """200 comparisons of equal models, 3 alike queries for each of 20 identities: promoted in few of them."""
    promoted = 0
    names = tuple(f"{number // 3}" for number in range(60))
    for seed in range(200):
        gains = np.repeat(np.random.default_rng(seed).normal(0, 0.1, 20), 3)
        better, base = results(0.5 + gains, identities=names), results([0.5] * 60, identities=names)
        promoted += judged({"a": better}, {"a": base}).promoted
    assert promoted <= 12, "2.5 % are 5; resampling queries gives 34"


def test_means_are_over_queries_where_identities_have_different_numbers_of_them() -> None:
    names = ("a", *"abcdefghij")
    values = results([1.0, 0.0, *[0.5] * 9], identities=names)
    decision = judged({"a": values}, {"a": results([0.0] * 11, identities=names)})
    assert decision.overall and decision.overall.candidate == pytest.approx(5.5 / 11)
    assert (decision.overall.queries, decision.overall.identities) == (11, 10)


def test_targets_without_weight_cannot_decide() -> None:
    base = {"a": noise(0)}
    decision = judged(
        {"a": shifted(base["a"], 0.2), "b": results(noise(1), data="d2")}, base, aggregate={"b": 2}
    )
    assert not decision.promoted
    assert decision.reason.startswith("no target can be compared with version 1: b: version 1 was not scored")


def test_default_metric_is_the_last_part_of_the_objective() -> None:
    made = make_rule(Gate(), "val/cross/mAP", {"val/mAP": "max", "train/loss": "min"})
    assert made.metric == "mAP" and made.lower_is_better == {"loss"}


@pytest.mark.parametrize(
    ("gate", "targets", "line"),
    [
        ({"metric": "mAPP"}, {"a": ["mAP"]}, r"^registry.gate.metric: no target reports 'mAPP'; .*'mAP'\?"),
        ({}, {"a": ["rank1"]}, r"^registry.gate: no target reports 'mAP'; valid: rank1"),
        ({}, {}, r"^registry.gate: no target to compare models on; .* gate: none"),
        ({"aggregate": {"aa": 1}}, {"a": ["mAP"]}, r"^registry.gate.aggregate: no target 'aa'"),
        ({"floors": {"test/a/map": 0}}, {"a": ["mAP"]}, r"^registry.gate.floors: no score .*'test/a/mAP'\?"),
    ],
)
def test_gate_that_cannot_work_is_refused_in_one_line(
    gate: dict[str, Any], targets: dict[str, list[str]], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        check_rule(make_rule(Gate(**gate), "val/mAP", {}), targets)
