"""The benchmarks: ``python -m tests.benchmarks [NAME...]`` prints a table for each of them.

Each module of this package that is named in `BENCHMARKS` has a function ``rows(quick)``. It measures this
project and its peer in turns, and returns the rows. ``--quick`` takes smaller sizes and fewer repetitions, to
try the benchmarks; its figures are not for the record.
"""

import argparse
import importlib
import platform
import sys
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.table import Row

BENCHMARKS: dict[str, str] = {
    "lanes": "start and cost of a trial, against Ray's documented nesting",
    "trials": "trials without training: seconds of each, memory of the driver",
    "tracking": "status, MLflow and the driver with many trials",
    "default_sweep": "the default sweep, against a bare loop over its trials",
    "step": "the joint step, embedding, training and imports, on one thread",
    "data": "packing, augmented batches, memory of worker processes",
    "scoring": "CMC and mAP at the sizes of published test sets",
    "serving": "the exported model over HTTP, against the same model in process",
    "pictures": "pictures of a comparison, against one process that embeds each run again",
    "search": "epochs until the best value of random search",
}


def main() -> int:
    """Run the chosen benchmarks and print their tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions")
    parser.add_argument("--raw", action="store_true", help="print every repetition under the table")
    parsed = parser.parse_args()
    for name in parsed.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name}; the benchmarks are {', '.join(BENCHMARKS)}")
    console = Console(width=max(160, Console().width))
    console.print(machine())
    for name in parsed.names or BENCHMARKS:
        begin = time.perf_counter()
        rows: list[Row] = importlib.import_module(f"tests.benchmarks.{name}").rows(parsed.quick)
        title = f"{name}: {BENCHMARKS[name]} ({time.perf_counter() - begin:.0f} s)"
        table = Table("what", "this project", "peer, same run", "ratio", "aim", show_lines=True, title=title)
        for row in rows:
            table.add_row(row.what, row.ours, row.peer, row.ratio, row.aim)
        console.print(table)
        if parsed.raw:
            for row in rows:
                console.print(f"{row.what}: {row.raw}", highlight=False)
    return 0


def machine() -> str:
    """Return one line about this machine and the versions that matter."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, {processor}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"load {psutil.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
