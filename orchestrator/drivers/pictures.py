"""The pictures of scored runs: each run is drawn in a Ray task, then all variants together."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from orchestrator.config.job import Job
from orchestrator.console.progress import Progress
from orchestrator.console.tables import format_duration
from orchestrator.errors import InputError, SweepError
from orchestrator.execution.tasks import (
    Pictures,
    illustrate_comparison,
    illustrate_run,
    result_of,
    trainable_task,
)
from orchestrator.trainable import Illustrating


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run to draw."""

    variant: str
    label: str
    """Variant, split and seed, for the terminal."""

    config: dict[str, Any]
    checkpoint: "ray.train.Checkpoint"


def illustrate(
    job: Job, variants: Sequence[str], runs: Sequence[ScoredRun], folder: Path, progress: Progress
) -> str:
    """Let the trainable draw its pictures into a folder, if it can; return what failed, or nothing.

    Args:
        job: the job of the runs.
        variants: names of the variants, in the order in which they are shown.
        runs: the runs to draw.
        folder: the folder; what it held is deleted.
        progress: shows how far the drawing is.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not isinstance(job.implementation, Illustrating):
        return ""
    folder.mkdir()
    drawing = PictureDrawing(job, variants, runs)
    with progress.activity(drawing.status_line):
        try:
            drawing.draw(folder)
        except SweepError as error:
            return f"{error}; rerun the command to try again"
        except InputError as error:
            return str(error)
    return ""


class PictureDrawing:
    """Draws the pictures of runs on the workers of the cluster, and says how far it is."""

    def __init__(self, job: Job, variants: Sequence[str], runs: Sequence[ScoredRun]) -> None:
        """Prepare to draw the ``runs`` of ``variants``, in whose order they are shown."""
        self._job, self._variants, self._runs = job, variants, runs
        self._pending: dict[ray.ObjectRef[Any], int] = {}
        self._start = time.monotonic()

    def status_line(self) -> str:
        """Return how many runs are drawn, the first of those that are not, and the time elapsed."""
        pending = list(self._pending.values())  # another thread than that of `draw` calls this
        now = self._runs[min(pending)].label if pending else "all variants together"
        done, elapsed = len(self._runs) - len(pending), format_duration(time.monotonic() - self._start)
        return f"pictures: {done} of {len(self._runs)} runs drawn, drawing {now} | {elapsed} elapsed"

    def draw(self, folder: Path) -> None:
        """Write the pictures into a folder; raises SweepError or InputError if one cannot be drawn."""
        needed: dict[int, Any] = {}
        for index in range(len(self._runs)):
            self._pending[self._draw_run(index)] = index
        # After an error, tasks that are left end with the driver. `ray.cancel` of Ray 2.60 may end the driver
        # itself: "Check failed: Tried to complete task that was not pending".
        while self._pending:
            (done, *_), _ = ray.wait(list(self._pending))
            index = self._pending[done]
            pictures, needed[index] = self._result(done, self._runs[index].label)
            _write(pictures, folder)
            del self._pending[done]
        variants: dict[str, list[Any]] = {name: [] for name in self._variants}
        for index, run in enumerate(self._runs):
            variants[run.variant].append(needed[index])
        together = self._task(illustrate_comparison, "all variants")
        _write(self._result(together.remote(self._job.trainable, variants), "all variants"), folder)

    def _draw_run(self, index: int) -> "ray.ObjectRef[tuple[Pictures, Any]]":
        run = self._runs[index]
        number = sum(other.variant == run.variant for other in self._runs[:index])
        reference: ray.ObjectRef[tuple[Pictures, Any]] = self._task(illustrate_run, run.label).remote(
            self._job.trainable, run.variant, number, run.config, run.checkpoint
        )
        return reference

    def _task(self, function: Any, label: str) -> Any:
        resources = self._job.resources
        return trainable_task(function, resources.cpus, resources.gpus, f"draw {label}")

    def _result(self, reference: "ray.ObjectRef[Any]", label: str) -> Any:
        failed = f"the pictures of {label} could not be drawn"
        return result_of(reference, failed, self._job.implementation.InputError)


def _write(pictures: Pictures, folder: Path) -> None:
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
