"""Several hosts on one machine: sets of Linux namespaces joined by a bridge, which end with the tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.infra.required_tools import need, need_root
from tests.support.paths import ROOT

_HEAD = """
set -e
hostname head
mount --bind "$0/hosts" /etc/hosts # PyTorch's gloo listens at the address of the machine's name
mkdir -p "$0/ray-0" /tmp/ray
ip link set lo up
ip link add bridge type bridge
ip addr add 10.9.0.254/24 dev bridge
ip link set bridge up
for ((number = 1; number <= $1; number++)); do
    # /tmp/ray has the address of the local cluster, and `ray stop` ends all processes named in it.
    mkdir -p "$0/ray-$number"
    unshare --net --pid --fork --kill-child --mount-proc --uts bash -c '
        set -e
        hostname "n$1"
        mount --bind "$0/ray-$1" /tmp/ray
        ip link set lo up
        until ip link show "node$1" >/dev/null 2>&1; do sleep 0.1; done
        ip addr add "10.9.0.$1/24" dev "node$1"
        ip link set "node$1" up
        touch "$0/up-$1"
        number=$1
        eval "$2" & # bash stays, because it reaps dead processes
        wait' "$0" $number "$3" &
    echo $! > "$0/node-$number.pid"
    while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
    ip link add node$number type veth peer name port$number
    ip link set node$number netns $!
    ip link set port$number master bridge up
    until [ -e "$0/up-$number" ]; do sleep 0.1; done
done
mount --bind "$0/ray-0" /tmp/ray
touch "$0/up-0"
eval "$2" &
wait $!
"""


class Hosts:
    """A head (10.9.0.254) and hosts n1, n2, ... (10.9.0.1, ...) with separate networks and processes.

    They share all files, as on a shared file system, except /tmp/ray. ``folder`` holds their files and logs.
    """

    ADDRESS = "10.9.0.254"

    def __init__(
        self, folder: Path, count: int, environment: dict[str, str], head: str, node: str = "sleep infinity"
    ) -> None:
        """Start them. ``head`` and ``node`` are the shell commands that run on each.

        In them, ``$0`` is the folder and ``$number`` the number of the host.
        """
        for program in ("ip", "nsenter"):
            need(program, "apt install iproute2 util-linux")
        need_root("make network namespaces")
        self.folder = folder
        (folder / "home").mkdir()
        names = "".join(f"10.9.0.{number} n{number}\n" for number in range(1, count + 1))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}{self.ADDRESS} head\n")
        # No process may outlive the tests, however they end.
        unshare = [need("setpriv", "util-linux"), "--pdeathsig", "KILL", need("unshare", "util-linux")]
        unshare += ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))},
            "HOME": str(folder / "home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        with (folder / "namespaces.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*unshare, "bash", "-c", _HEAD, str(folder), str(count), head, node],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill the first process of the namespaces, which ends all others."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def start(self, *command: str | Path, host: int = 0) -> Iterator["subprocess.Popen[str]"]:
        """Start a command on a host (0 is the head) with stderr in stdout; it ends with the block."""
        (first,) = psutil.Process(self.process.pid).children()
        enter = ["nsenter", "--net", "--mount", "--uts", f"--wd={self.folder}"]
        where = [*enter, "--pid", f"--target={first.pid}"]
        if host:
            outer = (
                (self.folder / f"node-{host}.pid").read_text().strip()
            )  # its child is the first process of the host
            where += [*enter, f"--pid=/proc/{outer}/ns/pid_for_children", f"--target={outer}"]
        with subprocess.Popen(
            [*where, *command],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *command: str | Path, host: int = 0) -> str:
        """Run a command on a host and return its output; CalledProcessError if it fails."""
        with self.start(*command, host=host) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output)
        return output

    def cut(self, host: int) -> None:
        """Cut the link of a host, without notice to either side."""
        self.run("ip", "link", "set", f"port{host}", "down")

    def logs(self) -> str:
        """Return the ends of all logs."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)
