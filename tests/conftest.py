"""What every test leaves as it found it."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.command_line import enable_signals

settings.register_profile("seeded", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("seeded")

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID")
BEFORE = {name: os.environ.get(name) for name in VARIABLES}


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """Handle signals as in the foreground during a test, and restore the handlers after it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    enable_signals()
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def restored_mlflow() -> Iterator[None]:
    """Forget the stores that a test gave to MLflow, which keeps them in the process and its environment."""
    yield
    if "mlflow" not in sys.modules:
        return
    import mlflow

    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    for name, value in BEFORE.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
