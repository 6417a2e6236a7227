"""Submits a job to a Ray cluster, which runs it without this machine: ``--submit http://head:8265``."""

import asyncio
import getpass
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import requests
from pydantic import ValidationError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from orchestrator.config.document import Document, Override
from orchestrator.config.job import changes, flat_texts
from orchestrator.console.progress import Progress
from orchestrator.errors import InputError, UnreachableError, one_line, quote
from orchestrator.interrupt import Interrupt
from orchestrator.storage import lookup

_log = logging.getLogger(__name__)

_JOB = "job"
"""Key in the metadata of a Ray job by which the job of a sweep is found."""

_OWNER, _FILE = "owner", "file"
"""Keys of who sent it, and of the values of its file, in which variables are not filled."""

_UNREACHABLE = (ConnectionError, OSError, RuntimeError, aiohttp.ClientError)
"""What Ray's client raises when the head does not answer or the connection breaks."""


_NO_DASHBOARD = (KeyError, TypeError, requests.JSONDecodeError, ValidationError)
"""What Ray's client raises when another program answers."""


class _UnknownJobError(Exception):
    """The cluster does not know the job."""


def submit(
    command: str,
    file: str,
    overrides: Sequence[Override],
    address: str,
    progress: Progress,
    interrupt: Interrupt,
) -> int:
    """Run a command of this package on a cluster, follow its log, and return its exit code.

    The working directory is sent too, without the files that ``.gitignore`` names. A job that already runs
    there is followed. The job gets those environment variables of this machine that its file names.

    Args:
        command: such as ``python -m orchestrator.sweep FILE``, with the path that FILE has from the working
            directory.
        file: the file of the job, in the working directory.
        overrides: values that replace those of the file.
        address: Ray dashboard, such as ``http://head:8265``.
        progress: shows every step.
        interrupt: stops following the job, which continues.

    Raises:
        InputError: nothing can be submitted there, and nothing was.
        UnreachableError: no dashboard answers there.
    """
    _check_address(address)
    if not Path(file).resolve().is_relative_to(Path.cwd()):
        raise InputError(
            f"{file}: lies outside of the working directory, which is what is sent; change to its folder"
        )
    storage, name = lookup.job_of_file(file, overrides)
    key = f"{storage}/{name}"
    document = Document.read(Path(file))
    for override in overrides:
        document.set(override)
    _check_storage(os.path.expandvars(str(document.tree.get("storage", storage))))
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.ERROR)
    with progress.activity(f"asking {address}"):
        client = _client(address)
        try:
            job = next((job for job in client.list_jobs() if _is_running(job, key)), None)
        except _NO_DASHBOARD as error:
            raise _no_dashboard(address, error) from error
        except _UNREACHABLE as error:
            raise UnreachableError(f"--submit {address}: {one_line(error, 300)}") from error
    if job is None:
        with progress.activity(f"sending the working directory to {address}"):
            variables = document.variables()
            environment = {
                variable: os.environ[variable] for variable in variables if os.environ.get(variable)
            }
            try:
                job_id = client.submit_job(
                    entrypoint=command,
                    runtime_env={"working_dir": ".", "env_vars": environment},
                    metadata={_JOB: key, _OWNER: _owner(), _FILE: json.dumps(document.tree)},
                )
            except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
                raise UnreachableError(
                    f"--submit {address}: {one_line(error, 300)}; rerun the command, which follows the job "
                    "if the cluster has taken it"
                ) from error
            except (*_UNREACHABLE, ValueError) as error:  # such as a directory that is too large to send
                raise InputError(f"--submit {address}: {one_line(error, 300)}") from error
        _log.info("%s runs as %s on %s, and does not need this terminal", name, job_id, address)
    elif different := _differences(job, document):
        owner = (job.metadata or {}).get(_OWNER, "someone")
        raise InputError(
            f"--submit {address}: {name} already runs there with other settings, sent by {owner}: "
            f"{'; '.join(different[:3])}; give this one another name, or stop that one first: "
            f"python -m orchestrator.stop {key}"
        )
    elif job.entrypoint != command:
        raise InputError(
            f"--submit {address}: {name} already runs there with another command line ({job.entrypoint}); "
            f"stop it first: python -m orchestrator.stop {key}, or ray job stop {job.submission_id}"
        )
    else:
        job_id = str(job.submission_id)
        _log.info("%s already runs there as %s; this is its log", name, job_id)
    return _follow(client, job_id, address, interrupt)


def _check_address(address: str) -> None:
    """Raise InputError for what is not the address of a Ray dashboard."""
    remedy = "not the address of a Ray dashboard; write http://HOST:8265"
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        is_one = False
    if not is_one or re.search(r"\s", address):
        raise InputError(f"--submit {address}: {remedy}")
    if parts.username is not None:
        raise InputError(
            "--submit: the address holds a login; a Ray dashboard takes a token (RAY_AUTH_TOKEN_PATH)"
        )


