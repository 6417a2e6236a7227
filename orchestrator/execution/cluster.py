"""The Ray cluster of a job: start or join one, and compute what fits on it."""

import errno
import functools
import logging
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import services
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from orchestrator.config.sections import Resources
from orchestrator.console.tables import format_count
from orchestrator.errors import InputError, UnreachableError, one_line
from orchestrator.execution import worker_setup

_log = logging.getLogger(__name__)

TRIAL_SLOT = "trial_slot"
"""Custom resource of the process of a lane, so that these processes do not compete with workers for CPUs."""

_SLOTS = 1024
_DRIVER_CPUS = 0.05
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""The first bytes of a client of HTTP/2, with empty settings (RFC 9113, section 3.4)."""

_ANSWER_SECONDS = 5.0
_LATE_ANSWERS = 2
"""Checks in a row after which the head of a cluster is said not to answer."""

_GREETING_SECONDS = 2.0
"""How long the head may take to answer; a heartbeat waits for it, and must not be late."""

_HEALTH_SECONDS = 30.0

_STARTS = 3
"""How often Ray is started on a machine that is too slow for its limit of 30 seconds."""

_FILES = 256
"""Files that a process which starts Ray has to be allowed to open."""

_FREE_BYTES = 64 << 20
"""Space that Ray needs in its folder to start."""

_ADDRESS_SPACE = 16 << 30
"""Bytes of address space that a process of Ray needs; one that trains reserves about 11 GiB."""

_SOCKET_PATH = 107
"""Most bytes of the path of a Unix socket."""

_ENVIRONMENT = {
    # Train notices the end of its workers at this interval, and a lane waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # `Interrupt` handles SIGINT, and `BudgetStopper` tells Tune.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A lane starts several processes; Ray warns of more than four times this many.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_LOCAL_ENVIRONMENT = {
    # Nobody announces that this machine goes away; one process less for each group of workers.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running Ray cluster."""

    address: str
    dashboard: str | None
    token_file: Path | None
    nodes: tuple[dict[str, float], ...]
    joined: bool = False
    """Whether it was running before. Such a cluster may grow; Ray does not tell whether, nor how far."""

    @property
    def has_slots(self) -> bool:
        """Whether processes of lanes can take slots instead of CPUs."""
        return any(node.get(TRIAL_SLOT, 0) for node in self.nodes)

    def total(self, resource: str) -> float:
        """Return the amount of a resource on all nodes together."""
        return sum(node.get(resource, 0) for node in self.nodes)

    def driver_bundle(self) -> tune.PlacementGroupFactory:
        """Return the resources of the process of one lane; its workers have their own placement group."""
        return tune.PlacementGroupFactory([{TRIAL_SLOT: 1} if self.has_slots else {"CPU": _DRIVER_CPUS}])

    def concurrency(self, resources: Resources) -> int:
        """Return how many trials run at once: all that fit, or what the file says if the cluster may grow.

        Raises:
            InputError: not even one fits.
        """
        if self.joined and resources.concurrent != "auto":
            return resources.concurrent
        fitting = self.fitting(resources)
        if not fitting:
            needs = f"{resources.cpus:g} CPUs" + (f" and {resources.gpus:g} GPUs" if resources.gpus else "")
            grows = "; if it adds nodes, set resources.concurrent to the number of trials" * self.joined
            raise InputError(
                f"resources.{self._scarce(resources)}: {resources.workers} workers of {needs} do not fit "
                f"on this cluster of {format_count(len(self.nodes), 'node')} with {self.total('CPU'):g} CPUs "
                f"and {self.total('GPU'):g} GPUs in all; at most {self._workers(resources)} fit{grows}"
            )
        return fitting if resources.concurrent == "auto" else min(fitting, resources.concurrent)

    def _scarce(self, resources: Resources) -> str:
        """Return the field of the resources for which not even one trial fits."""
        if resources.gpus > self.total("GPU"):
            return "gpus"
        largest = max((node.get("CPU", 0) for node in self.nodes), default=0)
        return "cpus" if resources.cpus > largest else "workers"

    def fitting(self, resources: Resources) -> int:
        """Return how many trials fit on the present nodes."""
        return self._workers(resources) // resources.workers

    def _workers(self, resources: Resources) -> int:
        cpus = resources.cpus if self.has_slots else resources.cpus + _DRIVER_CPUS / resources.workers
        workers = 0
        for node in self.nodes:
            fits = int(node.get("CPU", 0) / cpus) if cpus else resources.workers
            if resources.gpus:
                fits = min(fits, int(node.get("GPU", 0) / resources.gpus))
            workers += fits
        return workers


