"""A sweep on a real cluster, server and bucket, all of which are killed at random while it runs.

Ray with three nodes, MLflow on PostgreSQL, SeaweedFS behind a proxy that injects faults, and the driver are
killed and started again; trials are poisoned, files of the sweep damaged, and its lease is taken from its
driver. At the end nothing may be lost, doubled or left behind. ``FAULTS`` (default 60) is
the number of faults, ``FAULT_SEED`` the seed that chooses them.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pytest
from rich.console import Console
from rich.table import Table

from orchestrator.errors import ExitCode
from orchestrator.storage.directory import open_store
from orchestrator.storage.lease import record_name
from orchestrator.storage.study_database import study_storage
from tests.support import accounts
from tests.support.command_line import enable_signals
from tests.support.paths import ROOT
from tests.support.ray_nodes import KINDS, RayNodes
from tests.support.servers import FaultyProxy, MlflowServer, Postgres, Seaweed

FAULTS = int(os.environ.get("FAULTS", "60"))
TRIALS = max(4, FAULTS // 2)
SEED = int(os.environ.get("FAULT_SEED", "0"))
NAME = "survivor"
SWEEP = """
name: survivor
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 16, seconds: 2.0, fault: poison, marker: MARKER}
search:
  x: {uniform: [-3, 3]}
  steps: {int: [1, 3]}
objective: {metric: val/score}
sampler: {random: {seed: 1}}
scheduler: {asha: {grace: 3, reduction: 2}}
budget: {trials: TRIALS}
resources: {concurrent: 2}
registry: {model: survivor}
"""
PACE = (3.0, 11.0)
"""Seconds between two faults."""

HEAVY = ("driver", "Ctrl-C", "SIGTERM", "node", "MLflow", "PostgreSQL", "theft", "corruption")
"""Faults with a long recovery: most of them are followed by none until another epoch is trained.

