"""A sweep on several hosts (Linux namespaces with `ray start`), one of which loses its link."""

import contextlib
import json
import re
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.infra.hosts import Hosts

pytestmark = [pytest.mark.infra_slow, pytest.mark.timeout(900)]
ADDRESS = f"{Hosts.ADDRESS}:6379"
EPOCHS, TRIALS = 8, 2
SWEEP = f"""
name: tiny
trainable: tests.support.example_trainable:ExampleTrainable
config: {{epochs: {EPOCHS}, seconds: 1.0}}
search: {{x: {{uniform: [-3, 3]}}}}
objective: {{metric: val/score}}
sampler: {{random: {{seed: 1}}}}
scheduler: none
budget: {{trials: {TRIALS}}}
resources: {{workers: 2, cpus: 1}}
"""
"""Each worker takes the only CPU of its host, so every trial runs on two."""

NODES = f"""
import ray
ray.init("{ADDRESS}", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""
RAY = (sys.executable, "-m", "ray.scripts.scripts")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head without CPUs and three hosts, two of which have joined it."""
    folder = tmp_path_factory.mktemp("hosts")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    made = Hosts(folder, 3, environment, head="sleep infinity")
    try:
        until = time.monotonic() + 30
        while not (folder / "up-0").exists():
            assert made.process.poll() is None and time.monotonic() < until, made.logs()
            time.sleep(0.1)
        start = [*RAY, "start", "--head", "--port=6379", f"--node-ip-address={Hosts.ADDRESS}"]
        made.run(*start, "--num-cpus=0", '--resources={"trial_slot": 8}', "--object-store-memory=200000000")
        join(made, 1)
        join(made, 2)
        yield made
    finally:
        made.end()


def join(hosts: Hosts, host: int, token: str = "token") -> None:
    """Join a host to the cluster."""
    start = ["env", f"RAY_AUTH_TOKEN_PATH={hosts.folder / token}", *RAY, "start", f"--address={ADDRESS}"]
    own = [f"--node-ip-address=10.9.0.{host}", "--num-cpus=1", "--object-store-memory=200000000"]
    hosts.run(*start, *own, host=host)


def epochs(hosts: Hosts) -> list[tuple[int, int]]:
    """Return trial and epoch of every report in the study."""
    path = hosts.folder / "sweeps/tiny/study.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as study:
        return study.execute(
            "SELECT number, step FROM trials JOIN trial_intermediate_values USING (trial_id) ORDER BY 1, 2"
        ).fetchall()


def test_host_with_another_token_cannot_join(hosts: Hosts) -> None:
    (hosts.folder / "foreign").write_text(secrets.token_hex(32))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        join(hosts, 3, "foreign")
    assert "AuthenticationError" in refused.value.output
    listed = hosts.run(sys.executable, "-c", NODES)
    assert listed.splitlines()[-1] == "3"  # the head and two hosts


def test_sweep_resumes_elsewhere_when_a_host_loses_its_link(hosts: Hosts) -> None:
    (hosts.folder / "tiny.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "orchestrator.sweep", "tiny.yaml"]
    options = ["--address", ADDRESS, "--storage", str(hosts.folder / "sweeps")]
    with hosts.start(*command, *options) as sweep:
        assert sweep.stdout is not None
        told, cut = "", False
        for line in sweep.stdout:
            told += line
            counted = re.search(r"\| (\d+) epochs \|", line)
            if not cut and counted and int(counted[1]) >= 2:
                hosts.cut(1)
                cut = True
                join(hosts, 3)  # as a cloud replaces a lost spot node
        sweep.wait()
    assert sweep.returncode == 0 and cut, told + hosts.logs()
    assert "resumes from its last checkpoint" in told
    assert epochs(hosts) == [(trial, epoch) for trial in range(TRIALS) for epoch in range(1, EPOCHS + 1)]
    status = [sys.executable, "-m", "orchestrator.status", "tiny", *options[2:], "--json"]
    assert json.loads(hosts.run(*status))["trials"]["complete"] == TRIALS
