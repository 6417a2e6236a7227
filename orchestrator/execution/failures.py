"""The cause of a trial's failure, and whether the trial is retried."""

import re
from collections.abc import Mapping
from enum import Enum, auto

from ray.exceptions import RayError, RayTaskError

from orchestrator.errors import InputError, StorageError, TrialError, one_line, plain_text

MAX_HANGS = 2
"""How often a trial may hang before it fails."""

MAX_ATTEMPTS = 5
"""How often in a row a trial may lose its workers without a new checkpoint before it fails."""

_MAX_REFUSALS = 2
"""The same, where the storage refuses it something and takes other files."""

_REASON_CHARACTERS = 500


class WorkersLostError(Exception):
    """A trial lost its workers by a fault of a machine or of the storage.

    ``by_storage``: the storage is the cause. Such a trial is retried without limit while the storage takes no
    file at all. ``refused``: the storage does not permit the request.
    """

    def __init__(self, reason: str, log: str, by_storage: bool, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.log, self.by_storage, self.refused = reason, log, by_storage, refused


class Decision(Enum):
    """The consequence of a failure."""

    RETRY = auto()
    """The trial resumes from its last checkpoint."""

    FAIL = auto()
    """The trial has failed; the job continues."""

    HALT = auto()
    """No trial can continue."""


class FailurePolicy:
    """Decides the consequences of the failures of one trial, in order.

    A trial fails when it raises an exception, when it hangs for the second time, or when it loses its workers
    five times in a row without progress, or twice because the storage refuses it something. Progress is a
    checkpoint of a later epoch than any before. A full storage halts all trials, and so does one with a file
    in the place of a folder. One that takes no file for another reason is waited for.
    """

    def __init__(self, epoch: int, hangs: int) -> None:
        """Start with the epoch of the trial's last checkpoint, and the number of times it hung before."""
        self._epoch = epoch
        self._hangs = min(hangs, MAX_HANGS - 1)  # rerunning the command gives one more attempt
        self._attempts = 0
        self.reason = ""
        """Why the trial has failed, once it has."""

    @property
    def has_hung(self) -> bool:
        """Whether the trial has failed because it hung."""
        return self._hangs >= MAX_HANGS

    def decide(self, error: Exception, *, epoch: int, hung: bool, storage_answers: bool) -> Decision:
        """Return the consequence of a failure.

        Args:
            error: what an attempt raised.
            epoch: that of the last checkpoint now, 0 if there is none. It falls when a checkpoint is damaged.
            hung: whether a worker was ended because it hung.
            storage_answers: whether the storage takes other files now.
        """
        if isinstance(error, StorageError):
            self.reason = str(error)
            return Decision.HALT
        if not isinstance(error, WorkersLostError):
            self.reason = str(error)
            return Decision.FAIL
        if error.by_storage and not storage_answers:
            return Decision.RETRY
        self._hangs += hung
        self._attempts = 1 if epoch > self._epoch else self._attempts + 1
        self._epoch = max(epoch, self._epoch)
        if self._hangs >= MAX_HANGS:
            self.reason = f"it hung {MAX_HANGS} times"
            return Decision.FAIL
        if self._attempts >= (_MAX_REFUSALS if error.refused else MAX_ATTEMPTS):
            self.reason = f"{error.reason.rstrip('.')}, {self._attempts} times without progress"
            return Decision.FAIL
        return Decision.RETRY


def classify_worker_failures(failures: Mapping[int, BaseException], log: str) -> Exception:
    """Return the cause of the failures of a worker group, by rank, as the error of this package.

    When a machine fails, the workers on other machines fail with it; its failure is the cause.
    """
    errors = list(failures.values())
    storage = [error for error in errors if isinstance(error, StorageError)]
    for error in storage:
        if error.full:
            return error
    for error in storage:
        return WorkersLostError(str(error), log, not error.missing, error.refused)
    machine = next((error for error in errors if _is_machine_failure(error)), None)
    if machine is None:
        return TrialError(explain(failures[min(failures)]), log)
    if "running low on memory" in log:  # the words of Ray 2.60, which kills the worker that takes too much
        usage = re.search(r"running low on memory.* was (\S+ used / \S+ limit)", log)
        return TrialError(f"out of memory: its node ran low{', ' + usage[1] if usage else ''}", log)
    return WorkersLostError(explain(machine), log, by_storage=False)


def classify_controller_failure(error: BaseException) -> WorkersLostError:
    """Return the error of this package for a failure of Ray Train's controller, or for a preemption."""
    reason = explain(getattr(error, "controller_failure", error))
    # The controller runs no code of a trainable. One that dies at its start leaves only text of PyArrow 25.
    by_storage = isinstance(_root_cause(error), OSError) or "AWS Error" in str(error)
    return WorkersLostError(f"storage: {reason}" if by_storage else reason, str(error), by_storage=by_storage)


def explain(error: BaseException) -> str:
    """Return one line for what was raised inside a Ray task or actor."""
    error = _root_cause(error)
    if isinstance(error, InputError):
        return str(error)
    lines = [line for line in plain_text(error).splitlines() if line.strip()] or ["no message"]
    line = lines[-1] if isinstance(error, RayError) else f"{type(error).__name__}: {lines[0]}"
    return one_line(line.partition(" Some common causes")[0], _REASON_CHARACTERS)


def _is_machine_failure(error: BaseException) -> bool:
    if isinstance(error, RayTaskError):  # raised by code of the trainable
        return False
    # Ray Train has no public names for what the health checks of its workers report.
    return isinstance(error, RayError) or type(error).__name__.startswith("WorkerHealthCheck")


def _root_cause(error: BaseException) -> BaseException:
    """Return what was raised first: Ray wraps what its tasks raise, and Ray Train what ended a worker."""
    for attribute in ("cause", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, attribute, None), BaseException):
            return _root_cause(inner)
    return error
