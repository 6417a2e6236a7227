"""The border: what the orchestrator asks of a trainable, and how one is loaded by its dotted path."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

from pydantic import BaseModel

from orchestrator.errors import InputError, nearest


class DataSetRecord(Protocol):
    """One data set as it was used, for the tracking server and the model's lineage."""

    @property
    def name(self) -> str:
        """Name of the set in the trainable's config."""

    @property
    def role(self) -> str:
        """What it is used for: ``train``, ``images``, ``target``, ..."""

    @property
    def source(self) -> str:
        """Folder, or what generated it."""

    @property
    def digest(self) -> str:
        """Hash of the content."""

    @property
    def counts(self) -> dict[str, int]:
        """What is in it, e.g. identities, cameras, tracklets, frames."""


class Context(Protocol):
    """What a worker knows of its trial, and how it reports."""

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""

    @property
    def world_size(self) -> int:
        """Number of workers; above 1, ``torch.distributed`` is initialised already."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:<index>``."""

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; every rank calls it, with metrics aggregated over the ranks.

        ``metrics`` holds ``epoch`` (from 1, counted over resumes) and those of ``Trainable.metrics`` that the
        config has, such as scores on validation data where it keeps some.
        ``save`` writes the checkpoint files into the folder it is given; it is called on rank 0 only.
        """

    def restore(self) -> Path | None:
        """Folder of the last checkpoint, or None on a fresh start."""


class Trainable(Protocol):
    """Anything that can be searched: a class that is instantiated without arguments.

    ``Config`` forbids extra keys and has the int fields ``epochs`` (how many reports ``fit`` makes at most)
    and ``seed``. ``InputError`` is raised when the user's data is at fault; its ``str()`` is one clear line
    that begins with the path in the config. ``metrics`` names every metric that ``fit`` may report and
    which way it improves; ``throughput`` is the one that counts work per second, if any.
    """

    Config: type[BaseModel]
    InputError: type[Exception]
    metrics: Mapping[str, Literal["max", "min"]]
    throughput: str | None

    def prepare(self, config: Any, say: Callable[[str], None]) -> list[Any]:
        """Check, generate and pack the data once before any trial; gives a ``DataSetRecord`` for each set."""

    def check(self, config: Any, workers: int, metrics: Sequence[str]) -> None:
        """Check cheaply that so many workers can train on it; raises ``InputError``, writes nothing.

        ``metrics`` are those of ``Trainable.metrics`` that the job cannot do without, such as the objective:
        what ``fit`` does not report under this config is refused as well.
        """

    def fit(self, config: Any, context: Context) -> None:
        """Train on one worker; raises FloatingPointError when the loss or a gradient is not finite."""

    def evaluate(self, config: Any, checkpoint: Path) -> dict[str, float]:
        """Scores of a checkpoint on the targets, named ``test/<set>/<metric>``."""

    def export(self, config: Any, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write a model's files into ``directory``; gives the arguments of ``mlflow.pyfunc.log_model``."""


@runtime_checkable
class Illustrating(Protocol):
    """A trainable that can also draw what its trials learned; a comparison asks for it once, at its end."""

    def illustrate(self, runs: Mapping[str, Sequence[tuple[Any, Path]]], directory: Path) -> None:
        """Write PNG files into ``directory``; their names become their titles.

        ``runs`` holds for each variant its ``(config, checkpoint folder)``, one for each split and seed, in
        an order that is the same for every variant; one whose training failed is left out.
        """


_METHODS = ("prepare", "check", "fit", "evaluate", "export")
_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def load(dotted: str) -> Trainable:
    """Import and instantiate the trainable at ``package.module:Class``; InputError says what it lacks."""
    if not _FORM.fullmatch(dotted):
        raise InputError(f"{dotted!r} names no trainable; write it as package.module:Class")
    module_name, _, attribute = dotted.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InputError(f"there is no module {error.name!r}{_nearest_module(error.name)}") from error
        raise InputError(f"module {module_name!r} needs {error.name!r}, which is not installed") from error
    except (ImportError, SyntaxError) as error:
        raise InputError(f"module {module_name!r} cannot be imported: {error}") from error
    found = vars(module).get(attribute)
    if found is None:
        classes = [name for name, value in vars(module).items() if hasattr(value, "fit")]
        raise InputError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, classes)}")
    if not isinstance(found, type):
        raise InputError(f"{dotted!r} is not a class, so it is no trainable")
    fault = _fault(found)
    if fault:
        raise InputError(f"{dotted!r} is no trainable: {fault}")
    try:
        return cast(Trainable, found())
    except TypeError as error:
        raise InputError(f"{dotted!r} cannot be made without arguments: {error}") from error


def _nearest_module(missing: str) -> str:
    """Suggest a module beside the missing one: in its package, or at the top level."""
    package, _, name = missing.rpartition(".")
    folders = importlib.import_module(package).__path__ if package else None
    valid = [module.name for module in pkgutil.iter_modules(folders)]
    return nearest(name, valid) if package else nearest(name, valid, listed=False)


def _fault(candidate: type) -> str | None:
    """Say which part of the contract a class lacks, or None when it is a trainable."""
    for name in (*_METHODS, "Config", "InputError", "metrics", "throughput"):
        if not hasattr(candidate, name):
            return f"it has no {name!r}"
    for name in _METHODS:
        if not callable(getattr(candidate, name)):
            return f"its {name!r} is not a method"
    config: object = getattr(candidate, "Config")  # noqa: B009 - the class is not known to have it
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return "its 'Config' is not a pydantic model"
    for name in ("epochs", "seed"):
        if name not in config.model_fields or config.model_fields[name].annotation is not int:
            return f"its 'Config' has no int field {name!r}"
    if config.model_config.get("extra") != "forbid":
        return "its 'Config' accepts unknown keys; set extra='forbid'"
    error: object = getattr(candidate, "InputError")  # noqa: B009
    if not (isinstance(error, type) and issubclass(error, Exception)):
        return "its 'InputError' is not an exception"
    metrics: object = getattr(candidate, "metrics")  # noqa: B009
    if not (isinstance(metrics, Mapping) and metrics and set(metrics.values()) <= {"max", "min"}):
        return "its 'metrics' do not map names to 'max' or 'min'"
    throughput: object = getattr(candidate, "throughput")  # noqa: B009
    if throughput is not None and throughput not in metrics:
        return f"its 'throughput' {throughput!r} is not among its metrics"
    return None
