"""Removes abandoned resources from the Ray cluster, and watches the driver's node.

Ray removes a placement group once it knows that both the actor and the job that created it are dead, if the
group existed before it knew. For each run, Ray Train keeps an actor that removes the group of a dead
controller, if the controller had the time to register it. When a process is killed between these steps, the
group would keep CPUs and GPUs for the lifetime of the cluster, and the actor a process. A driver whose raylet
dies is not notified, and would wait forever.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors

from orchestrator.errors import one_line
from orchestrator.interrupt import Interrupt
from orchestrator.storage.lease import MAX_RAY_JOBS

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 20.0
"""Time between two checks. A worker group creates its actors right after its placement group."""

_SETTLE_SECONDS = 30.0
"""Time that the actors of this driver get to end, at its end."""

_CONTROLLER = "TrainController"
"""Class of the actors of Ray Train that create placement groups and cleaners."""

_CLEANER = "PlacementGroupCleaner"
"""Class of the actors of Ray Train that outlive the controllers that created them."""

_Filter = tuple[str, str, str | bool | int | float]


class ResourceReaper:
    """Removes unused placement groups of worker groups, of this driver and earlier ones, in a ``with`` block.

    Groups of earlier drivers are removed at the start, those of this driver at its end. While it runs, a
    group counts as unused when it has its resources but no actor in two checks.
    """

    def __init__(
        self,
        jobs: list[str],
        bundles: list[dict[str, float]],
        interrupt: Interrupt,
        interval: float = _INTERVAL_SECONDS,
    ) -> None:
        """Prepare the reaper.

        Args:
            jobs: Ray jobs of earlier drivers; the job of this driver is added.
            bundles: resources of each worker of a worker group.
            interrupt: gets a request when the node of this driver has died.
            interval: seconds between two checks.
        """
        context = ray.get_runtime_context()
        self._node, self._job = context.get_node_id(), context.get_job_id()
        self._earlier: set[str] = set()
        # The id of a job is unique only within its Ray cluster.
        session, self._address = context.get_session_name(), context.gcs_address
        self._session = session
        self.add_earlier(jobs)
        jobs[:] = [*jobs[1 - MAX_RAY_JOBS :], f"{session}/{self._job}"]
        self._bundles = [{name: float(size) for name, size in bundle.items() if size} for bundle in bundles]
        self._interrupt, self._interval = interrupt, interval
        self._node_alive, self._warned = True, False
        self._unused_before: set[str] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def add_earlier(self, jobs: Iterable[str]) -> None:
        """Add Ray jobs of earlier drivers."""
        ids = {job.rpartition("/")[2] for job in jobs if job.startswith(f"{self._session}/")}
        self._earlier = (self._earlier | ids) - {self._job}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(timeout=60)
        if self._node_alive:
            self._try(self._remove_own)

    def _run(self) -> None:
        while True:
            self._try(self._check)
            if not self._node_alive or self._closed.wait(self._interval):
                return

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # Ray raises many types while its dashboard, or all of it, is unreachable
            if not self._warned:
                self._warned = True
                _log.warning("cannot check for unused placement groups: %s", one_line(error, 300))

    def _check(self) -> None:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._node_alive = any(node["NodeID"] == self._node and node["Alive"] for node in nodes)
        if not self._node_alive:
            if not self._closed.is_set():
                self._interrupt.request("the Ray node of this driver died")
            return
        if self._earlier:
            self._remove_leftovers(self._earlier)
        unused = {group for group, state in self._placement_groups({self._job}).items() if state == "CREATED"}
        for state in ("PENDING_CREATION", "ALIVE") if unused else ():
            unused -= {actor.placement_group_id for actor in self._actors(self._job, ("state", "=", state))}
        if leftover := self._unused_before & unused:
            _log.info("removed %d unused placement groups", len(leftover))
            _remove(leftover)
        self._unused_before = unused

    def _remove_own(self) -> None:
        """Remove what is left of this driver and of earlier ones.

        A controller that ends while it starts may have asked for a cleaner whose process is still to come.
        """
        until = time.monotonic() + _SETTLE_SECONDS
        while self._remove_leftovers({*self._earlier, self._job}) and time.monotonic() < until:
            time.sleep(0.5)

    def _remove_leftovers(self, jobs: Collection[str]) -> bool:
        """Remove the placement groups and cleaners of ended jobs; return whether some may be left."""
        _remove(self._placement_groups(jobs))
        found = [
            actor
            for job in jobs
            for actor in self._actors(job, ("state", "!=", "DEAD"))
            if actor.class_name in (_CONTROLLER, _CLEANER)
        ]
        cleaners: dict[str, list[int]] = {}
        for actor in found:
            if actor.class_name == _CLEANER and actor.state == "ALIVE":
                cleaners.setdefault(actor.node_id, []).append(actor.pid)
        for node, pids in cleaners.items():
            # Ray ends an actor through a handle, and no handle of these is left.
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(_end_cleaners).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
            ray.get(task.remote(pids), timeout=30)
        return bool(found)

    def _placement_groups(self, jobs: Collection[str]) -> dict[str, str]:
        """Return the state of each placement group of a worker group of these jobs."""
        table: Mapping[str, dict[str, Any]] = placement_group_table()
        return {
            group: entry["state"]
            for group, entry in table.items()
            if entry["state"] != "REMOVED"
            and group[-8:] in jobs  # the id of a group ends with that of its job
            and list(entry["bundles"].values()) == self._bundles
        }

    def _actors(self, job: str, *filters: _Filter) -> list[Any]:
        # Without an address Ray asks any cluster on this machine.
        return list_actors(
            address=self._address,
            filters=[("job_id", "=", job), *filters],
            limit=10_000,
            timeout=10,
            detail=True,
        )


def _remove(groups: Collection[str]) -> None:
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


def _end_cleaners(pids: Collection[int]) -> None:
    """End those of some processes of this node that are cleaners of Ray Train."""
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if _CLEANER in " ".join(process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
