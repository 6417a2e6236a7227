"""The servers of the fault suite: they die, restart, and inject the faults that they announce."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import psutil
import psycopg2
import pyarrow.fs
import pytest
import requests

from tests.support.faulty_proxy import KINDS, Plan
from tests.support.paths import ROOT
from tests.support.ray_nodes import RayNodes
from tests.support.servers import FaultyProxy, MlflowServer, Postgres, Seaweed, until

pytestmark = pytest.mark.faults
CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="module")
def running(seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with FaultyProxy(seaweed.endpoint, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultyProxy) -> FaultyProxy:
    running.plan()
    return running


def files(seaweed: Seaweed, proxy: FaultyProxy, attempts: int = 3) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key=seaweed.access_key,
        secret_key=seaweed.secret_key,
        region="us-east-1",
        scheme="http",
        endpoint_override=proxy.endpoint.removeprefix("http://"),
        request_timeout=5,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def test_postgresql_killed_keeps_committed_rows(tmp_path: Path) -> None:
    with Postgres(tmp_path) as postgres:
        address = postgres.uri.replace("+psycopg2", "")
        with psycopg2.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        postgres.kill()
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(address)
        postgres.start()
        with psycopg2.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT sum(number) FROM kept")
            assert cursor.fetchone() == (500_500,)


def test_seaweedfs_killed_keeps_confirmed_objects(tmp_path: Path) -> None:
    with Seaweed(tmp_path) as seaweed:
        client = seaweed.client(attempts=3)
        client.put_object(Bucket=seaweed.bucket, Key="kept", Body=CONTENT)
        seaweed.restart()
        assert client.get_object(Bucket=seaweed.bucket, Key="kept")["Body"].read() == CONTENT


def test_proxy_passes_requests_byte_for_byte(seaweed: Seaweed, proxy: FaultyProxy) -> None:
    client = seaweed.client(proxy.endpoint)
    key = {"Bucket": seaweed.bucket, "Key": "a b/ü+%25?x=y&z=#(1)~"}
    version = client.put_object(**key, Body=CONTENT, IfNoneMatch="*")["ETag"]
    assert client.get_object(**key)["Body"].read() == CONTENT
    assert client.get_object(**key, Range="bytes=10-19")["Body"].read() == CONTENT[10:20]
    assert client.head_object(**key)["ContentLength"] == len(CONTENT)
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(**key, Body=b"", IfNoneMatch="*")
    client.put_object(**key, Body=b"", IfMatch=version)
    assert client.get_object(**key)["Body"].read() == b""
    listed = client.list_objects_v2(Bucket=seaweed.bucket, Prefix="a b/ü+")
    assert [entry["Key"] for entry in listed["Contents"]] == [key["Key"]]
    arrow, name = files(seaweed, proxy), f"{seaweed.bucket}/arrow"
    with arrow.open_output_stream(name) as stream:
        stream.write(CONTENT)
    with arrow.open_input_stream(name) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("kind", KINDS)
def test_proxy_fault_does_what_its_name_says(kind: str, seaweed: Seaweed, proxy: FaultyProxy) -> None:
    client = seaweed.client(proxy.endpoint)
    key = {"Bucket": seaweed.bucket, "Key": f"fault/{kind}"}
    before = proxy.counts()
    proxy.plan(rates={kind: 1.0}, seconds=0.5, limit=1)
    raised = None
    try:
        client.put_object(**key, Body=CONTENT)
    except (botocore.exceptions.ClientError, botocore.exceptions.ConnectionClosedError) as error:
        raised = error
    after = proxy.counts()
    assert {name for name in after if after[name] != before.get(name, 0)} == {kind, "requests"}
    assert proxy.faults()[-1]["request"] == f"PUT /{seaweed.bucket}/fault/{kind}"
    expected = {"error": "InternalError", "slow_down": "SlowDown", "expired": "ExpiredToken"}
    if kind in expected:
        assert expected[kind] in str(raised)
    else:
        assert (raised is None) == (kind in ("delay", "late"))
    done = kind in ("delay", "late", "cut_answer", "lost_answer")
    assert client.list_objects_v2(Bucket=seaweed.bucket, Prefix=key["Key"])["KeyCount"] == done
    client.put_object(**key, Body=CONTENT)
    proxy.plan(rates={kind: 1.0}, seconds=0.5, limit=1, only="^GET .*/fault/")
    if kind in ("delay", "late"):
        assert client.get_object(**key)["Body"].read() == CONTENT
    else:
        with pytest.raises((botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError)):
            client.get_object(**key)["Body"].read()
    assert client.get_object(**key)["Body"].read() == CONTENT


def test_proxy_faults_do_not_lose_retried_requests(seaweed: Seaweed, proxy: FaultyProxy) -> None:
    client, arrow = seaweed.client(proxy.endpoint, attempts=8), files(seaweed, proxy, attempts=8)
    before = proxy.counts()
    rates = dict.fromkeys(("error", "slow_down", "cut_request", "cut_answer", "lost_answer"), 0.04)
    proxy.plan(rates=rates, seed=1, only="^(PUT|POST|HEAD)")  # boto3 reads a body only once
    for number in range(20):
        content = CONTENT[number * 1000 :]
        client.put_object(Bucket=seaweed.bucket, Key=f"boto3/{number}", Body=content)
        with arrow.open_output_stream(f"{seaweed.bucket}/arrow/{number}") as stream:
            stream.write(content)
    proxy.plan()
    assert sum(proxy.counts()[kind] - before[kind] for kind in rates) > 5
    for number in range(20):
        for folder in ("boto3", "arrow"):
            answer = client.get_object(Bucket=seaweed.bucket, Key=f"{folder}/{number}")
            assert answer["Body"].read() == CONTENT[number * 1000 :]


def test_proxy_same_seed_injects_same_faults(seaweed: Seaweed, proxy: FaultyProxy) -> None:
    client = seaweed.client(proxy.endpoint)

    def faults() -> list[str]:
        proxy.plan(rates={"error": 0.3, "lost_answer": 0.3}, seed=7)
        kinds = []
        for _ in range(30):
            before = len(proxy.faults())
            try:
                client.head_bucket(Bucket=seaweed.bucket)
            except (botocore.exceptions.ClientError, botocore.exceptions.ConnectionClosedError):
                assert len(proxy.faults()) == before + 1
            kinds.append(proxy.faults()[-1]["kind"] if len(proxy.faults()) > before else "")
        return kinds

    first = faults()
    assert {"", "error", "lost_answer"} == set(first)
    assert faults() == first


def test_proxy_outage_ends_after_its_time(seaweed: Seaweed, proxy: FaultyProxy) -> None:
    client = seaweed.client(proxy.endpoint)
    proxy.down(1.5)
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        client.head_bucket(Bucket=seaweed.bucket)

    def back() -> bool:
        try:
            return bool(client.head_bucket(Bucket=seaweed.bucket))
        except botocore.exceptions.EndpointConnectionError:
            return False

    until(back, 20, "the end of the outage")


def test_proxy_plan_with_unknown_fault_is_refused(proxy: FaultyProxy) -> None:
    with pytest.raises(ValueError, match="slowdown"):
        Plan(rates={"slowdown": 1.0})


def test_mlflow_killed_keeps_runs_and_artifacts(seaweed: Seaweed, proxy: FaultyProxy, tmp_path: Path) -> None:
    with (
        Postgres(tmp_path / "postgres") as postgres,
        MlflowServer(
            tmp_path / "mlflow",
            postgres.uri,
            f"s3://{seaweed.bucket}/mlflow",
            seaweed.environment(proxy.endpoint),
        ) as server,
    ):
        api = f"{server.uri}/api/2.0"
        begin = {"experiment_id": "0", "start_time": 1}
        created = requests.post(f"{api}/mlflow/runs/create", json=begin, timeout=30).json()
        run = created["run"]["info"]
        path = run["artifact_uri"].partition(":/")[2].lstrip("/")
        artifact = f"{api}/mlflow-artifacts/artifacts/{path}/text.txt"
        requests.put(artifact, data=b"kept", timeout=30).raise_for_status()
        postgres.kill()
        server.kill()
        postgres.start()
        server.start()
        answer = requests.get(f"{api}/mlflow/runs/get", params={"run_id": run["run_id"]}, timeout=30)
        assert answer.json()["run"]["info"]["status"] == "RUNNING"
        assert requests.get(artifact, timeout=30).content == b"kept"


ORPHANS = """
import os, sys, time
from pathlib import Path
from tests.support.ray_nodes import RayNodes
from tests.support.servers import Postgres, Seaweed
folder, environment = Path(sys.argv[1]), dict(os.environ)
with Postgres(folder / "p") as p, Seaweed(folder / "s") as s, RayNodes(1, environment, folder / "r") as r:
    print(p.process.pid, s.process.pid, r._process.pid, *r.state["raylets"], flush=True)
    time.sleep(600)
