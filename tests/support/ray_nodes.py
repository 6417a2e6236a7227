"""A real Ray cluster of several nodes on this machine, in a separate process, whose parts can be killed.

As a program, this module is that process: for each line of its input it adds a node and prints one line of
JSON with the address and the process numbers of the raylets of its worker nodes.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.paths import ROOT
from tests.support.servers import end, runs

KINDS = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "lane": "ray::Lane.",
    "mailbox": "ray::Mailbox",
}
"""Processes of a lane by the beginnings of their titles."""

_OF_RAY = (
    "ray::IDLE",
    "ray::TrainStateActor",
    "ray::_AutoscalingCoordinatorActor",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)
"""Idle and system processes that Ray keeps."""

_CPUS = 2


class RayNodes:
    """A head without CPUs and worker nodes, in a ``with`` block."""

    def __init__(self, workers: int, environment: dict[str, str], log: Path) -> None:
        self._environment, self._log = environment | {"PYTHONPATH": str(ROOT)}, log
        self._workers = workers
        self._process: subprocess.Popen[str] | None = None
        self.state: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """The value for ``--address``."""
        return str(self.state["address"])

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.ray_nodes"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            self._answer()
            for _ in range(self._workers):
                self.add()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def add(self) -> None:
        """Add a worker node."""
        self._tell("add")

    def kill_node(self, random: random.Random) -> bool:
        """Kill a worker node as a power loss does: its raylet and all its descendants."""
        raylets = [each for each in self._session() if each.pid in self.state["raylets"]]
        if not raylets:
            return False
        end(random.choice(raylets))
        return True

    def kill(self, kind: str, random: random.Random) -> bool:
        """Kill one process of a kind; return whether one existed."""
        found = self.processes(kind)
        return bool(found) and _kill(random.choice(found))

    def processes(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind in this cluster."""
        return [process for process, title in self._titles() if title.startswith(KINDS[kind])]

    def left(self) -> list[str]:
        """Return the titles of processes that still work a minute after their driver ended."""
        deadline = time.monotonic() + 60
        while True:
            titles = [title for _, title in self._titles()]
            left = [each for each in titles if each.startswith("ray::") and not each.startswith(_OF_RAY)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(1)

    def _titles(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in self._session():
            with contextlib.suppress(psutil.Error):
                found.append((process, " ".join(process.cmdline())))
        return found

    def placement_groups(self) -> list[dict[str, Any]]:
        """Return the placement groups that hold or request resources a minute after their driver ended."""
        code = (
            "import json, ray, sys, time; from ray.util import placement_group_table as table\n"
            "ray.init(sys.argv[1])\n"
            "left = lambda: [group for group in table().values() if group['state'] != 'REMOVED']\n"
            "until = time.monotonic() + 60\n"
            "while left() and time.monotonic() < until: time.sleep(1)\n"
            "print('groups', json.dumps(left(), default=str))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.address],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        (told,) = [
            line for line in done.stdout.splitlines() if line.startswith("groups ")
        ]  # Ray prints lines, too
        groups: list[dict[str, Any]] = json.loads(told.removeprefix("groups "))
        return groups

    def _session(self) -> list[psutil.Process]:
        """Return all processes of the cluster, by their session: also those whose raylet has ended."""
        assert self._process is not None
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self._process.pid and runs(process):
                    found.append(process)
        return found

    def _end(self) -> None:
        assert self._process is not None
        end(psutil.Process(self._process.pid))
        for process in self._session():
            _kill(process)
        with self._process:  # closes its pipes, and waits for it
            pass

    def _tell(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.state = json.loads(line)
                return
        raise AssertionError(f"the Ray cluster ended: {self._log.read_text(errors='replace')[-3000:]}")


def _kill(process: psutil.Process) -> bool:
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def serve() -> None:
    """Run the cluster until the input ends."""
    import ray
    from ray.cluster_utils import Cluster

    # It would write its address to the file that every Ray on this machine reads for address="auto".
    ray._private.utils.write_ray_address = lambda *address: None
    head = {"num_cpus": 0, "resources": {"trial_slot": 64}, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: list[Any] = []

    def answer() -> None:
        raylets = [info.process.pid for node in nodes for info in node.all_processes.get("raylet", ())]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)

    answer()
    for _ in sys.stdin:
        nodes.append(cluster.add_node(num_cpus=_CPUS, resources={"trial_slot": 8}, wait=False))
        answer()


if __name__ == "__main__":
    serve()
