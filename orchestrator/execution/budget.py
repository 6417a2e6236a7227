"""When all trials stop: a budget is spent, too many trials failed, or the driver has to end."""

from typing import Any

from ray.tune import Stopper

from orchestrator.console.tables import format_duration
from orchestrator.execution.tune_adapters import NotSnapshotted
from orchestrator.interrupt import Interrupt
from orchestrator.storage.lease import BudgetUsage
from orchestrator.study.base import Study
from orchestrator.study.trial_report import Halted, decode


class BudgetStopper(NotSnapshotted, Stopper):
    """Tells Ray Tune when to stop all trials; it never stops a single one."""

    def __init__(self, study: Study, used: BudgetUsage, interrupt: Interrupt) -> None:
        self._study, self._used, self._interrupt = study, used, interrupt
        self.halt_reason = ""
        """Why no trial can continue, once a trial has reported that."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note a report that halts all trials; return False, because no single trial is stopped."""
        report = decode(result)
        if isinstance(report, Halted):
            self.halt_reason = report.reason
        return False

    def stop_all(self) -> bool:
        """Return whether all trials have to stop now."""
        return bool(
            self._interrupt.requested
            or self._study.fault is not None
            or self.spent_reason()
            or self.failure_reason()
            or self.halt_reason
        )

    def spent_reason(self) -> str:
        """Return which budget is spent; empty while none is."""
        study, used = self._study, self._used
        if study.wall is not None and used.seconds >= study.wall:
            return f"the wall budget of {format_duration(study.wall)} is spent"
        if study.gpu_hours is not None and used.gpu_seconds >= study.gpu_hours * 3600:
            return f"the budget of {study.gpu_hours:g} GPU hours is spent"
        return ""

    def failure_reason(self) -> str:
        """Return why the last trials failed, once ``budget.failures`` in a row have; else empty."""
        reasons = self._study.recent_failures
        if self._study.max_failures is None or len(reasons) < self._study.max_failures:
            return ""
        common = max(set(reasons), key=reasons.count)
        return (
            f"the last {len(reasons)} trials failed, {reasons.count(common)} of them with: {common}; "
            "fix the cause and rerun the command (limit: budget.failures)"
        )
