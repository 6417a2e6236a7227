"""Train one config in one process: ``python -m trainables.train CONFIG.yaml [--output DIR]``.

CONFIG.yaml holds what a sweep file holds under ``config:``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig
from trainables.data.tracklet import DataError


@dataclass
class Alone:
    """The only worker: prints a line per epoch, and keeps the last checkpoint if there is a folder."""

    output: Path | None
    rank: int = 0
    world_size: int = 1
    device: str = field(default_factory=lambda: "cuda:0" if torch.cuda.is_available() else "cpu")

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Print the metrics, and save."""
        print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
        if self.output is not None and save is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            save(self.output)

    def restore(self) -> Path | None:
        """Start from the beginning."""
        return None


def load(path: Path) -> AlignmentConfig:
    """Read a config; raises ``DataError`` with one line naming file and field."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return AlignmentConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "config"
        raise DataError(f"{path}: {place}: {first['msg']}") from error


def main(arguments: list[str] | None = None) -> int:
    """Train, then score the targets; gives the exit status: 2 when the input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m trainables.train", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, help="folder for the checkpoint; it is scored on the targets")
    chosen = parser.parse_args(arguments)
    trainable = AlignmentTrainable()
    try:
        config = load(chosen.config)
        trainable.check(config, workers=1)
        trainable.prepare(config, print)
        trainable.fit(config, Alone(chosen.output))
        if chosen.output is not None:
            for name, value in trainable.evaluate(config, chosen.output).items():
                print(f"{name} {value:.4f}")
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"training diverged: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
