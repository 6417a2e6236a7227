"""A bucket that refuses one file for as long as the sweep lasts, and takes all others."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import command_line
from tests.support.paths import ROOT
from tests.support.servers import FaultyProxy, Seaweed
from tests.support.sweep_files import write_sweep

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[FaultyProxy, dict[str, str]]]:
    with (
        Seaweed(tmp_path / "seaweed") as seaweed,
        FaultyProxy(seaweed.endpoint, tmp_path / "proxy") as proxy,
    ):
        yield proxy, command_line.environment() | seaweed.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}


def run(module: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"orchestrator.{module}", *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def sweep_file(folder: Path) -> Path:
    return write_sweep(
        folder,
        storage="s3://sweeps/test",
        budget={"trials": 3},
        resources={"concurrent": 2},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
    )


def status(environment: dict[str, str], *options: str) -> str:
    result = run("status", "s3://sweeps/test/parabola", *options, environment=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_checkpoints_that_are_refused_cost_their_trial(
    bucket: tuple[FaultyProxy, dict[str, str]], tmp_path: Path
) -> None:
    proxy, environment = bucket
    proxy.plan(rates={"denied": 1.0}, only="(PUT|POST) /sweeps/test/parabola/trials/trial-0001/checkpoint")
    result = run("sweep", str(sweep_file(tmp_path)), environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    shown = json.loads(status(environment, "--json"))
    assert shown["trials"] == {"complete": 2, "failed": 1}
    reason = json.loads(status(environment, "--trial", "1", "--json"))["reason"]
    assert "ACCESS_DENIED" in reason and reason.endswith("2 times without progress")


def test_report_that_is_refused_is_written_by_the_next_run(
    bucket: tuple[FaultyProxy, dict[str, str]], tmp_path: Path
) -> None:
    proxy, environment = bucket
    proxy.plan(rates={"denied": 1.0}, only="PUT /sweeps/test/parabola/report.html")
    file = sweep_file(tmp_path)
    result = run("sweep", str(file), environment=environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "report.html could not be written" in result.stderr + result.stdout
    assert json.loads(status(environment, "--json"))["trials"]["complete"] == 3
    proxy.plan()
    again = run("sweep", str(file), environment=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(status(environment, "--json"))["trials"]["complete"] == 3
    assert proxy.counts()["denied"] >= 2
