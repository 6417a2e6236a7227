"""Promotion: whether a version takes an alias, the move, and the record of every decision on its version.

A record is the tag ``<alias>.change.<n>`` of a version, JSON; the numbers order the records of an alias. A
long one is shortened. When a sweep registers a version, its run gets the whole decision, with the histogram
of the bootstrap: the file ``registry/<model>-v<version>-<alias>.json``.
"""

import getpass
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.config.sections import CHALLENGER
from orchestrator.errors import InputError, TrackingError, one_line
from orchestrator.tracking import evidence as evidences
from orchestrator.tracking.alias import Alias, Change, record_tag
from orchestrator.tracking.evidence import TRAINABLE_TAG, Evidence
from orchestrator.tracking.gate import (
    Decision,
    Difference,
    Rule,
    TargetResults,
    decide,
    targets_to_score,
)

SCHEMA_TAG = "schema"
"""Tag of a version with the version of its tags. A version without it has schema 1."""

SCHEMA = 3
"""Since 3, scores are in a file of the run; before, each was a tag."""

DECISION_TAG = "decision"
"""Tag of a version with the verdict of its last record, for readers; release 0.1.0 wrote no records."""

_CHECK_TAG = "sweep.check"
"""Tag of a registered model that is there only for a moment."""

_RECORD_CHARACTERS = 3000
"""The longest record as text within JSON. While an alias changes, it is part of a tag of the registered
model, and MLflow's column for these has 5000 characters, which PostgreSQL enforces."""

_SHORTER = (400, 200, 100, 50, 25, 12)
"""Characters of each text of a record that is too long; the first that suffices is taken."""

_CHARACTERS_PER_TARGET = 20
"""Such a record has one target for so many of these characters."""

_SHORTENED = "shortened: the whole decision does not fit into a record"

ScoreModel = Callable[[ModelVersion], Mapping[str, TargetResults]]
"""Scores a version on the targets of the candidate."""

Action = Literal["gate", "promoted by hand", "rolled back"]


class Record(BaseModel):
    """A decision about a version, or a change by hand."""

    model_config = ConfigDict(frozen=True)

    alias: str
    number: int
    """Of the change of the alias; later ones have higher numbers."""
    version: int
    action: str
    """An `Action`, or one of a later release."""
    verdict: str
    """A `orchestrator.tracking.gate.Verdict`, or one of a later release."""
    reason: str
    """One sentence."""
    champion: int | None
    """The version that had the alias before."""
    at: str
    """UTC, ISO 8601."""
    by: dict[str, str]
    """Who: user, host, and the sweep or the command."""
    method: str = ""
    metric: str = ""
    overall: Difference | None = None
    targets: dict[str, Difference] = {}
    not_compared: dict[str, str] = {}
    notes: tuple[str, ...] = ()


@dataclass
class Judge:
    """Compares a candidate with any version that has an alias, and remembers the outcome.

    Results that lie with the versions are used where they are of the same data, protocol and scoring version;
    otherwise the champion is scored anew.
    """

    client: mlflow.MlflowClient
    model: str
    candidate: int
    evidence: Evidence
    rule: Rule
    score_model: ScoreModel | None = None
    _decisions: dict[int | None, Decision] = field(default_factory=dict)

    def decide(self, champion: int | None) -> Decision:
        """Return the decision against a champion.

        Raises:
            InputError: the champion is of another family.
            TrackingError: the champion has been deleted, or could not be scored.
            MlflowException: the store does not answer.
        """
        if champion not in self._decisions:
            self._decisions[champion] = self._decide(champion)
        return self._decisions[champion]

    def _decide(self, champion: int | None) -> Decision:
        candidate = self.evidence.entrant(f"version {self.candidate}")
        if champion is None:
            if self._decisions:
                gone = ", ".join(str(each) for each in self._decisions)
                raise TrackingError(_deleted(self.model, gone))
            return decide(self.rule, candidate, None)
        version = existing_version(self.client, self.model, champion)
        check_family(version, self.evidence.trainable)
        other = evidences.read(self.client, version)
        entrant = other.entrant(f"version {champion}")
        anew = targets_to_score(self.rule, candidate, entrant)
        if anew and self.score_model is not None:
            update: dict[str, Any] = {}
            try:
                results = self.score_model(existing_version(self.client, self.model, champion))
                update["results"] = {**(entrant.results or {}), **results}
            except InputError as error:  # of its files, or of the data
                update = {"problem": str(error), "results": entrant.results or {}}
            entrant = entrant.model_copy(update=update)
        return decide(self.rule, candidate, entrant)


