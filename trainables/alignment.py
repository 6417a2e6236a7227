"""The trainable: sweeps, finals and the registry see this package through `AlignmentTrainable` alone."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from trainables.config import AlignmentConfig
from trainables.data import sources
from trainables.data.loading import Batches, Part
from trainables.data.packing import Pack
from trainables.data.sources import DataConfig
from trainables.data.tracklet import DISTRACTOR, JUNK, DataError
from trainables.evaluation.embedding import evaluate
from trainables.methods import Method, build_method, find_method
from trainables.methods.alignment import AlignmentMethod
from trainables.network.embedder import SequenceEmbedder
from trainables.network.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder
from trainables.network.weights import check_weights, load_weights
from trainables.training.trainer import WEIGHTS, Context, Training

_VALIDATION_SEED = 0
"""Not the config's seed: every seed of a sweep is judged on the same validation identities of a split."""


@dataclass(frozen=True, slots=True)
class DataSetRecord:
    """One data set in one role, as it was used."""

    name: str
    role: str
    source: str
    digest: str
    counts: dict[str, int]


class AlignmentTrainable:
    """Multi-shot person re-identification; what is trained, and how, is the config's ``method``."""

    Config = AlignmentConfig
    InputError = DataError
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "val/rank1": "max",
        "val/rank5": "max",
        "val/mAP": "max",
        "val/mINP": "max",
        "train/loss": "min",
        "train/video": "min",
        "train/pseudo": "min",
        "train/match": "min",
        "train/motion": "min",
        "train/content": "min",
        "train/distribution": "min",
        "frames_per_second": "max",
    }
    throughput = "frames_per_second"

    def __init__(self) -> None:
        self._checked: list[tuple[DataConfig, int]] = []

    def prepare(self, config: AlignmentConfig, say: Callable[[str], None]) -> list[DataSetRecord]:
        """Generate, read and pack every set that is used; raises ``DataError`` where none could train."""
        data = config.data
        packs = _packs(config, {config.data.sequences, *_images(config), *config.data.targets}, say)
        for name in _trained(config):
            if holders := sources.holders(data, name):
                lost = packs[name].identities[_dropped(config, packs, name)]
                what = "images" if packs[name].kind == "image" else "tracklets"
                say(
                    f"{name}: dropped {len(np.unique(lost)):,} people with {len(lost):,} {what}, because"
                    f" {' and '.join(holders)} validates or tests them"
                )
        _batches(config, packs, rank=0, workers=1)
        roles = [("train", data.sequences), *(("target", name) for name in data.targets)]
        if config.trains_on_images:
            roles += [("images", name) for name in data.images]
        return [_record(config, role, packs, name) for role, name in roles]

    def check(self, config: AlignmentConfig, workers: int, metrics: Sequence[str] = ()) -> None:
        """Check cheaply that so many workers can train on the data; raises ``DataError``, writes nothing.

        ``metrics`` are to be reported by every epoch: scores need people to validate on, and a loss a method
        that has it.
        """
        config.batch.check_shares(workers, images=config.trains_on_images)
        _check_encoder(config)
        if config.data not in [data for data, _ in self._checked]:
            self._checked.append((config.data, sources.check(config.data)))
        people = next(people for data, people in self._checked if data == config.data)
        if config.batch.identities > people:
            raise DataError(
                f"batch.identities: {config.batch.identities} make a batch, but {config.data.sequences!r} has"
                f" {people} identities to train on beside those that validate"
            )
        if config.data.validation == 0 and (lost := [name for name in metrics if name.startswith("val/")]):
            raise DataError(
                f"data.validation: 0 keeps nobody to validate on, so {lost[0]} is never reported; write 0.25"
            )
        if config.losses is not None:
            known = ["train/loss", *(f"train/{name}" for name in sorted(config.losses))]
            if lost := [name for name in metrics if name.startswith("train/") and name not in known]:
                raise DataError(
                    f"method: {config.method!r} does not report {lost[0]} in every epoch; of losses, which"
                    f" alignment.weights and pretrain_epochs decide on too, it reports {', '.join(known)}"
                )

    def fit(self, config: AlignmentConfig, context: Context) -> None:
        """Train on one worker; raises ``FloatingPointError`` when the loss or a gradient is not finite."""
        self.training(config, context).run()

    def training(self, config: AlignmentConfig, context: Context) -> Training:
        """The training of one worker, at its start."""
        packs = _packs(config, _needed(config), _silent)
        batches = _batches(config, packs, context.rank, context.world_size)
        torch.manual_seed(config.seed)
        method = _method(config, batches)
        if config.encoder.weights is not None:
            with _at("encoder.weights"):
                load_weights(method.embedder.encoder, config.encoder.weights)
        return Training(
            method,
            batches,
            _sequence_parts(config, packs)[1:],
            config.optimizer,
            context,
            phases=config.phases,
            seed=config.seed,
            precision=config.precision,
            compiled=config.compile,
        )

    def evaluate(self, config: AlignmentConfig, checkpoint: Path) -> dict[str, float]:
        """Score a checkpoint on the test part of every target, each set under its official protocol.

        ``test/<set>/rank1``, ``rank5``, ``rank10``, ``rank20``, ``mAP`` and ``mINP``; average precision is
        the mean precision at the hits. CUHK03's old protocol has no mAP and no mINP. MARS is scored twice:
        ``test/<set>/...`` is its official convention (queries stay in the gallery, average precision by
        trapezoids), ``test/<set>/common/...`` that of most later work (queries dropped from the gallery,
        precision at the hits; left out where no query keeps a match). ``config.evaluation`` says which
        frames count and which views are averaged.
        """
        device = _device()
        embedder = _embedder(config, checkpoint).to(device)
        scores: dict[str, float] = {}
        packs = _packs(config, set(config.data.targets), _silent)
        for name, query, gallery in _test_parts(config, packs):
            found = evaluate(
                embedder, query, gallery, device, config.evaluation, crop=config.augmentation.crop
            )
            for convention, score in found.items():
                scores |= score.metrics(f"test/{name}/{convention}")
        return scores

    def illustrate(self, runs: Mapping[str, Sequence[tuple[AlignmentConfig, Path]]], directory: Path) -> None:
        """Draw what variants of a config found, from the config and checkpoint of every run of each.

        Writes into ``directory``: ``cmc-<set>.png`` for every target, the mean CMC of each variant's runs;
        and for the first run of each variant ``retrieval-<variant>-<set>.png``, the worst and best queries
        with what was found for them, and ``pseudo-<variant>.png``, what the alignment network makes of
        images, where the variant has one. The pictures show frames of the data.
        """
        from trainables.evaluation import pictures  # brings Matplotlib, which no worker needs

        device = _device()
        opened: dict[str, dict[str, Pack]] = {}
        curves: dict[str, dict[str, list[tuple[float, ...]]]] = {}
        titles: dict[str, str] = {}
        for variant, finished in runs.items():
            for config, checkpoint in finished:
                data = config.data.model_copy(update={"split": 0}).model_dump_json()
                if data not in opened:
                    opened[data] = _packs(config, set(config.data.targets), _silent)
                embedder = _embedder(config, checkpoint).to(device)
                for name, query, gallery in _test_parts(config, opened[data]):
                    found = pictures.Retrieval.of(
                        embedder, query, gallery, device, config.evaluation, crop=config.augmentation.crop
                    )
                    of_variant = curves.setdefault(name, {}).setdefault(variant, [])
                    if not of_variant:
                        split = (
                            f"split {config.data.split}" if len(query.pack.splits) > 1 else "its only split"
                        )
                        title = f"{variant} on {name}, {split}, seed {config.seed}"
                        path = directory / pictures.file_name("retrieval", variant, name)
                        pictures.draw_retrieval(found, title, path)
                    of_variant.append(found.score.curve)
                    titles[name] = pictures.cmc_title(query.pack)
            if finished:
                _draw_pseudo(variant, *finished[0], directory)
        for name, of_variants in curves.items():
            pictures.draw_cmc(of_variants, titles[name], directory / pictures.file_name("cmc", name))

    def export(self, config: AlignmentConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write a model's files into ``directory``; gives the arguments of ``mlflow.pyfunc.log_model``."""
        from trainables.export.export import export  # brings MLflow, which no worker needs

        return export(_embedder(config, checkpoint), directory)


def _silent(_: str) -> None:
    pass


def _images(config: AlignmentConfig) -> tuple[str, ...]:
    return tuple(config.data.images) if config.trains_on_images else ()


def _trained(config: AlignmentConfig) -> tuple[str, ...]:
    return config.data.sequences, *_images(config)


def _needed(config: AlignmentConfig) -> set[str]:
    """The sets that are trained on, and those whose people they must leave out."""
    return {other for name in _trained(config) for other in (name, *sources.holders(config.data, name))}


def _packs(config: AlignmentConfig, names: set[str], say: Callable[[str], None]) -> dict[str, Pack]:
    return {name: sources.resolve(config.data, name, say) for name in sorted(names)}


def _part(pack: Pack, tracklets: Any) -> Part:
    return Part(pack, np.asarray(tracklets, np.int64))


def _held_back(config: AlignmentConfig, packs: Mapping[str, Pack], name: str) -> frozenset[str]:
    """People of a set who validate or test under the same number in another."""
    return sources.held_back(config.data, name, packs, _VALIDATION_SEED)


def _sequence_parts(config: AlignmentConfig, packs: Mapping[str, Pack]) -> tuple[Part, Part, Part]:
    """The sequences trained on, and query and gallery of the validation identities; nobody who tests."""
    data = config.data
    pack, held = packs[data.sequences], _held_back(config, packs, data.sequences)
    parts = sources.training_part(pack, data.split, data.validation, _VALIDATION_SEED, held)
    train, query, gallery = (_part(pack, part) for part in parts)
    return train, query, gallery


def _open_to_training(config: AlignmentConfig, pack: Pack) -> NDArray[np.int64]:
    """Tracklets of everybody, or of the train part where the same set validates or tests too."""
    if pack.name in (config.data.sequences, *config.data.targets):
        return np.asarray(sources.split_of(pack, config.data.split).train, np.int64)
    return np.arange(len(pack))


def _image_part(config: AlignmentConfig, packs: Mapping[str, Pack], name: str) -> Part:
    """The images trained on: nobody whom another set holds back."""
    pack, out = packs[name], (JUNK, DISTRACTOR, *_held_back(config, packs, name))
    chosen = _open_to_training(config, pack)
    return _part(pack, chosen[~np.isin(pack.identities[chosen], out)])


def _dropped(config: AlignmentConfig, packs: Mapping[str, Pack], name: str) -> NDArray[np.int64]:
    """Tracklets that would be trained on, were their people not held back by another set."""
    chosen = _open_to_training(config, packs[name])
    return chosen[np.isin(packs[name].identities[chosen], tuple(_held_back(config, packs, name)))]


def _batches(config: AlignmentConfig, packs: Mapping[str, Pack], rank: int, workers: int) -> Batches:
    return Batches(
        [_sequence_parts(config, packs)[0]],
        [_image_part(config, packs, name) for name in _images(config)],
        config.batch,
        config.augmentation,
        seed=config.seed,
        rank=rank,
        workers=workers,
    )


def _test_parts(config: AlignmentConfig, packs: Mapping[str, Pack]) -> Iterator[tuple[str, Part, Part]]:
    """Name, query and gallery of every target."""
    for name in config.data.targets:
        split = sources.split_of(packs[name], config.data.split)
        yield name, _part(packs[name], split.query), _part(packs[name], split.gallery)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _method(config: AlignmentConfig, batches: Batches) -> Method:
    """The method with random weights, for as many identities as there are to train on."""
    of_images = batches.images.identities if batches.images else 0
    return build_method(config.method, config.of_method, batches.sequences.identities, of_images)


@contextmanager
def _at(field: str) -> Iterator[None]:
    """Name the config field in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{field}: {error}") from error


def _check_encoder(config: AlignmentConfig) -> None:
    """Raise ``DataError`` where timm has no such model for these frames, or the weights do not fit."""
    chosen, network = config.encoder, config.network
    if chosen.name in ENCODERS and chosen.weights is None:
        return
    with _at("encoder.name"):
        encoder = _encoder(chosen.name, network.channels, network.height, network.width)
    if chosen.weights is not None:
        with _at("encoder.weights"):
            check_weights(encoder, chosen.weights)


@functools.lru_cache(maxsize=4)
def _encoder(name: str, channels: int, height: int, width: int) -> Encoder:
    """An encoder to compare with; a search checks many configs of the same one."""
    return build_encoder(EncoderConfig(name=name), channels, height, width)


def _draw_pseudo(variant: str, config: AlignmentConfig, checkpoint: Path, directory: Path) -> None:
    """Draw what a run's alignment network makes of images; nothing where the method has none."""
    from trainables.evaluation import pictures  # brings Matplotlib, which no worker needs

    if not issubclass(find_method(config.method), AlignmentMethod):
        return
    packs = _packs(config, _needed(config), _silent)
    method = _method(config, _batches(config, packs, rank=0, workers=1))
    method.load_state_dict(load_file(checkpoint / WEIGHTS))
    assert isinstance(method, AlignmentMethod)
    pictures.draw_pseudo(
        method.eval().to(_device()),
        [_image_part(config, packs, name) for name in _images(config)],
        _sequence_parts(config, packs)[0],
        f"{variant}: images as pseudo sequences, seed {config.seed}",
        directory / pictures.file_name("pseudo", variant),
        seed=config.seed,
    )


def _embedder(config: AlignmentConfig, checkpoint: Path) -> SequenceEmbedder:
    """The network of a checkpoint, without what only training needs."""
    embedder = SequenceEmbedder(config.network)
    prefix = "embedder."
    stored = load_file(checkpoint / WEIGHTS)
    embedder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    )
    return embedder.eval()


def _record(config: AlignmentConfig, role: str, packs: Mapping[str, Pack], name: str) -> DataSetRecord:
    chosen, pack = config.data.sets[name], packs[name]
    source = f"generated {chosen.generate.model_dump_json()}" if chosen.generate else str(chosen.folder)
    counts = {
        "identities": len(np.unique(pack.identities)),
        "cameras": len(np.unique(pack.cameras)),
        "tracklets": len(pack),
        "frames": int(pack.lengths.sum()),
    }
    if role != "target" and sources.holders(config.data, name):
        dropped = _dropped(config, packs, name)
        counts["dropped identities"] = len(np.unique(pack.identities[dropped]))
        counts["dropped tracklets"] = len(dropped)
    return DataSetRecord(
        name=name,
        role=role,
        source=f"{chosen.layout}, {source}",
        digest=pack.digest,
        counts=counts,
    )
