"""The pictures of a comparison, drawn on a local Ray cluster."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray
import ray.train

from orchestrator.drivers.pictures import PictureDrawing, ScoredRun
from orchestrator.errors import SweepError
from orchestrator.execution.tasks import score
from tests.support.example_trainable import ExampleConfig, ExampleTrainable
from tests.support.sweep_files import load_comparison


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def checkpoint(tmp_path: Path) -> ray.train.Checkpoint:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"epoch": 4, "x": 1.0, "y": -2.0}))
    return ray.train.Checkpoint(str(folder))


def drawing(tmp_path: Path, checkpoint: ray.train.Checkpoint, **faults: str) -> PictureDrawing:
    runs = [
        ScoredRun(name, f"{name} (seed {seed})", {"fault": faults.get(name, "none")}, checkpoint)
        for seed in (0, 7)
        for name in ("plain", "quick")
    ]
    return PictureDrawing(load_comparison(tmp_path), ["plain", "quick", "noisy"], runs)


def test_drawing_writes_pictures_and_says_how_far_it_is(
    cluster: None, tmp_path: Path, checkpoint: ray.train.Checkpoint
) -> None:
    draws = drawing(tmp_path, checkpoint)
    draws.draw(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"ends-of-{name}.png" for name in ("plain", "quick", "noisy")
    }
    assert draws.status_line().startswith(
        "pictures: 4 of 4 runs drawn, drawing all variants together | 0:00:"
    )


def test_drawing_that_fails_names_the_run(
    cluster: None, tmp_path: Path, checkpoint: ray.train.Checkpoint
) -> None:
    draws = drawing(tmp_path, checkpoint, quick="picture")
    expected = r"^the pictures of quick \(seed [07]\) could not be drawn: RuntimeError: the picture cannot be"
    with pytest.raises(SweepError, match=expected):
        draws.draw(tmp_path)


class Keeping(ExampleTrainable):
    """Adds a file to the checkpoint that it scores."""

    def evaluate(self, config: ExampleConfig, checkpoint: Path) -> dict[str, Any]:
        (checkpoint / "kept.json").write_text("{}")
        return super().evaluate(config, checkpoint)


@pytest.mark.parametrize("storage", ["folder", "bucket"])
def test_score_keeps_the_files_that_scoring_adds(
    storage: str, tmp_path: Path, checkpoint: ray.train.Checkpoint
) -> None:
    if storage == "bucket":  # every filesystem but the local one is downloaded from
        filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        checkpoint = ray.train.Checkpoint("checkpoint", filesystem)
    assert score(Keeping(), ExampleConfig(), checkpoint) == {"test/parabola/score": 0.0}
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {"state.json", "kept.json"}