def existing_version(client: mlflow.MlflowClient, model: str, version: int) -> ModelVersion:
    """Return a version; raises TrackingError if it was deleted."""
    try:
        return client.get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(_deleted(model, str(version))) from error


def _deleted(model: str, version: str) -> str:
    return f"registry: version {version} of {model} was deleted while it was compared; run the command again"


def check_family(version: ModelVersion, trainable: str) -> None:
    """Check that a version is of a trainable, if its tags name one.

    Raises:
        InputError: it is of another one.
    """
    other = version.tags.get(TRAINABLE_TAG)
    if other and trainable and other != trainable:
        raise InputError(
            f"registry.model: version {version.version} of {version.name} is a model of {other}, and not of"
            f" {trainable}; they cannot be compared, so name another model"
        )


def promote(
    client: mlflow.MlflowClient,
    version: ModelVersion,
    alias: Alias,
    judge: Callable[[int | None], Decision],
    *,
    by: Mapping[str, str],
    keep: Callable[[Decision, int | None], None] = lambda decision, champion: None,
    action: Action = "gate",
    once: bool = True,
) -> Record:
    """Move an alias to a version if it is judged better than the one that has it, and record the decision.

    Args:
        client: of the store.
        version: the candidate.
        alias: the alias.
        judge: decides against the version that has the alias.
        by: who decides; see `who`.
        keep: keeps a decision as a file, before the alias moves.
        action: how the decision comes about.
        once: whether an earlier decision of the gate about this version and alias counts, so that repeating
            it finds its record.

    Raises:
        MlflowException: the store did not accept something.
        TrackingError: a version has been deleted.
    """
    number, made = int(version.version), set[str]()

    def propose(champion: int | None) -> Callable[[int], Change]:
        if champion == number:
            held = f"version {number} has the alias already"
            decision = Decision(verdict="promoted", reason=held, method="no gate")
        else:
            decision = judge(champion)
            keep(decision, champion)

        def change(change_number: int) -> Change:
            key = record_tag(alias.name, change_number)
            made.add(key)
            record = _record(alias.name, change_number, number, action, decision, champion, by)
            moved = alias.name if decision.promoted else CHALLENGER
            return Change(number, {moved: number}, {key: _text(record), DECISION_TAG: decision.verdict})

        return change

    def is_done(tags: Mapping[str, str]) -> bool:
        return bool(made & tags.keys()) or (once and decision_of_gate(tags, alias.name) is not None)

    alias.change(propose, is_done, number)
    return records_of(client.get_model_version(version.name, str(number)), alias.name)[-1]


def rollback(client: mlflow.MlflowClient, model: str, alias: Alias, *, by: Mapping[str, str]) -> Record:
    """Move an alias back to the version that had it before the present one, by the records.

    Where no version has it, because the one that had it was deleted, it moves to the last of the others.

    Raises:
        InputError: no earlier version is recorded, or it was deleted.
        MlflowException: the store did not accept something.
    """
    present = alias.read().holder
    versions = all_versions(client, model)
    target = champion_before(history(versions, alias.name), present, {int(each.version) for each in versions})
    if target is None and present is None:
        raise InputError(f"{model}: no version has the alias {alias.name}, or is recorded to have had it")
    if target is None:
        raise InputError(
            f"{model}: no version is recorded that had the alias {alias.name} before version {present}, so"
            " nothing could take its place; use promote"
        )

    def judge(champion: int | None) -> Decision:
        if champion != present:
            raise InputError(f"{model}: version {champion} took the alias {alias.name} meanwhile; look again")
        reason = (
            "rolled back; no version had the alias"
            if present is None
            else f"rolled back from version {present}"
        )
        return Decision(verdict="promoted", reason=reason, method="no gate")

    version = client.get_model_version(model, str(target))
    return promote(client, version, alias, judge, by=by, action="rolled back", once=False)


def check_writable(client: mlflow.MlflowClient, model: str) -> None:
    """Check that this login may change a model, by setting and deleting a tag; raises MlflowException."""
    client.set_registered_model_tag(model, _CHECK_TAG, "may this login change the model?")
    client.delete_registered_model_tag(model, _CHECK_TAG)


