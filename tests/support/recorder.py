"""A context that remembers what was reported, and continues from its folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class InterruptedTrialError(Exception):
    """The trial was killed after a report."""


@dataclass
class Recorder:
    """Keeps reports and checkpoints in ``folder``; a second one on the same folder continues."""

    folder: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    stop_after: int | None = None
    metrics: tuple[str, ...] = ()
    reports: list[dict[str, float]] = field(default_factory=list)

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        self.reports.append(metrics)
        if self.rank == 0 and save is not None:
            epoch = self.folder / f"{int(metrics['epoch']):04}"
            epoch.mkdir(parents=True)
            save(epoch)
        if metrics["epoch"] == self.stop_after:
            raise InterruptedTrialError

    def restore(self) -> Path | None:
        return max(self.folder.iterdir(), default=None) if self.folder.exists() else None

    def curve(self) -> list[dict[str, float]]:
        """The reports without what depends on the clock."""
        return [
            {name: value for name, value in r.items() if name != "frames_per_second"} for r in self.reports
        ]
