"""The commands as a user runs them, each in a new process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.errors import ExitCode
from tests.support.paths import ROOT


def command(module: str, file: Path, *options: str) -> list[str]:
    """Return the command line of a module of this checkout."""
    return [sys.executable, "-m", f"orchestrator.{module}", str(file), *options]


def environment() -> dict[str, str]:
    """Return the environment of a command: no MLflow or Ray but its own, and the modules of the tests."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "RAY_ADDRESS"))
    }
    return variables | {"PYTHONPATH": str(ROOT)}


def run(module: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(module, file, *options),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def start(module: str, file: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Start a command in a process group of its own; yield its process and its output."""
    with subprocess.Popen(
        command(module, file, *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=enable_signals,
        process_group=0,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout


def enable_signals() -> None:
    """Handle SIGINT and SIGHUP, which a process ignores if it was started in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def interrupt(
    module: str, file: Path, *options: str, epochs: int, number: signal.Signals = signal.SIGINT
) -> None:
    """Stop a job once it reports so many epochs, and check that it stops and says how to resume.

    The signal goes to its process group, as that of a terminal at Ctrl-C and that of ``timeout`` do.
    """
    with start(module, file, *options) as (process, output):
        lines = read_until(output, epochs)
        os.killpg(process.pid, number)
        lines.append(output.read())
    assert process.returncode == 130, "".join(lines)
    assert "interrupted; rerun the command to resume" in lines[-1]
    assert "cannot check for unused placement groups" not in lines[-1]


def read_until(output: IO[str], epochs: int) -> list[str]:
    """Return the lines of a running job until its status line counts so many epochs."""
    lines = []
    for line in output:
        lines.append(line)
        count = re.search(r"\| (\d+) epochs \|", line)
        if count and int(count[1]) >= epochs:
            break
    return lines


def refused(module: str, file: Path, *options: str, code: ExitCode = ExitCode.BAD_INPUT) -> str:
    """Return the one line of a command that refuses its input, or gets no answer."""
    done = run(module, file, *options)
    assert done.returncode == code, done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
