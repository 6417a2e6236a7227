"""What every test leaves as it found it."""

import os
import sys
from collections.abc import Iterator

import pytest

STORES = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}


@pytest.fixture(autouse=True)
def restored_mlflow() -> Iterator[None]:
    """Forget the stores that a test gave to MLflow, which keeps them in the process and its environment."""
    yield
    if "mlflow" not in sys.modules:
        return
    import mlflow

    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    for name, value in STORES.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
