"""Run a sweep: ``python -m orchestrator.sweep search_spaces/alignment.yaml``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.console.arguments import Parser, execute
from orchestrator.console.progress import Progress

if TYPE_CHECKING:
    from orchestrator.config.document import Override

EXAMPLES = """\
examples:
  python -m orchestrator.sweep search_spaces/alignment.yaml
  python -m orchestrator.sweep search_spaces/alignment.yaml --dry-run
  python -m orchestrator.sweep search_spaces/alignment.yaml --trials 50 --set resources.workers=2
  python -m orchestrator.sweep search_spaces/alignment.yaml --set 'search.rnn.hidden_size={int: [64, 512]}'
  REID_DATA=/data python -m orchestrator.sweep search_spaces/real.yaml --address ray-head:6379

Running the same command again continues the sweep, or shows its summary when it is finished.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        "sweep",
        "python -m orchestrator.sweep",
        "Search the parameters of a trainable on a Ray cluster and register the best model.",
        EXAMPLES,
    )
    parser.add_argument("--trials", type=int, metavar="N", help="short for --set budget.trials=N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 no trial succeeded, 2 bad input, 130 interrupted."""
    parsed = parse(arguments)

    def start(given: "list[Override]", progress: Progress) -> Callable[..., int]:
        from orchestrator.config import (
            sweep as config,  # seconds of imports, so that --help does not wait for them
        )
        from orchestrator.drivers import base as driver

        if parsed.trials is not None:
            given.append(config.Override("budget.trials", parsed.trials, f"--trials {parsed.trials}"))
        return driver.SweepDriver(config.read(parsed.file, given), progress).run

    return execute("sweep", parsed, start, arguments)


if __name__ == "__main__":
    sys.exit(main())
