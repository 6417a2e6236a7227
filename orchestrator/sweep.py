"""Run a sweep: ``python -m orchestrator.sweep search_spaces/alignment.yaml``."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from orchestrator.errors import InputError
from orchestrator.progress import Progress

EXAMPLES = """\
examples:
  python -m orchestrator.sweep search_spaces/alignment.yaml
  python -m orchestrator.sweep search_spaces/alignment.yaml --dry-run
  python -m orchestrator.sweep search_spaces/alignment.yaml --trials 50 --set resources.workers=2
  python -m orchestrator.sweep search_spaces/alignment.yaml --set 'search.rnn.hidden_size={int: [64, 512]}'
  REID_DATA=/data python -m orchestrator.sweep search_spaces/real.yaml --address ray-head:6379

Running the same command again continues the sweep, or shows its summary when it is finished.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"error: {message}; see --help\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        prog="python -m orchestrator.sweep",
        description="Search the parameters of a trainable on a Ray cluster and register the best model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the sweep file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the plan, and stop")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="short for --set budget.trials=N")
    parser.add_argument("--storage", metavar="FOLDER", help="short for --set storage=FOLDER")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to run on (default: RAY_ADDRESS, or one of its own)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over; what lies there is kept under another name"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 no trial succeeded, 2 bad input, 130 interrupted."""
    parsed = parse(arguments)
    progress = Progress()
    try:
        with progress.doing(f"reading {parsed.file}"):
            from orchestrator import (
                config,
                driver,
            )  # seconds of imports, so that --help does not wait for them

            given = [config.Override.parse(text) for text in parsed.set]
            if parsed.trials is not None:
                given.append(config.Override("budget.trials", parsed.trials, f"--trials {parsed.trials}"))
            if parsed.storage is not None:
                given.append(config.Override("storage", parsed.storage, f"--storage {parsed.storage}"))
            sweep = config.read(parsed.file, given)
        return driver.run(sweep, progress, address=parsed.address, dry_run=parsed.dry_run, fresh=parsed.fresh)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.say("interrupted; the same command continues the sweep")
        return 130


if __name__ == "__main__":
    sys.exit(main())
