"""Interrupts that leave the handlers of the tests alone, and real tracking stores."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from orchestrator.interrupt import Interrupt
from orchestrator.tracking.store import quiet_mlflow
from tests.support.servers import MlflowServer, Seaweed


@pytest.fixture
def interrupt(restored_signals: None) -> Interrupt:
    """An interrupt that handles the signals of this process, until the test ends."""
    interrupt = Interrupt()
    interrupt.install()
    return interrupt


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    with MlflowServer(folder, f"sqlite:///{folder}/server.db", folder / "artifacts") as server:
        yield server


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs, to be copied: its migrations take seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    quiet_mlflow()
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def sqlite_uri(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the tests of one module, which would find the runs of other modules' sweeps otherwise."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with sqlite3.connect(empty_store) as source, sqlite3.connect(file) as copy:
        source.backup(copy)
    return f"sqlite:///{file}"


@pytest.fixture(scope="module", params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("mlflow_server").uri)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A bucket, whose address and keys are in the environment."""
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
