"""Tiny data sets in every layout, the real cut, and a tiny training on generated walkers."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.paths import ROOT
from tests.support.tiny_sets import Unpacked, write_set
from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in changes.items():
        result[name] = merged(result[name], value) if isinstance(result.get(name), dict) else value
    return result


@pytest.fixture(scope="session")
def tiny(cache: Path) -> Callable[..., AlignmentConfig]:
    """A config of a training that takes seconds, with changes."""
    base = {
        "epochs": 3,
        "method": "alignment",
        "precision": "float32",  # equal on every CPU
        "data": {
            "sets": {
                "walkers": {
                    "layout": "prid2011",
                    "generate": {"identities": 40, "frames": 6, "difficulty": 0.3},
                },
                "stills": {"layout": "cuhk03", "generate": {"identities": 20, "seed": 1}},
                "others": {"layout": "mars", "generate": {"identities": 8, "frames": 4, "seed": 2}},
            },
            "sequences": "walkers",
            "images": ["stills"],
            "targets": ["walkers", "others"],
            "validation": 0.4,
            "height": 32,
            "width": 16,
            "cache": str(cache),
        },
        "batch": {"identities": 4, "frames": 4, "image_identities": 4},
        "encoder": {"name": "residual", "features": 16, "dropout": 0.5},
        "rnn": {"hidden_size": 16, "dropout": 0.5},
    }

    def build(**changes: Any) -> AlignmentConfig:
        return AlignmentConfig.model_validate(json.loads(json.dumps(merged(base, changes))))

    return build


@pytest.fixture(scope="session")
def prepared(tiny: Callable[..., AlignmentConfig]) -> AlignmentTrainable:
    """The trainable, with every set of the tiny training packed."""
    trainable = AlignmentTrainable()
    trainable.prepare(tiny())
    return trainable


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """The folder of a tiny set in a layout, written once; not to be changed."""
    folders: dict[str, Path] = {}

    def write(layout: str) -> Path:
        if layout not in folders:
            folders[layout] = tmp_path_factory.mktemp("sets") / f"tiny-{layout}"
            write_set(layout, folders[layout])
        return folders[layout]

    return write


@pytest.fixture
def unpacked(written: Unpacked, tmp_path: Path) -> Unpacked:
    """A copy of a tiny set, to be damaged."""

    def copy(layout: str) -> Path:
        return Path(shutil.copytree(written(layout), tmp_path / f"tiny-{layout}"))

    return copy


@pytest.fixture
def real_data() -> Path:
    """The folder of the real cut, from REID_DATA or next to the repository."""
    beside = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("REID_DATA", beside))
    if not (folder / "prid_2011").is_dir():
        pytest.skip(f"no real re-ID data in {folder}: set REID_DATA to its folder")
    return folder
