"""What a sweep shows on Ray's metrics endpoint, where every name begins with ``ray_``."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import ray
from ray.util.metrics import Gauge

if TYPE_CHECKING:  # a worker, which a trial waits for, needs none of them
    from orchestrator.config.sweep import Job
    from orchestrator.storage.lease import Spent
    from orchestrator.study.base import Study


_AGAIN = 5.0
"""Seconds after which a worker shows itself again."""


class SweepMetrics:
    """Gauges of a driver, all with the label ``sweep``."""

    def __init__(self, job: "Job") -> None:
        self._sweep = {"sweep": job.name}
        self._seen: set[str] = set()
        self._trials = Gauge("sweep_trials", "Trials by state", ("sweep", "state"))
        self._waiting = Gauge(
            "sweep_waiting", "Running trials that do not train, by what they wait for", ("sweep", "reason")
        )
        self._best = Gauge("sweep_best_objective", "Best objective of a complete trial", ("sweep", "metric"))
        self._gpu_hours = Gauge("sweep_gpu_hours", "GPU hours spent by all runs of the command", ("sweep",))
        self._budget = Gauge("sweep_budget_spent", "Spent part of a budget, 0 to 1", ("sweep", "budget"))
        self._last = Gauge("sweep_last_report_seconds", "Unix time of the last report", ("sweep",))
        self._undelivered = Gauge("sweep_undelivered", "Records that wait for MLflow", ("sweep",))
        self._throughput = Gauge(
            f"sweep_{job.implementation.throughput or 'throughput'}",
            "Work per second of all running trials",
            ("sweep",),
        )
        self._reported = time.time()

    def reported(self) -> None:
        """Note that a trial has just reported."""
        self._reported = time.time()

    def update(
        self, study: "Study", spent: "Spent", waiting: Mapping[str, int], rate: float, undelivered: int
    ) -> None:
        """Show how the sweep stands; Ray forgets within 20 s what is not shown again.

        Args:
            study: the trials.
            spent: what of the budget was used.
            waiting: running trials that do not train, by what they wait for.
            rate: work per second of all running trials.
            undelivered: records that wait for MLflow.
        """
        counts = study.count()
        for state, count in counts.items():
            self._trials.set(count, {**self._sweep, "state": state})
        self._seen |= waiting.keys()
        for reason in self._seen:
            self._waiting.set(waiting.get(reason, 0), {**self._sweep, "reason": reason})
        for metric, value in study.best_objective().items():
            self._best.set(value, {**self._sweep, "metric": metric})
        self._gpu_hours.set(spent.gpu_seconds / 3600, self._sweep)
        used = {"trials": (sum(counts.values()) - counts["running"]) / study.total}
        if study.wall:
            used["wall"] = spent.seconds / study.wall
        if study.gpu_hours:
            used["gpu_hours"] = spent.gpu_seconds / 3600 / study.gpu_hours
        for budget, part in used.items():
            self._budget.set(min(part, 1.0), {**self._sweep, "budget": budget})
        self._last.set(self._reported, self._sweep)
        self._throughput.set(rate, self._sweep)
        self._undelivered.set(undelivered, self._sweep)


def mark_worker(job: str, trial: str, over: threading.Event) -> None:
    """Say which GPUs this worker has, until it is over: Ray's own metrics know neither sweep nor trial.

    ``ip`` and ``GpuIndex`` are the labels of Ray's ``ray_node_gpus_utilization``.
    """
    gauge = Gauge("sweep_worker", "1 for each worker and GPU", ("sweep", "trial", "ip", "GpuIndex"))
    ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    while True:
        for gpu in ray.get_gpu_ids() or [""]:
            gauge.set(1, {"sweep": job, "trial": trial, "ip": ip, "GpuIndex": str(gpu)})
        if over.wait(_AGAIN):
            return


def by_reason(doing: Mapping[int, str], training: str) -> Counter[str]:
    """Count trials that are not ``training`` by what they wait for."""
    return Counter(text.removeprefix("waiting for ") for text in doing.values() if text != training)
