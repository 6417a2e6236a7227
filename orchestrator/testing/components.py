"""Conformance suites for trainables, samplers and schedulers."""

import inspect
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.trainable import (
    ERROR,
    Comparable,
    Illustrating,
    QueryResults,
    Trainable,
    contract_violation,
    metrics_of,
    metrics_violation,
)

if TYPE_CHECKING:
    import optuna

_EPOCHS = 9
_TRIALS = 12


def check_trainable(trainable: Trainable, config: Mapping[str, Any]) -> None:
    """Check a trainable: train, resume from a checkpoint, score and export, in a temporary folder.

    Args:
        trainable: an instance of the class.
        config: values of its config that train in little time, with at least 2 epochs.
    """
    violation = contract_violation(type(trainable))
    assert violation is None, violation
    model = trainable.Config
    validated: Any = model.model_validate(config)
    assert validated.epochs >= 2, "the config must have at least 2 epochs, so that training can resume"
    assert model.model_validate(validated.model_dump(mode="json", by_alias=True)) == validated, (
        "the config is not equal to the config that is read from its JSON"
    )
    _check_data_sets(trainable.prepare(validated))
    trainable.check(validated, workers=1, metrics=())
    metrics = metrics_of(trainable, validated)
    violation = metrics_violation(metrics, "metrics_for")
    assert violation is None, violation
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = _RecordingContext(folder / "checkpoints", None, metrics)
        trainable.fit(validated, context)
        _check_reports(metrics, context.reports, range(1, validated.epochs + 1))

        resumed = _RecordingContext(folder / "resumed", context.checkpoints[0], metrics)
        trainable.fit(validated, resumed)
        _check_reports(metrics, resumed.reports, range(2, validated.epochs + 1))

        scores = trainable.evaluate(validated, resumed.checkpoints[-1])
        assert scores, "evaluate returns no scores"
        _check_finite("evaluate", scores)
        if isinstance(trainable, Illustrating):
            _check_pictures(trainable, validated, resumed.checkpoints[-1], folder / "pictures")

        export = folder / "export"
        export.mkdir()
        arguments = trainable.export(validated, resumed.checkpoints[-1], export)
        _check_export(arguments, folder / "model")
        if isinstance(trainable, Comparable):
            _check_comparable(trainable, validated, resumed.checkpoints[-1], folder / "model")


def check_sampler(factory: "Callable[[], optuna.samplers.BaseSampler]", *, continuous: bool = True) -> None:
    """Check a sampler: suggestions for searched paths with and without conditions, beside failed trials.

    Args:
        factory: makes a new sampler. As in a sweep, each trial gets a new one.
        continuous: False for a sampler that tries every combination, which needs a finite space.
    """
    import optuna

    for direction in ("minimize", "maximize"):
        study = optuna.create_study(direction=direction)
        for number in range(_TRIALS):
            study.sampler = factory()
            trial = study.ask()
            value = _objective(trial, continuous)
            if number == 1:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif number != 2:  # trial 2 keeps running
                study.tell(trial, value)
        study.enqueue_trial({"kind": "plain", "size": 3})
        study.sampler = factory()
        trial = study.ask()
        _objective(trial, continuous)
        assert trial.params["size"] == 3, "the sampler replaced a value of an enqueued point"


def check_scheduler(factory: "Callable[[], optuna.pruners.BasePruner]") -> None:
    """Check a pruner: decisions about trials that report up to 9 epochs, in both directions.

    Args:
        factory: makes a new pruner; each decision is that of a new one, because the driver may restart.
    """
    import optuna

    for direction in ("minimize", "maximize"):
        study = optuna.create_study(pruner=factory(), direction=direction)
        for number in range(_TRIALS):
            trial = study.ask()
            assert not _decision(factory, study, trial), "a trial is stopped before its first report"
            for epoch in range(1, _EPOCHS + 1):
                trial.report(math.sin(number) * epoch, epoch)
                if _decision(factory, study, trial):
                    break
            study.tell(trial, math.sin(number) * epoch)


class _RecordingContext:
    """The context of a trial with one worker, which keeps every report and checkpoint."""

    rank, world_size, device = 0, 1, "cpu"

    def __init__(self, folder: Path, checkpoint: Path | None, metrics: Iterable[str]) -> None:
        self.metrics = tuple(metrics)  # a job may need any of them
        self.reports: list[dict[str, float]] = []
        self.checkpoints: list[Path] = []
        self._folder, self._checkpoint = folder, checkpoint

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        self.reports.append(dict(metrics))
        assert save is not None, "report gets no function that saves the checkpoint"
        checkpoint = self._folder / str(len(self.reports))
        checkpoint.mkdir(parents=True)
        save(checkpoint)
        assert any(checkpoint.iterdir()), "the function that saves the checkpoint writes no file"
        self.checkpoints.append(checkpoint)

    def restore(self) -> Path | None:
        return self._checkpoint


def _check_data_sets(records: Iterable[Any]) -> None:
    for record in records:
        for name in ("name", "role", "source", "digest"):
            value = getattr(record, name)
            assert isinstance(value, str), f"{name} of a data set is not text: {value!r}"
        counts = record.counts
        assert all(isinstance(count, int) for count in counts.values()), f"invalid counts: {counts!r}"