Otherwise the next fault would only ever hit processes that are still starting.
"""

AGAIN = 0.2
"""Probability that a heavy fault is followed by another one at once."""

CALM = 0.4
"""Probability that a storm at the bucket ends before the next fault."""

STORMS = [
    {"rates": {"error": 0.15, "slow_down": 0.15}},
    {"rates": {"lost_answer": 0.15, "cut_answer": 0.1}},
    {"rates": {"cut_request": 0.2}},
    {"rates": {"expired": 0.2}},
    {"rates": {"delay": 0.2, "late": 0.1}, "seconds": 2.0},
]


class Driver:
    """The command, which is started again whenever it ends too early."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self._command, self._environment, self._folder = command, environment, folder
        self.logs: list[Path] = []
        self.begin = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.begin = time.monotonic()
        self.logs.append(self._folder / f"driver-{len(self.logs):03d}.log")
        with self.logs[-1].open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=enable_signals,
            )

    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def hit(self, number: signal.Signals) -> bool:
        """Send a signal, and start the next driver when this one has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        code = self.process.wait(600)
        young = time.monotonic() - self.begin < 60  # it may not have installed its signal handlers yet
        assert number == signal.SIGKILL or young or code in (0, 130), self.text()[-3000:]
        self.start()
        return True

    def steal(self) -> bool:
        """Suspend the driver until the next one has taken its sweep over; then it must end at once."""
        suspended = self.process
        assert suspended is not None
        if suspended.poll() is not None or " epochs |" not in self.logs[-1].read_text(errors="replace"):
            return False
        suspended.send_signal(signal.SIGSTOP)
        self.start()
        successor = self.process
        assert successor is not None
        try:
            while "; taking over sweep" not in self.logs[-1].read_text(errors="replace"):
                if successor.poll() is not None:  # as when MLflow does not answer at its start
                    self.process = suspended
                    self.logs.append(self.logs.pop(-2))  # the last one is that of the driver
                    return False
                time.sleep(0.5)
        finally:
            suspended.send_signal(signal.SIGCONT)
        try:
            assert suspended.wait(300) == ExitCode.LEASE_LOST, self.text()[-5000:]
        finally:
            suspended.kill()
        return True

    def corrupt(self, damage: Callable[[], None]) -> bool:
        """Kill the driver, damage a file of the sweep, and start the next driver."""
        assert self.process is not None
        if self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait(60)
        damage()
        self.start()
        return True

    def epochs(self) -> int:
        """Return how many epochs all drivers reported; each counts from 0."""
        reported = [re.findall(r"\| (\d+) epochs \|", log.read_text(errors="replace")) for log in self.logs]
        return sum(int(counts[-1]) for counts in reported if counts)

    def text(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs)


@pytest.mark.faults
@pytest.mark.timeout(9000)
def test_sweep_survives_random_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    sweep = tmp_path / "survivor.yaml"
    poison = tmp_path / "poison"
    sweep.write_text(SWEEP.replace("TRIALS", str(TRIALS)).replace("MARKER", str(poison)))
    with (
        Postgres(tmp_path / "postgres") as postgres,
        Seaweed(tmp_path / "seaweed") as seaweed,
        FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy,
        MlflowServer(tmp_path / "mlflow", postgres.uri, tmp_path / "artifacts") as server,
    ):
        bucket = seaweed.environment(proxy.endpoint)
        environment = {**os.environ, **bucket, "MLFLOW_TRACKING_URI": server.uri}
        environment["PYTHONPATH"] = str(ROOT)
        environment["RAY_health_check_failure_threshold"] = "3"  # a lost node is noticed within seconds
        with RayNodes(2, environment, tmp_path / "ray.log") as nodes:
            storage = f"s3://{seaweed.bucket}/sweeps"
            options = ["--storage", storage, "--address", nodes.address]
            driver = Driver(
                [sys.executable, "-m", "orchestrator.sweep", str(sweep), *options], environment, tmp_path
            )
            try:
                done = hurt(chance, Victims(driver, nodes, postgres, server, proxy, seaweed, poison))
            finally:
                assert driver.process is not None
                driver.process.kill()
            groups = nodes.placement_groups()
            left = nodes.left()
        for name, value in bucket.items():
            monkeypatch.setenv(name, value)
        store = open_store(storage)
        store.check()
        study = optuna.load_study(study_name=NAME, storage=study_storage(store, NAME))
        mlflow.set_tracking_uri(server.uri)
        books = accounts.count(
            study,
            mlflow.MlflowClient(server.uri),
            NAME,
            [log.read_text() for log in driver.logs],
        )
        books["processes leaked"], books["placement groups leaked"] = len(left), len(groups)
        mlflow.pyfunc.load_model("models:/survivor@champion")
        injected = proxy.counts()
        del done["storm"], done["outage"]  # counted by what they did to requests
        done |= {f"S3: {kind}": injected[kind] for kind in injected.keys() - {"requests", "unreachable"}}
        show(done, books)
        assert len(study.trials) == TRIALS
        assert not +books, (left, groups)


@dataclass(frozen=True)
class Victims:
    """Everything that is hurt."""

    driver: Driver
    nodes: RayNodes
    postgres: Postgres
    server: MlflowServer
    proxy: FaultyProxy
    bucket: Seaweed
    poison: Path
    """The next trial that finds this file fails."""


def hurt(chance: random.Random, victims: Victims) -> Counter[str]:
    """Run the sweep to its end with faults on the way; return the number of each kind."""
    driver, proxy = victims.driver, victims.proxy
    done: Counter[str] = Counter()
    kinds = (
        ["worker"] * 6
        + ["controller"] * 3
        + ["lane"] * 3
        + ["mailbox"] * 2
        + ["driver", "driver", "Ctrl-C", "SIGTERM"]
    )
    kinds += ["node", "node", "MLflow", "MLflow", "PostgreSQL", "storm", "storm", "storm", "outage"]
    kinds += ["poison", "poison", "theft", "corruption"]
    awaited = 1
    driver.start()
    deadline = time.monotonic() + 8000
    while driver.ended() is None or driver.ended() != 0:
        assert time.monotonic() < deadline, driver.text()[-5000:]
        if (code := driver.ended()) is not None:
            assert code in (1, 3), driver.text()[-5000:]  # as when MLflow does not answer at its start or end
            time.sleep(3)
            driver.start()
        for server in (victims.postgres, victims.server):
            if not server.alive:  # MLflow ends when it finds no database at its start
                server.launch()
        time.sleep(chance.uniform(*PACE))
        if chance.random() < CALM or sum(done.values()) >= FAULTS:
            proxy.plan()
        if driver.epochs() < awaited or sum(done.values()) >= FAULTS:
            continue
        kind = chance.choice(kinds)
        done[kind] += strike(kind, chance, victims)
        if kind in HEAVY and chance.random() > AGAIN:
            awaited = driver.epochs() + 1
    for server in (victims.postgres, victims.server):
        server.wait()
    return done


def strike(kind: str, chance: random.Random, victims: Victims) -> bool:
    """Cause one fault; return whether that was possible."""
    if kind in KINDS:
        return victims.nodes.kill(kind, chance)
    if kind == "node":
        killed = victims.nodes.kill_node(chance)
        victims.nodes.add()
        return killed
    if kind == "storm":
        victims.proxy.plan(seed=chance.randrange(1000), **chance.choice(STORMS))
        return True
    if kind == "outage":
        victims.proxy.down(chance.uniform(2, 10))
        return True
    if kind in ("MLflow", "PostgreSQL"):
        hit = victims.server if kind == "MLflow" else victims.postgres
        hit.kill()
        time.sleep(chance.uniform(1, 10))
        hit.launch()  # the next fault happens while it starts
        return True
    if kind == "poison":
        if victims.poison.exists():  # no trial has taken the last one
            return False
        victims.poison.touch()
        return True
    if kind == "theft":
        return victims.driver.steal()
    if kind == "corruption":
        name = chance.choice((f"{NAME}/sweep.json", record_name(NAME)))
        content = chance.choice((None, b"", b"{", b"[]"))
        return victims.driver.corrupt(lambda: damage(victims.bucket, f"sweeps/{name}", content))
    return victims.driver.hit(
        {"driver": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}[kind]
    )


def damage(bucket: Seaweed, key: str, content: bytes | None) -> None:
    """Replace an object, or delete it."""
    client = bucket.client()
    if content is None:
        client.delete_object(Bucket=bucket.bucket, Key=key)
    else:
        client.put_object(Bucket=bucket.bucket, Key=key, Body=content)


def show(done: Counter[str], books: Counter[str]) -> None:
    """Print what was done and what was lost."""
    table = Table("fault", "injected", title=f"{sum(done.values())} faults, seed {SEED}")
    for kind, number in sorted(done.items()):
        table.add_row(kind, str(number))
    after = Table("afterwards", "number")
    for kind, number in books.items():
        after.add_row(kind, str(number))
    console = Console(file=sys.__stdout__, width=100)
    console.print(table, after)
