"""The contract between the orchestrator and a trainable, and the loading of a trainable."""

import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

from pydantic import BaseModel

from orchestrator import components
from orchestrator.errors import InputError, quote


class DataSetRecord(Protocol):
    """One data set that a job used, for the tracking server and the model's lineage."""

    @property
    def name(self) -> str:
        """Name of the data set in the trainable's config."""

    @property
    def role(self) -> str:
        """Use of the data set: ``train``, ``images``, ``target``, ..."""

    @property
    def source(self) -> str:
        """Folder of the data set, or the name of its generator."""

    @property
    def digest(self) -> str:
        """Hash of the content."""

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of identities, cameras, tracklets, frames, ..."""


class Context(Protocol):
    """A worker's view of its trial, and its way to report.

    That of `orchestrator.train` also has ``note_step(step, steps)``, which tells how far an epoch is.
    """

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""

    @property
    def world_size(self) -> int:
        """Number of workers; above 1, ``torch.distributed`` is initialised before ``fit``."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:<index>``."""

    @property
    def metrics(self) -> Collection[str]:
        """The metrics that the job needs, such as its objectives; ``fit`` may leave out other costly ones."""

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch; every rank calls it.

        Args:
            metrics: ``epoch`` (from 1, counted over resumes) and those of ``Trainable.metrics`` that the
                config has, such as scores on validation data; aggregated over the ranks. Beside a metric
                ``M`` it may have ``M/error``, the standard error of ``M``: how far it would vary with other
                validation data. It is shown with the best value.
            save: writes the checkpoint files into the folder that it gets; called on rank 0 only.

        Raises:
            ValueError: a metric is not a number, has a name that MLflow refuses, or the epoch is not a later
                one than before.
        """

    def restore(self) -> Path | None:
        """Return the folder of the last checkpoint, or None at a fresh start."""


class Trainable(Protocol):
    """A class whose training can be searched; it is instantiated without arguments.

    Messages for the user go to ``logging``: the orchestrator shows those of level INFO and above.
    ``orchestrator.testing.check_trainable`` checks a class against this contract.
    """

    Config: type[BaseModel]
    """Config of a trial: forbids extra keys, has the int fields ``epochs`` (the maximum number of reports of
    ``fit``) and ``seed``."""
    InputError: type[Exception]
    """Raised when the user's data is at fault. ``str()`` is one line that begins with the path in the
    config."""
    metrics: Mapping[str, Literal["max", "min"]]
    """Every metric that ``fit`` may report, and whether higher or lower is better; see `MetricsByConfig`."""
    throughput: str | None
    """The metric that counts work per second, if there is one."""

    def prepare(self, config: Any) -> list[Any]:
        """Check, generate and pack the data, once before any trial.

        Returns:
            A ``DataSetRecord`` for each data set.

        Raises:
            InputError: the data is at fault.
        """

    def check(self, config: Any, workers: int, metrics: Sequence[str]) -> None:
        """Check in little time that trials with this config can run; writes nothing.

        Args:
            config: the config of a trial.
            workers: the number of workers of a trial.
            metrics: those of ``Trainable.metrics`` that the job needs, such as objectives and constraints.

        Raises:
            InputError: the data does not suffice for so many workers, or ``fit`` does not report one of the
                metrics with this config.
        """

    def fit(self, config: Any, context: Context) -> None:
        """Train on one worker, from ``context.restore()`` if there is a checkpoint.

        A process may train one trial after the other. Each gets an instance of its own.

        Raises:
            FloatingPointError: the loss or a gradient is not finite.
        """

    def evaluate(self, config: Any, checkpoint: Path) -> dict[str, float]:
        """Return the scores of a checkpoint on the targets, named ``test/<set>/<metric>``.

        Files that it adds to ``checkpoint`` are kept there, for `Illustrating.illustrate_run`.
        """

    def export(self, config: Any, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write the files of a model into ``directory``.

        Returns:
            The arguments of ``mlflow.pyfunc.log_model``.
        """


