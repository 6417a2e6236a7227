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
    file, progress = Path(parsed.file), Progress()
    others = ("set", "submit", "address", "dry_run", "fresh", "wait")
    try:
        if any(getattr(parsed, option) for option in others):
            raise InputError(
                "--from: it only writes the file; run the file with the other options afterwards"
            )
        if file.exists():
            raise InputError(f"{file}: this file exists; name a new one, or run it without --from")
        sweep, top = _sweep_and_top(parsed.sweep)
        with progress.activity(f"reading {sweep}"):
            variants = _write_best(file, sweep, top, parsed.storage)
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except OSError as error:
        return report_error(InputError(f"{file}: cannot be written: {error.strerror}"))
    command = f"python -m orchestrator.compare {shlex.quote(str(file))}"
    if len(variants) < top:
        progress.print(f"{sweep} has only {len(variants)} complete trials that differ, not {top}")
    progress.print(f"{file} compares {', '.join(variants)}; run it with: {command}")
    return ExitCode.DONE


def _write_best(file: Path, sweep: str, top: int, storage: str | None) -> list[str]:
    """Write the file; return the names of its variants."""
    from orchestrator.config.comparison import read_comparison
    from orchestrator.config.document import dump
    from orchestrator.storage import lookup
    from orchestrator.study.extraction import best_as_comparison

    store, name = lookup.find_job(sweep, storage)
    tree = best_as_comparison(store, name, top)
    head = (
        f"# The best trials of {store.locate(name)}, trained again with several seeds.\n"
        "# Without `metrics`, the table has the scores on the targets. Do not choose a variant by them:\n"
        "# scores by which something was chosen are too good.\n\n"
    )
    with file.open("x", encoding="utf-8") as stream:
        stream.write(head + dump(tree))
    try:
        read_comparison(file)
    except InputError:
        file.unlink()
        raise
    return list(tree["variants"])


def _sweep_and_top(text: str) -> tuple[str, int]:
    """Return the parts of ``SWEEP[:TOP]``; raises InputError."""
    sweep, _, top = text.rpartition(":")
    if not (sweep and top.isascii() and top.isdecimal()):  # a colon elsewhere belongs to the sweep
        return text, 1
    if int(top) < 1:
        raise InputError(f"--from {text}: the number of trials should be at least 1")
    return sweep, int(top)


if __name__ == "__main__":
    run(main)
