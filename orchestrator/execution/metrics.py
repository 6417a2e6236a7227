"""The metrics of a job on Ray's metrics endpoint, where each name gets the prefix ``ray_``."""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

import ray
from ray.util.metrics import Gauge

if TYPE_CHECKING:  # a worker uses only `mark_worker`, and starts faster without these imports
    from orchestrator.config.job import Job
    from orchestrator.storage.lease import BudgetUsage
    from orchestrator.study.base import Study

_REFRESH_SECONDS = 5.0
"""Ray drops a gauge that was not set for 20 s."""


EndOfDriver = Literal["finished", "failed", "stopped"]
"""How a driver ended."""


class OutcomeMetric:
    """How the last driver of a sweep ended. Ray serves the last value for 20 s after the driver has ended."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._gauge = Gauge(
            "sweep_outcome", "1 for how the last driver ended, 0 while one runs", ("sweep", "outcome")
        )

    def set(self, outcome: EndOfDriver | None) -> None:
        """Set the gauge; None while the driver runs."""
        for name in get_args(EndOfDriver):
            self._gauge.set(float(name == outcome), {"sweep": self._sweep, "outcome": name})


class SweepMetrics:
    """The gauges of a driver, all with the label ``sweep``."""

    def __init__(self, job: "Job") -> None:
        self._sweep = {"sweep": job.name}
        self._reasons: set[str] = set()
        self._trials = Gauge("sweep_trials", "Trials by state", ("sweep", "state"))
        self._waiting = Gauge(
            "sweep_waiting", "Running trials that do not train, by what they wait for", ("sweep", "reason")
        )
        self._best = Gauge("sweep_best_objective", "Best objective of a complete trial", ("sweep", "metric"))
        self._gpu_hours = Gauge("sweep_gpu_hours", "GPU hours used by all runs of the command", ("sweep",))
        self._budget = Gauge("sweep_budget_spent", "Used fraction of a budget, 0 to 1", ("sweep", "budget"))
        self._last = Gauge("sweep_last_report_seconds", "Unix time of the last report", ("sweep",))
        self._undelivered = Gauge("sweep_undelivered", "Records that wait for MLflow", ("sweep",))
        self._throughput = Gauge(
            f"sweep_{job.implementation.throughput or 'throughput'}",
            "Work per second of all running trials",
            ("sweep",),
        )
        self._outcome = OutcomeMetric(job.name)
        self._last_report = time.time()

    def note_report(self) -> None:
        """Note that a trial has just reported."""
        self._last_report = time.time()

    def update(
        self, study: "Study", used: "BudgetUsage", waiting: Iterable[str], rate: float, undelivered: int
    ) -> None:
        """Set all gauges.

        Args:
            study: the trials.
            used: what of the budget was used.
            waiting: for each running trial that does not train, what it waits for.
            rate: work per second of all running trials.
            undelivered: records that wait for MLflow.
        """
        counts = study.count()
        for state, count in counts.items():
            self._trials.set(count, {**self._sweep, "state": state})
        by_reason = Counter(waiting)
        self._reasons |= by_reason.keys()
        for reason in self._reasons:
            self._waiting.set(by_reason[reason], {**self._sweep, "reason": reason})
        for metric, value in study.best_objective().items():
            self._best.set(value, {**self._sweep, "metric": metric})
        self._gpu_hours.set(used.gpu_seconds / 3600, self._sweep)
        fractions = {"trials": (sum(counts.values()) - counts["running"]) / study.total}
        if study.wall:
            fractions["wall"] = used.seconds / study.wall
        if study.gpu_hours:
            fractions["gpu_hours"] = used.gpu_seconds / 3600 / study.gpu_hours
        for budget, fraction in fractions.items():
            self._budget.set(min(fraction, 1.0), {**self._sweep, "budget": budget})
        self._last.set(self._last_report, self._sweep)
        self._throughput.set(rate, self._sweep)
        self._undelivered.set(undelivered, self._sweep)
        self._outcome.set(None)


def mark_worker(job: str, trial: str, ended: threading.Event) -> None:
    """Publish which GPUs this worker has until ``ended``: Ray's own metrics know neither sweep nor trial.

    ``ip`` and ``GpuIndex`` are the labels of Ray's ``ray_node_gpus_utilization``.
    """
    gauge = Gauge("sweep_worker", "1 for each worker and GPU", ("sweep", "trial", "ip", "GpuIndex"))
    ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    while True:
        for gpu in ray.get_gpu_ids() or [""]:
            gauge.set(1, {"sweep": job, "trial": trial, "ip": ip, "GpuIndex": str(gpu)})
        if ended.wait(_REFRESH_SECONDS):
            return
