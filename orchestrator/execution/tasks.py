"""Ray tasks that use a trainable outside of its training."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train

from orchestrator import trainable
from orchestrator.trainable import Illustrating


def trainable_task(function: Callable[..., Any], cpus: float, gpus: float, label: str) -> Any:
    """Return a Ray task that uses a trainable; inside a trial it takes resources outside of the trial's."""
    return ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, name=label, scheduling_strategy="DEFAULT", max_retries=0
    )


def evaluate(dotted: str, config: dict[str, Any], checkpoint: ray.train.Checkpoint) -> dict[str, float]:
    """Return the scores of a checkpoint on the targets."""
    subject = trainable.load(dotted)
    with checkpoint.as_directory() as folder:
        scores = subject.evaluate(subject.Config.model_validate(config), Path(folder))
    return {metric: float(score) for metric, score in scores.items()}


def illustrate(
    dotted: str, runs: Mapping[str, Sequence[tuple[Any, ray.train.Checkpoint]]]
) -> dict[str, bytes]:
    """Return the pictures of a trainable, PNG files by their names.

    ``runs`` holds the config and checkpoint of every run of each variant.
    """
    subject = trainable.load(dotted)
    assert isinstance(subject, Illustrating)
    with contextlib.ExitStack() as stack:
        folders = {
            variant: [
                (subject.Config.model_validate(config), Path(stack.enter_context(checkpoint.as_directory())))
                for config, checkpoint in of_variant
            ]
            for variant, of_variant in runs.items()
        }
        pictures = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subject.illustrate(folders, pictures)
        return {file.name: file.read_bytes() for file in sorted(pictures.glob("*.png"))}
