"""The commands as a user runs them, in a process of their own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def command(module: str, file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", f"orchestrator.{module}", str(file), *options]


def environment() -> dict[str, str]:
    here = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "RAY_ADDRESS"))
    }
    return here | {"PYTHONPATH": str(ROOT)}


def run(module: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, file, *options),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def interrupt(module: str, file: Path, *options: str, epochs: int) -> None:
    """Press Ctrl-C once so many epochs are told of, and see that it stops and says how to go on."""
    with subprocess.Popen(
        command(module, file, *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            told = re.search(r"\| (\d+) epochs \|", line)
            if told and int(told[1]) >= epochs:
                break
        process.send_signal(signal.SIGINT)
        seen.append(process.stdout.read())
    assert process.returncode == 130, "".join(seen)
    assert "the same command continues" in seen[-1]


def refused(module: str, file: Path, *options: str) -> str:
    """The one line that a refusal prints."""
    done = run(module, file, *options)
    assert done.returncode == 2, done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
