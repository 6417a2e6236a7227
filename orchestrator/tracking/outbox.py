"""An ordered outbox: writes to a tracking server are queued, and delivered by one background thread.

MLflow's own `log_batch(..., synchronous=False)` is not used: it logs and drops a batch that fails, its flush
and exit hook have no time limit, and the creation and end of runs overtake its batches.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from orchestrator.errors import one_line

_FINAL = {
    ErrorCode.Name(code)
    for code in (
        BAD_REQUEST,
        INVALID_PARAMETER_VALUE,
        INVALID_STATE,
        RESOURCE_ALREADY_EXISTS,
        RESOURCE_DOES_NOT_EXIST,
    )
}
"""Error codes that a retry would not change; others (down, overloaded, signed out) may be temporary."""


class Outbox:
    """Delivers jobs in the order in which they were posted; the caller never waits.

    A job that fails because the server does not answer stays at the head, and is tried again at the next post
    or flush, so a job must be safe to repeat. A job that the server refuses is dropped and named by `flush`.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._jobs: deque[tuple[str, Callable[[], None]]] = deque()
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._delivery: Future[None] | None = None
        self._problem = ""
        self.refused: list[str] = []
        """What the server refused, with its reasons."""

    def post(self, what: str, job: Callable[[], None]) -> None:
        """Queue `job`; `what` names it in messages, such as "epoch 3 of trial 7"."""
        with self._lock:
            self._jobs.append((what, job))
            self._start()

    def deliver(self) -> None:
        """Try to deliver what waits; return at once."""
        with self._lock:
            if self._jobs:
                self._start()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._jobs)

    def problem(self) -> str:
        """Return how many jobs wait for the server and why; empty while it answers."""
        with self._lock:
            return f"{len(self._jobs)} records for {self._server}: {self._problem}" if self._problem else ""

    def flush(self, timeout: float) -> str | None:
        """Wait at most `timeout` seconds until everything posted so far is delivered.

        Returns None, or one line about what was not delivered and why.
        """
        with self._lock:
            delivery = self._start()
        try:
            delivery.result(timeout)
        except FutureTimeoutError:
            self._problem = self._problem or f"no answer within {timeout:g} s"
        if self._jobs:
            first = f"{self._jobs[0][0]}: {self._problem}"
            return f"tracking: {len(self._jobs)} writes not delivered to {self._server}, the first is {first}"
        if self.refused:
            first, number = self.refused[0], len(self.refused)
            return f"tracking: {number} writes refused by {self._server}, the first is {first}"
        return None

    def close(self, timeout: float) -> str | None:
        """Flush and stop; what still waits is dropped."""
        line = self.flush(timeout)
        with self._lock:
            self._jobs.clear()
            self._executor.shutdown(wait=False, cancel_futures=True)
        return line

    def _start(self) -> Future[None]:
        if self._delivery is None:
            self._delivery = self._executor.submit(self._deliver)
        return self._delivery

    def _deliver(self) -> None:
        while (head := self._head()) is not None:
            what, job = head
            try:
                job()
            except (
                Exception
            ) as error:  # whatever a store's client raises must not end the deliveries after it
                if _is_temporary(error):
                    with self._lock:
                        self._problem, self._delivery = describe_error(error), None
                    return
                kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
                self.refused.append(f"{what}: {kind}{describe_error(error)}")
            with self._lock:
                if self._jobs:
                    self._jobs.popleft()
            self._problem = ""

    def _head(self) -> tuple[str, Callable[[], None]] | None:
        with self._lock:
            if not self._jobs:
                self._delivery = None  # under the lock, so that the next post starts a delivery
                return None
            return self._jobs[0]


def is_final(error: MlflowException) -> bool:
    """Return whether a server refuses a request, so that a retry would not change that."""
    return error.error_code in _FINAL


def _is_temporary(error: Exception) -> bool:
    return isinstance(error, OSError) or (isinstance(error, MlflowException) and not is_final(error))


def describe_error(error: Exception, limit: int = 200) -> str:
    """Return the cause of a failed request in one line.

    Connection errors are wrapped many levels deep by requests 2 and urllib3 2, whose texts are matched here.
    """
    text = one_line(error, limit)
    for sign, meaning in (
        ("Connection refused", "connection refused"),
        ("Name or service not known", "host name not known"),
        ("Temporary failure in name resolution", "host name not known"),
        ("Read timed out", "no answer in time"),
        ("timeout exception", "no answer in time"),
        ("timed out", "no answer in time"),
        ("Connection reset", "connection reset"),
        ("Connection aborted", "connection lost"),
        ("RemoteDisconnected", "connection lost"),
    ):
        if sign in str(error):
            return meaning
    return text
