"""The parsers of the commands, whose errors are one line each."""

import argparse
import math
import sys
from typing import NoReturn

from orchestrator.errors import ExitCode, InputError

EXIT_CODES = """\
exit codes: 0 done, 1 failed, 2 bad input, 3 a server or the storage does not answer, 4 another driver took
over, 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """A parser that shows its examples as they are, and prints an error as one line."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.set_defaults(prog=prog)

    def error(self, message: str) -> NoReturn:
        """Exit with one line instead of the usage."""
        self.exit(2, f"error: {message}; see --help\n")


def job_file_parser(kind: str, prog: str, description: str, examples: str) -> Parser:
    """Return the parser of a command that runs the file of a ``kind`` of job."""
    parser = Parser(prog, description, examples)
    parser.add_argument("file", help=f"the {kind} file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the plan, and stop")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
    )
    parser.add_argument("--storage", metavar="FOLDER", help="short for --set storage=FOLDER")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to run on (default: RAY_ADDRESS, else a local one)",
    )
    parser.add_argument(
        "--submit",
        metavar="URL",
        help="send the job to the Ray cluster with this dashboard (http://head:8265) and follow it there; "
        "it does not need this machine afterwards",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over; the earlier results are kept under another name"
    )
    parser.add_argument(
        "--wait",
        nargs="?",
        type=seconds,
        const=3600.0,
        default=0.0,
        metavar="SECONDS",
        help="wait for servers and a storage that do not answer, at most so long (without a number: an hour)",
    )
    return parser


def report_error(error: InputError) -> ExitCode:
    """Print an error as one line; return the exit code of the command."""
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def existing_job_parser(prog: str, description: str, examples: str, *, optional: bool = False) -> Parser:
    """Return the parser of a command that takes an existing job, or ``optional`` none."""
    parser = Parser(prog, description, examples)
    parser.add_argument(
        "sweep",
        nargs="?" if optional else None,
        help="file of the sweep, its folder or s3:// address, or its name",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override of the file",
    )
    parser.add_argument("--storage", metavar="FOLDER", help="storage of the job (default: that of the file)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, for scripts")
    return parser


def seconds(text: str) -> float:
    """Read a positive number of seconds from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
