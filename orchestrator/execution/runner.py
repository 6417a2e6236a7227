"""Runs the trials of a study with Ray Tune until the study is finished or something ends it early."""

import logging
import tempfile
from enum import Enum

from ray import tune

from orchestrator.config.job import Job
from orchestrator.config.sections import Resources
from orchestrator.console.progress import Progress
from orchestrator.execution.budget import BudgetStopper
from orchestrator.execution.cluster import Cluster, HeadWatch
from orchestrator.execution.lane import lane_class
from orchestrator.execution.monitor import TrialMonitor
from orchestrator.execution.tune_adapters import StudyScheduler, StudySearcher
from orchestrator.execution.worker import TrialSpec
from orchestrator.interrupt import Interrupt
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Activity, Lease
from orchestrator.study.base import Study
from orchestrator.study.trial_report import trial_name
from orchestrator.tracking.tracker import Tracker

_log = logging.getLogger(__name__)

_MAX_RESTARTS = 10
"""How often Tune restarts a trial whose lane, which only waits for its workers, died."""

_TRIALS_PER_RUN = 1000
"""Trials of one run of Tune. Tune keeps every trial in memory; a new run bounds the driver's memory."""


class RunEnd(Enum):
    """How running the trials ended."""

    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


def run_trials(
    job: Job,
    job_id: str,
    study: Study,
    cluster: Cluster,
    directory: JobDirectory,
    lease: Lease,
    tracker: Tracker,
    progress: Progress,
    interrupt: Interrupt,
) -> RunEnd:
    """Run the trials that remain in the study, and publish what they do."""
    monitor = TrialMonitor(job, study, lease, tracker)
    monitor.catch_up()
    monitor.compare_delivered()
    study.add_usage(lease.record.used)
    stopper = BudgetStopper(study, lease.record.used, interrupt)
    if study.remaining() and not stopper.spent_reason():
        spec = TrialSpec(
            job=job.name,
            job_id=job_id,
            trainable=job.trainable,
            folder=f"{directory.root}/trials",
            filesystem=directory.filesystem,
            workers=job.resources.workers,
            cpus=job.resources.cpus,
            gpus=job.resources.gpus,
            report_timeout=job.resources.report_timeout,
            scores_trials=study.scores_trials,
            trials_per_worker=job.resources.trials_per_worker,
            metrics=tuple(job.required_metrics()),
        )
        watch = HeadWatch(cluster.address)

        def on_heartbeat(seconds: float) -> Activity:
            watch.check()
            return monitor.on_heartbeat(seconds)

        lease.on_heartbeat = on_heartbeat
        with progress.activity(monitor.status_line), interrupt.polled():
            while not study.is_finished() and not stopper.stop_all():
                _run_tune(study, cluster, job.resources, spec, stopper, monitor)
        study.record_usage(lease.record.used)
        monitor.catch_up()
    if interrupt.requested:
        return RunEnd.INTERRUPTED
    if reason := stopper.spent_reason():
        _log.info("%s", reason)
        for number in study.prune_running(reason):
            monitor.publish_end(number)
        return RunEnd.DONE
    if reason := stopper.failure_reason() or stopper.halt_reason:
        _log.error("%s", reason)
        return RunEnd.FAILED
    return RunEnd.DONE if study.is_finished() else RunEnd.INTERRUPTED


def _run_tune(
    study: Study,
    cluster: Cluster,
    resources: Resources,
    spec: TrialSpec,
    stopper: BudgetStopper,
    monitor: TrialMonitor,
) -> None:
    """Let Ray Tune run some of the trials that remain."""
    # The records that Tune keeps are never read: a job resumes from its study.
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            lane_class(spec, cluster.driver_bundle()),
            tune_config=tune.TuneConfig(
                num_samples=min(study.remaining(), _TRIALS_PER_RUN),
                search_alg=StudySearcher(study),
                scheduler=StudyScheduler(study),
                max_concurrent_trials=cluster.concurrency(resources),
                reuse_actors=True,
                trial_name_creator=lambda trial: trial_name(trial.config["number"]),
                trial_dirname_creator=lambda trial: trial_name(trial.config["number"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=_MAX_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[monitor],
                verbose=0,
            ),
        )
        # Tune would print the traceback of every failed trial, which its MLflow run has.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            tuner.fit()
        except tune.TuneError as error:
            # Tune raises the text of what its parts raise, such as the study, while it handles it.
            if (cause := study.fault or error.__context__) is None:
                raise
            raise cause  # noqa: B904 - `from` would replace its own cause
        if study.fault is not None:
            raise study.fault
