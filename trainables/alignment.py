"""The trainable: the interface of this package for sweeps, comparisons and the model registry."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file

from trainables.checks import check_search, check_training
from trainables.config import AlignmentConfig
from trainables.data import contents, sources, splits
from trainables.data.config import DataConfig
from trainables.data.loading import Batches
from trainables.data.parts import DataParts, Part, needed_to_train
from trainables.data.records import DataSetRecord, check_validation, data_set_records
from trainables.errors import DataError, at_field
from trainables.evaluation import cost
from trainables.evaluation.calibration import Calibration, calibrate, without
from trainables.evaluation.embedding import Embedder
from trainables.evaluation.pseudo import PSEUDO_METRICS
from trainables.evaluation.query_results import (
    QueryResults,
    metric_names,
    query_results,
    read_results,
    write_results,
)
from trainables.evaluation.retrieval import Retrieval, RetrievalSummary, read_summaries, write_summaries
from trainables.evaluation.validation import CROSS_SCORES, OWN, SCORES, metric_name
from trainables.export.model_card import Provenance, UsedSet, used_set
from trainables.methods import METHODS, Method, build_method, find_method
from trainables.methods.alignment import AlignmentMethod
from trainables.network.embedder import SequenceEmbedder
from trainables.network.weights import load_weights
from trainables.training.trainer import WEIGHTS, Context, Training, run_folds

_log = logging.getLogger(__name__)


def _method_metrics() -> dict[str, Literal["max", "min"]]:
    """Return the losses of the methods in `METHODS`, with their direction."""
    terms = dict.fromkeys(term for method in METHODS.values() for term in method.possible_terms)
    return {f"train/{term}": "min" for term in terms}


class AlignmentTrainable:
    """Trainable for multi-shot person re-identification; ``method`` of the config selects what is trained."""

    Config = AlignmentConfig
    InputError = DataError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        **{metric_name(OWN, score): "max" for score in SCORES},
        "train/loss": "min",
        **_method_metrics(),
        **dict.fromkeys(PSEUDO_METRICS, "min"),
        cost.PARAMETERS: "min",
        cost.MILLISECONDS: "min",
        "frames_per_second": "max",
    }
    throughput = "frames_per_second"
    scoring_paths = ("data.cache", "data.sets", "data.targets", "data.unreadable", "evaluation")

    def __init__(self) -> None:
        self._checked: list[tuple[DataConfig, int]] = []
        self._prepared: dict[str, list[DataSetRecord]] = {}

    def metrics_for(self, config: AlignmentConfig) -> Mapping[str, Literal["max", "min"]]:
        """Return every metric that `fit` may report: also those of the sets and the method of the config.

        Beside each score ``val/...`` it reports its standard error, ``val/.../error``, and beside the loss of
        a modality its parts, ``train/video/verification`` and ``train/video/identification``.
        """
        metrics = dict(self.metrics)
        for name in config.data.validate_on:
            metrics |= {metric_name(name, score): "max" for score in SCORES}
        if config.data.validate_on:
            metrics |= {metric_name(splits.CROSS, score): "max" for score in CROSS_SCORES}
        return metrics | {f"train/{term}": "min" for term in find_method(config.method).possible_terms}

    def prepare(self, config: AlignmentConfig) -> list[DataSetRecord]:
        """Generate, read and pack every set that the config uses.

        Returns:
            One record for each set in each role.

        Raises:
            DataError: a set cannot be read or is not suitable for training.
        """
        used = config.model_dump_json(include={"data", "batch", "augmentation"}) + repr(config.image_sets)
        if used not in self._prepared:
            self._prepared[used] = self._prepare(config)
        return self._prepared[used]

    def _prepare(self, config: AlignmentConfig) -> list[DataSetRecord]:
        names = {*needed_to_train(config.data, config.image_sets), *config.data.targets}
        packs = sources.resolve_all(config.data, names)
        for fold in _fold_configs(config):
            _batches(fold, DataParts(fold.data, packs))
            check_validation(DataParts(fold.data, packs))
        return list(data_set_records(DataParts(config.data, packs), config.image_sets))

    def check(self, config: AlignmentConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Check that ``workers`` workers can train with this config. Fast: decodes and writes nothing.

        Args:
            config: the config.
            workers: number of workers.
            metrics: metrics that every epoch must report; scores require validation identities, and losses
                a method that has them.

        Raises:
            DataError: a field is not valid; the message is one line that begins with the field.
        """
        if config.data not in [data for data, _ in self._checked]:
            self._checked.append((config.data, splits.check(config.data)))
        identities = next(count for data, count in self._checked if data == config.data)
        check_training(config, workers, metrics, identities)

    def check_search(self, config: AlignmentConfig, paths: Sequence[str], metrics: Sequence[str]) -> None:
        """Check that a search of these paths finds better models.

        Args:
            config: the fixed config.
            paths: the searched paths.
            metrics: the objectives.

        Raises:
            DataError: a path changes how trials are measured, or has no effect.
        """
        check_search(config, paths, metrics)

    def fit(self, config: AlignmentConfig, context: Context) -> None:
        """Train on one worker: a model for each of ``data.folds``.

        The first one is scored and exported.

        Raises:
            FloatingPointError: the loss or a gradient is not finite.
        """
        run_folds([self.training(fold, context) for fold in _fold_configs(config)])

    def training(self, config: AlignmentConfig, context: Context) -> Training:
        """Return the training of the model of the first fold, in its initial state."""
        data = _training_data(config)
        batches = _batches(config, data, context.rank, context.world_size)
        torch.manual_seed(config.seed)
        method = _method(config, batches)
        if config.encoder.weights is not None:
            with at_field("encoder.weights"):
                load_weights(method.embedder.encoder, config.encoder.weights)
        return Training(
            method,
            batches,
            data.validation(),
            config.optimizer,
            context,
            others=data.cross_validation(),
            phases=config.phases,
            seed=config.seed,
            precision=config.precision,
            compiled=config.compile,
        )

    def evaluate(self, config: AlignmentConfig, checkpoint: Path) -> dict[str, float]:
        """Score a checkpoint on the test part of every target, under the official protocol of its set.

        Returns ``test/<set>/rank1``, ``rank5``, ``rank10``, ``rank20``, ``mAP`` and ``mINP``; average
        precision is the mean precision at the hits. CUHK03's old protocol has no mAP and no mINP. MARS is
        scored twice: ``test/<set>/...`` follows its official convention (queries stay in the gallery, average
        precision by trapezoids), ``test/<set>/common/...`` that of most later work (queries dropped from the
        gallery, precision at the hits; missing if no query has a match left). ``config.evaluation`` selects
        the frames that count and the views that are averaged.

        What `illustrate_run` shows of each retrieval, and the results of every query, are added to
        ``checkpoint``.
        """
        retrievals = _retrievals(config, _embedder(config, checkpoint).to(_device()), _test_data(config))
        scores: dict[str, float] = {}
        for name, retrieval in retrievals.items():
            for convention, score in retrieval.scores.items():
                scores |= score.metrics(f"test/{name}/{convention}")
        write_summaries({name: retrieval.summary() for name, retrieval in retrievals.items()}, checkpoint)
        write_results(_results(config, retrievals), checkpoint)
        return scores

    def target_metrics(self, config: AlignmentConfig) -> dict[str, list[str]]:
        """Return the scores of each target that are kept for every query."""
        protocols = {name: contents.protocol_of(config.data.sets[name]) for name in config.data.targets}
        return {name: metric_names(protocol) for name, protocol in protocols.items()}

    def query_results(self, config: AlignmentConfig, checkpoint: Path) -> dict[str, QueryResults]:
        """Return the results of every query on each target; scores the checkpoint if `evaluate` has not."""
        expected = {name: contents.content_hash(config.data, name) for name in config.data.targets}
        kept = read_results(checkpoint)
        if {name: results.data for name, results in kept.items()} != expected:
            self.evaluate(config, checkpoint)
            kept = read_results(checkpoint)
        return kept

    def score_model(self, config: AlignmentConfig, model: Path) -> dict[str, QueryResults]:
        """Score an exported model on the targets of a config, in frames of the size that the model takes.

        Frames and views are those of ``config.evaluation``, so that two models are scored alike.

        Raises:
            DataError: the folder holds no model of this project, or a target cannot be read.
        """
        from trainables.evaluation.published import PublishedEmbedder  # imports MLflow, which no worker needs

        embedder = PublishedEmbedder.load(model)
        # A model computes optical flow itself.
        size = {"height": embedder.height, "width": embedder.width, "flow": "none"}
        data = config.data.model_copy(update=size)
        parts = DataParts(data, sources.reopen(data, data.targets))
        return _results(config, _retrievals(config, embedder, parts))

    def trained_on(self, config: AlignmentConfig) -> dict[str, list[str]]:
        """Return the identities of the sequences and images that a training sees, by numbering."""
        return contents.identities_trained(_training_data(config), config.image_sets)

    def tested_on(self, config: AlignmentConfig) -> dict[str, dict[str, list[str]]]:
        """Return the identities of the test part of each target, by numbering."""
        data = _test_data(config)
        return {name: contents.identities_tested(data, name) for name in config.data.targets}

    def illustrate_run(
        self, variant: str, number: int, config: AlignmentConfig, checkpoint: Path, directory: Path
    ) -> dict[str, RetrievalSummary]:
        """Draw the first run of a variant; the pictures contain frames of the data.

        For each target, ``retrieval-<variant>-<set>.png`` shows the worst and best queries with the gallery
        items retrieved for them. ``pseudo-<variant>.png`` shows the pseudo sequences of some images, and of
        some frames below their real sequences, if the variant has an alignment network.

        Args:
            variant: name of the variant.
            number: number of the run among those of the variant, from 0.
            config: config of the run.
            checkpoint: folder of its checkpoint, which is scored if `evaluate` has not scored it.
            directory: folder to write the pictures into.

        Returns:
            The summary of the retrieval on each target.
        """
        tests = list(_test_data(config).tests()) if number == 0 else []
        summaries = read_summaries(checkpoint)
        if not summaries or any(summaries[name].digest != query.pack.digest for name, query, _ in tests):
            self.evaluate(config, checkpoint)
            summaries = read_summaries(checkpoint)
        if number == 0:
            _draw_retrievals(variant, config, summaries, tests, directory)
            _draw_pseudo(variant, config, checkpoint, directory)
        return summaries

    def illustrate_comparison(
        self, runs: Mapping[str, Sequence[Mapping[str, RetrievalSummary]]], directory: Path
    ) -> None:
        """Draw ``cmc-<set>.png`` for each target: the mean CMC of each variant's runs.

        Args:
            runs: what `illustrate_run` returned for the runs of each variant.
            directory: folder to write the pictures into.
        """
        from trainables.evaluation import pictures  # imports Matplotlib, which no worker needs

        curves: dict[str, dict[str, list[tuple[float, ...]]]] = {}
        titles: dict[str, str] = {}
        for variant, of_variant in runs.items():
            for summaries in of_variant:
                for name, summary in summaries.items():
                    curves.setdefault(name, {}).setdefault(variant, []).append(summary.curve)
                    titles[name] = pictures.cmc_title(name, summary.protocol)
        for name, of_variants in curves.items():
            pictures.draw_cmc(of_variants, titles[name], directory / pictures.file_name("cmc", name))

    def export(self, config: AlignmentConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write a model's files into ``directory`` and return arguments for ``mlflow.pyfunc.log_model``.

        The model has distance thresholds, calibrated on the validation identities, and a model card.
        """
        from trainables.export.export import export  # imports MLflow, which no worker needs

        embedder = _embedder(config, checkpoint)
        return export(embedder, directory, asdict(_calibrate(config, embedder)), _provenance(config))


def _fold_configs(config: AlignmentConfig) -> list[AlignmentConfig]:
    """Return the config of the model of each fold."""
    return [config.model_copy(update={"data": data}) for data in config.data.fold_configs]


def _calibrate(config: AlignmentConfig, embedder: SequenceEmbedder) -> Calibration:
    try:
        query, gallery = _training_data(config).validation()
    except DataError as error:
        return without(f"the validation identities cannot be read ({error})", config.data.sequences)
    return calibrate(embedder.to(_device()), query, gallery, _device())


def _provenance(config: AlignmentConfig) -> Provenance:
    """Return how a model was made, for its card; without the sets if they cannot be read any more."""
    try:
        names = {*needed_to_train(config.data, config.image_sets), *config.data.targets}
        used = tuple(_used_sets(config, DataParts(config.data, sources.reopen(config.data, names))))
    except DataError as error:
        _log.warning("the model card does not list the data sets: %s", error)
        used = ()
    return Provenance(config.method, config.epochs, config.seed, config.data.split, used)


def _used_sets(config: AlignmentConfig, data: DataParts) -> Iterator[UsedSet]:
    """Yield every set in each of its roles."""
    yield used_set(data, "train", data.train())
    yield used_set(data, "validation", *data.validation())
    for name in config.image_sets:
        yield used_set(data, "images", data.images(name))
    for _, *sides in data.tests():
        yield used_set(data, "test", *sides)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _retrievals(config: AlignmentConfig, embedder: Embedder, data: DataParts) -> dict[str, Retrieval]:
    """Return the retrieval on the test part of every target."""
    crop, device = config.augmentation.crop, _device()
    return {
        name: Retrieval.of(embedder, query, gallery, device, config.evaluation, crop=crop)
        for name, query, gallery in data.tests()
    }


def _results(config: AlignmentConfig, retrievals: Mapping[str, Retrieval]) -> dict[str, QueryResults]:
    """Return the results of every query on each target."""
    crop = config.augmentation.crop
    return {
        name: query_results(
            each.query, each.scores, contents.content_hash(config.data, name), config.evaluation, crop
        )
        for name, each in retrievals.items()
    }


def _training_data(config: AlignmentConfig) -> DataParts:
    names = needed_to_train(config.data, config.image_sets)
    return DataParts(config.data, sources.reopen(config.data, names))


def _test_data(config: AlignmentConfig) -> DataParts:
    return DataParts(config.data, sources.reopen(config.data, config.data.targets))


def _batches(config: AlignmentConfig, data: DataParts, rank: int = 0, workers: int = 1) -> Batches:
    return Batches(
        [data.train()],
        [data.images(name) for name in config.image_sets],
        config.batch,
        config.augmentation,
        seed=config.seed,
        rank=rank,
        workers=workers,
    )


def _method(config: AlignmentConfig, batches: Batches) -> Method:
    """Build the method with random weights for the training identities of ``batches``."""
    images = batches.images.identities if batches.images else 0
    return build_method(config.method, config.method_config, batches.sequences.identities, images)


def _draw_retrievals(
    variant: str,
    config: AlignmentConfig,
    summaries: Mapping[str, RetrievalSummary],
    tests: Sequence[tuple[str, Part, Part]],
    directory: Path,
) -> None:
    """Draw the worst and best queries of a run on each target."""
    from trainables.evaluation import pictures  # imports Matplotlib, which no worker needs

    for name, _, gallery in tests:
        split = f"split {config.data.split}" if len(gallery.pack.splits) > 1 else "its only split"
        title = f"{variant} on {name}, {split}, seed {config.seed}"
        path = directory / pictures.file_name("retrieval", variant, name)
        pictures.draw_retrieval(summaries[name], gallery, title, path)


def _draw_pseudo(variant: str, config: AlignmentConfig, checkpoint: Path, directory: Path) -> None:
    """Draw pseudo sequences of a run's images, if its method has an alignment network."""
    from trainables.evaluation import pictures  # imports Matplotlib, which no worker needs

    if not issubclass(find_method(config.method), AlignmentMethod):
        return
    data = _training_data(config)
    method = _method(config, _batches(config, data))
    method.load_state_dict(load_file(checkpoint / WEIGHTS))
    assert isinstance(method, AlignmentMethod)
    held_out, _ = data.validation()
    if config.data.validation == 0 and config.data.sequences in config.data.targets:
        held_out, _ = _test_data(config).test(config.data.sequences)
    pictures.draw_pseudo(
        method.eval().to(_device()),
        [data.images(name) for name in config.image_sets],
        data.train(),
        held_out,
        f"{variant}: images as pseudo sequences, seed {config.seed}",
        directory / pictures.file_name("pseudo", variant),
        seed=config.seed,
    )


def _embedder(config: AlignmentConfig, checkpoint: Path) -> SequenceEmbedder:
    """Return the embedder of a checkpoint, without the parts that only training needs."""
    embedder = SequenceEmbedder(config.network)
    prefix = "embedder."
    stored = load_file(checkpoint / WEIGHTS)
    embedder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    )
    return embedder.eval()
