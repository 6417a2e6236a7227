"""An ordered outbox: writes to a tracking server are handed over and delivered from one background thread.

MLflow's own `log_batch(..., synchronous=False)` is not used: a batch that fails is logged as an error and
dropped, its flush and its exit hook have no time limit, and runs created or ended in between overtake it.
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

# Answers that would be the same the next time; all else (down, restarting, overloaded, signed out) may pass.
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


class Outbox:
    """Delivers jobs in the order they were posted; the caller never waits.

    A job that fails because the server is away stays at the head and is tried again with the next post or
    flush, so a job must be safe to repeat. A job the server refuses for good is dropped and named by `flush`.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._jobs: deque[tuple[str, Callable[[], None]]] = deque()
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._delivery: Future[None] | None = None
        self._trouble = ""
        self._refused: list[str] = []

    def post(self, what: str, job: Callable[[], None]) -> None:
        """Queue `job`; `what` names it in messages, such as "epoch 3 of trial 7"."""
        with self._lock:
            self._jobs.append((what, job))
            self._start()

    def deliver(self) -> None:
        """Try to deliver what is waiting; returns at once."""
        with self._lock:
            if self._jobs:
                self._start()

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    def trouble(self) -> str:
        """How many jobs wait for a server that is away, and why; nothing while it answers."""
        with self._lock:
            return f"{len(self._jobs)} records for {self._server}: {self._trouble}" if self._trouble else ""

    def flush(self, timeout: float) -> str | None:
        """Wait at most `timeout` seconds for everything posted so far.

        Returns None when all of it arrived, else one line that says what did not and why.
        """
        with self._lock:
            delivery = self._start()
        try:
            delivery.result(timeout)
        except FutureTimeoutError:
            self._trouble = self._trouble or f"no answer within {timeout:g} s"
        if self._jobs:
            first = f"{self._jobs[0][0]}: {self._trouble}"
            return f"tracking: {len(self._jobs)} writes not delivered to {self._server}, the first is {first}"
        if self._refused:
            first, number = self._refused[0], len(self._refused)
            return f"tracking: {number} writes refused by {self._server}, the first is {first}"
        return None

    def close(self, timeout: float) -> str | None:
        """Flush, then stop; what is still waiting is given up."""
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
                        self._trouble, self._delivery = one_line(error), None
                    return
                kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
                self._refused.append(f"{what}: {kind}{one_line(error)}")
            with self._lock:
                if self._jobs:
                    self._jobs.popleft()
            self._trouble = ""

    def _head(self) -> tuple[str, Callable[[], None]] | None:
        with self._lock:
            if not self._jobs:
                self._delivery = None  # under the lock, so that the next post starts a delivery
                return None
            return self._jobs[0]


def _is_temporary(error: Exception) -> bool:
    return isinstance(error, OSError) or (
        isinstance(error, MlflowException) and error.error_code not in _FINAL
    )


def one_line(error: Exception, limit: int = 200) -> str:
    """The cause of a failed request in one line: connection errors arrive wrapped many levels deep."""
    text = " ".join(str(error).split())
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
        if sign in text:
            return meaning
    return text if len(text) <= limit else text[: limit - 1] + "…"
