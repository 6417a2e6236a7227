"""What a driver looks after on its Ray cluster: what nobody will use any more, and whether its node is there.

Ray removes a placement group once it learns that both the actor and the job that made it are dead, if the
group was there before it learned that. Ray Train keeps an actor for each run that removes the group of a
dead controller, if the controller had the time to tell it. What is missed, because somebody was killed in
the moment that he made it, would keep CPUs and GPUs from all trials, and a process on the head, for the time
of the cluster. And a driver whose raylet dies is not told: it would wait for ever.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors

_INTERVAL = 20.0
"""Seconds between two looks; a worker group that starts makes its actors right after its placement group."""

_JOBS = 100
"""As many of the last Ray jobs of a sweep are remembered."""

_CLEANER = "PlacementGroupCleaner"
"""The class of Ray Train's actors that outlive those who made them."""

_Filter = tuple[str, str, str | bool | int | float]


class Watch:
    """Looks around while a driver runs, in a ``with`` block; clears up what it and earlier ones left.

    Looks at the placement groups of worker groups alone. Those of earlier drivers, and those that are there
    when this one ends, go at once; else one that has its resources, and no actor in two looks.
    """

    def __init__(
        self,
        jobs: list[str],
        bundles: list[dict[str, float]],
        say: Callable[[str], None],
        end: Callable[[str], None],
        interval: float = _INTERVAL,
    ) -> None:
        """``jobs``: Ray jobs of earlier drivers, to which that of this one is added.

        ``bundles`` are those of a worker group; ``end`` is told why this driver has to end.
        """
        context = ray.get_runtime_context()
        self._node, self._job = context.get_node_id(), context.get_job_id()
        # Numbers of jobs mean nothing in another Ray cluster.
        session, self._address = context.get_session_name(), context.gcs_address
        self._dead = {job.rpartition("/")[2] for job in jobs if job.startswith(f"{session}/")}
        jobs[:] = [*jobs[1 - _JOBS :], f"{session}/{self._job}"]
        self._bundles = [{name: float(size) for name, size in each.items() if size} for each in bundles]
        self._say, self._end, self._interval = say, end, interval
        self._there, self._told = True, False
        self._before: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=60)
        if self._there:
            self._try(lambda: self._clear({*self._dead, self._job}))

    def _keep(self) -> None:
        while True:
            self._try(self._look)
            if not self._there or self._over.wait(self._interval):
                return

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # whatever Ray raises while its dashboard, or all of it, is away
            if not self._told:
                self._told = True
                self._say(f"whether placement groups are left behind cannot be seen: {error}"[:300])

    def _look(self) -> None:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._there = any(node["NodeID"] == self._node and node["Alive"] for node in nodes)
        if not self._there:
            if not self._over.is_set():
                self._end("the Ray node of this driver died")
            return
        if self._dead:
            self._clear(self._dead)
        unused = {group for group, state in self._groups({self._job}).items() if state == "CREATED"}
        for state in ("PENDING_CREATION", "ALIVE") if unused else ():
            unused -= {actor.placement_group_id for actor in self._actors(self._job, ("state", "=", state))}
        if lost := self._before & unused:
            self._say(f"placement groups that nobody used any more, removed: {len(lost)}")
            _remove(lost)
        self._before = unused

    def _clear(self, jobs: Collection[str]) -> None:
        """Remove what is left of jobs that need nothing any more."""
        _remove(self._groups(jobs))
        left: dict[str, list[int]] = {}
        for job in jobs:
            for actor in self._actors(job, ("class_name", "=", _CLEANER), ("state", "=", "ALIVE")):
                left.setdefault(actor.node_id, []).append(actor.pid)
        for node, processes in left.items():
            # Ray ends an actor for those who hold it, and nobody holds these.
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(_end_cleaners).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            ray.get(task.remote(processes), timeout=30)

    def _groups(self, jobs: Collection[str]) -> dict[str, str]:
        """The placement groups of worker groups of some jobs that are there, with their states."""
        table: Mapping[str, dict[str, Any]] = placement_group_table()
        return {
            group: entry["state"]
            for group, entry in table.items()
            if entry["state"] != "REMOVED"
            and group[-8:] in jobs  # the number of a group ends with that of its job
            and list(entry["bundles"].values()) == self._bundles
        }

    def _actors(self, job: str, *wanted: _Filter) -> list[Any]:
        # Without an address Ray asks any cluster of this machine.
        return list_actors(
            address=self._address,
            filters=[("job_id", "=", job), *wanted],
            limit=10_000,
            timeout=10,
            detail=True,
        )


def _remove(groups: Collection[str]) -> None:
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


def _end_cleaners(processes: Collection[int]) -> None:
    """End Ray Train's cleaners among the processes of this node."""
    for each in processes:
        try:
            process = psutil.Process(each)
            if _CLEANER in " ".join(process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
