"""Interrupts that leave the handlers of the tests alone, and real tracking stores."""

from collections.abc import Iterator

import pytest

from orchestrator.interrupt import Interrupt
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
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that the first tracker creates; shared, because its migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/new/mlflow.db"


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
