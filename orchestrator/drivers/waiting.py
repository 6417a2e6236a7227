"""Waits for servers and a storage that do not answer."""

import logging
import time

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from orchestrator.console.progress import Progress
from orchestrator.errors import UnreachableError

PATIENCE_SECONDS = 3600.0
"""How long a job that has trained waits."""

_WAIT_SECONDS = 10.0
"""Time between two tries to reach a server."""

_log = logging.getLogger(__name__)


def waiting(seconds: float, progress: Progress) -> Retrying:
    """Return what calls a function again, for so many seconds, while a server or the storage does not answer.

    Each reason is logged once.
    """
    told: set[str] = set()

    def tell(state: RetryCallState) -> None:
        line = str(state.outcome.exception() if state.outcome else "")
        if line not in told:
            told.add(line)
            _log.warning("%s", line)

    def sleep(duration: float) -> None:
        with progress.activity(lambda: "waiting for an answer"):
            time.sleep(duration)

    return Retrying(
        retry=retry_if_exception(_is_silence),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(_WAIT_SECONDS),
        before_sleep=tell,
        sleep=sleep,
        reraise=True,
    )


def _is_silence(error: BaseException) -> bool:
    return isinstance(error, UnreachableError) or getattr(error, "unreachable", False)
