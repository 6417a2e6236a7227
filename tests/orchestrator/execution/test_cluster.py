"""Starting or joining a cluster, and the number of trials that run at once on it."""

import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest

from orchestrator.config.sections import Resources
from orchestrator.errors import InputError
from orchestrator.execution import cluster
from orchestrator.execution.cluster import Cluster, HeadWatch, start

SMALL = ({"CPU": 1.0, "trial_slot": 8.0},)


def fixed() -> Cluster:
    """Return a cluster that does not grow."""
    return Cluster("", None, None, SMALL)


def growing() -> Cluster:
    """Return a cluster that may add nodes."""
    return Cluster("", None, None, SMALL, joined=True)


def test_message_of_a_cluster_is_told_once_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    messages = cluster._ClusterMessages()
    for text in (
        "Raylet is terminated.\n    a line of its log\n" * 20,
        "4 PYTHON worker processes have been started",
    ):
        for _ in range(2):
            messages.tell({"lines": [text], "pid": "raylet", "is_err": False})
    (line,) = caplog.messages
    assert line.startswith("the Ray cluster says: Raylet is terminated. a line") and len(line) < 250


@pytest.mark.parametrize(
    ("kind", "limit", "line"),
    [
        (resource.RLIMIT_NOFILE, 64, "may open only 64 files; raise the limit with ulimit -n 256"),
        (
            resource.RLIMIT_AS,
            2 << 30,
            "may have only 2.0 GiB of address space; raise the limit with ulimit -v",
        ),
    ],
)
def test_limits_with_which_ray_would_hang_are_refused(
    kind: int, limit: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda each: (limit, limit) if each == kind else given(each))
    with pytest.raises(InputError, match=re.escape(line)):
        start(None)


def test_ray_leaves_the_handler_of_sigterm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def init(**_: Any) -> NoReturn:
        cluster.ray_utils.set_sigterm_handler(lambda *_: None)
        raise RuntimeError("no Ray here")

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(InputError, match="no Ray here"):
        start(None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_folder_of_ray_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Mock(free=3 << 20))
    line = f"Ray does not start: {tmp_path} has only 3 MiB of free space; free some, or set RAY_TMPDIR to"
    with pytest.raises(InputError, match=re.escape(line)):
        cluster._check_folder()


def test_limit_of_files_is_raised_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (64, 1024) if kind == resource.RLIMIT_NOFILE else (-1, -1)
    )
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    cluster._check_limits()
    assert raised == [(256, 1024)]


def test_concurrency_is_what_fits_on_a_fixed_cluster() -> None:
    assert fixed().concurrency(Resources(concurrent=3)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_concurrency_is_that_of_the_file_on_a_growing_cluster(workers: int) -> None:
    assert growing().concurrency(Resources(workers=workers, concurrent=3)) == 3


def test_concurrency_too_large_trial_on_a_fixed_cluster_fails() -> None:
    with pytest.raises(InputError, match=r"2 workers of 1 CPUs do not fit .*; at most 1 fit$"):
        fixed().concurrency(Resources(workers=2, concurrent=3))


def test_concurrency_auto_on_a_growing_cluster_fails() -> None:
    with pytest.raises(InputError, match=r"if it adds nodes, set resources[.]concurrent to the number"):
        growing().concurrency(Resources(workers=2))


def test_concurrency_worker_larger_than_every_node_names_cpus() -> None:
    with pytest.raises(InputError, match=r"^resources\.cpus: 1 workers of 50 CPUs do not fit"):
        fixed().concurrency(Resources(cpus=50))


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (
            "http://head:8265",
            "http://head:8265: this is a dashboard; send the job there with --submit http://head",
        ),
        ("head", "head: write HOST:PORT of the head node, e.g. 10.0.0.5:6379"),
        ("127.0.0.1:9", "127.0.0.1:9: no Ray cluster answers there"),
        ("[::1]:9", r"\[::1\]:9: no Ray cluster answers there .*(refused|assign|family)"),
    ],
)
@pytest.mark.parametrize("source", ["--address", "RAY_ADDRESS"])
def test_start_address_that_nobody_answers_names_its_source(
    monkeypatch: pytest.MonkeyPatch, source: str, address: str, line: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address if source == "RAY_ADDRESS" else "")
    with pytest.raises(InputError, match=f"^{source} {line}"):
        start(address if source == "--address" else None)


def test_start_without_the_token_of_the_cluster_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of Ray 2.60: a real cluster with tokens takes ten seconds to start."""
    words = b"InvalidAuthToken: Authentication token is missing or incorrect. Note: RAY_AUTH_MODE is"
    fails = Mock(side_effect=subprocess.CalledProcessError(1, "ray", stderr=words))
    monkeypatch.setattr(cluster.subprocess, "run", fails)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^--address {address}: the token of this Ray cluster is miss"):
            start(address)


@contextmanager
def answering(address: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """Answer one client with settings of HTTP/2."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            assert connection.recv(33).startswith(b"PRI * HTTP/2.0")
            connection.sendall(bytes(3) + b"\x04" + bytes(5))

    with socket.create_server(address) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()
        thread.join()


def test_head_that_stops_answering_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(cluster, "_GREETING_SECONDS", 0.2)
    with answering(("127.0.0.1", 0)) as (host, port):
        watch = HeadWatch(f"{host}:{port}")
        watch.check()
    assert not caplog.messages
    watch.check()
    assert not caplog.messages  # one late answer is not told
    for _ in range(2):
        watch.check()
    (line,) = caplog.messages
    assert line.startswith(
        f"the head of the Ray cluster at {host}:{port} does not answer (Connection refused)"
    )
    with answering((host, port)):
        watch.check()
    assert caplog.messages[1:] == [f"the head of the Ray cluster at {host}:{port} answers again"]
    caplog.clear()
    with socket.create_server((host, port)):  # it accepts, as a process that is stopped does
        watch.check()
        watch.check()
    assert "does not answer (timed out)" in caplog.text


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_start_in_a_folder_too_long_for_sockets_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(name, "/tmp/" + "d" * 80)
    with pytest.raises(
        InputError, match=f"^{name}: /tmp/d* is too long for the sockets of Ray, at most (39|4[0-9])"
    ):
        start(None)


@pytest.mark.parametrize(("name", "below"), [("RAY_TMPDIR", "file/ray"), ("HOME", "file/.ray")])
def test_start_without_a_folder_to_write_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, below: str
) -> None:
    monkeypatch.setenv(name, "/tmp/file")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    error = NotADirectoryError(20, "Not a directory", f"/tmp/{below}")

    def fail(**_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(
        InputError, match=f"^Ray does not start: .*{below}: Not a directory; set {name} to a folder"
    ):
        start(None)


def test_start_on_a_slow_machine_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    calls: list[str] = []

    def fail(**_: Any) -> NoReturn:
        calls.append("init")
        raise Exception("The current node timed out during startup. This could happen because")  # as Ray does

    monkeypatch.setattr(cluster.ray, "init", fail)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: calls.append("shutdown"))
    with pytest.raises(InputError, match=r"^Ray does not start: The current node timed out during startup"):
        start(None)
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]