@runtime_checkable
class Illustrating(Protocol):
    """A trainable that can also draw what its trials learned.

    At its end, a comparison calls `illustrate_run` for every run that was scored, on the workers and in
    parallel, and then `illustrate_comparison` once. Both write PNG files, whose names become their titles.
    """

    def illustrate_run(
        self, variant: str, number: int, config: Any, checkpoint: Path, directory: Path
    ) -> Any:
        """Draw one run.

        Args:
            variant: name of the variant.
            number: number of the run among those of its variant, from 0, in the order of splits and seeds.
            config: config of the run.
            checkpoint: folder of its checkpoint. Files that `Trainable.evaluate` added may be missing.
            directory: folder for the pictures; no two runs may write the same name.

        Returns:
            What `illustrate_comparison` needs of the run; it must be possible to pickle it.
        """

    def illustrate_comparison(self, runs: Mapping[str, Sequence[Any]], directory: Path) -> None:
        """Draw all variants together.

        Args:
            runs: for each variant what `illustrate_run` returned, without runs whose training failed.
            directory: folder for the pictures.
        """


@runtime_checkable
class SearchChecking(Protocol):
    """A trainable that knows paths of its config that make no sense in a search."""

    def check_search(self, config: Any, paths: Sequence[str], metrics: Sequence[str]) -> None:
        """Check the searched paths.

        Args:
            config: the fixed config.
            paths: the searched paths.
            metrics: the objectives.

        Raises:
            InputError: the message is one line that begins with a searched path.
        """


@runtime_checkable
class ScoredAgain(Protocol):
    """A trainable that knows which settings may change when a checkpoint is scored again.

    With other settings, the checkpoint might not fit, or be scored on identities that it was trained on.
    """

    @property
    def scoring_paths(self) -> Collection[str]:
        """Paths and groups of the config that only scoring uses, such as ``evaluation``."""


@runtime_checkable
class MetricsByConfig(Protocol):
    """A trainable whose metrics depend on its config, such as scores on sets that the config names."""

    def metrics_for(self, config: Any) -> Mapping[str, Literal["max", "min"]]:
        """Return every metric that ``fit`` may report with this config, and whether higher is better."""


ERROR = "/error"
"""What the name of the standard error of a metric adds to that of the metric."""


class QueryResults(Protocol):
    """Results of every query on one target, so that two models can be compared query by query."""

    @property
    def data(self) -> str:
        """Hash of the content of the test part, the same however a model prepares it."""

    @property
    def protocol(self) -> str:
        """How queries are scored, with its settings."""

    @property
    def version(self) -> str:
        """Version of the scoring code: another one may give the same model other results."""

    @property
    def queries(self) -> Sequence[str]:
        """Names of the queries, each once."""

    @property
    def identities(self) -> Sequence[str]:
        """Identity of each query: those of one identity are alike, so that they count as one observation."""

    @property
    def metrics(self) -> Mapping[str, Sequence[float | None]]:
        """One value per query for each metric; None where the query does not count."""


