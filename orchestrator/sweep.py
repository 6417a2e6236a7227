"""Run a sweep: ``python -m orchestrator.sweep search_spaces/alignment.yaml``."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.console.arguments import EXIT_CODES, job_file_parser
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.drivers.launch import launch
from orchestrator.interrupt import Interrupt

if TYPE_CHECKING:
    from orchestrator.config.document import Override
    from orchestrator.drivers.base import Driver

EXAMPLES = f"""\
examples:
  python -m orchestrator.sweep search_spaces/alignment.yaml
  python -m orchestrator.sweep search_spaces/alignment.yaml --dry-run
  python -m orchestrator.sweep search_spaces/alignment.yaml --trials 50 --set resources.workers=2
  python -m orchestrator.sweep search_spaces/alignment.yaml --set 'search.rnn.hidden_size={{int: [64, 512]}}'
  REID_DATA=/data python -m orchestrator.sweep search_spaces/real.yaml --address ray-head:6379

Rerun the command to resume the sweep, or to show the summary of a finished one.

{EXIT_CODES}"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = job_file_parser(
        "sweep",
        "python -m orchestrator.sweep",
        "Search the parameters of a trainable on a Ray cluster and register the best model.",
        EXAMPLES,
    )
    parser.add_argument("--trials", type=int, metavar="N", help="short for --set budget.trials=N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parsed = parse(arguments)

    def make_driver(overrides: "list[Override]", progress: Progress, interrupt: Interrupt) -> "Driver[Any]":
        # Imports take seconds, which --help and a file with an error do not need.
        from orchestrator.config.document import Override
        from orchestrator.config.sweep import read_sweep

        if parsed.trials is not None:
            overrides.append(Override("budget.trials", parsed.trials, f"--trials {parsed.trials}"))
        sweep = read_sweep(parsed.file, overrides)

        from orchestrator.drivers.sweep import SweepDriver

        return SweepDriver(sweep, progress, interrupt)

    return launch("sweep", parsed, make_driver, arguments)


if __name__ == "__main__":
    run(main)
