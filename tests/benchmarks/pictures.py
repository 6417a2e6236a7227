"""Pictures of a comparison: a Ray task for each run, against one process that embeds each run again.

Four variants on four splits, with random weights, are tested on 97 identities in the layout of PRID 2011 and
on 157 in that of MARS. The checkpoints are first drawn unscored, so that each task has to embed the test
parts; after that they are as scoring leaves them.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import yaml
from safetensors.torch import save_file

from orchestrator.config.comparison import Comparison, read_comparison
from orchestrator.drivers.pictures import PictureDrawing, ScoredRun
from tests.benchmarks.table import Row, seconds, seconds_list
from tests.support.recorder import Recorder
from trainables.alignment import AlignmentTrainable
from trainables.evaluation.retrieval import FILE
from trainables.training.trainer import WEIGHTS


def rows(quick: bool) -> list[Row]:
    """Draw the pictures of 16 runs, or of 4 small ones."""
    with tempfile.TemporaryDirectory() as name, _cluster() as cores:
        folder = Path(name)
        comparison = _comparison(folder, quick)
        runs = [_unscored_run(comparison, number, folder) for number in range(len(comparison.cells))]

        def draw() -> None:
            PictureDrawing(comparison, list(comparison.variants), runs).draw(folder)

        first = seconds(draw)
        drawn = [seconds(draw) for _ in range(1 if quick else 3)]
        peer = seconds(lambda: _draw_one_by_one(comparison, runs, folder))
    best, worst = min(drawn), max(drawn)
    return [
        Row(
            what=f"pictures of a comparison, {len(runs)} scored runs, {cores} cores",
            ours=f"{best:.1f} to {worst:.1f} s; unscored runs {first:.0f} s",
            peer=f"one process, each run embedded again: {peer:.0f} s",
            ratio=f"1/{peer / sorted(drawn)[len(drawn) // 2]:.0f}",
            aim="under 20 s",
            raw=f"ours {seconds_list(drawn)}, unscored {seconds_list([first])}; peer {seconds_list([peer])}",
        )
    ]


@contextmanager
def _cluster() -> Iterator[int]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _comparison(folder: Path, quick: bool) -> Comparison:
    """Write and read the comparison, and prepare its data."""
    test = {"prid": 8, "mars": 8} if quick else {"prid": 97, "mars": 157}
    generated = {
        "prid": {"layout": "prid2011", "generate": {"identities": 2 * test["prid"], "frames": 8}},
        "mars": {"layout": "mars", "generate": {"identities": 2 * test["mars"], "frames": 8, "cameras": 2}},
        "stills": {"layout": "cuhk03", "generate": {"identities": 60, "seed": 1}},
    }
    file = folder / "comparison.yaml"
    content = {
        "name": "pictures",
        "trainable": "trainables.alignment:AlignmentTrainable",
        "storage": str(folder / "store"),
        "config": {
            "data": {
                "sets": generated,
                "sequences": "prid",
                "images": ["stills"],
                "targets": ["prid", "mars"],
                "validation": 0,
                "cache": str(folder / "cache"),
            },
            "evaluation": {"flip": True},
            "encoder": {"name": "residual"},
            "rnn": {"cell": "gru"},
            "batch": {"identities": 4},
        },
        "variants": {
            "sequence": {"method": "sequence"},
            "pretrain": {"method": "pretrain", "pretrain_epochs": 1},
            "static": {"method": "static"},
            "alignment": {"method": "alignment"},
        },
        "splits": {"data.split": [0] if quick else [0, 1, 2, 3]},
        "resources": {"cpus": 1, "gpus": 0},
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    comparison = read_comparison(file, environment={})
    config: Any = comparison.cell_config(comparison.cells[-1])
    AlignmentTrainable().prepare(config)
    return comparison


def _unscored_run(comparison: Comparison, number: int, folder: Path) -> ScoredRun:
    """Return a run with random weights."""
    cell = comparison.cells[number]
    config: Any = comparison.cell_config(cell)
    checkpoint = folder / f"checkpoint-{number}"
    checkpoint.mkdir()
    method = AlignmentTrainable().training(config, Recorder(folder)).method
    save_file({name: value.contiguous() for name, value in method.state_dict().items()}, checkpoint / WEIGHTS)
    label = ", ".join(map(str, cell.values.values()))
    return ScoredRun(
        cell.variant, label, config.model_dump(mode="json"), ray.train.Checkpoint(str(checkpoint))
    )


def _draw_one_by_one(comparison: Comparison, runs: list[ScoredRun], folder: Path) -> None:
    """Draw as one task of one core did: each run is embedded again, one after the other."""
    trainable, threads = AlignmentTrainable(), torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[str, list[Any]] = {name: [] for name in comparison.variants}
    for run in runs:
        checkpoint = Path(run.checkpoint.path)
        (checkpoint / FILE).unlink()
        config, of_variant = trainable.Config.model_validate(run.config), results[run.variant]
        of_variant.append(trainable.illustrate_run(run.variant, len(of_variant), config, checkpoint, folder))
    trainable.illustrate_comparison(results, folder)
    torch.set_num_threads(threads)