def _check_storage(storage: str) -> None:
    """Raise InputError for a relative folder: Ray deletes its copy of the working directory."""
    if not storage.startswith(("/", "~", "s3://", "$")):
        raise InputError(
            f"--submit: storage {quote(storage)} is a relative folder, which would lie in a copy of the "
            "working directory that Ray deletes; write an absolute one, or s3://bucket/prefix"
        )


def _no_dashboard(address: str, error: Exception) -> InputError:
    return InputError(
        f"--submit {address}: what answers there is no Ray dashboard ({type(error).__name__}); "
        "write the address of one, http://HOST:8265"
    )


def _client(address: str) -> JobSubmissionClient:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would prefer a RAY_ADDRESS
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"--submit {address}: it does not accept the token; RAY_AUTH_TOKEN_PATH names the file with "
            "the cluster's token (default: ~/.ray/auth_token), and RAY_AUTH_MODE=token sends it"
        ) from error
    except _NO_DASHBOARD as error:
        raise _no_dashboard(address, error) from error
    except (*_UNREACHABLE, requests.RequestException) as error:
        raise UnreachableError(
            f"--submit {address}: no Ray dashboard answers there: {one_line(error, 300)}"
        ) from error


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        user = f"user {os.getuid()}"
    return f"{user} on {platform.node()}"


def _differences(job: JobDetails, document: Document) -> list[str]:
    """Return one line for each value that the file of a running job has otherwise."""
    recorded = (job.metadata or {}).get(_FILE)
    if recorded is None:  # an earlier version sent it
        return []
    return changes(flat_texts(json.loads(recorded)), flat_texts(document.tree))


def _is_running(job: JobDetails, key: str) -> bool:
    return (job.metadata or {}).get(_JOB) == key and not job.status.is_terminal()


def _follow(client: JobSubmissionClient, job_id: str, address: str, interrupt: Interrupt) -> int:
    """Show the log of a job until it ends, however often the connection breaks; return its exit code."""

    def log_retry(state: RetryCallState) -> None:
        assert state.outcome is not None
        if not log.heard:  # nothing since the last time
            return
        log.heard = False
        error = state.outcome.exception()
        unreachable = isinstance(error, requests.ConnectionError | aiohttp.ClientConnectionError)
        reason = "it does not answer" if unreachable else one_line(error, 300)
        _log.warning("%s: %s; trying again (the job does not depend on this terminal)", address, reason)

    retrying = Retrying(
        retry=retry_if_exception_type(_UNREACHABLE),
        wait=wait_random_exponential(min=0.5, max=30),
        before_sleep=log_retry,
    )
    log = _JobLog(client, job_id, interrupt)
    try:
        job: JobDetails = retrying(log.show)
    except _UnknownJobError:
        _log.error("%s does not know %s: it was restarted; rerun the command to resume", address, job_id)
        return 1
    except AuthenticationError as error:
        _log.error("%s no longer accepts the token: %s; %s continues", address, one_line(error, 300), job_id)
        return 1
    except KeyboardInterrupt:
        _log.info(
            "%s continues; rerun the command to follow it again, or run ray job stop %s to end it",
            job_id,
            job_id,
        )
        return 130
    if job.driver_exit_code is None:
        _log.error("%s %s: %s", job_id, job.status.value.lower(), one_line(job.message, 300))
        return 1
    return int(job.driver_exit_code)


class _JobLog:
    """The log of a job, shown once although the connection may break."""

    def __init__(self, client: JobSubmissionClient, job_id: str, interrupt: Interrupt) -> None:
        self._client, self._job_id, self._interrupt = client, job_id, interrupt
        self._shown = 0
        self.heard = True
        """Whether the cluster has answered since this was last set to False."""

    def show(self) -> JobDetails:
        """Show the log until the job has ended; raise one of _UNREACHABLE when the connection breaks."""
        broken: Exception = ConnectionError("the log broke off")
        try:
            asyncio.run(self._tail())
        except _UNREACHABLE as error:
            broken = error
        if self._interrupt.requested:  # code that runs in asyncio may swallow KeyboardInterrupt
            raise KeyboardInterrupt
        job = _job_details(self._client, self._job_id)
        if not job.status.is_terminal():
            raise broken
        return job

    async def _tail(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._job_id):
            self.heard = True
            new = text[max(0, self._shown - position) :]
            position += len(text)
            self._shown = max(self._shown, position)
            sys.stdout.write(new)
            sys.stdout.flush()


def _job_details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "status code 404" in str(error):  # the words of Ray 2.60, which has no error class for it
            raise _UnknownJobError from error
        raise