"""


def test_servers_end_when_their_test_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        sessions = {os.getsid(pid) for pid in pids}
        assert len(pids) == 4 and len(sessions) == 3
        process.kill()
    until(lambda: not [each for each in psutil.process_iter() if _session(each) in sessions], 60, "their end")


def _session(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


DRIVER = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
for _ in range(300):
    cpus = sorted(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if len(cpus) == int(sys.argv[2]):
        break
    time.sleep(0.2)
print(cpus)
"""


def test_ray_nodes_are_lost_and_added(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_health_check_failure_threshold": "3"}

    def alive(nodes: RayNodes, expected: int) -> str:
        command = [sys.executable, "-c", DRIVER, nodes.address, str(expected)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        (cpus,) = [line for line in done.stdout.splitlines() if line.startswith("[")]  # Ray prints lines too
        return cpus

    with RayNodes(2, environment, tmp_path / "ray.log") as nodes:
        assert alive(nodes, 3) == "[0, 2.0, 2.0]"
        assert nodes.kill_node(random.Random(0))
        assert alive(nodes, 2) == "[0, 2.0]"
        nodes.add()
        assert alive(nodes, 3) == "[0, 2.0, 2.0]"
        assert nodes.placement_groups() == []
        assert not nodes.kill("worker", random.Random(0))
        assert [nodes.kill_node(random.Random(seed)) for seed in range(3)] == [True, True, False]
        assert alive(nodes, 1) == "[0]"
