"""Configs of small generated sets."""

from pathlib import Path
from typing import Any

from trainables.data.config import DataConfig

SETS = {
    "walkers": {"layout": "prid2011", "generate": {"identities": 8, "frames": 2}},
    "walkers-stills": {"layout": "cuhk03", "generate": {"identities": 4, "seed": 1}},
    "walkers-b": {"layout": "mars", "generate": {"identities": 16, "frames": 2, "seed": 2}},
}


def data_config(tmp_path: Path, **fields: Any) -> DataConfig:
    given = {
        "sets": SETS,
        "sequences": "walkers",
        "images": ["walkers-stills"],
        "targets": ["walkers", "walkers-b"],
        "height": 32,
        "width": 16,
        "cache": tmp_path / "cache",
    }
    return DataConfig.model_validate({**given, **fields})


def with_set(tmp_path: Path, **fields: Any) -> DataConfig:
    return data_config(tmp_path, sets={"real": fields}, sequences="real", images=[], targets=["real"])
