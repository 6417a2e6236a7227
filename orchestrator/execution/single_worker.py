"""One training in this process, without Ray: its folder, and the trainable's view of it."""

import contextlib
import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow.fs
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from orchestrator.config.job import changes, flat_texts
from orchestrator.console.tables import format_number
from orchestrator.errors import InputError
from orchestrator.execution.checkpoints import TrialFolder, epoch_of
from orchestrator.trainable import Trainable, checked_report

_CONFIG, _CURVES, _SCORES = "config.yaml", "curves.csv", "scores.json"
_OWNER = "single"


class TrainingFolder:
    """The files of one training: ``config.yaml``, ``curves.csv``, ``scores.json`` and its last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = TrialFolder(pyarrow.fs.LocalFileSystem(), str(path), _OWNER)

    def check(self, trainable: str, subject: Trainable, config: BaseModel, *, may_differ: bool) -> None:
        """Check that the folder is empty, or that of a training with this config; writes nothing.

        Raises:
            InputError: it is neither. ``may_differ`` allows another config of the same type.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"--output: {self.path} is a file, not a folder")
        file = self.path / _CONFIG
        try:
            recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
            before = _texts(subject.Config.model_validate(recorded["config"]))
            names = [str(recorded["trainable"]), trainable]
        except FileNotFoundError:
            if any(entry for entry in self.path.iterdir() if entry.name != ".lock"):
                raise InputError(
                    f"--output: {self.path} has other files; name a new or an empty folder"
                ) from None
            return
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
            raise InputError(f"--output: {file} cannot be read; name another folder") from error
        differences = changes({"trainable": names[0]}, {"trainable": names[1]})
        if not may_differ:
            differences += changes(before, _texts(config))
        if differences:
            raise InputError(
                f"--output: {self.path} holds a training with other settings: {'; '.join(differences)}; "
                "name another folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; raises InputError when one trains in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise InputError(f"--output: another process trains in {self.path}") from None
        except NotADirectoryError as error:
            raise InputError(f"--output: {error.filename}: {error.strerror}") from error

    def record(self, trainable: str, config: BaseModel) -> None:
        """Write the config, in the form that the command reads."""
        content = {"trainable": trainable, "config": config.model_dump(mode="json", by_alias=True)}
        (self.path / _CONFIG).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def checkpoint(self) -> Path | None:
        """Return the folder of the last complete checkpoint."""
        last = self._checkpoints.last_checkpoint()
        return None if last is None else Path(last)

    def epoch(self) -> int:
        """Return the epoch of the last complete checkpoint, 0 if there is none."""
        return epoch_of(str(self.checkpoint()))

    def save(self, save: Callable[[Path], None], epoch: int) -> None:
        """Keep what ``save`` writes as the only checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            self._checkpoints.delete_all_but(self._checkpoints.save(Path(folder), epoch))

    def reports(self) -> list[dict[str, float]]:
        """Return the metrics of the epochs up to the last checkpoint."""
        try:
            with (self.path / _CURVES).open(newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
        except FileNotFoundError:
            return []
        rows = [{name: float(value) for name, value in line.items() if value} for line in lines]
        return [row for row in rows if row["epoch"] <= self.epoch()]

    def write_curves(self, reports: list[dict[str, float]]) -> Path:
        """Write the metrics, one line for each epoch."""
        names = dict.fromkeys(name for report in reports for name in report)
        with (self.path / _CURVES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            writer.writerows(reports)
        return self.path / _CURVES

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Write the scores on the targets."""
        (self.path / _SCORES).write_text(json.dumps(dict(scores), indent=1) + "\n")


class SingleWorker:
    """The trainable's view of a training on one worker (see `orchestrator.trainable.Context`).

    ``notify`` is called with one line for each epoch.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        folder: TrainingFolder,
        epochs: int,
        device: str,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.device = device
        self._folder, self._epochs, self._notify = folder, epochs, notify
        self.reports = folder.reports()
        self._step = ""

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Keep the metrics of an epoch and its checkpoint.

        Raises:
            ValueError: the metrics or the epoch are not valid.
        """
        last = int(self.reports[-1]["epoch"]) if self.reports else 0
        metrics = checked_report(metrics, last, self._epochs)
        self.reports.append(metrics)
        self._step = ""
        if save is not None:
            self._folder.save(save, int(metrics["epoch"]))
        self._folder.write_curves(self.reports)
        values = "  ".join(f"{name} {format_number(value)}" for name, value in metrics.items())
        self._notify(values)

    def restore(self) -> Path | None:
        """Return the folder of the last checkpoint."""
        return self._folder.checkpoint()

    def note_step(self, step: int, steps: int) -> None:
        """Note the progress within an epoch, for `status`."""
        self._step = f", step {step} of {steps}"

    def status(self) -> str:
        """Return what is trained at the moment."""
        epoch = int(self.reports[-1]["epoch"]) + 1 if self.reports else 1
        return f"epoch {min(epoch, self._epochs)} of {self._epochs}{self._step}"


def _texts(config: BaseModel) -> dict[str, str]:
    return flat_texts(config.model_dump(mode="json", by_alias=True))
