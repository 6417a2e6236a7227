"""Run a comparison: ``python -m orchestrator.compare search_spaces/claim.yaml``.

The file names variants of one trainable, splits and seeds::

    name: claim
    trainable: trainables.alignment:AlignmentTrainable
    config: {...}                           # shared by all variants
    variants:                               # name: {path of the config: value}
      sequence:  {method: sequence}
      static:    {method: static, alignment.weights.pseudo: 0.2}
      alignment: {method: alignment}
    splits: {data.split: [0, 1, 2, 3, 4]}   # one path and its values; optional
    seeds: [0]                              # values of the config's seed; default: that of the config
    baseline: sequence                      # default: the first variant
    metrics: [test/prid/rank1]              # columns of the table; default: every score on the targets
    resources: {workers: 1, cpus: 1, gpus: 0, concurrent: auto}   # and storage, tracking: as in a sweep

Metrics of the last epoch can be columns too: ``metrics: [val/mAP]`` with ``config.data.targets: []`` compares
on validation identities alone, so that settings can be chosen without test identities.

Every variant is trained and scored on every split with every seed: all variants on the first split and seed,
then on the next, so that the results so far can be compared at any time. The outcome is a table of means and
of paired differences from the baseline with 95 % intervals: on the terminal, in ``report.html``,
``results.csv`` and ``results.json`` of the folder, and in MLflow.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.console.arguments import EXIT_CODES, job_file_parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.drivers.launch import launch
from orchestrator.errors import ExitCode, InputError, StorageError
from orchestrator.interrupt import Interrupt

if TYPE_CHECKING:
    from orchestrator.config.document import Override
    from orchestrator.drivers.base import Driver

EXAMPLES = f"""\
examples:
  python -m orchestrator.compare search_spaces/claim.yaml
  python -m orchestrator.compare search_spaces/claim.yaml --dry-run
  python -m orchestrator.compare search_spaces/claim.yaml --set 'splits.data.split=[0, 1]'
  python -m orchestrator.compare search_spaces/claim.yaml --set variants.static.optimizer.learning_rate=1e-3
  REID_DATA=/data python -m orchestrator.compare search_spaces/claim.yaml --address ray-head:6379
  python -m orchestrator.compare best.yaml --from alignment:3    # write a file of the best trials of a sweep

Rerun the command to resume the comparison: scored trials are kept, interrupted ones resume from their last
checkpoint, failed ones are tried again, and variants, splits and seeds that were added to the file are run.
For a finished comparison the command shows the table.

{EXIT_CODES}"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = job_file_parser(
        "comparison",
        "python -m orchestrator.compare",
        "Train and score variants of a trainable over splits and seeds on a Ray cluster, and compare them.",
        EXAMPLES,
    )
    parser.add_argument(
        "--from",
        dest="sweep",
        metavar="SWEEP[:TOP]",
        help="write the file: its variants are the TOP (default 1) best trials of a sweep, which is given by "
        "its file, folder, address or name",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parsed = parse(arguments)
    if parsed.sweep is not None:
        return write_best(parsed)

    def make_driver(overrides: "list[Override]", progress: Progress, interrupt: Interrupt) -> "Driver[Any]":
        # Imports take seconds, which --help and a file with an error do not need.
        from orchestrator.config.comparison import read_comparison

        comparison = read_comparison(parsed.file, overrides)

        from orchestrator.drivers.comparison import ComparisonDriver

        return ComparisonDriver(comparison, progress, interrupt)

    return launch("comparison", parsed, make_driver, arguments)


def write_best(parsed: argparse.Namespace) -> int:
    """Write a comparison of the best trials of a sweep to a new file; return the exit code."""
    file, (sweep, top) = Path(parsed.file), _sweep_and_top(parsed.sweep)
    try:
        if parsed.set or parsed.submit or parsed.address or parsed.dry_run or parsed.fresh:
            raise InputError(
                "--from: it only writes the file; run the file with the other options afterwards"
            )
        if file.exists():
            raise InputError(f"{file}: this file exists; name a new one, or run it without --from")

        from orchestrator.config.document import dump
        from orchestrator.storage import lookup
        from orchestrator.study.extraction import best_as_comparison

        store, name = lookup.find_job(sweep, parsed.storage)
        tree = best_as_comparison(store, name, top)
        head = f"# The best trials of {store.locate(name)}, trained again with several seeds.\n\n"
        with file.open("x", encoding="utf-8") as stream:
            stream.write(head + dump(tree))
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except OSError as error:
        return report_error(InputError(f"{file}: cannot be written: {error.strerror}"))
    variants, command = (
        ", ".join(tree["variants"]),
        f"python -m orchestrator.compare {shlex.quote(str(file))}",
    )
    Progress().print(f"{file} compares {variants}; run it with: {command}")
    return ExitCode.DONE


def _sweep_and_top(text: str) -> tuple[str, int]:
    """Return the parts of ``SWEEP[:TOP]``; a colon that no number follows belongs to the sweep."""
    sweep, _, top = text.rpartition(":")
    return (sweep, int(top)) if sweep and top.isascii() and top.isdecimal() and int(top) else (text, 1)


if __name__ == "__main__":
    run(main)
