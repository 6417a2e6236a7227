"""Ray tasks that use a trainable outside of its training."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import trainable
from orchestrator.errors import InputError, SweepError, one_line
from orchestrator.execution.checkpoints import TrialFolder, opened
from orchestrator.execution.failures import explain
from orchestrator.trainable import Comparable, Illustrating, Trainable, checked_metrics

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from orchestrator.tracking.gate import TargetResults


_PROBE_SECONDS = 60.0
"""Time for the answer of a node, on which a process has to start."""

_log = logging.getLogger(__name__)


def trainable_task(function: Callable[..., Any], cpus: float, gpus: float, label: str) -> Any:
    """Return a Ray task that uses a trainable; inside a trial it takes resources outside of the trial's."""
    return ray.remote(function).options(
        num_cpus=cpus, num_gpus=gpus, name=label, scheduling_strategy="DEFAULT", max_retries=0
    )


def check_bucket(filesystem: pyarrow.fs.FileSystem, file: str, uri: str) -> None:
    """Check that each node of the cluster which may score can read a bucket: it has credentials of its own.

    Args:
        filesystem: of the bucket.
        file: path of a file in it.
        uri: how messages name it.

    Raises:
        InputError: a node cannot.
    """
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in every if node["Alive"] and node["Resources"].get("CPU")]
    probe = ray.remote(_read_bucket)
    references = [
        probe.options(
            num_cpus=0,
            name=f"read {uri}",
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(filesystem, file)
        for node in nodes
    ]
    for node, reference in zip(nodes, references, strict=True):
        try:
            problem = ray.get(reference, timeout=_PROBE_SECONDS)
        except ray.exceptions.RayError as error:  # trials tell what is wrong with a node
            _log.warning("node %s was not checked: %s", node["NodeManagerAddress"], explain(error))
        else:
            if problem:
                raise InputError(
                    f"storage: node {node['NodeManagerAddress']} of the Ray cluster cannot read {uri}: "
                    f"{problem}; start its Ray with the credentials of the storage"
                )


def _read_bucket(filesystem: pyarrow.fs.FileSystem, file: str) -> str:
    """Return why this process cannot read a file; "" if it can."""
    try:
        filesystem.get_file_info(file)
    except OSError as error:
        return one_line(error, 200)
    return ""


def result_of(reference: "ray.ObjectRef[Any]", failed: str, input_error: type[Exception]) -> Any:
    """Return the result of a task.

    Args:
        reference: of the task.
        failed: what to say of one that failed, before the reason.
        input_error: the InputError of the trainable.

    Raises:
        InputError: for a reason that the user has to remove.
        SweepError: for another one.
    """
    try:
        return ray.get(reference)
    except (InputError, input_error) as error:  # which Ray raises as they are
        raise InputError(f"{failed}: {explain(error)}") from error
    except ray.exceptions.RayError as error:
        raise SweepError(f"{failed}: {explain(error)}") from error


def evaluate(dotted: str, config: dict[str, Any], checkpoint: ray.train.Checkpoint) -> dict[str, float]:
    """Return the scores of a checkpoint on the targets."""
    subject = trainable.load(dotted)
    return score(subject, subject.Config.model_validate(config), checkpoint)


def score(subject: Trainable, config: Any, checkpoint: ray.train.Checkpoint) -> dict[str, float]:
    """Return the scores of a checkpoint on the targets, and keep the files that the scoring adds to it."""
    with opened(checkpoint) as folder:
        before = set(folder.iterdir())
        scores = subject.evaluate(config, folder)
        if str(folder) != checkpoint.path:  # a copy of a checkpoint in a bucket
            with contextlib.suppress(OSError):  # the pictures can do without the added files
                for file in set(folder.iterdir()) - before:
                    TrialFolder(checkpoint.filesystem, checkpoint.path).write(file.name, file.read_bytes())
    return checked_metrics(scores)


def score_version(
    dotted: str, config: dict[str, Any], uri: str, version: "ModelVersion"
) -> "dict[str, TargetResults]":
    """Download a registered version, and return its results on the targets of a config; see `Comparable`."""
    from orchestrator.tracking.evidence import copied  # with MLflow, which workers do not need
    from orchestrator.tracking.model_files import download

    subject = trainable.load(dotted)
    assert isinstance(subject, Comparable)
    with tempfile.TemporaryDirectory() as folder:
        model = download(uri, version, Path(folder))
        return copied(subject.score_model(subject.Config.model_validate(config), model))


Pictures = dict[str, bytes]
"""PNG files by their names."""


def illustrate_run(
    dotted: str, variant: str, number: int, config: dict[str, Any], checkpoint: ray.train.Checkpoint
) -> tuple[Pictures, Any]:
    """Return the pictures of a run, and what `illustrate_comparison` needs of it; see `Illustrating`."""
    subject = trainable.load(dotted)
    assert isinstance(subject, Illustrating)
    validated = subject.Config.model_validate(config)
    with opened(checkpoint) as folder, tempfile.TemporaryDirectory() as directory:
        needed = subject.illustrate_run(variant, number, validated, folder, Path(directory))
        return _read(directory), needed


def illustrate_comparison(dotted: str, runs: Mapping[str, Sequence[Any]]) -> Pictures:
    """Return the pictures of all variants together; see `Illustrating`."""
    subject = trainable.load(dotted)
    assert isinstance(subject, Illustrating)
    with tempfile.TemporaryDirectory() as directory:
        subject.illustrate_comparison(runs, Path(directory))
        return _read(directory)


def _read(directory: str) -> Pictures:
    return {file.name: file.read_bytes() for file in sorted(Path(directory).glob("*.png"))}