def _check_reports(metrics: Iterable[str], reports: list[dict[str, float]], epochs: range) -> None:
    reported = [report.get("epoch") for report in reports]
    assert reported and reported == list(epochs)[: len(reported)], (
        f"fit reports the epochs {reported}; expected {list(epochs)}, or the first of them"
    )
    for report in reports:
        errors = {metric + ERROR for metric in metrics if metric in report} & report.keys()
        unknown = report.keys() - {"epoch", *metrics, *errors}
        assert not unknown, f"fit reports metrics that are not in metrics: {sorted(unknown)}"
        assert report.keys() - {"epoch"}, "fit reports no metric"
        _check_finite("fit", report)
        for name in errors:
            assert report[name] >= 0, f"fit gives the standard error {name} the value {report[name]!r}"


def _check_finite(method: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        is_number = isinstance(value, int | float) and math.isfinite(value)
        assert is_number, f"{method} gives {name} the value {value!r}; expected a finite number"


def _check_pictures(trainable: Illustrating, config: Any, checkpoint: Path, folder: Path) -> None:
    folder.mkdir()
    runs = [trainable.illustrate_run("plain", number, config, checkpoint, folder) for number in range(2)]
    received = pickle.loads(pickle.dumps(runs))  # as the tasks of a comparison exchange them
    trainable.illustrate_comparison({"plain": received, "unscored": []}, folder)
    assert any(folder.glob("*.png")), "neither illustrate_run nor illustrate_comparison writes a PNG file"


def _check_export(arguments: Mapping[str, Any], folder: Path) -> None:
    """Check that the model that ``export`` describes can be saved, by saving it in ``folder``."""
    import mlflow
    from mlflow.models import ModelSignature

    unknown = arguments.keys() - inspect.signature(mlflow.pyfunc.log_model).parameters.keys()
    assert not unknown, f"export returns arguments that mlflow.pyfunc.log_model lacks: {sorted(unknown)}"
    loaders = {"python_model", "loader_module"}
    assert loaders & arguments.keys(), "export returns neither python_model nor loader_module"
    signature = arguments.get("signature")
    assert isinstance(signature, ModelSignature), "export returns no signature"
    assert signature.inputs is not None and signature.outputs is not None, (
        "the signature of export lacks the inputs or the outputs"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as advice about type hints
        mlflow.pyfunc.save_model(folder, **arguments)


def _check_comparable(trainable: Comparable, config: Any, checkpoint: Path, model: Path) -> None:
    """Check that an exported model has the results of its checkpoint, and was not trained on its targets."""
    results = trainable.query_results(config, checkpoint)
    metrics = {target: set(each.metrics) for target, each in results.items()}
    told = {target: set(names) for target, names in trainable.target_metrics(config).items()}
    assert metrics == told, f"target_metrics tells {told}, and the results have {metrics}"
    for target, each in results.items():
        assert len(set(each.queries)) == len(each.queries) > 0, f"{target}: queries need names of their own"
        assert len(each.identities) == len(each.queries), f"{target}: each query needs its identity"
        for name, values in each.metrics.items():
            assert len(values) == len(each.queries), f"{target}: {name} has not one value per query"
    again = trainable.score_model(config, model)
    assert {name: _subject(each) for name, each in again.items()} == {
        name: _subject(each) for name, each in results.items()
    }, "score_model scores the exported model on other targets, queries or data than evaluate"
    tested, trained = trainable.tested_on(config), trainable.trained_on(config)
    for target in results:
        for numbering, names in tested[target].items():
            both = sorted(set(names) & set(trained.get(numbering, ())))
            assert not both, f"the config trains on {both[0]!r} of its target {target!r}"


def _subject(results: QueryResults) -> tuple[Any, ...]:
    return results.data, results.protocol, results.version, tuple(results.queries), tuple(results.identities)


def _objective(trial: "optuna.Trial", continuous: bool) -> float:
    """Return a value of a trial whose searched paths depend on one another."""
    value = float(trial.suggest_int("size", 1, 8))
    assert value in range(1, 9), f"size is {value}; expected a whole number from 1 to 8"
    kind = trial.suggest_categorical("kind", ["plain", "bent"])
    assert kind in ("plain", "bent"), f"kind is {kind!r}; expected 'plain' or 'bent'"
    if kind == "bent":
        steps = trial.suggest_int("steps", 2, 32, log=True)
        assert 2 <= steps <= 32, f"steps is {steps}; expected 2 to 32"
        value += steps
    if continuous:
        for name, low, high, log in (("x", -1.0, 1.0, False), ("rate", 1e-4, 1e-1, True)):
            number = trial.suggest_float(name, low, high, log=log)
            assert low <= number <= high, f"{name} is {number}; expected {low} to {high}"
            value += number**2
    return value


def _decision(
    factory: "Callable[[], optuna.pruners.BasePruner]", study: "optuna.Study", trial: "optuna.Trial"
) -> bool:
    """Return whether a new pruner stops a trial."""
    decision = factory().prune(study, study.get_trials()[trial.number])
    assert decision in (True, False), f"prune returns {decision!r}; expected True or False"
    return bool(decision)
