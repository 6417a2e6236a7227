"""One trial: its reports from its start to its end, however often it loses its workers."""

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from orchestrator.errors import StorageError, TrialError, is_full, is_misplaced, is_refused, one_line
from orchestrator.execution.checkpoints import epoch_of
from orchestrator.execution.failures import Decision, FailurePolicy, WorkersLostError
from orchestrator.execution.mailbox import TrialJob
from orchestrator.execution.worker import TrialSpec
from orchestrator.execution.worker_group import POLL_SECONDS
from orchestrator.study.trial_report import Failed, Halted, Trained, TrialReport, WorkersLost

_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 30.0
"""Shortest and longest pause before a trial that lost its workers continues on new ones."""

Reports = Generator[TrialReport | None, None, None]
"""Reports of a trial, and None about once a second while there is none.

After a report, the trial continues when the next one is asked for, and stops when the generator is closed.
"""


def run_trial(suggestion: Mapping[str, Any], spec: TrialSpec, run: Callable[[TrialJob], Reports]) -> Reports:
    """Run a trial from its last checkpoint on, on new workers whenever it loses them.

    Args:
        suggestion: the fields of `orchestrator.study.base.Suggestion`.
        spec: what all trials of the job share.
        run: runs the trial once, as `WorkerGroup.run` does.
    """
    attempts = _Attempts(spec, suggestion["number"], suggestion["values"])
    trained = suggestion["checkpoint"]
    for attempt in itertools.count():
        try:
            checkpoint = attempts.last_checkpoint()
            job = TrialJob(
                suggestion["number"],
                suggestion["values"],
                suggestion["config"],
                trained or checkpoint,
                trained=trained is not None,
            )
            with contextlib.closing(run(job)) as reports:
                for report in reports:
                    if isinstance(report, Trained):
                        trained = report.checkpoint
                    yield report
            return
        except (TrialError, WorkersLostError, StorageError, OSError) as error:
            consequence = attempts.consequence(error)
        yield consequence
        if not isinstance(consequence, WorkersLost):
            return
        yield from _pause(attempt)


class _Attempts:
    """The attempts of one trial, and what follows from the failure of each."""

    def __init__(self, spec: TrialSpec, number: int, values: Mapping[str, Any]) -> None:
        self._spec, self._folder = spec, spec.trial_folder(number, values)
        self._policy = FailurePolicy(0, 0)
        self._is_open = False
        self._last: str | None = None
        self._hangs: set[str] = set()

    def last_checkpoint(self) -> str | None:
        """Return the path of the checkpoint from which the next attempt continues; raises OSError."""
        if not self._is_open:
            self._folder.create()
            self._hangs = set(self._folder.hangs())
            self._policy = FailurePolicy(epoch_of(self._folder.last_checkpoint()), len(self._hangs))
            self._is_open = True
        self._last = self._folder.last_checkpoint()
        if self._last is not None:
            self._folder.delete_all_but(self._last)
        return self._last

    def consequence(self, error: Exception) -> TrialReport:
        """Return what follows from what an attempt raised."""
        try:
            return self._judge(error)
        except OSError as failure:
            return self._judge(failure)

    def _judge(self, error: Exception) -> TrialReport:
        if isinstance(error, OSError):
            if is_full(error) or is_misplaced(error):
                return Halted(f"storage: {error}")
            error = WorkersLostError(one_line(f"storage: {error}", 500), "", True, is_refused(error))
        hung, storage_answers = False, True
        if isinstance(error, WorkersLostError):
            if error.by_storage:
                storage_answers = self._folder.can_be_written()
                with contextlib.suppress(OSError):
                    self._last = self._folder.last_checkpoint()
            else:
                self._last, hangs = self._folder.last_checkpoint(), set(self._folder.hangs())
                hung, self._hangs = bool(hangs - self._hangs), hangs
        decision = self._policy.decide(
            error, epoch=epoch_of(self._last), hung=hung, storage_answers=storage_answers
        )
        if decision is Decision.RETRY:
            return WorkersLost(one_line(error, 500))
        if decision is Decision.HALT:
            return Halted(str(error))
        if self._policy.has_hung:
            reason = f"{self._policy.reason}: no report for {self._spec.report_timeout:g} s"
            return Failed(reason, self._stacks())
        return Failed(
            self._policy.reason, error.log if isinstance(error, TrialError | WorkersLostError) else ""
        )

    def _stacks(self) -> str:
        """Return the stacks of the last worker that hung, unless the storage does not give them."""
        try:
            return self._folder.read(max(self._hangs))
        except OSError as error:
            return f"storage: {error}"


def _pause(attempt: int) -> Iterator[None]:
    """Wait for a random time that grows with the number of attempts before."""
    longest = min(_MAX_PAUSE_SECONDS, 2.0 ** min(attempt, 10))
    until = time.monotonic() + random.uniform(_MIN_PAUSE_SECONDS, max(longest, _MIN_PAUSE_SECONDS))
    while (remaining := until - time.monotonic()) > 0:
        time.sleep(min(remaining, POLL_SECONDS))
        yield None
