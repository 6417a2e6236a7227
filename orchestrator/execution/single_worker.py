"""One training in this process, without Ray: its folder, and the trainable's view of it."""

import contextlib
import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.fs
from filelock import FileLock, Timeout
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.config.document import Document, dump
from orchestrator.config.job import changes, flat_texts
from orchestrator.console.tables import format_number
from orchestrator.errors import InputError, StorageError
from orchestrator.execution.checkpoints import TrialFolder, epoch_of
from orchestrator.storage.local import LocalStore
from orchestrator.trainable import (
    DataSetRecord,
    ScoredAgain,
    Trainable,
    changed_data,
    checked_report,
    digests,
)

_CONFIG, _CURVES, _SCORES, _LOCK = "config.yaml", "curves.csv", "scores.json", ".lock"
_DATA = "data.json"
_DIGESTS = TypeAdapter(dict[str, list[str]])
_CODE = "code.json"
_CODE_DIGESTS = TypeAdapter(dict[str, str])
_OWNER = "single"


class TrainingFolder:
    """The files of one training, such as ``config.yaml``, ``curves.csv``, and its last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store = LocalStore(path)
        self._checkpoints = TrialFolder(pyarrow.fs.LocalFileSystem(), str(path), _OWNER)

    def check(self, trainable: str, subject: Trainable, config: BaseModel, *, scores: bool) -> None:
        """Check that the folder can be used: that it is empty, or that of a training with this config.

        Raises:
            InputError: it cannot. ``scores``: nothing is trained, so that settings of the scoring may differ.
        """
        try:
            str(self.path).encode()
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"--output: {self.path} is a file, not a folder")
            names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except UnicodeEncodeError as error:
            raise InputError(f"--output: {str(self.path)!r} is not UTF-8 text") from error
        except OSError as error:
            raise InputError(f"--output: {self.path}: {error.strerror}") from error
        if not names - {_LOCK}:
            try:
                self._store.check()
            except InputError as error:
                raise InputError(f"--output: {str(error).removeprefix('storage: ')}") from error
            return
        if _CONFIG not in names:
            raise InputError(f"--output: {self.path} has other files; name a new or an empty folder")
        recorded, before = self._recorded(subject)
        free: tuple[str, ...] = ("",) if scores else ()
        remedy = "name another folder"
        if scores and isinstance(subject, ScoredAgain):
            free = tuple(subject.scoring_paths)
            remedy = f"only {', '.join(free)} may differ when a checkpoint is scored again"
        differences = changes({"trainable": recorded}, {"trainable": trainable})
        differences += changes(_without(free, before), _without(free, _texts(config)))
        if differences:
            raise InputError(
                f"--output: {self.path} holds a training with other settings: {'; '.join(differences)}; "
                f"{remedy}"
            )
        self.reports()

    def _recorded(self, subject: Trainable) -> tuple[str, dict[str, str]]:
        """Return the trainable of the training, and its config as texts by path; raises InputError."""
        file = self.path / _CONFIG
        try:
            recorded = Document.read(file, "training").tree
            return str(recorded["trainable"]), _texts(subject.Config.model_validate(recorded["config"]))
        except (InputError, ValidationError, KeyError, RecursionError) as error:
            raise InputError(f"--output: {file} is damaged; name another folder") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; raises InputError when one trains in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / _LOCK, timeout=0):
                yield
        except Timeout:
            raise InputError(f"--output: another process trains in {self.path}") from None

    def record(self, trainable: str, config: BaseModel) -> None:
        """Write the config of a new training, in the form that the command reads."""
        if not (self.path / _CONFIG).exists():
            content = {"trainable": trainable, "config": config.model_dump(mode="json", by_alias=True)}
            self._store.write(_CONFIG, dump(content).encode())

    def record_data(self, data_sets: Sequence[DataSetRecord]) -> None:
        """Record the content of the data; raises InputError if a training that resumes began with another."""
        now, before = digests(data_sets), {}
        if self.epoch():
            with contextlib.suppress(ValueError, StorageError):  # an earlier version has not written it
                file = self._store.read(_DATA)
                before = _DIGESTS.validate_json(b"{}" if file is None else file[0])
        if changed := changed_data(before, now):
            raise InputError(
                f"{changed}: the content has changed since the training in {self.path} began; put the data "
                "back, or name another folder"
            )
        self._store.write(_DATA, json.dumps(now).encode())

    def changed_code(self, code: Mapping[str, str]) -> list[str]:
        """Return the modules whose source differs from that of the training; see `record_code`."""
        try:
            file = self._store.read(_CODE)
            before = {} if file is None else _CODE_DIGESTS.validate_json(file[0])
        except (ValueError, StorageError):
            return []  # damaged
        return [module for module in code if before.get(module, code[module]) != code[module]]

    def record_code(self, code: Mapping[str, str]) -> None:
        """Record the digests of the modules of trainable and components, by module."""
        self._store.write(_CODE, json.dumps(code).encode())

    def checkpoint(self) -> Path | None:
        """Return the folder of the last complete checkpoint."""
        last = self._checkpoints.last_checkpoint()
        return None if last is None else Path(last)

    def epoch(self) -> int:
        """Return the epoch of the last complete checkpoint, 0 if there is none."""
        return epoch_of(self._checkpoints.last_checkpoint())

    def save(self, save: Callable[[Path], None], epoch: int) -> None:
        """Keep what ``save`` writes as the only checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            self._checkpoints.delete_all_but(self._checkpoints.save(Path(folder), epoch))

    def reports(self) -> list[dict[str, float]]:
        """Return the metrics of the epochs up to the last checkpoint; raises InputError for damaged ones."""
        try:
            file = self._store.read(_CURVES)
            if file is None:
                return []
            lines = csv.DictReader(io.StringIO(file[0].decode()))
            rows = [{name: float(value) for name, value in line.items() if value} for line in lines]
            return [row for row in rows if row["epoch"] <= self.epoch()]
        except (StorageError, ValueError, KeyError, TypeError, csv.Error) as error:
            path = self.path / _CURVES
            raise InputError(f"--output: {path} is damaged; delete it, and the curves begin anew") from error

    def write_reports(self, reports: Sequence[Mapping[str, float]]) -> None:
        """Write the metrics, one line for each epoch."""
        names = dict.fromkeys(name for report in reports for name in report)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(names))
        writer.writeheader()
        writer.writerows(reports)
        self._store.write(_CURVES, text.getvalue().encode())

    def write_scores(
        self, scores: Mapping[str, float], subject: Trainable, config: BaseModel, changed: Sequence[str] = ()
    ) -> None:
        """Add the scores on the targets, with the settings that differ from those of the training.

        A score that is not finite is null. Scores with the same settings are replaced. ``changed`` are the
        modules whose code has changed since the training.
        """
        _, before = self._recorded(subject)
        settings = {path: text for path, text in _texts(config).items() if before.get(path) != text}
        settings |= {f"code of {module}": "changed" for module in changed}
        finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        kept = self._store.read(_SCORES)
        try:
            earlier = [] if kept is None else json.loads(kept[0])
            others = [entry for entry in earlier if entry["settings"] != settings]
        except (ValueError, TypeError, KeyError, RecursionError):
            others = []  # damaged
        entries = [*others, {"settings": settings, "scores": finite}]
        self._store.write(_SCORES, f"{json.dumps(entries, indent=1, ensure_ascii=False)}\n".encode())

    def write_error(self, traceback: str) -> Path:
        """Write the traceback of an exception of the trainable; return the file."""
        self._store.write("error.txt", traceback.encode(errors="replace"))
        return self.path / "error.txt"


