"""The lease of a job: one driver at a time, what it has used of the budget, and requests to stop it.

The record of the driver lies beside the folder of the job and is renewed every few seconds. In a local folder
a lock of the operating system, which ends with its process, keeps a second driver out. A bucket has no locks:
a second driver watches whether the record is still renewed, and takes the job over when it is not. Only
monotonic clocks of one process decide that. The wall clocks of two machines decide only whether
`check_driver` waits for a heartbeat, so that a driver is refused before it has done any work.

`Lease.check` precedes everything that a driver writes, so that one which was suspended, and whose job another
driver has taken over meanwhile, writes nothing any more.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.components import describe_raised
from orchestrator.console.tables import format_duration
from orchestrator.errors import InputError, LeaseLostError, StorageError, newer_schema
from orchestrator.interrupt import Interrupt
from orchestrator.storage.base import LockedError, Store

HEARTBEAT_SECONDS = 5.0
"""Time between two renewals of the record."""

LEASE_TIMEOUT_SECONDS = 20.0
"""Time without a renewal after which a driver counts as dead."""

_NEXT_HEARTBEAT = 1.5
"""Intervals within which the next heartbeat of a driver arrives."""

_SAFE_SECONDS = LEASE_TIMEOUT_SECONDS / 2
"""Age of a renewal up to which nothing is asked before a write: no other driver may take the job before
twice that time."""

SCHEMA = 2
"""Version of the record. Version 1 had none, and other names for four fields."""

_log = logging.getLogger(__name__)


MAX_RAY_JOBS = 100
"""Ray jobs of a job that are remembered, the last ones."""


class BudgetUsage(BaseModel):
    """What all drivers of a job together have used of its budget."""

    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    gpu_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)


class Activity(BaseModel):
    """What a driver is doing, for `python -m orchestrator.status`."""

    trials: dict[str, str] = {}
    """What each trial is doing that has started and not ended, by its name."""

    undelivered: str = ""
    """Which records wait for MLflow, and why."""


class DriverRecord(BaseModel):
    """The process that drives a job."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    host: str
    pid: int
    started: str
    identity: str
    """Tells this process from any other that has, or had, the same pid on the same host."""

    storage: str = ""
    """Address of the storage of its job; that of a copy has another one."""

    heartbeat: int = Field(0, validation_alias=AliasChoices("heartbeat", "beat"))
    renewed: float = 0.0
    """Wall clock of the last renewal, for display only."""

    ended: bool = False
    used: BudgetUsage = Field(BudgetUsage(), validation_alias=AliasChoices("used", "spent"))
    ray_jobs: list[str] = []
    """Ray jobs of this driver and of those before it, see `ResourceReaper`."""

    activity: Activity = Field(Activity(), validation_alias=AliasChoices("activity", "doing"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"

    def is_gone(self) -> bool:
        """Return whether its process ran on this machine and has ended; False if unknown."""
        return self._is_of_this_machine() and process_identity(self.pid) != self.identity

    def is_alive(self) -> bool:
        """Return whether it is another process that runs on this machine; False if unknown."""
        return (
            self._is_of_this_machine()
            and self.pid != os.getpid()
            and process_identity(self.pid) == self.identity
        )

    def _is_of_this_machine(self) -> bool:
        this_process = process_identity(os.getpid())
        return self.identity.rpartition(":")[0] == this_process.rpartition(":")[0]

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=1, by_alias=True).encode()


def _clocks() -> tuple[float, float]:
    """Return the monotonic clock, and the wall clock, which goes on while a machine is suspended."""
    return time.monotonic(), time.time()


def process_identity(pid: int) -> str:
    """Return the boot of the machine, the pid namespace, and the start time of a process since the boot.

    None of them changes when the clock is set.
    """
    machine, proc = socket.gethostname(), Path("/proc")
    if not (proc / "self/stat").exists():  # not Linux
        return f"{machine}:{psutil.Process(pid).create_time() if psutil.pid_exists(pid) else None}"
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    machine = f"{machine}:{boot}:{(proc / 'self/ns/pid').stat().st_ino}"
    try:
        return f"{machine}:{(proc / str(pid) / 'stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{machine}:none"


def record_name(job: str) -> str:
    """Return the name of the file with the record of a job's driver."""
    return f".{job}.driver.json"


def stop_request_name(job: str) -> str:
    """Return the name of the file that asks a job's driver to stop."""
    return f".{job}.stop"


def read_driver_record(store: Store, job: str) -> tuple[DriverRecord, str] | None:
    """Return the record of the last driver of a job with its version, or None.

    Raises:
        InputError: a later version of this project wrote it.
        StorageError: the storage does not answer.
    """
    file = store.read(record_name(job))
    if file is None:
        return None
    content, version = file
    try:
        record = DriverRecord.model_validate_json(content)
    except ValidationError:  # the record holds nothing essential
        return DriverRecord(host="unknown", pid=0, started="unknown", identity=""), version
    if record.schema_version > SCHEMA:
        raise InputError(newer_schema(store.locate(record_name(job)), record.schema_version, SCHEMA))
    return record, version


def check_driver(store: Store, job: str, label: str) -> None:
    """Raise InputError if a driver has a job; writes nothing.

    A bucket has no locks: where the last heartbeat is recent, the next one is awaited for a few seconds.
    """
    current = read_driver_record(store, job)
    if (current is not None and _is_driven(store, current[0])) or store.is_locked(job):
        raise _taken(store, job, label)
    if (
        current is not None
        and _may_beat(store, current[0])
        and abs(time.time() - current[0].renewed) < LEASE_TIMEOUT_SECONDS
    ):
        _wait_for_silence(store, job, label, current, _NEXT_HEARTBEAT * HEARTBEAT_SECONDS)


def _may_beat(store: Store, driver: DriverRecord) -> bool:
    """Return whether only the next heartbeat can tell that a driver runs."""
    return store.heartbeat_only and not driver.ended and not driver.is_gone()


def _wait_for_silence(
    store: Store, job: str, label: str, last: tuple[DriverRecord, str], seconds: float
) -> tuple[DriverRecord, str]:
    """Wait until the record of a driver has not changed for some time; raises InputError if it does."""
    _log.info("checking whether %s still drives %s", last[0], label)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(1.0)
        current = read_driver_record(store, job)
        if current is not None and current[0].ended:
            return current
        if current is not None and current[1] != last[1]:
            raise _taken(store, job, label, current[0])
    return last


def _is_driven(store: Store, driver: DriverRecord) -> bool:
    """Return whether a driver of this machine runs whose lock file may have been deleted.

    In a bucket only heartbeats count, so that another driver can replace one that is suspended.
    """
    return not store.heartbeat_only and not driver.ended and driver.is_alive()


def _taken(store: Store, job: str, label: str, other: DriverRecord | None = None) -> InputError:
    current = None if other is not None else read_driver_record(store, job)
    driver = current[0] if current is not None else other
    by = f"by {driver}" if driver is not None else "by another process on this storage"
    if (
        driver is not None
        and driver.renewed
        and (age := time.time() - driver.renewed) > LEASE_TIMEOUT_SECONDS
    ):
        by += f", without a heartbeat for {format_duration(age)} (is it suspended?)"
    place = store.locate(job)
    if driver is not None and driver.storage not in ("", store.uri):
        place = f"{driver.storage}/{job}"
        by += f", in {driver.storage}, of which this storage seems to be a copy"
    command = f"python -m orchestrator.stop {place}"
    return InputError(f"{label} is driven {by}; wait for it, or stop it with {command}")


class Lease:
    """Makes this process the only driver of a job while a ``with`` block lasts."""

    def __init__(self, store: Store, job: str, label: str, interrupt: Interrupt, fresh: bool = False) -> None:
        """Prepare the lease of ``job``.

        Args:
            store: the storage of the job.
            job: its name.
            label: how messages name it, such as ``sweep ~/reid-sweeps/alignment``.
            interrupt: gets a request when the driver has to stop.
            fresh: forget what earlier drivers used of the budget.
        """
        self._store, self._job, self._label, self._fresh = store, job, label, fresh
        self._interrupt = interrupt
        self._stack = ExitStack()
        self._closed = threading.Event()
        self._seen: str | None = None
        self._renewing = threading.Lock()
        self._renewed = (-math.inf, -math.inf)
        """Monotonic and wall clock of the last renewal, before it was sent."""

        self.lost = False
        """Whether another driver has taken the job over."""

        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self.record = DriverRecord(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            identity=process_identity(os.getpid()),
            storage=store.uri,
        )
        self.on_heartbeat: Callable[[float], Activity] = lambda seconds: Activity()
        """Called before each renewal with the seconds since the last one; returns the activity to record."""

    def __enter__(self) -> Self:
        """Take the job; raises InputError naming the driver that has it."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._store.lock(self._job))
            except LockedError:
                raise _taken(self._store, self._job, self._label) from None
            before = read_driver_record(self._store, self._job)
            if before is not None and _is_driven(self._store, before[0]):
                raise _taken(self._store, self._job, self._label, before[0])
            if before is not None and _may_beat(self._store, before[0]):
                before = _wait_for_silence(self._store, self._job, self._label, before, LEASE_TIMEOUT_SECONDS)
            if before is not None:
                record, self._seen = before
                self.record.ray_jobs = record.ray_jobs
                if not self._fresh:
                    self.record.used = record.used
                if not record.ended:
                    _log.info("previous driver (%s) is gone; taking over %s", record, self._label)
            if not self._write():
                raise _taken(self._store, self._job, self._label)
            self._stack = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(timeout=2 * HEARTBEAT_SECONDS)
        with self._stack, self._renewing:
            if not self.lost and not self._store.replaced():
                self.record.ended = True
                self._note_activity(0.0)
                self._write()

    def check(self) -> None:
        """Make sure that a write of the next seconds is that of the job's driver.

        Raises:
            LeaseLostError: another driver has taken the job over.
            StorageError: that is not known, because the storage does not answer.
        """
        if not self._store.heartbeat_only:
            return  # the lock keeps other drivers out
        if not self.lost and max(now - then for now, then in zip(_clocks(), self._renewed, strict=True)) > (
            _SAFE_SECONDS
        ):
            self._renew()
        if self.lost:
            raise LeaseLostError(f"another driver took over {self._label}")

    @contextmanager
    def explained_loss(self) -> Iterator[None]:
        """Raise LeaseLostError for whatever ends the block, if another driver has taken the job over."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, StorageError) and self._store.heartbeat_only:
                with suppress(StorageError, KeyboardInterrupt):  # a lost lease interrupts this thread
                    self._renew()  # the error may be that another driver writes
            if not self.lost:
                raise
            raise LeaseLostError(f"another driver took over {self._label}") from error
        if self.lost:
            raise LeaseLostError(f"another driver took over {self._label}")

    def _keep_renewing(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(HEARTBEAT_SECONDS):
            now = time.monotonic()
            self.record.used.seconds += now - before
            self._note_activity(now - before)
            before = now
            if problem := self._store.replaced():
                self._interrupt.request(problem)
                return
            try:
                if not self._renew():
                    return
                request = self._store.read(stop_request_name(self._job))
                if request is not None and request[0] == self.record.identity.encode():
                    self._interrupt.request("a stop was requested")
            except StorageError as error:
                _log.warning("%s", error)  # the next heartbeat tries again

    def _note_activity(self, seconds: float) -> None:
        try:
            self.record.activity = self.on_heartbeat(seconds)
        except Exception as error:  # the lease has to be renewed nevertheless
            _log.warning("what the driver does is not known: %s", describe_raised(error))

    def _renew(self) -> bool:
        """Write the record; when another driver has the job, ask this one to end and return False."""
        with self._renewing:
            told, self.lost = self.lost, self.lost or not self._write()
        if self.lost and not told:
            message = f"another driver took over {self._label}: {self._successor()}"
            if not self._interrupt.request(message):
                _log.warning("%s", message)
        return not self.lost

    def _successor(self) -> str:
        try:
            current = read_driver_record(self._store, self._job)
        except (InputError, StorageError) as error:
            return str(error)
        return str(current[0]) if current is not None else "its record is gone"

    def _write(self) -> bool:
        """Write the record unless another driver has; return whether it is written."""
        clocks = _clocks()
        self.record.heartbeat += 1
        self.record.renewed = time.time()
        name, content = record_name(self._job), self.record.to_json()
        version = self._store.compare_and_swap(name, content, self._seen)
        if version is None:
            current = self._store.read(name)
            # A user deleted or edited the record; or this process wrote it, and did not note the version.
            if current is None or self._may_replace(current[0]):
                version = self._store.compare_and_swap(name, content, current[1] if current else None)
        if version is None:
            return False
        self._seen, self._renewed = version, clocks
        return True

    def _may_replace(self, content: bytes) -> bool:
        """Return whether a record is of no other driver; a lock keeps others out while its file exists."""
        try:
            record = DriverRecord.model_validate_json(content)
        except ValidationError:
            return not self._store.heartbeat_only
        if record.identity == self.record.identity:
            return True
        return not self._store.heartbeat_only and (record.ended or record.is_gone())
