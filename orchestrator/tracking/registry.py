"""What `python -m orchestrator.registry` shows and changes: models, versions, aliases and their history."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from pydantic import ValidationError

from orchestrator import components, trainable
from orchestrator.config import sections
from orchestrator.config.sections import Gate, sqlite_address
from orchestrator.config.validation import first_fault
from orchestrator.errors import InputError, TrackingError, UnreachableError, nearest
from orchestrator.tracking import evidence as evidences
from orchestrator.tracking import preflight
from orchestrator.tracking.alias import Alias, is_lease
from orchestrator.tracking.evidence import Evidence, copied
from orchestrator.tracking.gate import Decision, Rule, TargetResults
from orchestrator.tracking.model_files import DIGEST_TAG, client_of, digest, download
from orchestrator.tracking.outbox import describe_error, is_unreachable
from orchestrator.tracking.promotion import (
    DECISION_TAG,
    Action,
    Judge,
    Record,
    all_versions,
    check_family,
    check_writable,
    history,
    promote,
    rollback,
    who,
)
from orchestrator.tracking.records import SWEEP_TAG
from orchestrator.tracking.store import quiet_mlflow
from orchestrator.trainable import Comparable

_REFERENCE = re.compile(r"(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


class Reference(NamedTuple):
    """A model, or one of its versions, as a user names it."""

    name: str
    alias: str | None
    version: int | None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``; raises InputError."""
        text = text.removeprefix("models:/")
        if (match := _REFERENCE.fullmatch(text)) is None:
            raise InputError(f"{text!r} names no model; expected NAME, NAME@ALIAS or NAME/VERSION")
        number = match["version"]
        return cls(match["name"], match["alias"], None if number is None else int(number))


def default_address() -> str:
    """Return the store that sweeps use by default: MLFLOW_TRACKING_URI, else the file beside them."""
    default = sqlite_address(Path("~/reid-sweeps/mlflow.db").expanduser())
    return os.environ.get("MLFLOW_TRACKING_URI") or default


