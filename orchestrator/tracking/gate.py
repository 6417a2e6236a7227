"""The gate: whether a candidate is better than the version that holds an alias, and why, in one sentence.

A candidate passes if the interval of its gain, by a paired bootstrap over identities, lies on the better
side of 0, it loses on no target more than the tolerance, and keeps the floors. Identities are resampled
within each target, each with all of its queries, because queries of one identity are alike (percentile
interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). This module needs neither
MLflow nor Ray.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.config.sections import Gate
from orchestrator.console.tables import format_number
from orchestrator.errors import InputError, nearest
from orchestrator.trainable import QueryResults, score_parts

RESAMPLES = 10_000
SEED = 0

MIN_IDENTITIES = 10
"""Fewer give no interval: a model that is no better gains on all of 3 identities in one of 8 cases."""

_CHUNK_ELEMENTS = 1 << 22
"""Resampled values held at a time, which bounds memory for any number of queries."""

_BINS = 40

_NEGLIGIBLE = 1e-9
"""A gain that is no more than rounding."""

Verdict = Literal["promoted", "declined"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class TargetResults(_Frozen):
    """The results of every query on one target; see `orchestrator.trainable.QueryResults`."""

    data: str
    protocol: str
    version: str
    queries: tuple[str, ...]
    identities: tuple[str, ...]
    metrics: dict[str, tuple[float | None, ...]]

    @classmethod
    def of(cls, results: QueryResults) -> "TargetResults":
        """Copy what a trainable returns."""
        return cls(
            data=results.data,
            protocol=results.protocol,
            version=results.version,
            queries=tuple(results.queries),
            identities=tuple(results.identities),
            metrics={name: tuple(values) for name, values in results.metrics.items()},
        )

    def is_like(self, other: "TargetResults") -> bool:
        """Return whether both are of the same data, protocol, scoring version and queries."""
        mine = (self.data, self.protocol, self.version, self.queries)
        return mine == (other.data, other.protocol, other.version, other.queries)


class Entrant(_Frozen):
    """What a version is judged by."""

    name: str
    """How sentences name it, such as ``version 3``."""
    scores: dict[str, float]
    """Scores by name, ``test/<target>/<metric>``."""
    data: dict[str, str] = {}
    """Digests by data set."""
    results: dict[str, TargetResults] | None = None
    """Results by target; None where the trainable keeps none."""
    trained_on: dict[str, list[str]] | None = None
    """Identities by numbering; None where they are not known."""
    tested_on: dict[str, dict[str, list[str]]] = {}
    """Identities of each target, by numbering."""
    problem: str = ""
    """Why it could not be scored anew."""

    def seen(self, target: str, tested_on: Mapping[str, Mapping[str, Collection[str]]]) -> int:
        """Return how many identities of a target this version was trained on."""
        tested, trained = tested_on.get(target, {}), self.trained_on or {}
        return sum(len(set(names) & set(trained.get(numbering, ()))) for numbering, names in tested.items())


class Difference(_Frozen):
    """A value of candidate and champion, and the difference of the first from the second."""

    candidate: float
    champion: float
    difference: float
    interval: tuple[float, float] | None = None
    """At the gate's confidence; None where only scores are compared."""
    queries: int | None = None
    identities: int | None = None


def comparison_rows(
    targets: Mapping[str, Difference], overall: Difference | None, together: str = "all targets"
) -> list[tuple[str, ...]]:
    """Return name, candidate, champion, difference and interval of each target, as text.

    Several targets have a last row, named ``together``, for all of them.
    """
    differences = dict(targets)
    if overall is not None and len(differences) > 1:
        differences[together] = overall
    return [
        (
            name,
            format_number(each.candidate),
            format_number(each.champion),
            f"{each.difference:+.4g}",
            "" if each.interval is None else "{:+.4g} to {:+.4g}".format(*each.interval),
        )
        for name, each in differences.items()
    ]


