"""Epochs until a search reaches the best value of random search: ``python -m tests.benchmarks.search``.

The search is the study of this project with the sampler and the scheduler of ``search_spaces/alignment.yaml``,
driven without Ray, with as many trials at once as two cores have. The peer is Optuna's random sampler, and each
of its trials trains to the last epoch. Both search the space of that file, and every trial is really trained,
on smaller data and frames. Compute is counted in epochs, so that the load of the machine does not matter; the
epochs of all trials count, also of those that run when the value is reached. A value counts when its trial is
complete, because only a complete trial can become the champion.

``--curves FOLDER`` keeps the validation scores of each config that was trained, and a second run trains only
what the folder lacks. It does not notice a change of the trainable: name a new folder then.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from rich.console import Console

from orchestrator.config.document import Override
from orchestrator.config.sweep import Sweep, read_sweep
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded
from tests.benchmarks.table import Row
from tests.support.paths import ROOT
from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig

METRIC = "val/mAP"
LANES = 2
SMALLER = (
    "config.data.sets.walkers.generate.identities=100",
    "config.data.targets=[]",
    "config.data.height=32",
    "config.data.width=16",
    "config.batch.passes=2",
    "config.batch.identities=4",
    "config.batch.frames=5",
    "config.batch.image_identities=4",
    "config.encoder.features=64",
    "config.encoder.name=tests.benchmarks.tiny_encoder:TinyEncoder",
)
"""What makes an epoch of ``alignment.yaml`` take half a second of one core; the searched space is the same."""


class Alone:
    """Context of a training that nothing observes."""

    rank = 0
    world_size = 1
    device = "cpu"


class Curves:
    """Validation scores by epoch of the configs that were trained, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trainable = AlignmentTrainable()

    def scores(self, config: AlignmentConfig) -> Iterator[float]:
        """Yield the score after each epoch; trains an epoch only when its score is asked for."""
        text = config.model_dump_json(exclude={"data": {"cache"}})
        file = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
        known: list[float] = json.loads(file.read_text()) if file.exists() else []
        yield from known
        if len(known) == config.epochs:
            return
        training = self._trainable.training(config, Alone())  # type: ignore[arg-type]  # it reports nothing
        scores: list[float] = []
        while training.epoch < config.epochs:
            training.train_epoch()
            scores.append(training.validate()[METRIC])
            if len(scores) > len(known):
                file.write_text(json.dumps(scores))
                yield scores[-1]


@dataclass(frozen=True, slots=True)
class Progress:
    """Final values of the complete trials of a search, in their order, and the epochs spent until then."""

    epochs: list[int]
    values: list[float]

    def epochs_until(self, value: float) -> int | None:
        """Return the epochs spent when a trial reached ``value``, or None if none did."""
        pairs = zip(self.epochs, self.values, strict=True)
        return next((epochs for epochs, reached in pairs if reached >= value), None)


def read(curves: Path, *changes: str) -> Sweep:
    """Return the sweep of ``alignment.yaml`` on the smaller data, with ``changes``."""
    overrides = [Override.parse(text) for text in (f"config.data.cache={curves / 'data'}", *SMALLER, *changes)]
    return read_sweep(ROOT / "search_spaces" / "alignment.yaml", overrides, environment={})


def random_search(curves: Path, seed: int, trials: int) -> Progress:
    """Search at random; every trial trains to its last epoch."""
    torch.set_num_threads(1)
    sweep, source = read(curves), Curves(curves)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    values = []
    for _ in range(trials):
        config = sweep.trial_config(sweep.space.suggest(study.ask()))
        *_, value = source.scores(config)  # type: ignore[arg-type]
        values.append(value)
    return Progress([sweep.epochs * number for number in range(1, trials + 1)], values)


def our_search(curves: Path, seed: int, target: float, limit: int, *changes: str) -> Progress:
    """Search with the study of the sweep until a trial reaches ``target`` or ``limit`` epochs are spent."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as storage:
        Path(storage, "alignment").mkdir()
        # Trial n draws with seed + n, so seeds that lie close would repeat each other's trials.
        seeded = f"sampler.tpe.seed={1000 * seed}"
        sweep = read(curves, f"storage={storage}", f"budget.trials={limit}", seeded, *changes)
        return _drive(SearchStudy(sweep, JobDirectory(sweep)), Curves(curves), target, limit)


def _drive(study: SearchStudy, source: Curves, target: float, limit: int) -> Progress:
    """Train the trials of a study in turns, one epoch of each."""
    running: dict[int, Iterator[tuple[int, float]]] = {}
    progress = Progress([], [])
    for spent in itertools.count(1):
        if len(running) < LANES and (suggestion := study.ask()) is not None:
            config = AlignmentConfig.model_validate(suggestion.config)
            running[suggestion.number] = enumerate(source.scores(config), 1)
        number = next(iter(running))
        scores = running.pop(number)
        epoch, value = next(scores)
        report = EpochEnded(epoch, {METRIC: value}, checkpoint=f"{study.sweep.storage}/alignment/{number}")
        study.record_epoch(number, report)
        if study.should_stop(number, report):
            study.on_trial_end(number, report)
        elif epoch == study.sweep.epochs:
            study.on_trial_end(number, report)
            progress.epochs.append(spent)
            progress.values.append(value)
        else:
            running[number] = scores
        if spent == limit or (progress.values and progress.values[-1] >= target):
            break
    return progress


def measure(curves: Path, seeds: int, trials: int, *changes: str) -> list[tuple[Progress, Progress]]:
    """Return random search and this project's search of each seed."""
    AlignmentTrainable().prepare(read(curves).trial_config({}))  # type: ignore[arg-type]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(LANES, mp_context=context) as pool:
        at_random = [pool.submit(random_search, curves, seed, trials) for seed in range(seeds)]
        peers = [future.result() for future in at_random]
        ours = [
            pool.submit(our_search, curves, seed, max(peer.values), peer.epochs[-1], *changes)
            for seed, peer in enumerate(peers)
        ]
        return [(peer, future.result()) for peer, future in zip(peers, ours, strict=True)]
