"""A job handed to a cluster that goes on without the machine it came from: ``--submit http://head:8265``."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from orchestrator.config.document import Document, Override
from orchestrator.console.progress import Progress
from orchestrator.errors import InputError
from orchestrator.storage import lookup as existing

_JOB = "job"
"""Key of a Ray job's metadata by which the job of a sweep is found again."""

_AWAY = (ConnectionError, OSError, RuntimeError, aiohttp.ClientError)
"""What Ray's client raises when the head does not answer, or the connection breaks."""


class _GoneError(Exception):
    """The cluster does not know the job."""


def submit(command: str, file: str, given: Sequence[Override], address: str, progress: Progress) -> int:
    """Have a cluster run a command of ours, follow its log, and give its exit code.

    The working directory is sent along, less what ``.gitignore`` names. The same call finds a job again that
    runs there already. Of this machine's environment the job gets the variables that its file names.

    Args:
        command: such as ``python -m orchestrator.sweep FILE``.
        file: the file of the job, in the working directory.
        given: overrides of its values.
        address: of the Ray dashboard, such as ``http://head:8265``.
        progress: told of every step.

    Raises:
        InputError: nothing can be submitted there; nothing was.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--submit {address}: is no address of a Ray dashboard; write http://HOST:8265")
    if not Path(file).resolve().is_relative_to(Path.cwd()):
        raise InputError(
            f"{file}: lies outside of the working directory, which is what is sent; go there first"
        )
    place, title = existing.of_file(file, given)
    key = f"{place}/{title}"
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.ERROR)
    with progress.doing(f"asking {address}"):
        client = _client(address)
        try:
            job = next((each for each in client.list_jobs() if _runs(each, key)), None)
        except _AWAY as error:
            raise InputError(f"--submit {address}: {_line(error)}") from error
    if job is None:
        with progress.doing(f"sending the working directory to {address}"):
            document = Document.read(Path(file))
            for override in given:
                document.set(override)
            names = document.variables()
            environment = {name: os.environ[name] for name in names if os.environ.get(name)}
            try:
                number = client.submit_job(
                    entrypoint=command,
                    runtime_env={"working_dir": ".", "env_vars": environment},
                    metadata={_JOB: key},
                )
            except (*_AWAY, ValueError) as error:  # such as a directory that is too large to send
                raise InputError(f"--submit {address}: {_line(error)}") from error
        progress.say(f"{title} runs as {number} on {address}, and goes on without this terminal")
    elif job.entrypoint != command:
        raise InputError(
            f"--submit {address}: {title} runs there already, by another command line ({job.entrypoint}); "
            f"stop it first: python -m orchestrator.stop {key}, or ray job stop {job.submission_id}"
        )
    else:
        number = str(job.submission_id)
        progress.say(f"{title} runs there already as {number}; this is its log")
    return _conclude(client, number, address, progress)


def _client(address: str) -> JobSubmissionClient:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else a RAY_ADDRESS of the user's would be asked
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"--submit {address}: it does not accept the token; RAY_AUTH_TOKEN_PATH names the file with "
            "the cluster's (default: ~/.ray/auth_token), RAY_AUTH_MODE=token has it sent"
        ) from error
    except (*_AWAY, requests.RequestException) as error:
        raise InputError(f"--submit {address}: no Ray dashboard answers there: {_line(error)}") from error


def _runs(job: JobDetails, key: str) -> bool:
    return (job.metadata or {}).get(_JOB) == key and not job.status.is_terminal()


def _conclude(client: JobSubmissionClient, number: str, address: str, progress: Progress) -> int:
    """Follow a job to its end, however often the connection breaks; gives its exit code."""
    shown = 0
    pressed = threading.Event()

    def press(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def follow() -> JobDetails:
        nonlocal shown

        async def show() -> None:
            nonlocal shown
            position = 0
            async for text in client.tail_job_logs(number):
                new = text[max(0, shown - position) :]
                position += len(text)
                shown = max(shown, position)
                sys.stdout.write(new)
                sys.stdout.flush()

        broken: Exception = ConnectionError("the log broke off")
        try:
            asyncio.run(show())
        except _AWAY as error:
            broken = error
        if pressed.is_set():
            raise KeyboardInterrupt
        job = _look(client, number)
        if not job.status.is_terminal():
            raise broken
        return job

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        away = isinstance(error, requests.ConnectionError | aiohttp.ClientConnectionError)
        reason = "it does not answer" if away else _line(error)
        progress.say(f"{address}: {reason}; the job may go on without us, trying again")

    retrying = Retrying(
        retry=retry_if_exception_type(_AWAY),
        wait=wait_random_exponential(min=0.5, max=30),
        before_sleep=tell,
    )
    # With Python's own handler, asyncio makes Ctrl-C a cancellation, which what runs in it may swallow.
    before = signal.signal(signal.SIGINT, press)
    try:
        job: JobDetails = retrying(follow)
    except _GoneError:
        progress.say(f"{address} knows no {number}: it began anew; the same command goes on with the job")
        return 1
    except AuthenticationError as error:
        progress.say(f"{address} does not accept the token any more: {_line(error)}; {number} goes on")
        return 1
    except KeyboardInterrupt:
        progress.say(
            f"{number} goes on; the same command follows it again, and ray job stop {number} ends it"
        )
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
    if job.driver_exit_code is None:
        progress.say(f"{number} {job.status.value.lower()}: {_line(job.message)}")
        return 1
    return int(job.driver_exit_code)


def _look(client: JobSubmissionClient, number: str) -> JobDetails:
    try:
        return client.get_job_info(number)
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise _GoneError from error
        raise


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
