"""A driver that is suspended while another one takes its sweep over, in a real bucket."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import mlflow
import optuna
import pytest

from tests.support import command_line
from tests.support.paths import ROOT
from tests.support.servers import MlflowServer, Postgres, Seaweed
from tests.support.sweep_files import write_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Postgres, dict[str, str], MlflowServer]]:
    with (
        Postgres(tmp_path / "postgres") as postgres,
        Seaweed(tmp_path / "seaweed") as seaweed,
        MlflowServer(
            tmp_path / "mlflow", f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts"
        ) as server,
    ):
        yield postgres, seaweed.environment(), server


def start(command: list[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("study", ["bucket", "database"])
def test_driver_that_lost_its_sweep_writes_nothing(
    servers: tuple[Postgres, dict[str, str], MlflowServer], tmp_path: Path, study: str
) -> None:
    postgres, variables, server = servers
    file = write_sweep(
        tmp_path,
        storage="s3://sweeps/test",
        study=postgres.uri if study == "database" else "",
        config={"epochs": 3, "seconds": 1.0},
        budget={"trials": 8},
        resources={"concurrent": 1},
        registry={"model": "parabola"},
        tracking={"uri": server.uri},
    )
    environment = command_line.environment() | variables
    command = [sys.executable, "-m", "orchestrator.sweep", str(file)]
    log = tmp_path / "first.log"
    with log.open("wb") as output:
        first = start(command, environment, output)
    try:
        while "trial-0001 starts" not in log.read_text():
            assert first.poll() is None, log.read_text()
            time.sleep(0.2)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
        )
        assert second.returncode == 0, second.stdout + second.stderr
        status = [sys.executable, "-m", "orchestrator.status", "s3://sweeps/test/parabola", "--json"]
        before = json.loads(subprocess.check_output(status, env=environment, cwd=ROOT))
        first.send_signal(signal.SIGCONT)
        code = first.wait(120)
    finally:
        first.kill()
    lines = log.read_text().splitlines()
    assert code == 4, lines[-20:]
    assert "Traceback" not in log.read_text()
    assert len([line for line in lines if line.startswith("another driver took over sweep ")]) == 1, lines
    assert json.loads(subprocess.check_output(status, env=environment, cwd=ROOT)) == before | {
        "driver": before["driver"] | {"seconds_since_heartbeat": pytest.approx(0, abs=1e6)}
    }
    client = mlflow.MlflowClient(server.uri)
    (version,) = client.search_model_versions("name = 'parabola'")
    assert version.tags["decision"] == "promoted"
    experiment = client.get_experiment_by_name("parabola")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 9  # the trials, and the sweep
    if study == "database":
        assert len(optuna.load_study(study_name="parabola", storage=postgres.uri).trials) == 8