class Floor(_Frozen):
    """A floor and what the candidate reached."""

    floor: float
    value: float | None
    kept: bool


class Decision(_Frozen):
    """Whether a candidate takes an alias, and everything that led to it."""

    verdict: Verdict
    reason: str
    method: Literal["first version", "paired bootstrap over identities", "scores alone", "no gate"]
    metric: str = ""
    aggregate: Literal["mean", "worst"] | dict[str, float] = "mean"
    confidence: float | None = None
    tolerance: float | None = None
    overall: Difference | None = None
    targets: dict[str, Difference] = {}
    not_compared: dict[str, str] = {}
    """Target → why it was left out."""
    floors: dict[str, Floor] = {}
    histogram: dict[str, list[float]] = Field({}, description="edges and counts of the resampled gains")
    notes: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether the alias moves."""
        return self.verdict == "promoted"


class Rule(_Frozen):
    """A gate with the metric that it compares, and what is better."""

    gate: Gate | Literal["none"]
    metric: str
    lower_is_better: frozenset[str] = frozenset()
    """Metrics of targets for which lower values are better."""

    def sign(self, metric: str) -> int:
        """Return 1 where higher is better, else -1."""
        return -1 if metric in self.lower_is_better else 1


def make_rule(gate: Gate | Literal["none"], objective: str, modes: Mapping[str, str]) -> Rule:
    """Return the rule of a job.

    Args:
        gate: the section of the file.
        objective: the first objective, whose last part is the default metric: ``val/mAP`` gives ``mAP``.
        modes: ``max`` or ``min`` for each metric of the trainable.
    """
    metric = "" if gate == "none" else gate.metric
    lower = {name.rpartition("/")[2] for name, mode in modes.items() if mode == "min"}
    higher = {name.rpartition("/")[2] for name, mode in modes.items() if mode == "max"}
    return Rule(
        gate=gate,
        metric=metric or objective.rpartition("/")[2],
        lower_is_better=frozenset(lower - higher),
    )


def check_rule(rule: Rule, target_metrics: Mapping[str, Iterable[str]]) -> None:
    """Check a gate against the metrics of each target.

    Raises:
        InputError: one line that begins with the field.
    """
    if rule.gate == "none":
        return
    gate = rule.gate
    known = {metric for metrics in target_metrics.values() for metric in metrics}
    reporting = {target for target, metrics in target_metrics.items() if rule.metric in metrics}
    if not known:
        raise InputError("registry.gate: no target to compare models on; add one, or write gate: none")
    if not reporting:
        field = "registry.gate.metric" if gate.metric else "registry.gate"
        hint = nearest(rule.metric, known)
        remedy = "" if gate.metric else "; set registry.gate.metric, or write gate: none"
        raise InputError(
            f"{field}: no target reports {rule.metric!r}{hint or '; name another metric'}{remedy}"
        )
    if not isinstance(gate.aggregate, str):
        for target in gate.aggregate:
            if target not in reporting:
                hint = nearest(target, reporting)
                raise InputError(
                    f"registry.gate.aggregate: no target {target!r} reports {rule.metric!r}{hint}"
                )
    scores = [f"test/{target}/{metric}" for target, metrics in target_metrics.items() for metric in metrics]
    for name in gate.floors:
        if name not in scores:
            raise InputError(f"registry.gate.floors: no score {name!r}{nearest(name, scores)}")


def targets_to_score(rule: Rule, candidate: Entrant, champion: Entrant) -> list[str]:
    """Return the targets on which the champion has to be scored anew before `decide`."""
    if rule.gate == "none" or candidate.results is None:
        return []
    return [
        target
        for target, results in candidate.results.items()
        if rule.metric in results.metrics
        and not champion.seen(target, candidate.tested_on)
        and _counterpart(results, target, champion) is None
    ]


def decide(rule: Rule, candidate: Entrant, champion: Entrant | None) -> Decision:
    """Decide whether ``candidate`` takes the alias from ``champion``, None where no version has the alias."""
    gate = rule.gate
    if gate == "none":
        reason = "no version had this alias; no gate is set"
        if champion is not None:
            reason = f"no gate is set, so the alias moves to the latest version from {champion.name}"
        return Decision(verdict="promoted", reason=reason, method="no gate")
    floors = _floors(rule, gate, candidate)
    missed = next((name for name, floor in floors.items() if not floor.kept), None)
    settings: dict[str, Any] = {
        "metric": rule.metric,
        "aggregate": gate.aggregate,
        "confidence": gate.confidence,
        "tolerance": gate.tolerance,
        "floors": floors,
    }
    if champion is None:
        kept = ", and it keeps its floors" if floors else ""
        reason = _below_floor(missed, floors) if missed else f"no version had this alias{kept}"
        return Decision(
            verdict="declined" if missed else "promoted", reason=reason, method="first version", **settings
        )
    found = _compare(rule, gate, candidate, champion)
    reason = _below_floor(missed, floors) if missed else _objection(rule, gate, champion, found)
    return Decision(
        verdict="declined" if reason else "promoted",
        reason=reason or f"better than {champion.name}: {_gain(rule, gate, found)}",
        **settings,
        **found,
    )


def changed_settings(rule: Rule, decision: Decision) -> list[str]:
    """Return the settings of a rule that a decision was not made with, as ``"confidence 0.9, now 0.95"``."""
    gate, ungated = rule.gate, decision.method == "no gate"
    if gate == "none":
        return [] if ungated else ["a gate, now none"]
    if ungated:
        return ["none, now a gate"]
    now = {
        "metric": rule.metric,
        "aggregate": gate.aggregate,
        "confidence": gate.confidence,
        "tolerance": gate.tolerance,
        "floors": gate.floors,
    }
    before = {name: getattr(decision, name) for name in now}
    before["floors"] = {name: floor.floor for name, floor in decision.floors.items()}
    return [f"{name} {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]


def _compare(rule: Rule, gate: Gate, candidate: Entrant, champion: Entrant) -> dict[str, Any]:
    """Return the fields of a decision that compare two versions."""
    if candidate.results is None or champion.results is None:
        return _compare_scores(rule, gate, candidate, champion)
    pairs: dict[str, _Pairs] = {}
    left_out: dict[str, str] = {}
    for target, results in candidate.results.items():
        if rule.metric not in results.metrics:
            left_out[target] = f"it reports no {rule.metric}"
        elif seen := champion.seen(target, candidate.tested_on):
            left_out[target] = f"{champion.name} was trained on {seen} of its identities"
        elif (other := _counterpart(results, target, champion)) is None or rule.metric not in other.metrics:
            unlike = f"{champion.name} was not scored on the same data by the same protocol"
            left_out[target] = champion.problem or unlike
        else:
            found = _pairs(results, other, rule.metric)
            if found.identities < MIN_IDENTITIES:
                left_out[target] = f"{found.identities} of its identities count, fewer than {MIN_IDENTITIES}"
            else:
                pairs[target] = found
    notes = _notes(candidate, champion)
    common = {"method": "paired bootstrap over identities", "not_compared": left_out, "notes": notes}
    if not any(_weight(gate, target) for target in pairs):
        return common
    resampled = {target: each.resampled_means(index) for index, (target, each) in enumerate(pairs.items())}
    edges = 100 * np.array([1 - gate.confidence, 1 + gate.confidence]) / 2
    targets = {
        target: _difference(each.means, resampled[target], edges, [each]) for target, each in pairs.items()
    }
    aggregated = _aggregate(rule, gate, resampled)
    means = _aggregate(rule, gate, {target: each.means[None] for target, each in pairs.items()})[0]
    gains = aggregated[:, 0] - aggregated[:, 1]
    margin = max(float(np.ptp(gains)) / _BINS, _NEGLIGIBLE)  # all gains may be equal
    counts, bins = np.histogram(gains, _BINS, (gains.min() - margin, gains.max() + margin))
    return common | {
        "targets": targets,
        "overall": _difference(means, aggregated, edges, list(pairs.values())),
        "histogram": {"edges": bins.tolist(), "counts": counts.tolist()},
    }


def _compare_scores(rule: Rule, gate: Gate, candidate: Entrant, champion: Entrant) -> dict[str, Any]:
    """Compare scores where there are no results of queries."""
    targets: dict[str, Difference] = {}
    left_out: dict[str, str] = {}
    for name, value in candidate.scores.items():
        target, metric = score_parts(name)
        if metric != rule.metric:
            continue
        if name not in champion.scores:
            left_out[target] = f"{champion.name} was not scored on it"
        elif candidate.data.get(target) != champion.data.get(target):
            left_out[target] = f"{champion.name} was scored on other data of that name"
        else:
            other = champion.scores[name]
            targets[target] = Difference(candidate=value, champion=other, difference=value - other)
    note = "compared by the scores alone, because there are no results of single queries for both"
    found: dict[str, Any] = {"method": "scores alone", "not_compared": left_out, "notes": (note,)}
    if any(_weight(gate, target) for target in targets):
        values = {name: np.array([[each.candidate, each.champion]]) for name, each in targets.items()}
        mine, other = _aggregate(rule, gate, values)[0].tolist()
        overall = Difference(candidate=mine, champion=other, difference=mine - other)
        found |= {"targets": targets, "overall": overall}
    return found


def _weight(gate: Gate, target: str) -> float:
    """Return what a target counts in the aggregate."""
    return 1.0 if isinstance(gate.aggregate, str) else gate.aggregate.get(target, 0.0)


def _objection(rule: Rule, gate: Gate, champion: Entrant, found: Mapping[str, Any]) -> str:
    """Return why the candidate must not take the alias; empty if it may."""
    sign, overall = rule.sign(rule.metric), found.get("overall")
    if overall is None:
        left_out = found["not_compared"].items()
        reasons = "; ".join(f"{target}: {why}" for target, why in left_out if _weight(gate, target))
        why = reasons or f"no target reports {rule.metric}"
        return f"no target can be compared with {champion.name}: {why}"
    for target, each in found["targets"].items():
        if sign * each.difference < -gate.tolerance:
            change = f"{rule.metric} on {target} changes by {each.difference:+.4g} from {champion.name}"
            return f"{change}, and the tolerance is {gate.tolerance:g}"
    interval = overall.interval
    worst = overall.difference if interval is None else (interval[0] if sign > 0 else interval[1])
    if sign * worst > _NEGLIGIBLE:
        return ""
    return f"not shown to be better than {champion.name}: {_gain(rule, gate, found)}"


def _gain(rule: Rule, gate: Gate, found: Mapping[str, Any]) -> str:
    overall: Difference = found["overall"]
    names = list(found["targets"])
    how = gate.aggregate if isinstance(gate.aggregate, str) else "weighted mean"
    where = f"on {names[0]}" if len(names) == 1 else f"{how} of {len(names)} targets"
    interval = ""
    if overall.interval is not None:
        low, high = overall.interval
        interval = f", {100 * gate.confidence:g} % interval {low:+.4g} to {high:+.4g}"
    return f"{rule.metric} {overall.candidate:.4g} against {overall.champion:.4g} ({where}{interval})"


def _notes(candidate: Entrant, champion: Entrant) -> tuple[str, ...]:
    notes = []
    if champion.trained_on is None:
        notes.append(f"it is not known which identities {champion.name} was trained on")
    if gone := sorted(set(champion.results or {}) - set(candidate.results or {})):
        notes.append(f"the candidate was not scored on {', '.join(gone)}, as {champion.name} was")
    return tuple(notes)


def _counterpart(results: TargetResults, target: str, champion: Entrant) -> TargetResults | None:
    """Return the champion's results on the same data; users may call it by another name."""
    others = champion.results or {}
    candidates = [*([others[target]] if target in others else []), *others.values()]
    return next((other for other in candidates if results.is_like(other)), None)


