"""What a failure of a trial means, and whether the trial is tried again; without Ray running."""

import errno
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from orchestrator.errors import StorageError, TrialError
from orchestrator.execution.failures import (
    MAX_ATTEMPTS,
    MAX_HANGS,
    Decision,
    FailurePolicy,
    WorkersLostError,
    classify_controller_failure,
    classify_worker_failures,
    explain,
)

LOST = WorkersLostError("its node died", "log", by_storage=False)
OUTSIDE = WorkersLostError("storage: no answer", "log", by_storage=True)


class WorkerHealthCheckFailedError(Exception):
    """Stands for Ray Train's error of this name."""

    def __init__(self, message: str, failure: BaseException) -> None:
        super().__init__(message)
        self.health_check_failure = failure


class ControllerError(Exception):
    """Stands for Ray Train's error of a run whose controller failed."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__(f"Training failed due to controller error:\n{failure}")
        self.controller_failure = failure


def policy(epoch: int = 0, hangs: int = 0) -> FailurePolicy:
    return FailurePolicy(epoch, hangs)


def decide(
    policy: FailurePolicy,
    error: Exception = LOST,
    epoch: int = 0,
    hung: bool = False,
    storage_answers: bool = False,
) -> Decision:
    return policy.decide(error, epoch=epoch, hung=hung, storage_answers=storage_answers)


def task_error(cause: BaseException) -> RayTaskError:
    return RayTaskError("fit", "the traceback", cause)


def test_policy_on_a_full_storage_halts() -> None:
    subject = policy()
    assert decide(subject, StorageError("storage: no space left", full=True)) is Decision.HALT
    assert subject.reason == "storage: no space left"


def test_policy_on_an_error_of_the_trial_fails() -> None:
    subject = policy()
    assert decide(subject, TrialError("RuntimeError: no", "log")) is Decision.FAIL
    assert subject.reason == "RuntimeError: no"


def test_policy_on_lost_workers_retries() -> None:
    subject = policy()
    assert decide(subject) is Decision.RETRY
    assert subject.reason == ""


def test_policy_on_losses_without_progress_fails() -> None:
    subject = policy()
    decisions = [decide(subject) for _ in range(MAX_ATTEMPTS)]
    assert decisions == [Decision.RETRY] * (MAX_ATTEMPTS - 1) + [Decision.FAIL]
    assert subject.reason == f"its node died, {MAX_ATTEMPTS} times without progress"
    assert not subject.has_hung


def test_policy_on_refusals_fails_at_the_second() -> None:
    subject = policy()
    refused = WorkersLostError("storage: ACCESS_DENIED.", "log", by_storage=True, refused=True)
    assert decide(subject, refused, storage_answers=True) is Decision.RETRY
    assert decide(subject, refused) is Decision.RETRY  # now it takes no file at all
    assert decide(subject, refused, storage_answers=True) is Decision.FAIL
    assert subject.reason == "storage: ACCESS_DENIED, 2 times without progress"


def test_policy_on_progress_counts_losses_anew() -> None:
    subject = policy()
    for epoch in range(4):
        for _ in range(MAX_ATTEMPTS - 1):
            assert decide(subject, epoch=epoch) is Decision.RETRY
    assert decide(subject, epoch=3) is Decision.FAIL


def test_policy_on_the_checkpoint_it_began_with_sees_none() -> None:
    subject = policy(epoch=1)
    decisions = [decide(subject, epoch=1) for _ in range(MAX_ATTEMPTS)]
    assert decisions[-1] is Decision.FAIL and decisions.count(Decision.FAIL) == 1


def test_policy_on_a_checkpoint_that_is_damaged_again_and_again_fails() -> None:
    subject = policy()
    decisions = [decide(subject, epoch=1 + attempt % 2) for attempt in range(MAX_ATTEMPTS + 1)]
    assert decisions == [Decision.RETRY] * MAX_ATTEMPTS + [
        Decision.FAIL
    ]  # the second one is of a later epoch


def test_policy_on_causes_outside_of_the_cluster_retries() -> None:
    subject = policy()
    assert {decide(subject, OUTSIDE) for _ in range(20 * MAX_ATTEMPTS)} == {Decision.RETRY}


def test_policy_on_outside_causes_keeps_the_count_of_losses() -> None:
    subject = policy()
    for _ in range(MAX_ATTEMPTS - 1):
        decide(subject)
        decide(subject, OUTSIDE)
    assert decide(subject) is Decision.FAIL


def test_policy_on_the_second_hang_fails() -> None:
    subject = policy()
    assert decide(subject, hung=True) is Decision.RETRY
    assert not subject.has_hung
    assert decide(subject, epoch=1, hung=True) is Decision.FAIL
    assert subject.has_hung
    assert subject.reason == f"it hung {MAX_HANGS} times"


class Unprintable(Exception):  # noqa: N818
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("hangs", [1, 2, 9])
def test_policy_on_earlier_hangs_gives_one_more_attempt(hangs: int) -> None:
    subject = policy(hangs=hangs)
    assert not subject.has_hung
    assert decide(subject) is Decision.RETRY
    assert decide(subject, hung=True) is Decision.FAIL


def test_worker_failure_of_a_full_storage_is_that_error() -> None:
    full = StorageError("storage: no space left", full=True)
    failures = {0: ActorDiedError(), 1: StorageError("storage: no answer"), 2: full}
    assert classify_worker_failures(failures, "log") is full


@pytest.mark.parametrize(("missing", "by_storage"), [(False, True), (True, False)])
def test_worker_failure_of_the_storage_is_lost_workers(missing: bool, by_storage: bool) -> None:
    failures = {0: RuntimeError("of the trainable"), 1: StorageError("storage: no answer", missing=missing)}
    error = classify_worker_failures(failures, "log")
    assert isinstance(error, WorkersLostError)
    assert (error.reason, error.log, error.by_storage) == ("storage: no answer", "log", by_storage)


def test_worker_failure_of_a_refusal_says_so() -> None:
    error = classify_worker_failures({0: StorageError("storage: denied", refused=True)}, "log")
    assert isinstance(error, WorkersLostError)
    assert error.refused and error.by_storage


def test_worker_failure_of_a_machine_precedes_others() -> None:
    failures = {0: task_error(ConnectionError("peer closed")), 1: NodeDiedError("its node died")}
    error = classify_worker_failures(failures, "log")
    assert isinstance(error, WorkersLostError)
    assert (error.reason, error.by_storage) == ("its node died", False)


def test_worker_failure_of_a_health_check_is_lost_workers() -> None:
    failure = WorkerHealthCheckFailedError("worker 0", NodeDiedError("its node died"))
    error = classify_worker_failures({0: failure}, "log")
    assert isinstance(error, WorkersLostError)
    assert error.reason == "its node died"


def test_worker_failure_of_the_trainable_fails_the_trial() -> None:
    failures = {1: RuntimeError("second"), 0: ValueError("first\nmore")}
    error = classify_worker_failures(failures, "log")
    assert isinstance(error, TrialError)
    assert (error.reason, error.log) == ("ValueError: first", "log")


def test_worker_failure_in_a_ray_task_fails_the_trial() -> None:
    error = classify_worker_failures({0: task_error(ValueError("no"))}, "log")
    assert isinstance(error, TrialError)
    assert error.reason == "ValueError: no"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "Memory on the node was running low on memory, which was 7.6GB used / 8.0GB limit (95%)",
            "out of memory: its node ran low, 7.6GB used / 8.0GB limit",
        ),
        ("the node is running low on memory", "out of memory: its node ran low"),
    ],
)
def test_worker_failure_of_memory_fails_the_trial(log: str, reason: str) -> None:
    error = classify_worker_failures({0: OutOfMemoryError("killed")}, log)
    assert isinstance(error, TrialError)
    assert error.reason == reason


@pytest.mark.parametrize(
    "failure", [OSError(errno.EIO, "input/output error"), RuntimeError("AWS Error NETWORK_CONNECTION")]
)
def test_controller_failure_of_the_storage_is_told(failure: BaseException) -> None:
    error = classify_controller_failure(ControllerError(failure))
    assert error.by_storage
    assert error.reason.startswith("storage: ")


def test_controller_failure_of_its_process_is_not_of_the_storage() -> None:
    error = classify_controller_failure(ControllerError(ActorDiedError()))
    assert not error.by_storage
    assert error.reason == "The actor died unexpectedly before finishing this task."


def test_controller_failure_in_a_task_is_told_from_its_cause() -> None:
    error = classify_controller_failure(task_error(PermissionError(errno.EACCES, "refused")))
    assert error.by_storage
    assert error.reason == "storage: PermissionError: [Errno 13] refused"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(""), "ValueError: no message"),
        (ValueError("a\0b\udc80"), "ValueError: a?b?"),
        (Unprintable(), "Unprintable: Unprintable, whose text raises RuntimeError"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 485 + "..."),
        (NodeDiedError("many\nlines\nits node died"), "its node died"),
        (NodeDiedError("it died. Some common causes are: (1) ..."), "it died."),
        (task_error(KeyError("name")), "KeyError: 'name'"),
    ],
)
def test_explanation_of_an_error_is_one_short_line(error: Any, line: str) -> None:
    assert explain(error) == line
