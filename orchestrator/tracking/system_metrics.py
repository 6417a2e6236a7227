"""The system metrics of the driver's machine, in the MLflow run of its job."""

from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from orchestrator.errors import SweepError


class CheckedMonitor(SystemMetricsMonitor):
    """Logs system metrics as MLflow's monitor does, but nothing while ``check`` raises a SweepError."""

    def __init__(self, run_id: str, uri: str, check: Callable[[], None]) -> None:
        """Log to a run of the store at ``uri``, and go on with the metrics that it has."""
        super().__init__(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
        self._check = check

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Log the metrics of one interval."""
        try:
            self._check()
        except SweepError:
            return
        super().publish_metrics(metrics)  # type: ignore[no-untyped-call]