@dataclass
class Registry:
    """The registered models of a store; every method raises InputError, TrackingError or UnreachableError."""

    uri: str
    command: str
    """Name of the command in records."""

    def __post_init__(self) -> None:
        quiet_mlflow()
        self.uri = self.uri.rstrip("/") if self.uri.startswith("http") else self.uri
        preflight.check(self.uri, field="--tracking")
        if self.uri.startswith("sqlite") and not (file := preflight.sqlite_file(self.uri)).exists():
            raise InputError(f"no MLflow database {file}; give --tracking or MLFLOW_TRACKING_URI")
        self.client = client_of(self.uri)

    def models(self) -> list[dict[str, Any]]:
        """Return the models, with their aliases, number of versions, and data sets of the latest version."""
        with self._explained():
            return [{**self._summary(name), "data": self._data_sets(name)} for name in self._names()]

    def show(self, reference: Reference) -> dict[str, Any]:
        """Return a model with its versions, or one version with all that is known about it."""
        with self._explained():
            if reference.alias is None and reference.version is None:
                self._model(reference.name)
                versions = [self._short(version) for version in all_versions(self.client, reference.name)]
                return {**self._summary(reference.name), "versions": versions}
            version = self.find(reference)
            known = evidences.read(self.client, version)
            return {
                **self._short(version),
                "run": version.run_id,
                "run name": self._run_name(version),
                "trainable": known.trainable,
                "digest": version.tags.get(DIGEST_TAG, ""),
                "scores": known.scores,
                "data": known.data,
                "records": [record.model_dump(mode="json") for record in self._records([version])],
            }

    def compare(self, candidate: Reference, champion: Reference, metric: str = "") -> Decision:
        """Return what the gate says about two versions, without changing anything."""
        if candidate.name != champion.name:
            raise InputError(
                f"{candidate.name} and {champion.name} are different models; compare versions of one"
            )
        with self._explained():
            first, second = self.find(candidate), self.find(champion)
            if first.version == second.version:
                raise InputError(
                    f"both names are of version {first.version} of {first.name}; name two versions"
                )
            return self._judge(first, metric).decide(int(second.version))

    def promote(
        self, reference: Reference, alias: str, *, metric: str = "", gate: bool = True, reason: str = ""
    ) -> Record:
        """Move an alias to a version if it passes the gate, or ``gate`` is false."""
        _check_alias(alias)
        with self._explained():
            version = self.find(reference)
            moved = Alias(self.client, version.name, alias)
            state = moved.read()
            if state.holder == int(version.version) and not state.is_late:
                raise InputError(f"version {version.version} of {version.name} has the alias {alias} already")
            self._check_writable(version.name)
            judge = self._judge(version, metric).decide if gate else self._by_hand(version, reason)
            action: Action = "gate" if gate else "promoted by hand"
            by = who(command=self.command)
            return promote(self.client, version, moved, judge, by=by, action=action, once=False)

    def rollback(self, name: str, alias: str) -> Record:
        """Move an alias back to the version that had it before."""
        with self._explained():
            self._model(name)
            self._check_writable(name)
            return rollback(self.client, name, Alias(self.client, name, alias), by=who(command=self.command))

    def _check_writable(self, name: str) -> None:
        """Refuse a login that may not change a model, before an alias is locked for it."""
        try:
            check_writable(self.client, name)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise
            raise InputError(
                f"{name}: this login may not change the model; use another one, or ask its owner"
            ) from error

    def history(self, name: str, alias: str | None = None) -> list[dict[str, Any]]:
        """Return every decision and change about the aliases of a model, or about one, the oldest first.

        Raises:
            InputError: there is no such model, or no version has or had the alias.
        """
        with self._explained():
            aliases = self._model(name).aliases
            versions = all_versions(self.client, name)
            records = [record.model_dump(mode="json") for record in self._records(versions, alias)]
            if alias is not None and not records and alias not in aliases:
                raise InputError(f"{name} has no alias {alias!r}{nearest(alias, aliases)}")
            earlier = [
                {
                    "at": _time(version.creation_timestamp),
                    "alias": "",
                    "version": int(version.version),
                    "verdict": version.tags[DECISION_TAG],
                    "reason": "registered by an earlier release, which kept no reason",
                    "by": {"sweep": version.tags.get(SWEEP_TAG, "")},
                }
                for version in versions
                if DECISION_TAG in version.tags and not self._records([version])
            ]
            return sorted(earlier + records, key=lambda entry: str(entry["at"]))

    def pull(self, reference: Reference, folder: Path) -> dict[str, Any]:
        """Download the files of a version into a folder, and compare them with their checksum.

        A folder that holds them already is only compared.
        """
        with self._explained():
            pulled = (folder / MLMODEL_FILE_NAME).is_file()
            if folder.exists() and not pulled and (not folder.is_dir() or any(folder.iterdir())):
                raise InputError(f"{folder} exists; name a new folder")
            version = self.find(reference)
            expected = version.tags.get(DIGEST_TAG, "")
            if pulled and (not expected or digest(folder) != expected):
                raise InputError(
                    f"{folder} exists, and its files are not those of version {version.version}; name a new"
                    " folder"
                )
            if not pulled:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
                    shutil.copytree(download(self.uri, version, Path(partial)), folder, dirs_exist_ok=True)
        return {
            "model": version.name,
            "version": int(version.version),
            "folder": str(folder),
            "digest": expected,
            "verified": bool(expected),
        }

    def find(self, reference: Reference) -> ModelVersion:
        """Return the version that a reference names; a name alone is refused."""
        aliases = self._model(reference.name).aliases
        number = reference.version
        if reference.alias is not None:
            if reference.alias not in aliases:
                hint = nearest(reference.alias, aliases)
                raise InputError(f"{reference.name} has no alias {reference.alias!r}{hint}")
            number = Alias(self.client, reference.name, reference.alias).read().holder
        if number is None:
            raise InputError(
                f"{reference.name}: name a version, as {reference.name}@champion or {reference.name}/1"
            )
        try:
            return self.client.get_model_version(reference.name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            numbers = [version.version for version in all_versions(self.client, reference.name)]
            hint = f"; it has {', '.join(map(str, numbers))}" if numbers else ", nor any other"
            raise InputError(f"{reference.name} has no version {number}{hint}") from error

    def _judge(self, version: ModelVersion, metric: str) -> Judge:
        known = evidences.read(self.client, version)
        rule, names = known.rule, known.metrics
        if metric and metric not in names:
            where = f"version {version.version} of {version.name}"
            raise InputError(f"--metric: {where} has no score {metric!r}{nearest(metric, names)}")
        if metric or rule is None or rule.gate == "none":
            metric = metric or (rule.metric if rule else "")
            if not metric:
                where = f"version {version.version} of {version.name}"
                raise InputError(f"{where} was registered without a gate; name a score with --metric, as mAP")
            gate = rule.gate if rule and rule.gate != "none" else Gate()
            lower = rule.lower_is_better if rule else frozenset()
            rule = Rule(gate=gate, metric=metric, lower_is_better=lower)
        return Judge(
            self.client,
            version.name,
            int(version.version),
            known,
            rule,
            lambda champion: self._score(known, champion),
        )

    def _score(self, known: Evidence, champion: ModelVersion) -> Mapping[str, TargetResults]:
        """Score a version on the targets of another one, in this process.

        Raises:
            InputError: it cannot be scored.
            MlflowException: the store does not answer.
        """
        subject = trainable.load(known.trainable)
        if not isinstance(subject, Comparable):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            model = download(self.uri, champion, Path(folder))
            try:
                config = subject.Config.model_validate(known.config)
                subject.prepare(config)
                return copied(subject.score_model(config, model))
            except Exception as error:  # whatever the trainable raises
                if isinstance(error, ValidationError):
                    reason = f"config.{first_fault(error, subject.Config, known.config)}"
                elif isinstance(error, subject.InputError):
                    reason = str(error)
                else:
                    reason = components.describe_raised(error)
                raise InputError(f"version {champion.version} cannot be scored anew: {reason}") from error

    def _by_hand(self, version: ModelVersion, reason: str) -> Any:
        trainable_of = version.tags.get(evidences.TRAINABLE_TAG, "")
        why = f": {reason}" if reason else ""

        def judge(champion: int | None) -> Decision:
            if champion is not None:
                other = self.client.get_model_version(version.name, str(champion))
                check_family(other, trainable_of)
            return Decision(verdict="promoted", reason=f"moved without the gate{why}", method="no gate")

        return judge

    def _names(self) -> list[str]:
        found: list[str] = []
        token: str | None = None
        while token is None or token:
            page = self.client.search_registered_models(max_results=1000, page_token=token)
            found += [model.name for model in page]
            token = page.token or ""
        return sorted(name for name in found if not is_lease(name))

    def _model(self, name: str) -> Any:
        try:
            return self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
                raise
            readable = " that this login may read" * (error.error_code == "PERMISSION_DENIED")
            hint = nearest(name, self._names())
            raise InputError(f"no model {name!r} at {self.uri}{readable}{hint}") from error

    def _summary(self, name: str) -> dict[str, Any]:
        aliases = {alias: int(version) for alias, version in self._model(name).aliases.items()}
        return {"model": name, "aliases": aliases, "versions": len(all_versions(self.client, name))}

    def _data_sets(self, name: str) -> list[str]:
        """Return the data sets of the latest version, or none where its evidence cannot be read."""
        versions = all_versions(self.client, name)
        with contextlib.suppress(TrackingError):
            return sorted(evidences.read(self.client, versions[-1]).data) if versions else []
        return []

    def _short(self, version: ModelVersion) -> dict[str, Any]:
        records = self._records([version])
        return {
            "model": version.name,
            "version": int(version.version),
            "aliases": sorted(self._aliases_of(version)),
            "created": _time(version.creation_timestamp),
            "sweep": version.tags.get(SWEEP_TAG, ""),
            "trial": version.tags.get("trial.number", ""),
            "decision": version.tags.get(DECISION_TAG, ""),
            "reason": records[-1].reason if records else "",
        }

    def _run_name(self, version: ModelVersion) -> str:
        """Return the name of the run that made a version; empty where that was deleted or may not be read."""
        with contextlib.suppress(MlflowException):
            return str(self.client.get_run(version.run_id).info.run_name) if version.run_id else ""
        return ""

    def _aliases_of(self, version: ModelVersion) -> Iterator[str]:
        for alias, number in self.client.get_registered_model(version.name).aliases.items():
            if int(number) == int(version.version):
                yield alias

    def _records(self, versions: list[ModelVersion], alias: str | None = None) -> list[Record]:
        """Return the records of versions about an alias, or about all."""
        keys = {key for version in versions for key in version.tags}
        aliases = (
            [alias] if alias else sorted({key.partition(".change.")[0] for key in keys if ".change." in key})
        )
        return [record for each in aliases for record in history(versions, each)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of MLflow as one line."""
        try:
            yield
        except MlflowException as error:
            line = f"registry: {self.uri}: {describe_error(error)}"
            raise (UnreachableError if is_unreachable(error) else TrackingError)(line) from error
        except OSError as error:
            raise InputError(f"{error.filename or self.uri}: {error.strerror or error}") from error


def _check_alias(alias: str) -> None:
    """Check the name of an alias as a sweep file does; raises InputError."""
    try:
        sections.Registry(model="any", alias=alias)
    except ValidationError as error:
        raise InputError(f"--alias: {error.errors()[0]['ctx']['error']}") from error


def _time(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
