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
  python -m orchestrator.compare search_spaces/claim.yaml
  python -m orchestrator.compare search_spaces/claim.yaml --dry-run
  python -m orchestrator.compare search_spaces/claim.yaml --set 'splits.data.split=[0, 1]'
  python -m orchestrator.compare search_spaces/claim.yaml --set variants.static.optimizer.learning_rate=1e-3
  REID_DATA=/data python -m orchestrator.compare search_spaces/claim.yaml --address ray-head:6379

Rerun the command to resume the comparison: scored trials are kept, interrupted ones resume from their last
checkpoint, failed ones are tried again, and variants, splits and seeds that were added to the file are run.
For a finished comparison the command shows the table.

{EXIT_CODES}"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return job_file_parser(
        "comparison",
        "python -m orchestrator.compare",
        "Train and score variants of a trainable over splits and seeds on a Ray cluster, and compare them.",
        EXAMPLES,
    ).parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parsed = parse(arguments)

    def make_driver(overrides: "list[Override]", progress: Progress, interrupt: Interrupt) -> "Driver[Any]":
        # Imports take seconds, which --help and a file with an error do not need.
        from orchestrator.config.comparison import read_comparison

        comparison = read_comparison(parsed.file, overrides)

        from orchestrator.drivers.comparison import ComparisonDriver

        return ComparisonDriver(comparison, progress, interrupt)

    return launch("comparison", parsed, make_driver, arguments)


if __name__ == "__main__":
    run(main)
