"""A real Ray cluster of several nodes on this machine, in a process of its own, whose parts can be killed.

As a program it is that process: it adds a node for each line of its input, and answers each with one line of
JSON: the address, and the process numbers of the raylets of its worker nodes.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from servers import end

KINDS = {"worker": "ray::RayTrainWorker", "controller": "ray::TrainController", "trial": "ray::Trial."}
"""Processes of a trial by how their titles begin."""

_CPUS = 2


class RayNodes:
    """A head without CPUs and worker nodes, in a ``with`` block."""

    def __init__(self, workers: int, environment: dict[str, str], log: Path) -> None:
        self._environment, self._log = environment, log
        self._workers = workers
        self._process: subprocess.Popen[str] | None = None
        self.state: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """What ``--address`` takes."""
        return str(self.state["address"])

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._answer()
        for _ in range(self._workers):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        end(psutil.Process(self._process.pid))

    def add(self) -> None:
        """Add a worker node."""
        self._tell("add")

    def kill_node(self, random: random.Random) -> bool:
        """Kill a worker node as a power loss would: its raylet and all that it started."""
        pids = [pid for pid in self.state["raylets"] if psutil.pid_exists(pid)]
        if not pids:
            return False
        victim = psutil.Process(random.choice(pids))
        for process in [*victim.children(recursive=True), victim]:
            _kill(process)
        return True

    def kill(self, kind: str, random: random.Random) -> bool:
        """Kill one process of a kind, if there is one."""
        found = self.processes(kind)
        return bool(found) and _kill(random.choice(found))

    def processes(self, kind: str) -> list[psutil.Process]:
        """The processes of trials of this cluster by kind."""
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(KINDS[kind]):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def placement_groups(self) -> int:
        """Placement groups that hold or wait for resources."""
        code = (
            "import ray, sys; from ray.util import placement_group_table as table; ray.init(sys.argv[1]);"
            "print(sum(group['state'] != 'REMOVED' for group in table().values()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.address],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.splitlines()[-1])

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
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "resources": {"trial_slot": 64}, "include_dashboard": True},
    )
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
