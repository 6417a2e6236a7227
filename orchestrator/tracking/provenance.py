"""The provenance of a result: code, installed packages, machine."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import psutil


def git_state(folder: Path) -> dict[str, str]:
    """Return `commit`, `branch` and `dirty` ("true"/"false") of the work tree; empty outside git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "dirty": str(bool(changes)).lower(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def packages() -> str:
    """Return a requirements file of all installed distributions, sorted."""
    versions = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return "".join(f"{name}=={versions[name]}\n" for name in sorted(versions, key=str.lower))


def hardware() -> dict[str, str]:
    """Return Python, system, processor cores and memory of this machine."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "host": platform.node(),
        "cpus": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
    }
