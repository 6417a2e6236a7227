"""One driver for each job: who drives it, what it has spent, and who asked it to stop.

The driver's record lies beside the folder of the job and is renewed every few seconds. In a folder a lock of
the operating system, which ends with its process, keeps a second driver out. A bucket has no locks: there a
second driver watches whether the record is still renewed, and takes the job over when it is not. Only
monotonic clocks are compared, each with itself.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from pydantic import BaseModel, ValidationError

from orchestrator.console.arguments import leave_at_once
from orchestrator.errors import InputError, StorageError
from orchestrator.storage.s3 import HeldError, Store

BEAT = 5.0
"""Seconds between two signs of life."""

_SILENCE = 20.0
"""Seconds without one after which a driver counts as dead."""


class Spent(BaseModel):
    """What all drivers of a job have used of its budget."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0


class Holder(BaseModel):
    """The record of the driver of a job."""

    host: str
    pid: int
    started: str
    identity: str
    """Tells this process from any other that has, or had, the same number on the same host."""

    beat: int = 0
    renewed: float = 0.0
    """Seconds of the wall clock, for people: nobody decides by them."""

    ended: bool = False
    spent: Spent = Spent()
    ray_jobs: list[str] = []
    """Ray jobs that this driver and those before it were, as `Watch` writes them."""

    doing: dict[str, Any] = {}
    """What the driver says of itself, for those who ask how the job stands."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"

    def is_gone(self) -> bool:
        """Whether its process was one of this machine that is no more; False when that is not known."""
        place, _, _ = self.identity.rpartition(":")
        mine, _, _ = identify(os.getpid()).rpartition(":")
        return place == mine and identify(self.pid) != self.identity


def identify(pid: int) -> str:
    """Boot of the machine, name space of process numbers, and the moment after the boot that a process began.

    None of them changes when the clock is set.
    """
    place, proc = socket.gethostname(), Path("/proc")
    if not (proc / "self/stat").exists():  # not Linux
        return f"{place}:{psutil.Process(pid).create_time() if psutil.pid_exists(pid) else None}"
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    place = f"{place}:{boot}:{(proc / 'self/ns/pid').stat().st_ino}"
    try:
        return f"{place}:{(proc / str(pid) / 'stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{place}:none"


def record_name(job: str) -> str:
    """The file with the record of a job's driver."""
    return f".{job}.driver.json"


def request_name(job: str) -> str:
    """The file by which a job's driver is asked to stop."""
    return f".{job}.stop"


def holder(store: Store, job: str) -> tuple[Holder, str] | None:
    """The record of the last driver of a job and its version; raises StorageError."""
    found = store.read(record_name(job))
    if found is None:
        return None
    try:
        return Holder.model_validate_json(found[0]), found[1]
    except ValidationError:  # it holds nothing that cannot be done without
        return Holder(host="unknown", pid=0, started="unknown", identity=""), found[1]


class Lease:
    """Keeps a job this driver's own, in a ``with`` block."""

    def __init__(
        self, store: Store, job: str, what: str, say: Callable[[str], None], fresh: bool = False
    ) -> None:
        """``what`` names the job in a refusal; ``fresh`` forgets what was spent so far."""
        self._store, self._job, self._what, self._say, self._fresh = store, job, what, say, fresh
        self._stack = ExitStack()
        self._over = threading.Event()
        self._seen: str | None = None
        self._lost = False
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.record = Holder(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            identity=identify(os.getpid()),
        )
        self.at_beat: Callable[[float], dict[str, Any]] = lambda seconds: {}
        """Told the seconds since it was called before; gives what the driver is doing."""

        self.ending = ""
        """Why this driver has to end, once it has to."""

    def __enter__(self) -> Self:
        """Take the job; raises InputError naming the driver that has it."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._store.lock(self._job))
            except HeldError:
                found = holder(self._store, self._job)
                raise self._held(found[0] if found else None) from None
            found = holder(self._store, self._job)
            if found is not None and self._store.watched and not found[0].ended and not found[0].is_gone():
                found = self._watch(*found)
            if found is not None:
                self._seen = found[1]
                self.record.ray_jobs = found[0].ray_jobs
                if not self._fresh:
                    self.record.spent = found[0].spent
                if not found[0].ended:
                    self._say(f"{found[0]}, drove the {self._what} and is gone; this one takes over")
            if not self._renew():
                other = holder(self._store, self._job)
                raise self._held(other[0] if other else None)
            self._stack = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2 * BEAT)
        with self._stack:
            if not self._lost:
                self.record.ended = True
                self._renew()

    def _keep(self) -> None:
        before = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            self.record.spent.seconds += now - before
            self.record.doing = self.at_beat(now - before)
            before = now
            try:
                if not self._renew():
                    self._lost = True
                    other = holder(self._store, self._job)
                    self.end(f"another driver took the {self._what} over: {other and other[0]}")
                    return
                request = self._store.read(request_name(self._job))
                if request is not None and request[0].decode() == self.record.identity:
                    self.end("it was asked to stop")
            except StorageError as error:
                self._say(str(error))  # the next beat tries again

    def end(self, reason: str) -> None:
        """Say why this driver has to end, and end it as Ctrl-C would; nothing where it is ending already."""
        with self._ending:
            if self.ending or signal.getsignal(signal.SIGINT) is leave_at_once:
                return
            self.ending = reason
        self._say(reason)
        os.kill(os.getpid(), signal.SIGINT)  # the main thread stops as it does after Ctrl-C

    def _renew(self) -> bool:
        self.record.beat += 1
        self.record.renewed = time.time()
        content = self.record.model_dump_json(indent=1).encode()
        version = self._store.exchange(record_name(self._job), content, self._seen)
        if version is None:
            return False
        self._seen = version
        return True

    def _watch(self, last: Holder, version: str) -> tuple[Holder, str]:
        """Wait until the record of a driver did not change for long enough; raises InputError if it does."""
        self._say(f"looking whether {last} still drives the {self._what}")
        until = time.monotonic() + _SILENCE
        while time.monotonic() < until:
            time.sleep(1.0)
            found = holder(self._store, self._job)
            if found is not None and found[0].ended:
                return found
            if found is not None and found[1] != version:
                raise self._held(found[0])
        return last, version

    def _held(self, other: Holder | None) -> InputError:
        by = f"by {other}" if other is not None else "by another process on this storage"
        return InputError(
            f"the {self._what} is driven {by}; wait for it, or end it with "
            f"python -m orchestrator.stop {self._store.locate(self._job)}"
        )
