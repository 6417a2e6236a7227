"""From the command line to a driver that runs here, or to a job that runs on a cluster."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.console.progress import Progress
from orchestrator.errors import InputError
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
    """Run a job, or submit it; return the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.

    Args:
        kind: name of this kind of job in messages.
        parsed: the command line.
        make_driver: reads the file.
        arguments: the command line as given; default: that of the process.
    """
    progress, interrupt = Progress(), Interrupt()
    try:
        interrupt.install()
        with progress.logging() as handler:
            with progress.activity(f"reading {parsed.file}"):
                from orchestrator.config.document import Override  # YAML is not needed for --help

                overrides = [Override.parse(text) for text in parsed.set]
                if parsed.storage is not None:
                    overrides.append(Override("storage", parsed.storage, f"--storage {parsed.storage}"))
                if parsed.submit is None:
                    driver = make_driver(overrides, progress, interrupt)
                    handler.add(driver.trainable_package)
            if parsed.submit is None:
                return driver.run(address=parsed.address, dry_run=parsed.dry_run, fresh=parsed.fresh)
            if parsed.address is not None:
                raise InputError("--submit, --address: give one; a submitted job runs where it is sent")
            from orchestrator.execution.submit import submit

            command = f"{parsed.prog} {shlex.join(_without_submit(arguments))}"
            return submit(command, parsed.file, overrides, parsed.submit, progress, interrupt)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.print(
            "interrupted" if parsed.dry_run else f"interrupted; rerun the command to resume the {kind}"
        )
        return 130


def _without_submit(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--submit")
    return parser.parse_known_args(arguments)[1]
