"""The command line that all jobs share: options, overrides and exit codes."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from orchestrator.console.progress import Progress
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.config.document import Override

Start = Callable[[list["Override"], Progress], "Callable[..., int]"]
"""Reads the file of a job, with overrides laid over it; gives the ``run`` of its driver."""


class Parser(argparse.ArgumentParser):
    """The parser of a command for the files of one ``kind`` of job."""

    def __init__(self, kind: str, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.set_defaults(prog=prog)
        self.add_argument("file", help=f"the {kind} file (YAML)")
        self.add_argument("--dry-run", action="store_true", help="check everything, show the plan, and stop")
        self.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
        )
        self.add_argument("--storage", metavar="FOLDER", help="short for --set storage=FOLDER")
        self.add_argument(
            "--address",
            metavar="HOST:PORT",
            help="Ray cluster to run on (default: RAY_ADDRESS, or one of its own)",
        )
        self.add_argument(
            "--submit",
            metavar="URL",
            help="send the job to the Ray cluster with this dashboard (http://head:8265), which runs it "
            "without this machine, and follow it",
        )
        self.add_argument(
            "--fresh", action="store_true", help="start over; what lies there is kept under another name"
        )

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"error: {message}; see --help\n")


def _without_submit(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--submit")
    return parser.parse_known_args(arguments)[1]


def leave_at_once(*_: object) -> None:
    """End the process with everything as it stands: what to do at the second Ctrl-C."""
    print("stopped at once; the same command continues", file=sys.stderr, flush=True)
    os._exit(130)


def execute(
    kind: str, parsed: argparse.Namespace, start: Start, arguments: Sequence[str] | None = None
) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    progress = Progress()
    try:
        with progress.doing(f"reading {parsed.file}"):
            from orchestrator.config.document import Override  # YAML is not needed for --help

            given = [Override.parse(text) for text in parsed.set]
            if parsed.storage is not None:
                given.append(Override("storage", parsed.storage, f"--storage {parsed.storage}"))
            if parsed.submit is None:
                run = start(given, progress)
        if parsed.submit is not None:
            if parsed.address is not None:
                raise InputError("--submit, --address: give one; a submitted job runs where it is sent")
            from orchestrator.execution.submit import submit

            command = f"{parsed.prog} {shlex.join(_without_submit(arguments))}"
            return submit(command, parsed.file, given, parsed.submit, progress)
        return run(address=parsed.address, dry_run=parsed.dry_run, fresh=parsed.fresh)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.say(f"interrupted; the same command continues the {kind}")
        return 130
