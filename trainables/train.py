"""Train one config in one process: ``python -m trainables.train CONFIG.yaml [--output DIR]``.

CONFIG.yaml has the fields of ``config:`` in a sweep file.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from trainables.alignment import AlignmentTrainable
from trainables.config import AlignmentConfig
from trainables.errors import DataError, one_line


@dataclass
class SingleWorker:
    """Context of a single worker: prints one line per epoch and keeps the last checkpoint in ``output``."""

    output: Path | None
    rank: int = 0
    world_size: int = 1
    device: str = field(default_factory=lambda: "cuda:0" if torch.cuda.is_available() else "cpu")

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Print the metrics and save a checkpoint."""
        print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
        if self.output is not None and save is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            save(self.output)

    def restore(self) -> Path | None:
        """Return None: training starts from scratch."""
        return None


def load(path: Path) -> AlignmentConfig:
    """Read a config.

    Raises:
        DataError: the file or a field is not valid; the message is one line that names both.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not YAML: {one_line(error)}") from error
    try:
        return AlignmentConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "config"
        reason = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{path}: {location}: {reason}") from error


def main(arguments: list[str] | None = None) -> int:
    """Train, score the targets and return the exit code: 2 for bad input, 1 if the training diverged."""
    parser = argparse.ArgumentParser(prog="python -m trainables.train", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, help="folder of the checkpoint; it is scored on the targets")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    trainable = AlignmentTrainable()
    try:
        config = load(options.config)
        trainable.check(config, workers=1)
        trainable.prepare(config)
        trainable.fit(config, SingleWorker(options.output))
        if options.output is not None:
            for name, value in trainable.evaluate(config, options.output).items():
                print(f"{name} {value:.4f}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"training diverged: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
