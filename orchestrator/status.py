"""Show the status of a sweep or comparison: ``python -m orchestrator.status SWEEP``.

It works from every machine that reaches the storage. ``--json`` prints one document, and with ``--watch`` one
per line: ``name``, ``kind``, ``uri``, ``state``, ``driver`` (``host``, ``pid``, ``started``,
``seconds_since_heartbeat`` by the clocks of two machines), ``stop_requested``, ``trials`` (number by state;
for a comparison the last attempt at each), ``budget`` (``{trials: [used, limit], seconds: [...], gpu_hours:
[...]}``), ``best`` (trial, objectives, parameters), ``activity`` (what each unfinished trial is doing),
``failures`` (reason, trials), ``undelivered`` (records that wait for MLflow), ``model`` and ``report``.

The states: ``running``; ``stopped``; ``died``: the driver ended without recording it; ``silent``: a driver in
a bucket without a heartbeat; ``finished``.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.console.arguments import existing_job_parser, seconds
from orchestrator.errors import InputError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.study.status import Status

EXAMPLES = """\
examples:
  python -m orchestrator.status search_spaces/alignment.yaml
  python -m orchestrator.status alignment --watch
  python -m orchestrator.status s3://bucket/sweeps/alignment --json
"""

_STATES = {
    "running": "running",
    "stopped": "stopped; rerun the command to resume",
    "died": "its driver died; rerun the command to take over",
    "silent": "no heartbeat from its driver, which may be dead; rerun the command to take over",
    "finished": "finished",
}

_MAX_ROWS = 12
"""Trials or reasons listed on the terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for bad input."""
    parser = existing_job_parser(
        "python -m orchestrator.status", "Show the status of a sweep or comparison.", EXAMPLES
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=5.0,
        metavar="SECONDS",
        help="repeat until the job has ended",
    )
    parsed = parser.parse_args(arguments)
    try:
        # Imports take seconds, which --help does not need.
        from orchestrator.storage import lookup
        from orchestrator.study.status import DRIVEN, read_status

        store, name = lookup.find_job(parsed.sweep, parsed.storage, parsed.set)
        status = read_status(store, name)
        with _output(parsed.json, parsed.watch is not None) as show:
            show(status)
            while parsed.watch is not None and status.state in DRIVEN:
                time.sleep(parsed.watch)
                try:
                    status = read_status(store, name)
                except StorageError as error:  # the storage answered before, and may answer again
                    print(f"{error}; trying again", file=sys.stderr)
                else:
                    show(status)
        return 0
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


@contextmanager
def _output(as_json: bool, watched: bool) -> Iterator[Callable[["Status"], None]]:
    """Provide the function that shows a status: as JSON, as a table, or on a terminal as a live table."""
    from rich.console import Console
    from rich.live import Live

    from orchestrator.console.progress import Progress

    console = Console(highlight=False)
    if as_json:
        yield lambda status: print(json.dumps(asdict(status)), flush=True)
    elif watched and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda status: live.update(render(status), refresh=True)
    else:
        progress = Progress()
        yield lambda status: progress.show(render(status))


def render(status: "Status") -> "RenderableType":
    """Return the status for the terminal."""
    from rich.console import Group
    from rich.text import Text

    from orchestrator.console.tables import pairs

    parts: list[RenderableType] = [pairs(f"{status.kind.capitalize()} {status.name}", _rows(status))]
    if status.activity:
        parts += ["", pairs("Unfinished trials", _shortened(status.activity))]
    if status.failures:
        table = pairs("Failures", {})
        for failure in status.failures[:_MAX_ROWS]:
            count, names = len(failure["trials"]), _listed(failure["trials"])
            table.add_row(str(count), Text(f"{failure['reason']} ({names})"))
        parts += ["", table]
    return Group(*parts)


def _rows(status: "Status") -> dict[str, str]:
    from orchestrator.console.tables import format_number, format_values

    rows = {"state": _STATES[status.state] + ", stop requested" * status.stop_requested}
    rows["kept in"] = status.uri
    if (driver := status.driver) is not None:
        rows["driver"] = f"process {driver['pid']} on {driver['host']}, started {driver['started']}"
        if status.state in ("running", "silent"):
            rows["last heartbeat"] = f"{driver['seconds_since_heartbeat']:.0f} s ago"
    rows["trials"] = ", ".join(f"{count} {state}" for state, count in status.trials.items()) or "none yet"
    rows |= _budget_rows(status)
    if status.best is not None:
        best = dict(status.best)
        parameters, trial = best.pop("parameters"), best.pop("trial")
        values = ", ".join(f"{metric} {format_number(value)}" for metric, value in best.items())
        rows["best"] = f"{values} ({trial})"
        rows["parameters"] = format_values(parameters)
    labels = {"waiting for MLflow": status.undelivered, "model": status.model, "report": status.report}
    return rows | {label: text for label, text in labels.items() if text}


def _budget_rows(status: "Status") -> dict[str, str]:
    from orchestrator.console.tables import format_duration

    rows = {}
    for budget, (used, limit) in status.budget.items():
        if limit is None and budget != "seconds" and not (budget == "gpu_hours" and used):
            continue
        label = {"seconds": "time", "gpu_hours": "GPU hours"}.get(budget, "started")
        texts = [
            format_duration(value or 0) if label == "time" else f"{value or 0:g}" for value in (used, limit)
        ]
        rows[label] = texts[0] + (f" of {texts[1]}" if limit is not None else "")
    return rows


def _shortened(rows: dict[str, str]) -> dict[str, str]:
    shown = dict(list(rows.items())[:_MAX_ROWS])
    more = len(rows) - len(shown)
    return shown | ({"...": f"and {more} more"} if more else {})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


if __name__ == "__main__":
    sys.exit(main())