class HeadWatch:
    """Tells when the head of the cluster stops answering: Ray waits in silence, and then ends the process.

    One late answer is not told: the head of a busy machine may be slow.
    """

    def __init__(self, address: str) -> None:
        self._address, self._failed = address, 0

    def check(self) -> None:
        """Log a change; waits a few seconds for an answer."""
        host, _, port = self._address.rpartition(":")
        try:
            _greet(host, port)
        except OSError as error:
            self._failed += 1
            if self._failed == _LATE_ANSWERS:
                _log.warning(
                    "the head of the Ray cluster at %s does not answer (%s); trials wait for it, and if it "
                    "is gone for a minute, this command ends; finished work is kept, rerun it to resume",
                    self._address,
                    error.strerror or error,
                )
            return
        if self._failed >= _LATE_ANSWERS:
            _log.info("the head of the Ray cluster at %s answers again", self._address)
        self._failed = 0


class _ClusterMessages:
    """What a cluster tells all its drivers, such as the death of a node: logged once and in one line."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, message: dict[str, Any], ignore_prefix: bool = False) -> None:
        """Log a message of the thread in which Ray listens to the cluster."""
        line = one_line(" ".join(message["lines"]), 200)
        # Each lane starts several processes at once, of which each node warns.
        if line not in self._told and "worker processes have been started" not in line:
            self._told.add(line)
            _log.warning("the Ray cluster says: %s", line)


def start(address: str | None, is_interrupted: Callable[[], bool] = lambda: False) -> Cluster:
    """Join the cluster at ``address`` (or ``RAY_ADDRESS``), or start one on this machine.

    Args:
        address: of a running cluster.
        is_interrupted: whether this process has to end, so that a slow start is not tried again.

    Raises:
        InputError: the address is not one, or Ray cannot start here.
        UnreachableError: no cluster answers at the address.
    """
    source = "--address"
    if not address:
        source, address = "RAY_ADDRESS", os.environ.pop("RAY_ADDRESS", None) or None
        if address is not None:
            os.environ["RAY_ADDRESS"] = address
    environment = _ENVIRONMENT if address is not None else _ENVIRONMENT | _LOCAL_ENVIRONMENT
    for variable, value in environment.items():
        os.environ.setdefault(variable, value)
    if address is not None:
        _check_address(source, address)
    else:
        _check_folder()
        _check_limits()
    if ray.is_initialized():  # by an earlier try, after which another server did not answer
        ray.shutdown()
    # Ray 2.60 prints every line of them.
    ray_worker.print_to_stdstream = _ClusterMessages().tell  # type: ignore[assignment]
    # Ray would write its token file and its logs readable for all users.
    mask = os.umask(0o077)
    variables = {name: os.environ[name] for name in environment if name.startswith("RAY_TRAIN")}
    if address is None:
        variables[worker_setup.UMASK] = f"{mask:o}"
    own: dict[str, Any] = {"resources": {TRIAL_SLOT: _SLOTS}, "include_dashboard": True}
    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: "timed out during startup" in str(error) and not is_interrupted()
        ),
        stop=stop_after_attempt(_STARTS),
        before_sleep=_give_up_slow_start,
        reraise=True,
    )
    try:
        with _own_signals():
            context = retrying(
                ray.init,
                address=address or "local",
                runtime_env={
                    "worker_process_setup_hook": "orchestrator.execution.worker_setup.set_up_worker",
                    "env_vars": variables,
                },
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if address is None else {}),
            )
    except Exception as error:  # Ray raises many types, and Exception itself for a slow start
        if address is not None:
            raise UnreachableError(f"{source} {address}: no Ray cluster answers there: {error}") from error
        raise InputError(f"Ray does not start: {_start_failure(error)}") from error
    finally:
        os.umask(mask)
    if address is not None and "RAY_ADDRESS" in os.environ:
        os.environ["RAY_ADDRESS"] = address  # Ray's tools prefer it over their arguments
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        dashboard=f"http://{context.dashboard_url}" if context.dashboard_url else None,
        token_file=token if token.exists() else None,
        nodes=tuple(node["Resources"] for node in nodes if node["Alive"]),
        joined=address is not None,
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, and start the processes of a local Ray in process groups of their own.

    Ray 2.60 sets a handler of its own, and gives processes groups on Windows alone. A signal to the process
    group of the driver, such as the SIGTERM of ``timeout`` or a Ctrl-C, would end them before the driver has
    stopped in good order. They still end with the driver, by the kernel.
    """
    start, set_handler = services.ConsolePopen, ray_utils.set_sigterm_handler
    # That of Ray would end this process at any moment, also while it holds the lock of a library.
    ray_utils.set_sigterm_handler = lambda handler: None
    if sys.platform == "linux":
        services.ConsolePopen = functools.partial(start, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]
        ray_utils.set_sigterm_handler = set_handler


