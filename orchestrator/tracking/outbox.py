"""An outbox: writes to a tracking server are queued, and delivered by one background thread.

MLflow's own `log_batch(..., synchronous=False)` is not used: it logs and drops a batch that fails, its flush
and exit hook have no time limit, and the creation and end of runs overtake its batches.
"""

import http
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    ErrorCode,
)
from urllib3.exceptions import HTTPError

from orchestrator.errors import LeaseLostError, StorageError, one_line

_FINAL = {ErrorCode.Name(code) for code in (BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS)}
"""Error codes of a record that no store accepts. Others may be temporary: the server is down, overloaded or
signed out, or someone deleted a run, which can be restored."""

_MAX_FAILURES = 5
"""Failures in a row after which the server counts as away until the next attempt."""

Subject = int | str
"""What jobs are about: a trial by its number, or anything else by its name."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    position: int
    """Number of jobs that were posted before."""

    what: str
    write: Callable[[], None]
    after_all: bool


class Outbox:
    """Delivers jobs in the background; the caller never waits.

    The jobs of one subject are delivered in the order in which they were posted. A job that fails waits with
    the later ones of its subject, while those of other subjects go on. It is tried again when its subject is
    posted to, and at `deliver` and `flush`, so a job must be safe to repeat. A job whose record no store
    would accept is dropped, and named by `flush`.
    """

    def __init__(self, server: str, check: Callable[[], None] = lambda: None) -> None:
        """Deliver to ``server``; ``check`` raises LeaseLostError when nothing may be delivered any more."""
        self._server, self._check = server, check
        self._waiting: dict[Subject, deque[_Job]] = {}
        self._failures: dict[Subject, int] = {}
        """How often the first job of a subject has failed."""

        self._tried: set[Subject] = set()
        """Subjects that wait until the next attempt."""

        self._problem = ""
        """Why something waits; empty while all is delivered."""

        self._posted = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._delivery: Future[None] | None = None
        self.refused: list[str] = []
        """What the server refused, with its reasons."""

    def post(
        self, what: str, write: Callable[[], None], subject: Subject = "", *, after_all: bool = False
    ) -> None:
        """Queue a job.

        Args:
            what: name of the job in messages, such as "epoch 3 of trial 7".
            write: delivers it.
            subject: what it is about.
            after_all: whether to skip the job if anything posted before it is not delivered when its turn
                comes.
        """
        with self._lock:
            self._waiting.setdefault(subject, deque()).append(_Job(self._posted, what, write, after_all))
            self._posted += 1
            self._tried.discard(subject)
            self._start()

    def deliver(self) -> None:
        """Try to deliver what waits; return at once."""
        with self._lock:
            self._tried.clear()
            if self._waiting:
                self._start()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        with self._lock:
            return self._count()

    def waits(self, subject: Subject) -> bool:
        """Return whether a job of a subject waits."""
        return subject in self._waiting

    def problem(self) -> str:
        """Return how many jobs wait for the server and why, and how many it refused; else an empty line."""
        with self._lock:
            lines = [f"{self._count()} records for {self._server}: {self._problem}"] if self._problem else []
        if self.refused:
            lines.append(
                f"{len(self.refused)} records refused by {self._server}, the first: {self.refused[0]}"
            )
        return "; ".join(lines)

    def flush(self, timeout: float) -> str | None:
        """Wait at most `timeout` seconds until everything posted so far is delivered.

        Returns None, or one line about what was not delivered and why.
        """
        end = time.monotonic() + timeout
        try:
            with self._lock:
                running = self._delivery
            if running is not None:  # it does not repeat what failed before this call
                running.result(timeout)
            with self._lock:
                delivery = self._start()
            delivery.result(max(0.0, end - time.monotonic()))
        except FutureTimeoutError:
            self._problem = self._problem or f"no answer within {timeout:g} s"
        with self._lock:
            if self._waiting:
                first = min((jobs[0] for jobs in self._waiting.values()), key=lambda job: job.position)
                begin = f"tracking: {self._count()} writes not delivered to {self._server}"
                return f"{begin}, the first is {first.what}: {self._problem}"
        if self.refused:
            first_refused, number = self.refused[0], len(self.refused)
            return f"tracking: {number} writes refused by {self._server}, the first is {first_refused}"
        return None

    def close(self, timeout: float) -> str | None:
        """Flush and stop; what still waits is dropped."""
        line = self.flush(timeout)
        with self._lock:
            self._waiting.clear()
            self._executor.shutdown(wait=False, cancel_futures=True)
        return line

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _start(self) -> Future[None]:
        if self._delivery is None:
            self._delivery = self._executor.submit(self._deliver)
        return self._delivery

    def _deliver(self) -> None:
        """Try each subject until its jobs are delivered or one of them fails."""
        with self._lock:
            self._tried.clear()
        failures = 0
        while (found := self._next(failures)) is not None:
            subject, job = found
            try:
                self._check()
                if not (job.after_all and self._is_held_up(job)):
                    job.write()
            except LeaseLostError:
                self._drop()
                return
            except Exception as error:  # of any kind: it must not end the deliveries after it
                if _is_temporary(error):
                    failures = _MAX_FAILURES if is_away(error) else failures + 1
                    reason = describe_error(error)
                    if isinstance(
                        error, StorageError
                    ):  # it is needed to make sure that no other driver writes
                        reason = f"not sent while the {reason}"
                    self._note_failure(subject, job, reason)
                    continue
                kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
                self.refused.append(f"{job.what}: {kind}{describe_error(error)}")
                _log.warning("%s refused %s", self._server, self.refused[-1])
            failures = 0
            self._remove(subject)

    def _drop(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._failures.clear()
            self._problem, self._delivery = "", None

    def _next(self, failures: int) -> tuple[Subject, _Job] | None:
        """Return the job to try next: of the least failures, so that no subject is left out for ever."""
        with self._lock:
            left = [subject for subject in self._waiting if subject not in self._tried]
            if not left or failures >= _MAX_FAILURES:
                self._delivery = None  # under the lock, so that the next post starts a delivery
                return None
            first = min(left, key=lambda each: (self._failures.get(each, 0), self._waiting[each][0].position))
            return first, self._waiting[first][0]

    def _is_held_up(self, job: _Job) -> bool:
        with self._lock:
            earlier = any(jobs[0].position < job.position for jobs in self._waiting.values())
        return bool(self.refused) or earlier

    def _note_failure(self, subject: Subject, job: _Job, reason: str) -> None:
        with self._lock:
            self._tried.add(subject)
            self._failures[subject] = self._failures.get(subject, 0) + 1
            if not self._problem:
                _log.warning("%s does not have %s: %s; it is kept", self._server, job.what, reason)
            self._problem = reason

    def _remove(self, subject: Subject) -> None:
        with self._lock:
            self._failures.pop(subject, None)
            if subject in self._waiting:  # `close` may have dropped it
                self._waiting[subject].popleft()
                if not self._waiting[subject]:
                    del self._waiting[subject]
            if self._problem and not self._failures:
                _log.info("%s accepts records again", self._server)
                self._problem = ""


def is_final(error: MlflowException) -> bool:
    """Return whether no store would accept the record, so that a retry would not change that.

    MLflow 3 gives the record of a deleted run, which can be restored, the code of an invalid value.
    """
    return error.error_code in _FINAL and "must be in the 'active' state" not in str(error)


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return not is_final(error)
    return isinstance(error, OSError | BotoCoreError | Boto3Error | ClientError | HTTPError | StorageError)


def cannot_answer(status: int) -> bool:
    """Return whether an HTTP status says that the server cannot answer now."""
    return status == 429 or status >= 500


def is_unreachable(error: Exception) -> bool:
    """Return whether a server did not answer, or cannot answer now."""
    if isinstance(error, RestException):  # other exceptions of MLflow have the code 500 by default
        return cannot_answer(error.get_http_status_code())
    answer = re.search(r"failed with error code (\d+) != 200", str(error))  # without a body of MLflow's
    return cannot_answer(int(answer[1])) if answer else is_away(error)


def is_away(error: Exception) -> bool:
    """Return whether no server answered, so that other jobs would wait for it in vain."""
    if isinstance(error, MlflowException):
        return "failed with exception" in str(error) or "timeout exception" in str(error)
    if isinstance(error, requests.HTTPError):  # an answer
        return False
    return isinstance(error, requests.RequestException | ConnectionError | TimeoutError)


def _phrase(code: str) -> str:
    """Return the words for a status of HTTP."""
    return http.HTTPStatus(int(code)).phrase if int(code) in set(http.HTTPStatus) else "an error"


def describe_error(error: Exception, limit: int = 200) -> str:
    """Return the cause of a failed request in one line.

    Connection errors are wrapped many levels deep by requests 2 and urllib3 2, whose texts are matched here.
    """
    text = one_line(error, 10 * limit)
    if of_database := re.search(
        r"\((?:sqlite3|psycopg2)\.[\w.]+\) (.+?)(?: \[SQL:| \(Background on|$)", text
    ):
        return one_line(of_database[1], limit)  # without what SQLAlchemy 2 adds
    if answer := re.search(r"failed with error code (\d+) != 200\. Response body: '(.*)", text):
        body = "" if answer[2].startswith("<") else answer[2].rstrip("'")
        return f"{one_line(body, limit) or _phrase(answer[1])} ({answer[1]})"
    if answer := re.search(r"too many (\d+) error responses", str(error)):
        return f"the server answers {_phrase(answer[1])} ({answer[1]}), again and again; see its log"
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
        ("not in a valid JSON format", "the answer is not MLflow's, but for example the page of a login"),
    ):
        if sign in str(error):
            return meaning
    return one_line(text, limit)
