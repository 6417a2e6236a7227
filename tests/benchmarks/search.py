"""Epochs until a search reaches the best value of random search: ``python -m tests.benchmarks.search``.

The search is the study of this project with sampler and scheduler of ``search_spaces/alignment.yaml``. It is
driven without Ray, with as many trials at once as two cores run. The peer is Optuna's random sampler; each of
its trials trains to its last epoch. Both search the space of that file. Every trial is really trained, but on
fewer identities and smaller frames, with fewer steps in an epoch.

Compute is counted in epochs, so that the load of the machine does not matter. Random search costs all of its
epochs, because only then its best trial is certain. The epochs of all our trials count, also of those that
still run when a trial reaches the value. The value of a trial counts when the trial is complete, because only
a complete trial can become the champion.

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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
import torch

from orchestrator.config.document import Override
from orchestrator.config.sweep import Sweep, read_sweep
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from orchestrator.study.trial_report import EpochEnded, Trained
from tests.benchmarks.table import Row
from tests.support.paths import ROOT
from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig

METRIC = "val/mAP"
LANES = 2
SEEDS, TRIALS = 5, 32
SMALLER = (
    "config.precision=float32",
    "config.data.validation=0.6",
    "config.data.targets=[]",
    "config.data.height=32",
    "config.data.width=16",
    "config.batch.passes=1",
    "config.batch.frames=5",
    "config.batch.image_identities=6",
    "config.encoder.features=64",
)
"""Changes of ``alignment.yaml`` with which an epoch takes half a second of one core.

48 identities validate. With 20 of them, two seeds of one config differ more than two configs do.
"""


class Alone:
    """Context of a training that nothing observes."""

    rank = 0
    world_size = 1
    device = "cpu"
    metrics = ()


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


@dataclass(frozen=True, slots=True)
class Pair:
    """This project's search and random search, with one seed."""

    ours: Progress
    peer: Progress

    @property
    def reached(self) -> int | None:
        """Epochs until our search reached random search's best, or None if it did not."""
        return self.ours.epochs_until(max(self.peer.values))

    @property
    def ratio(self) -> float:
        """Our epochs divided by those of random search; 1 if its best was not reached within them."""
        return (self.reached or self.peer.epochs[-1]) / self.peer.epochs[-1]

    def __str__(self) -> str:
        best = max(self.peer.values)
        first = self.peer.epochs_until(best)
        ours = f"within {self.reached} epochs" if self.reached else "not reached"
        return f"{best:.3f} in epoch {first} of {self.peer.epochs[-1]} at random, ours {ours}"


def read(curves: Path, *changes: str) -> Sweep:
    """Return the sweep of ``alignment.yaml`` on the smaller data, with ``changes``."""
    overrides = [
        Override.parse(text) for text in (f"config.data.cache={curves / 'data'}", *SMALLER, *changes)
    ]
    return read_sweep(ROOT / "search_spaces" / "alignment.yaml", overrides, environment={})


def random_search(curves: Path, seed: int, trials: int) -> Progress:
    """Search at random; every trial trains to its last epoch."""
    torch.set_num_threads(1)
    sweep, source = read(curves), Curves(curves)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    configs = [_config(sweep, sweep.space.suggest(study.ask())) for _ in range(trials)]
    values = [list(source.scores(config))[-1] for config in configs]
    return Progress([sweep.epochs * number for number in range(1, trials + 1)], values)


def _config(sweep: Sweep, values: Mapping[str, Any]) -> AlignmentConfig:
    return cast(AlignmentConfig, sweep.trial_config(values))


def our_search(curves: Path, seed: int, target: float, limit: int, *changes: str) -> Progress:
    """Search with the study of the sweep until a trial reaches ``target`` or ``limit`` epochs are spent."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as storage:
        Path(storage, "alignment").mkdir()
        # Trial n draws with seed + n: a seed near that of another search would repeat its first trials.
        seeded = f"sampler.tpe.seed={1000 * (seed + 1)}"
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
        report = EpochEnded(epoch, {METRIC: value})
        study.record_epoch(number, report)
        if study.should_stop(number, report):
            study.on_trial_end(number, report)
        elif epoch == study.sweep.epochs:
            checkpoint = f"{study.sweep.storage}/alignment/{number}"
            study.record_checkpoint(number, checkpoint)
            study.on_trial_end(number, Trained(checkpoint))
            progress.epochs.append(spent)
            progress.values.append(value)
        else:
            running[number] = scores
        if spent == limit or (progress.values and progress.values[-1] >= target):
            break
    return progress


def measure(curves: Path, seeds: int, trials: int, changes: Sequence[str] = ()) -> list[Pair]:
    """Run random search, then this project's search until it reaches the best value, with each seed."""
    AlignmentTrainable().prepare(_config(read(curves), {}))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(LANES, mp_context=context) as pool:
        at_random = [pool.submit(random_search, curves, seed, trials) for seed in range(seeds)]
        peers = [future.result() for future in at_random]
        ours = [
            pool.submit(our_search, curves, seed, max(peer.values), peer.epochs[-1], *changes)
            for seed, peer in enumerate(peers)
        ]
        return [Pair(future.result(), peer) for future, peer in zip(ours, peers, strict=True)]


def row(pairs: Sequence[Pair]) -> Row:
    """Return the row of the table: medians over the seeds."""
    peer = pairs[0].peer
    ratio = statistics.median(pair.ratio for pair in pairs)
    missed = sum(pair.reached is None for pair in pairs)
    return Row(
        f"epochs until random search's best is reached, {len(pairs)} seeds",
        f"{ratio * peer.epochs[-1]:.0f}" + f" ({missed} seeds: not within those of the peer)" * bool(missed),
        f"random, {len(peer.values)} trials of full length: {peer.epochs[-1]}",
        f"{ratio:.2f}",
        "at most 0.25",
        "; ".join(map(str, pairs)),
    )


def rows(quick: bool) -> list[Row]:
    """Measure in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return [row(measure(Path(folder), *((2, 4) if quick else (SEEDS, TRIALS))))]


def main() -> int:
    """Run the benchmark with its options, and print its row."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--curves", type=Path, metavar="FOLDER", help="keeps what was trained")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"default: {SEEDS}")
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of random search; default: {TRIALS}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="changes our search, for example scheduler.asha.grace=1",
    )
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = parsed.curves or Path(folder)
        curves.mkdir(parents=True, exist_ok=True)
        result = row(measure(curves.absolute(), parsed.seeds, parsed.trials, parsed.set))
    for text in (result.what, f"ours {result.ours}", result.peer, f"ratio {result.ratio}", result.raw):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
