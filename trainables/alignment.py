"""The trainable: sweeps, finals and the registry see this package through `AlignmentTrainable` alone."""

from collections.abc import Callable, Mapping
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
from trainables.embedding import retrieve
from trainables.loop import WEIGHTS, Context, Training
from trainables.methods import build_method
from trainables.network.embedder import SequenceEmbedder

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
        "train/loss": "min",
        "train/video": "min",
        "train/pseudo": "min",
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

    def check(self, config: AlignmentConfig, workers: int) -> None:
        """Check cheaply that so many workers can train on the data; raises ``DataError``, writes nothing."""
        config.batch.check_shares(workers, images=config.trains_on_images)
        if config.data not in [data for data, _ in self._checked]:
            self._checked.append((config.data, sources.check(config.data)))
        people = next(people for data, people in self._checked if data == config.data)
        if config.batch.identities > people:
            raise DataError(
                f"batch.identities: {config.batch.identities} make a batch, but {config.data.sequences!r} has"
                f" {people} identities to train on beside those that validate"
            )

    def fit(self, config: AlignmentConfig, context: Context) -> None:
        """Train on one worker; raises ``FloatingPointError`` when the loss or a gradient is not finite."""
        self.training(config, context).run()

    def training(self, config: AlignmentConfig, context: Context) -> Training:
        """The training of one worker, at its start."""
        needed = {other for name in _trained(config) for other in (name, *sources.holders(config.data, name))}
        packs = _packs(config, needed, _silent)
        batches = _batches(config, packs, context.rank, context.world_size)
        of_images = batches.images.identities if batches.images else 0
        torch.manual_seed(config.seed)
        return Training(
            build_method(config.method, config.of_method, batches.sequences.identities, of_images),
            batches,
            _sequence_parts(config, packs)[1:],
            config.optimizer,
            context,
            phases=config.phases,
            seed=config.seed,
            precision=config.precision,
        )

    def evaluate(self, config: AlignmentConfig, checkpoint: Path) -> dict[str, float]:
        """Score a checkpoint on the test part of every target: ``test/<set>/rank1`` ... ``test/<set>/mAP``.

        mAP takes the precision at each hit; ``test/<set>/mAP_trapezoid`` is the official one of MARS.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        embedder = _embedder(config, checkpoint).to(device)
        scores: dict[str, float] = {}
        for name in config.data.targets:
            pack = sources.resolve(config.data, name, _silent)
            split = sources.split_of(pack, config.data.split)
            found = retrieve(embedder, _part(pack, split.query), _part(pack, split.gallery), device)
            scores |= found.metrics(f"test/{name}/") | {f"test/{name}/mAP_trapezoid": found.trapezoid}
        return scores

    def export(self, config: AlignmentConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        """Write a model's files into ``directory``; gives the arguments of ``mlflow.pyfunc.log_model``."""
        from trainables.export import export  # brings MLflow, which no worker needs

        return export(_embedder(config, checkpoint), directory)


def _silent(_: str) -> None:
    pass


def _images(config: AlignmentConfig) -> tuple[str, ...]:
    return tuple(config.data.images) if config.trains_on_images else ()


def _trained(config: AlignmentConfig) -> tuple[str, ...]:
    return config.data.sequences, *_images(config)


def _packs(config: AlignmentConfig, names: set[str], say: Callable[[str], None]) -> dict[str, Pack]:
    return {name: sources.resolve(config.data, name, say) for name in sorted(names)}


def _part(pack: Pack, tracklets: Any) -> Part:
    return Part(pack, np.asarray(tracklets, np.int64))


def _held_back(config: AlignmentConfig, packs: Mapping[str, Pack], name: str) -> frozenset[str]:
    """People of a set who validate or test under the same number in another."""
    return sources.held_back(config.data, name, packs, _VALIDATION_SEED)


def _sequence_parts(config: AlignmentConfig, packs: Mapping[str, Pack]) -> tuple[Part, Part, Part]:
    """The sequences trained on; query and gallery of the validation identities. Test identities are in none."""
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
