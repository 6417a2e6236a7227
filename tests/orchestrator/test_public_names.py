"""What `import orchestrator` gives, and what it does not import."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import orchestrator


def test_orchestrator_exports_the_public_names() -> None:
    assert sorted(orchestrator.__all__) == ["InputError", "Trainable", "__version__", "load"]


def test_version_is_that_of_the_distribution() -> None:
    assert orchestrator.__version__ == version("multi-shot-reid")


@pytest.mark.parametrize("module", ["orchestrator", "orchestrator.testing"])
def test_import_needs_no_heavy_package(module: str) -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "trainables"}
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", ["sweep", "comparison"])
def test_config_import_needs_no_torch_ray_or_mlflow(module: str) -> None:
    code = f"import sys, orchestrator.config.{module}; print({{'torch', 'ray', 'mlflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