def score_parts(score: str) -> tuple[str, str]:
    """Return target and metric of a score: ``test/mars/common/mAP`` gives ``mars`` and ``common/mAP``."""
    parts = score.split("/", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("", score)


@runtime_checkable
class Comparable(Protocol):
    """A trainable whose models can be compared query by query, to distinguish a difference from chance.

    A sweep calls `query_results` after `Trainable.evaluate`, and `score_model` for the champion if its
    stored results are of other data, another protocol or another scoring version.
    """

    def target_metrics(self, config: Any) -> Mapping[str, Sequence[str]]:
        """Return the metrics of each target, as `query_results` will have them; decodes no data."""

    def query_results(self, config: Any, checkpoint: Path) -> Mapping[str, QueryResults]:
        """Return the results on each target of a checkpoint that `Trainable.evaluate` has just scored."""

    def score_model(self, config: Any, model: Path) -> Mapping[str, QueryResults]:
        """Score an exported model on the targets of a config.

        Args:
            config: gives the targets and how they are scored; the model is prepared as it needs itself.
            model: folder of the MLflow model, of this or an earlier version of the trainable.

        Raises:
            InputError: the folder holds no model of this trainable.
        """

    def trained_on(self, config: Any) -> Mapping[str, Sequence[str]]:
        """Return the identities that a training with this config learns from.

        Returns:
            Names by numbering. Equal names in one numbering are the same identity, in any set and config.
        """

    def tested_on(self, config: Any) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Return the identities of the test part of each target, as `trained_on` does."""


_METRIC_NAME = re.compile(r"[/\w.\- :]{1,250}")
"""Names that MLflow 3 accepts."""

_RESERVED = ("time", "objective")
"""Names under which the study and MLflow keep something else."""


def metrics_of(subject: Trainable, config: Any) -> Mapping[str, Literal["max", "min"]]:
    """Return every metric that a trainable may report with a config."""
    return subject.metrics_for(config) if isinstance(subject, MetricsByConfig) else subject.metrics


_METHODS = ("prepare", "check", "fit", "evaluate", "export")


def digests(data_sets: Sequence[DataSetRecord]) -> dict[str, list[str]]:
    """Return the digests of data sets by name; one set may be prepared in several ways."""
    found: dict[str, set[str]] = {}
    for each in data_sets:
        found.setdefault(each.name, set()).add(each.digest)
    return {name: sorted(values) for name, values in found.items()}


def changed_data(before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> str:
    """Return the data sets whose digests have changed, such as ``data set prid``; "" if none has."""
    names = [name for name in now if before.get(name, now[name]) != now[name]]
    return f"data set{'s' * (len(names) > 1)} {', '.join(names)}" if names else ""


def load(dotted: str) -> Trainable:
    """Return an instance of the trainable at ``package.module:Class``.

    Raises:
        InputError: the class cannot be imported, or does not fulfil the contract.
    """
    candidate = components.resolve(dotted, lambda value: hasattr(value, "fit"))
    if not isinstance(candidate, type):
        raise InputError(f"{dotted!r} is not a class, so it is not a valid trainable")
    if violation := contract_violation(candidate):
        raise InputError(f"{dotted!r} is not a valid trainable: {violation}")
    try:
        return cast(Trainable, candidate())
    except (Exception, SystemExit) as error:  # whatever the class does
        reason = components.describe_raised(error)
        raise InputError(f"{dotted!r} cannot be instantiated without arguments: {reason}") from error


def contract_violation(candidate: type) -> str | None:
    """Return the part of the contract that a class lacks, or None for a valid trainable."""
    for name in (*_METHODS, "Config", "InputError", "metrics", "throughput"):
        if not hasattr(candidate, name):
            return f"it has no {name!r}"
    for name in _METHODS:
        if not callable(getattr(candidate, name)):
            return f"its {name!r} is not a method"
    config: object = getattr(candidate, "Config")  # noqa: B009 - a type checker cannot tell that the class has it
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
    metrics: Any = getattr(candidate, "metrics")  # noqa: B009
    if violation := metrics_violation(metrics, "metrics"):
        return violation
    throughput: object = getattr(candidate, "throughput")  # noqa: B009
    if throughput is not None and throughput not in metrics:
        return f"its 'throughput' {throughput!r} is not one of its metrics"
    return None


def metrics_violation(metrics: object, origin: str) -> str | None:
    """Return why a value of the attribute or method ``origin`` does not say which metrics there are."""
    if not (isinstance(metrics, Mapping) and metrics and set(metrics.values()) <= {"max", "min"}):
        return f"its {origin!r} do not map names to 'max' or 'min'"
    for name in metrics:
        if fault := metric_name_fault(name):
            return f"its {origin!r} have {fault}"
    return None


def metric_name_fault(name: object) -> str | None:
    """Return why MLflow would refuse a metric of this name, or None for a valid name."""
    if not (isinstance(name, str) and _METRIC_NAME.fullmatch(name)):
        return (
            f"the invalid name {quote(name)}; expected at most 250 letters, digits, spaces and any of /_-.:"
        )
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name in (".", *_RESERVED):
        return f"the invalid name {quote(name)}; expected a name like val/mAP"
    return None


def checked_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats.

    Raises:
        ValueError: one is not a number, or has a name that MLflow refuses.
    """
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics must be a mapping, not {quote(metrics)}")
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if fault := metric_name_fault(name):
            raise ValueError(f"there is a metric with {fault}")
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            numbers[name] = float(value)
        except OverflowError:
            raise ValueError(f"{name} is too large for a float") from None
        except Exception:  # whatever the conversion of a foreign type raises
            raise ValueError(f"{name} must be a number, not {quote(value)}") from None
    return numbers


def checked_report(metrics: Mapping[str, Any], last: int, epochs: int) -> dict[str, float]:
    """Return the metrics of an epoch as floats.

    Args:
        metrics: what the trainable reports.
        last: the last epoch that was reported, 0 for none.
        epochs: the highest number of epochs.

    Raises:
        ValueError: the metrics are not valid, or the epoch is none of the next ones.
    """
    numbers = checked_metrics(metrics)
    if "epoch" not in numbers:
        raise ValueError("a report must contain epoch")
    epoch = numbers["epoch"]
    if last >= epochs:
        raise ValueError(f"epoch is {epoch:g}; no report is expected after epoch {epochs}, the last one")
    if not (epoch.is_integer() and last < epoch <= epochs):
        raise ValueError(f"epoch is {epoch:g}; expected a whole number from {last + 1} to {epochs}")
    return numbers
