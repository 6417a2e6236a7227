"""From the command line to a driver that runs here, or to a job that runs on a cluster."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.console.arguments import report_error
from orchestrator.console.progress import Progress
from orchestrator.drivers.waiting import waiting
from orchestrator.errors import ExitCode, InputError
from orchestrator.interrupt import Interrupt

if TYPE_CHECKING:
    from orchestrator.config.document import Override
    from orchestrator.drivers.base import Driver

MakeDriver = Callable[[list["Override"], Progress, Interrupt], "Driver[Any]"]
"""Reads the file of a job with overrides, and returns its driver."""


def launch(
    kind: str,
    parsed: argparse.Namespace,
    make_driver: MakeDriver,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job, or submit it; return its `ExitCode`. A job whose output cannot be written goes on.

    Args:
        kind: name of this kind of job in messages.
        parsed: the command line.
        make_driver: reads the file.
        arguments: the command line as given; default: that of the process.

    Raises:
        OSError: all was done, and some of the output could not be written.
    """
    progress = Progress(required=False)
    return progress.exit_code(_launch(kind, parsed, make_driver, arguments, progress))


def _launch(
    kind: str,
    parsed: argparse.Namespace,
    make_driver: MakeDriver,
    arguments: Sequence[str] | None,
    progress: Progress,
) -> int:
    interrupt = Interrupt()
    try:
        interrupt.install()
        _check_working_directory()
        _check_interpreter()
        with progress.logging() as handler:
            with progress.activity(f"reading {parsed.file}"):
                from orchestrator.config.document import Override  # YAML is not needed for --help

                overrides = [Override.parse(text) for text in parsed.set]
                if parsed.storage is not None:
                    overrides.append(Override("storage", parsed.storage, f"--storage {parsed.storage}"))
                if parsed.submit is None:
                    driver = make_driver(overrides, progress, interrupt)
                    handler.add(driver.trainable_package)
            patiently = waiting(parsed.wait, progress)
            if parsed.submit is None:
                code: int = patiently(
                    driver.run, address=parsed.address, dry_run=parsed.dry_run, fresh=parsed.fresh
                )
                return code
            if parsed.address is not None:
                raise InputError("--submit, --address: give one; a submitted job runs where it is sent")
            from orchestrator.execution.submit import submit

            # On the cluster, the working directory is another one.
            file = os.path.relpath(parsed.file)
            sent = [file if each == parsed.file else each for each in _without_submit(arguments)]
            command = f"{parsed.prog} {shlex.join(sent)}"
            code = patiently(submit, command, parsed.file, overrides, parsed.submit, progress, interrupt)
            return code
    except InputError as error:
        return report_error(error)
    except KeyboardInterrupt:
        progress.print(
            "interrupted" if parsed.dry_run else f"interrupted; rerun the command to resume the {kind}"
        )
        return ExitCode.INTERRUPTED


def _check_working_directory() -> None:
    """Raise InputError if there is none any more: Ray and MLflow need one."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory: {error.strerror}; change to another one") from error


def _check_interpreter() -> None:
    """Raise InputError where Python drops docstrings, which Ray reads when it is imported."""
    if sys.flags.optimize > 1:
        raise InputError("PYTHONOPTIMIZE, python -OO: Ray needs docstrings; use 1 (python -O) or 0")


def _without_submit(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--submit")
    return parser.parse_known_args(arguments)[1]