class SingleWorker:
    """The trainable's view of a training on one worker (see `orchestrator.trainable.Context`).

    ``notify`` is called with one line for each epoch.
    """

    rank, world_size = 0, 1
    metrics: tuple[str, ...] = ()
    """No job needs any."""

    def __init__(
        self,
        folder: TrainingFolder,
        epochs: int,
        device: str,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.device = device
        self._folder, self._epochs, self._notify = folder, epochs, notify
        self._epoch, self._step = folder.epoch(), ""
        self.reports = folder.reports()

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Keep the metrics of an epoch and its checkpoint.

        Raises:
            ValueError: the metrics or the epoch are not valid.
        """
        metrics = checked_report(metrics, self._epoch, self._epochs)
        self._epoch, self._step = int(metrics["epoch"]), ""
        self.reports.append(metrics)
        self._folder.write_reports(
            self.reports
        )  # before the checkpoint, which decides how many of them count
        if save is not None:
            self._folder.save(save, self._epoch)
        self._notify("  ".join(f"{name} {format_number(value)}" for name, value in metrics.items()))

    def restore(self) -> Path | None:
        """Return the folder of the last checkpoint."""
        return self._folder.checkpoint()

    def note_step(self, step: int, steps: int) -> None:
        """Note the progress within an epoch, for `status`."""
        self._step = f", step {step} of {steps}"

    def status(self) -> str:
        """Return what is trained at the moment."""
        return f"epoch {min(self._epoch + 1, self._epochs)} of {self._epochs}{self._step}"


def _without(groups: Sequence[str], texts: Mapping[str, str]) -> dict[str, str]:
    """Return the texts whose path is none of ``groups`` and not below one; all are below the empty one."""
    return {
        path: text
        for path, text in texts.items()
        if not any(not group or path == group or path.startswith(f"{group}.") for group in groups)
    }


def _texts(config: BaseModel) -> dict[str, str]:
    return flat_texts(config.model_dump(mode="json", by_alias=True))
