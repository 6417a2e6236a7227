"""What a driver looks after on its Ray cluster: what nobody will use any more, and whether its node is there.

Ray removes a placement group once it learns that both the actor and the job that made it are dead, if the
group was there before it learned that; Ray Train removes that of a dead controller, if it was told of it.
What both miss, because somebody was killed in the moment that he made one, would keep CPUs and GPUs from all
trials for the time of the cluster. And a driver whose raylet dies is not told: it would wait for ever.
"""

import contextlib
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

_INTERVAL = 30.0
"""Seconds between two looks; a worker group that starts makes its actors right after its placement group."""

_UNANSWERED = (RayStateApiException, RayError, RuntimeError, OSError, ValueError)
"""What Ray raises when its dashboard, or all of it, does not answer."""


_Filter = tuple[str, str, str | bool | int | float]


class Watch:
    """Looks around while a driver runs, in a ``with`` block; clears up what it and earlier ones left.

    A placement group of an earlier driver, or one that is there when this one ends, goes at once; else one
    without an actor in two looks. The groups of trials themselves have names, and are Tune's.
    """

    def __init__(
        self,
        jobs: list[str],
        say: Callable[[str], None],
        end: Callable[[str], None],
        interval: float = _INTERVAL,
    ) -> None:
        """``jobs``: those of earlier drivers, as this wrote them; ``end`` is told why this one has to end."""
        context = ray.get_runtime_context()
        self._session, self._job = context.get_session_name(), context.get_job_id()
        self._node = context.get_node_id()
        # Numbers of jobs mean nothing in another Ray cluster, where nothing of this one is left either.
        jobs[:] = [job for job in jobs if job.startswith(f"{self._session}/")]
        self._dead = [job.rpartition("/")[2] for job in jobs]
        jobs.append(f"{self._session}/{self._job}")
        # Without an address Ray asks any cluster of this machine; an answer has 10,000 entries at most.
        self._asked: dict[str, Any] = {"address": context.gcs_address, "timeout": 10, "limit": 10_000}
        self._say, self._end, self._interval = say, end, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._remove(self._groups(*self._dead, self._job).keys())
        except _UNANSWERED as unanswered:
            self._say(f"whether placement groups are left behind could not be seen: {unanswered}"[:300])

    def _keep(self) -> None:
        before: set[str] = set()
        while True:
            with contextlib.suppress(*_UNANSWERED):
                if not self._is_there():
                    return self._end("the Ray node of this driver died")
                unused = self._unused()
                self._remove(before & unused | self._groups(*self._dead).keys())
                before = unused
            if self._over.wait(self._interval):
                return None

    def _is_there(self) -> bool:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return any(node["NodeID"] == self._node and node["Alive"] for node in nodes)

    def _unused(self) -> set[str]:
        """Groups of this job that have their resources, but no actor that lives or starts."""
        groups = {group for group, state in self._groups(self._job).items() if state == "CREATED"}
        for state in ("PENDING_CREATION", "ALIVE") if groups else ():
            wanted: list[_Filter] = [("job_id", "=", self._job), ("state", "=", state)]
            actors = list_actors(filters=wanted, detail=True, **self._asked)
            groups -= {actor.placement_group_id for actor in actors}
        return groups

    def _remove(self, groups: Collection[str]) -> None:
        for group in groups:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
        if groups:
            self._say(f"placement groups that nobody used any more, removed: {len(groups)}")

    def _groups(self, *jobs: str) -> dict[str, str]:
        """The unnamed placement groups of Ray jobs that are there, with their states; raises _UNANSWERED."""
        found: dict[str, str] = {}
        for job in jobs:
            wanted: list[_Filter] = [("creator_job_id", "=", job), ("state", "!=", "REMOVED")]
            for group in list_placement_groups(filters=wanted, **self._asked):
                if not group.name:
                    found[group.placement_group_id] = group.state
        return found
