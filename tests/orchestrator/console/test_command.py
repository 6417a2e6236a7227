"""How a command ends when Ctrl-C or its output gets in the way."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.console.progress import Progress
from tests.support import command_line
from tests.support.command_line import enable_signals

LINE = "error: the output cannot be written: No space left on device\n"
PROGRAM = """
import sys
from orchestrator.console.command import run
def main():
    {body}
run(main)
"""


def run(*command: str, output: int | None = None, **variables: str) -> tuple[int, str]:
    """Run a Python program, by default with its output on a full disk; return its exit code and errors."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, *command],
            env=command_line.environment() | variables,
            stdout=full if output is None else output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=enable_signals,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_on_a_full_disk_is_one_line(tmp_path: Path, options: list[str], unbuffered: str) -> None:
    command = ["-m", "orchestrator.status", "--storage", str(tmp_path), *options]
    assert run(*command, PYTHONUNBUFFERED=unbuffered) == (1, LINE)


def test_status_with_its_output_closed_is_one_line(tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-m", "orchestrator.status", "--storage", str(tmp_path)])
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"],
        env=command_line.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: Bad file descriptor\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_refused_file_on_a_full_disk_keeps_its_code(command: str, unbuffered: str) -> None:
    code, errors = run("-m", f"orchestrator.{command}", "nowhere.yaml", PYTHONUNBUFFERED=unbuffered)
    assert code == 2 and errors.startswith("error: nowhere.yaml: there is no such file")
    assert len(errors.removesuffix(LINE).splitlines()) == 1


def test_output_of_a_reader_that_left_is_one_line(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run("-m", "orchestrator.status", "--storage", str(tmp_path), output=writer)
    os.close(writer)
    assert ended == (1, "error: the output cannot be written: Broken pipe\n")


def test_other_oserror_of_a_command_is_raised() -> None:
    code, errors = run("-c", PROGRAM.format(body="open('/nowhere/at/all')"))
    assert code == 1 and "FileNotFoundError" in errors


def test_ctrl_c_that_a_command_does_not_handle_is_its_code() -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    assert run("-c", PROGRAM.format(body=body), output=subprocess.DEVNULL) == (130, "")


@pytest.mark.parametrize("command", ["sweep", "compare", "status", "stop", "train"])
@pytest.mark.parametrize("module", ["pydantic", "rich"])
def test_ctrl_c_while_a_command_starts_has_no_traceback(tmp_path: Path, module: str, command: str) -> None:
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), command_line.environment()["PYTHONPATH"]])
    ended = run("-m", f"orchestrator.{command}", "nowhere.yaml", PYTHONPATH=path)
    assert ended == (-signal.SIGINT, "")


def test_import_of_the_package_leaves_ctrl_c_as_it_was() -> None:
    program = "import signal, orchestrator; assert signal.getsignal(2) is signal.default_int_handler"
    assert run("-c", program) == (0, "")


def test_progress_that_is_required_raises_what_is_lost() -> None:
    program = "from orchestrator.console.progress import Progress\nProgress().print('text')"
    code, errors = run("-c", program, PYTHONUNBUFFERED="1")
    assert code == 1 and "OSError: [Errno 28]" in errors


PROGRESS = """
import logging, os, sys
from orchestrator.console.progress import Progress
full, later = os.open("/dev/full", os.O_WRONLY), os.dup(1)
progress = Progress(required=False)
os.dup2(full, 1)
with progress.logging(), progress.activity("working"):
    logging.getLogger("orchestrator").info("lost")
os.dup2(later, 1)
progress.print("kept")
try:
    progress.exit_code(0)
except OSError as error:
    print(error.strerror)
print(progress.exit_code(3))
"""


def test_progress_of_a_job_goes_on_without_its_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRESS],
        env=command_line.environment() | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("kept\nNo space left on device\n3\n", "")


def test_progress_without_a_fault_keeps_the_code() -> None:
    assert Progress(required=False).exit_code(0) == 0
