"""The commands as a user runs them, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path


def command(module: str, file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", f"orchestrator.{module}", str(file), *options]


def environment() -> dict[str, str]:
    here = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "RAY_ADDRESS"))
    }
    return here | {"PYTHONPATH": str(Path(__file__).parent)}


def run(module: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, file, *options),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def refused(module: str, file: Path, *options: str) -> str:
    """The one line that a refusal prints."""
    done = run(module, file, *options)
    assert done.returncode == 2, done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