def _give_up_slow_start(state: RetryCallState) -> None:
    _log.info("this machine is slow to start Ray; trying again")
    ray.shutdown()


def _temporary_folder() -> tuple[str, str]:
    """Return the folder in which Ray keeps its session, and the variable that chooses it."""
    read = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)  # as Ray 2.60 does
    name = next((name for name in read if name in os.environ), "RAY_TMPDIR")
    return os.environ.get(name, "/tmp").rstrip("/"), name


def _check_folder() -> None:
    """Check that Ray's folder has space, and a path that its sockets can have; raises InputError."""
    folder, name = _temporary_folder()
    with suppress(OSError):  # there is no such folder yet
        free = shutil.disk_usage(folder).free
        if free < _FREE_BYTES:
            raise InputError(
                f"Ray does not start: {folder} has only {free / 2**20:.0f} MiB of free space; free some, or "
                f"set {name} to another folder"
            )
    longest = _SOCKET_PATH - len(
        os.fsencode(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    )
    if len(os.fsencode(folder)) > longest:
        raise InputError(
            f"{name}: {folder} is too long for the sockets of Ray, at most {longest} characters; "
            "set RAY_TMPDIR to a short folder, such as /tmp"
        )


def _check_limits() -> None:
    """Check limits of this process with which Ray would end or hang it without a reason.

    Raises:
        InputError: a limit is too low, and cannot be raised here.
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FILES:
        raise InputError(
            f"Ray does not start: this process may open only {most} files; raise the limit with "
            f"ulimit -n {_FILES}"
        )
    if files != resource.RLIM_INFINITY and files < _FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, most))
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < _ADDRESS_SPACE:
        raise InputError(
            f"Ray does not start: this process may have only {space / 2**30:.1f} GiB of address space; raise "
            f"the limit with ulimit -v {_ADDRESS_SPACE >> 10}, or lift it with ulimit -v unlimited"
        )


def _start_failure(error: Exception) -> str:
    """Return why Ray does not start here, with the variable that names a folder at fault."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error) or type(error).__name__
    _, name = _temporary_folder()
    home, path = str(Path.home()), os.fsdecode(error.filename)
    if path == home or path.startswith(f"{home}/.ray"):  # for the token
        name = "HOME"
    return f"{path}: {error.strerror}; set {name} to a folder that can be written"


def _connect(host: str, port: str) -> None:
    """Raise OSError, or OverflowError for a port that cannot be, if nothing listens at an address."""
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def _greet(host: str, port: str) -> None:
    """Raise OSError if no gRPC server answers at an address: a process that is stopped only accepts."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return _connect(host, port)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_GREETING_SECONDS) as connection:
        connection.sendall(_HTTP2_GREETING)
        if not connection.recv(1):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def _check_address(source: str, address: str) -> None:
    """Check within seconds an address that Ray would try to reach for minutes."""
    if address == "auto":
        return
    if re.match(r"https?://", address):
        raise InputError(
            f"{source} {address}: this is a dashboard; send the job there with --submit {address}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(f"{source} {address}: write HOST:PORT of the head node, e.g. 10.0.0.5:6379")
    try:
        _connect(host, port)
        # Another program may listen there; Ray would wait for minutes for its answer.
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        subprocess.run(command, timeout=_HEALTH_SECONDS, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        if b"authentication token" in error.stderr.lower():
            raise InputError(
                f"{source} {address}: the token of this Ray cluster is missing or wrong here; set"
                " RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on its head node"
            ) from error
        raise UnreachableError(
            f"{source} {address}: no Ray cluster answers there (ray health-check: {error.returncode})"
        ) from error
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        raise UnreachableError(f"{source} {address}: no Ray cluster answers there ({error})") from error
