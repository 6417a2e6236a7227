"""The shipped recipes: each loads, plans and trains on walkers in the layouts of its data sets."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from orchestrator.config.comparison import read_comparison
from orchestrator.config.document import Override
from orchestrator.config.sweep import Sweep, read_sweep
from orchestrator.drivers.plan import sweep_plan
from orchestrator.execution.cluster import TRIAL_SLOT, Cluster
from tests.support.paths import ROOT
from tests.support.recorder import Recorder
from trainables.data.walkers import layouts
from trainables.data.walkers.layouts import GenerateConfig

RECIPES = ROOT / "search_spaces"
FILES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))}
SWEEPS = [name for name, content in FILES.items() if "search" in content]
COMPARISONS = [name for name, content in FILES.items() if "variants" in content]
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "prid_2011": ("prid2011", {"identities": 20, "frames": 28, "seed": 1}),
    "iLIDS-VID": ("ilids-vid", {"identities": 20, "frames": 6, "seed": 2}),
    "MARS": ("mars", {"identities": 38, "frames": 2, "seed": 3}),
    "Market-1501": ("market1501", {"identities": 44, "images": 1, "seed": 3}),
    "CUHK03": ("cuhk03", {"identities": 20, "images": 1, "seed": 4, "hdf5": True}),
    "CUHK01": ("cuhk01", {"identities": 20, "seed": 5}),
}
"""The data sets in REID_DATA, with few identities; half of them train."""
ONE_GPU = Cluster("", None, None, ({"CPU": 16, "GPU": 1, TRIAL_SLOT: 64},))
SMALL = {
    "epochs": 1,
    "data.height": 32,
    "data.width": 16,
    "batch.passes": 1,
    "encoder.features": 16,
    "evaluation.crops": 1,
    "optimizer.warmup_epochs": 0,
}
RECIPE_CHANGES: dict[str, dict[str, Any]] = {
    "alignment.yaml": {
        "data.sets.walkers.generate": {"identities": 32, "frames": 3},
        "data.sets.walkers-stills.generate": {"identities": 24, "seed": 1},
        "data.sets.walkers-b.generate": {"identities": 8, "frames": 3, "seed": 2},
    },
    "cross.yaml": {
        "data.sets.walkers.generate": {"identities": 32, "frames": 3},
        "data.sets.walkers-stills.generate": {"identities": 24, "seed": 1},
        "data.sets.walkers-b.generate": {"identities": 8, "frames": 3, "seed": 2},
    },
    "claim-flow.yaml": {
        "pretrain_epochs": 0,
        "data.sets.walkers.generate": {"identities": 24, "frames": 4},
        "data.sets.stills.generate": {"identities": 24, "seed": 1},
        "data.sets.others.generate": {"identities": 8, "frames": 4, "seed": 2},
    },
    "mars.yaml": {"encoder.name": "residual"},
    "choices.yaml": {"pretrain_epochs": 0, "epochs": 1, "optimizer.warmup_epochs": 0},
    "mclaughlin2016.yaml": {"pretrain_epochs": 0},
}
"""Settings of single recipes that are too large for a test."""
COMPARISON_CHANGES = {
    "epochs": 2,
    "pretrain_epochs": 1,
    "encoder.name": "residual",
    "encoder.features": 16,
    "rnn.hidden_size": 16,
    "batch.identities": 4,
    "batch.image_identities": 16,
}


@pytest.fixture(scope="module")
def reid_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, (layout, fields) in SETS.items():
        layouts.write(layout, folder / name, GenerateConfig(**fields))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache") / "packs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REID_CACHE", str(folder))
        yield folder


def recipe(name: str, reid_data: Path, changes: dict[str, Any] | None = None) -> Sweep:
    overrides = [Override(f"config.{path}", value, "test") for path, value in (changes or {}).items()]
    return read_sweep(RECIPES / name, overrides, environment={"REID_DATA": str(reid_data)})


@pytest.mark.parametrize("name", FILES)
def test_recipe_head_states_command_and_cost(name: str) -> None:
    head = (RECIPES / name).read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    command = "compare" if name in COMPARISONS else "sweep"
    assert f"python -m orchestrator.{command} search_spaces/{name}\n" in head
    assert "Cost" in head
    assert FILES[name]["name"] == name.removesuffix(".yaml")


@pytest.mark.parametrize("name", SWEEPS)
def test_recipe_loads_and_plans(name: str, reid_data: Path) -> None:
    sweep = recipe(name, reid_data)
    for values in sweep.space.corners():
        sweep.implementation.check(sweep.trial_config(values), sweep.resources.workers)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(sweep_plan(sweep, ONE_GPU))
    shown = captured.get()
    assert all(path in shown for path in sweep.search)
    assert "1 trial on" in shown or not sweep.resources.gpus


@pytest.mark.parametrize("name", SWEEPS)
def test_recipe_trains_and_scores_every_target(
    name: str, reid_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sweep = recipe(name, reid_data, SMALL | RECIPE_CHANGES.get(name, {}))
    edges = {path: parameter.edges[0] for path, parameter in sweep.search.items()}
    config, trainable = sweep.trial_config(edges), sweep.implementation
    records = trainable.prepare(config)
    recorder = Recorder(tmp_path / "checkpoints")
    trainable.fit(config, recorder)
    scores = trainable.evaluate(config, recorder.restore())
    for target in config.data.targets:
        assert 0 <= scores[f"test/{target}/rank1"] <= 1
    validated = {"validate"} if config.data.validate_on else set()
    assert {record.role for record in records} == {"train", "images", "target", *validated}
    dropped = [record for record in records if record.counts.get("dropped identities")]
    assert [record.name for record in dropped] == (["market"] if "market" in config.data.images else [])
    assert len([line for line in caplog.messages if line.startswith("market: dropped")]) == len(dropped)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparison_recipe_trains_and_scores_variants(name: str, reid_data: Path, tmp_path: Path) -> None:
    small = SMALL | COMPARISON_CHANGES | RECIPE_CHANGES.get(name, {})
    changes = {f"config.{path}": value for path, value in small.items()}
    variants = FILES[name]["variants"].items()
    changes |= {f"variants.{variant}.epochs": 1 for variant, settings in variants if "epochs" in settings}
    overrides = [Override(path, value, "test") for path, value in changes.items()]
    job = read_comparison(RECIPES / name, overrides, environment={"REID_DATA": str(reid_data)})
    trainable = job.implementation
    for number, cell in enumerate(job.cells[: len(job.variants)]):
        config, folder = job.cell_config(cell), tmp_path / str(number)
        trainable.check(config, job.resources.workers)
        trainable.prepare(config)
        recorder = Recorder(folder)
        trainable.fit(config, recorder)
        scores = trainable.evaluate(config, recorder.restore())
        on_targets = {metric for metric in job.metrics if metric.startswith("test/")}
        assert on_targets <= scores.keys() and bool(on_targets) == bool(config.data.targets)