@dataclass(frozen=True)
class _Pairs:
    """Values of candidate and champion on one target."""

    sums: NDArray[np.float64]
    """Sums over the queries of each identity, ``[2, identity]``."""

    counts: NDArray[Any]
    """Number of these queries, ``[identity]``."""

    @property
    def identities(self) -> int:
        """How many identities count."""
        return len(self.counts)

    @property
    def queries(self) -> int:
        """How many queries count."""
        return int(self.counts.sum())

    @property
    def means(self) -> NDArray[np.float64]:
        """The means over all queries, ``[2]``."""
        return np.asarray(self.sums.sum(axis=1) / self.queries)

    def resampled_means(self, stream: int) -> NDArray[np.float64]:
        """Return the means over the queries of resampled identities, ``[resample, 2]``."""
        generator, count = np.random.default_rng([SEED, stream]), self.identities
        size = max(1, _CHUNK_ELEMENTS // count)
        parts = []
        for start in range(0, RESAMPLES, size):
            chosen = generator.integers(0, count, (min(size, RESAMPLES - start), count))
            queries = self.counts[chosen].sum(axis=1)
            parts.append((self.sums[:, chosen].sum(axis=2) / queries).T)
        return np.concatenate(parts)


def _pairs(mine: TargetResults, other: TargetResults, metric: str) -> _Pairs:
    """Return the values of the queries that count for both."""
    values = np.array([mine.metrics[metric], other.metrics[metric]], np.float64)
    counted = ~np.isnan(values).any(axis=0)
    names, index = np.unique(np.array(mine.identities, str)[counted], return_inverse=True)
    sums = np.array([np.bincount(index, row[counted], len(names)) for row in values], np.float64)
    return _Pairs(sums, np.bincount(index, minlength=len(names)))


def _aggregate(rule: Rule, gate: Gate, values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return one value of all targets, ``[resample, 2]``, of those of each target."""
    stacked = np.stack(list(values.values()))
    if gate.aggregate == "worst":
        sign = rule.sign(rule.metric)
        return np.asarray(sign * (sign * stacked).min(axis=0))
    weights = np.array([_weight(gate, target) for target in values])
    return np.asarray(np.average(stacked, axis=0, weights=weights))


def _difference(
    means: NDArray[np.float64],
    resampled: NDArray[np.float64],
    edges: NDArray[np.float64],
    pairs: Sequence[_Pairs],
) -> Difference:
    low, high = np.percentile(resampled[:, 0] - resampled[:, 1], edges).tolist()
    mine, other = means.tolist()
    return Difference(
        candidate=mine,
        champion=other,
        difference=mine - other,
        interval=(low, high),
        queries=sum(each.queries for each in pairs),
        identities=sum(each.identities for each in pairs),
    )


def _floors(rule: Rule, gate: Gate, candidate: Entrant) -> dict[str, Floor]:
    floors: dict[str, Floor] = {}
    for name, floor in gate.floors.items():
        value, sign = candidate.scores.get(name), rule.sign(score_parts(name)[1])
        kept = value is not None and not math.isnan(value) and sign * (value - floor) >= 0
        floors[name] = Floor(floor=floor, value=value, kept=kept)
    return floors


def _below_floor(name: str, floors: Mapping[str, Floor]) -> str:
    floor = floors[name]
    if floor.value is None:
        return f"{name} was not scored, and its floor is {floor.floor:g}"
    return f"{name} is {floor.value:.4g}, and its floor is {floor.floor:g}"