def who(**where: str) -> dict[str, str]:
    """Return user, host and MLflow login of this process, and the sweep or command that ``where`` names."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        user = str(os.getuid())
    login = read_mlflow_creds().username
    return {"user": user, "host": platform.node(), **({"login": login} if login else {}), **where}


def records_of(version: ModelVersion, alias: str) -> list[Record]:
    """Return the records of a version about an alias, in their order; raises TrackingError."""
    return _records(version.tags, alias)


def decision_of_gate(tags: Mapping[str, str], alias: str) -> Record | None:
    """Return the record of the last decision of the gate about an alias, by the tags of a version."""
    decided = [record for record in _records(tags, alias) if record.action == "gate"]
    return decided[-1] if decided else None


def is_of_first_release(tags: Mapping[str, str]) -> bool:
    """Return whether release 0.1.0 decided about a version, by its tags; it wrote no records."""
    return DECISION_TAG in tags and SCHEMA_TAG not in tags


def _records(tags: Mapping[str, str], alias: str) -> list[Record]:
    prefix = record_tag(alias, 0).removesuffix("0")
    found = []
    for key in (key for key in tags if key.startswith(prefix)):
        try:
            found.append(Record.model_validate_json(tags[key]))
        except ValidationError as error:
            raise TrackingError(
                f"registry: the tag {key} of a version is damaged, or of a later release: {tags[key][:80]!r}"
            ) from error
    return sorted(found, key=lambda record: record.number)


def history(versions: Sequence[ModelVersion], alias: str) -> list[Record]:
    """Return all records about an alias, in their order; versions of 0.1.0 have none."""
    records = [record for version in versions for record in records_of(version, alias)]
    return sorted(records, key=lambda record: record.number)


def champion_before(records: Sequence[Record], present: int | None, versions: set[int]) -> int | None:
    """Return the version that had the alias before the present one, and still exists; None without one.

    Without a present one, that is the last one that had it. After a rollback from 5 to 4, that is the version
    before 4.
    """
    holders: list[int] = []
    for record in records:
        if record.verdict != "promoted":
            continue
        if record.champion is not None:  # it has no record of its own if it was set in MLflow
            holders = _with_last(holders, record.champion)
        if record.action == "rolled back" and record.version in holders:
            del holders[holders.index(record.version) + 1 :]
        else:
            holders = _with_last(holders, record.version)
    earlier = holders[: holders.index(present)] if present in holders else holders
    return next((version for version in reversed(earlier) if version in versions), None)


def _with_last(holders: Sequence[int], version: int) -> list[int]:
    return [*(holder for holder in holders if holder != version), version]


def all_versions(client: mlflow.MlflowClient, model: str) -> list[ModelVersion]:
    """Return all versions of a model, the oldest first."""
    found: list[ModelVersion] = []
    token: str | None = None
    while token is None or token:
        page = client.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return sorted(found, key=lambda version: int(version.version))


def _record(
    alias: str,
    number: int,
    version: int,
    action: Action,
    decision: Decision,
    champion: int | None,
    by: Mapping[str, str],
) -> Record:
    return Record(
        alias=alias,
        number=number,
        version=version,
        action=action,
        verdict=decision.verdict,
        reason=decision.reason,
        champion=champion,
        at=now(),
        by=dict(by),
        method=decision.method,
        metric=decision.metric,
        overall=decision.overall,
        targets=decision.targets,
        not_compared=decision.not_compared,
        notes=decision.notes,
    )


def _text(record: Record) -> str:
    """Return a record as the text of its tag, shortened until it fits."""
    text = _json(record)
    for characters in _SHORTER:
        if len(json.dumps(text)) <= _RECORD_CHARACTERS:
            break
        text = _json(_shortened(record, characters))
    return text


def _json(record: Record) -> str:
    return record.model_dump_json(exclude_defaults=True)


def _shortened(record: Record, characters: int) -> Record:
    """Return a record with texts of at most so many characters, and few targets."""
    targets = characters // _CHARACTERS_PER_TARGET
    left_out = list(record.not_compared.items())[:targets]
    return record.model_copy(
        update={
            "reason": one_line(record.reason, characters),
            "by": {key: one_line(text, characters) for key, text in record.by.items()},
            "metric": one_line(record.metric, characters),
            "targets": dict(list(record.targets.items())[:targets]),
            "not_compared": {target: one_line(why, characters) for target, why in left_out},
            "notes": (*(one_line(note, characters) for note in record.notes[:targets]), _SHORTENED),
        }
    )


def now() -> str:
    """Return the time in UTC as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
