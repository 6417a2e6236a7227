"""Show the status of a sweep or comparison: ``python -m orchestrator.status SWEEP``.

Without a name it lists the jobs of a storage, and with ``--trial`` it shows one trial. It works from every
machine that reaches the storage. ``--json`` prints one document, and with ``--watch`` one per line:
``name``, ``kind``, ``uri``, ``state``, ``driver`` (``host``, ``pid``, ``started``,
``seconds_since_heartbeat`` by the clocks of two machines), ``stop_requested``, ``trials`` (number by state;
for a comparison the last attempt at each), ``budget`` (``{trials: [used, limit], seconds: [...], gpu_hours:
[...]}``), ``best`` (trial, objectives, their standard errors as ``errors``, parameters), ``pareto_set`` (for
several objectives a list of the same), ``infeasible`` (complete trials that violate a constraint),
``activity`` (what each unfinished trial is doing), ``failures`` (reason, trials), ``undelivered`` (records
that wait for MLflow), ``model``, ``report`` and ``problem`` (what is missing). The list is ``{storage, jobs:
[...]}``. The keys of a trial are those of `orchestrator.study.status.TrialStatus`.

The states: ``running``; ``stalled``: the driver holds its lock and sends no heartbeat; ``stopped``; ``died``:
the driver ended without recording it; ``silent``: a driver in a bucket without a heartbeat; ``finished``;
``failed``: the budget of a sweep is used, and no trial succeeded; in a list ``unreadable``.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.console.arguments import existing_job_parser, report_error, seconds
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, StorageError, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.study.status import Status, TrialStatus

EXAMPLES = """\
examples:
  python -m orchestrator.status
  python -m orchestrator.status --storage s3://bucket/sweeps
  python -m orchestrator.status search_spaces/alignment.yaml
  python -m orchestrator.status alignment --watch
  python -m orchestrator.status alignment --trial 7
  python -m orchestrator.status s3://bucket/sweeps/alignment --json
"""

_STATES = {
    "running": "running",
    "stalled": "its driver sends no heartbeat; is its process suspended, or its storage stuck?",
    "stopped": "stopped; rerun the command to resume",
    "failed": "failed: no trial succeeded; fix the cause, then use --fresh, or rerun with a larger budget",
    "died": "its driver died; rerun the command to take over",
    "silent": "no heartbeat from its driver, which may be dead; rerun the command to take over",
    "finished": "finished",
    "unreadable": "cannot be read",
}

_MAX_ROWS = 12
"""Trials or reasons listed on the terminal."""

_SLOW_SECONDS = 10.0
"""Time after which a command that reads says what it waits for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parser = existing_job_parser(
        "python -m orchestrator.status",
        "Show the status of a sweep or comparison, or list those of a storage.",
        EXAMPLES,
        optional=True,
    )
    parser.add_argument("--trial", metavar="N", help="show this trial: its last report, reason and log")
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
        from orchestrator.study.status import list_status, read_status, read_trial_status

        if parsed.sweep is None:
            _refuse_without_sweep(parsed)
            with _told_if_slow():
                store = lookup.find_storage(parsed.storage)
                jobs = list_status(store)
            _show_list(store.uri, jobs, parsed.json)
            return ExitCode.DONE
        if parsed.trial is not None and parsed.watch is not None:
            raise InputError("--watch, --trial: give one; --watch repeats the status of the sweep")
        with _told_if_slow():
            store, name = lookup.find_job(parsed.sweep, parsed.storage, parsed.set)
            if parsed.trial is not None:
                _show_trial(read_trial_status(store, name, _trial_number(parsed.trial)), parsed.json)
                return ExitCode.DONE
            status = read_status(store, name)
        with _output(parsed.json, parsed.watch is not None) as show:
            show(status)
            while parsed.watch is not None and status.state in lookup.DRIVEN:
                time.sleep(parsed.watch)
                try:
                    status = read_status(store, name)
                except StorageError as error:  # the storage answered before, and may answer again
                    print(f"{error}; trying again", file=sys.stderr)
                else:
                    show(status)
        return ExitCode.DONE
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except KeyboardInterrupt:
        return ExitCode.DONE


@contextmanager
def _told_if_slow() -> Iterator[None]:
    """Say on stderr that storage or study do not answer, once a block takes long."""
    notice = threading.Timer(
        _SLOW_SECONDS, print, ["waiting for the storage, or the database of the study"], {"file": sys.stderr}
    )
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _refuse_without_sweep(parsed: argparse.Namespace) -> None:
    """Raise InputError for options that need a sweep."""
    given = {"--trial": parsed.trial is not None, "--watch": parsed.watch is not None, "--set": parsed.set}
    for option in (option for option, present in given.items() if present):
        raise InputError(f"{option}: name the sweep, too; without it, the sweeps of a storage are listed")


def _trial_number(text: str) -> int:
    """Return the number of a trial that is given as number or name; raises InputError."""
    number = text.removeprefix("trial-")
    if not (number.isascii() and number.isdecimal()):
        raise InputError(f"--trial {text}: write the number of the trial, such as 7, or its name, trial-0007")
    return int(number)


def _show_list(storage: str, jobs: Sequence["Status"], as_json: bool) -> None:
    """Print the jobs of a storage: one line each, or one JSON document."""
    if as_json:
        print(json.dumps({"storage": storage, "jobs": [asdict(job) for job in jobs]}))
        return
    progress = Progress()
    if not jobs:
        progress.print(f"there is no sweep or comparison in {storage}")
        return
    from rich.table import Table

    table = Table(title=f"Jobs in {storage}", title_justify="left", title_style="bold")
    for column in ("name", "kind", "state", "trials", "best", "last heartbeat"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        values = _objectives(job.best or {}).values()
        table.add_row(
            job.name,
            job.kind,
            job.problem or _STATES[job.state].partition(";")[0],
            _counts(job),
            ", ".join(values),
            "" if job.driver is None else f"{_age(job.driver['seconds_since_heartbeat'])} ago",
        )
    progress.show(table)


def _show_trial(trial: "TrialStatus", as_json: bool) -> None:
    """Print one trial."""
    if as_json:
        print(json.dumps(asdict(trial)))
        return
    from orchestrator.console.tables import format_values, pairs

    rows = {
        "state": trial.state,
        "activity": trial.activity,
        "parameters": format_values(trial.parameters),
        "objective": format_values(trial.objective),
        "scores": format_values(trial.scores),
        "reason": trial.reason,
        "started": trial.started or "",
        "ended": trial.ended or "",
        "epochs": str(trial.epochs),
        "checkpoint": trial.checkpoint or "",
    }
    if (last := trial.last_report) is not None:
        metrics = format_values(last["metrics"])
        rows["last report"] = f"epoch {last['epoch']}, {_age(last['seconds_ago'])} ago: {metrics}"
    progress = Progress()
    progress.show(pairs(trial.trial, {label: text for label, text in rows.items() if text}))
    if trial.log:
        progress.print(f"end of its log:\n{printable(trial.log.rstrip())}")


def _age(seconds: float) -> str:
    from orchestrator.console.tables import format_duration

    return format_duration(seconds)


@contextmanager
def _output(as_json: bool, watched: bool) -> Iterator[Callable[["Status"], None]]:
    """Provide the function that shows a status: as JSON, as a table, or on a terminal as a live table."""
    from rich.console import Console
    from rich.live import Live

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

    from orchestrator.console.tables import pairs, pareto_table

    parts: list[RenderableType] = [pairs(f"{status.kind.capitalize()} {status.name}", _rows(status))]
    if status.pareto_set:
        parts += ["", pareto_table(status.pareto_set[:_MAX_ROWS], len(status.pareto_set))]
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
    from orchestrator.console.tables import format_values

    rows = {"state": _STATES[status.state] + ", stop requested" * status.stop_requested}
    rows["kept in"] = status.uri
    if (driver := status.driver) is not None:
        rows["driver"] = f"process {driver['pid']} on {driver['host']}, started {driver['started']}"
        if status.state in ("running", "stalled", "silent"):
            rows["last heartbeat"] = f"{_age(driver['seconds_since_heartbeat'])} ago"
    rows["trials"] = _counts(status) or "none yet"
    if status.infeasible:
        rows["trials"] += f"; {status.infeasible} infeasible"
    rows |= _budget_rows(status)
    if status.best is not None:
        values = ", ".join(f"{metric} {text}" for metric, text in _objectives(status.best).items())
        rows["best"] = f"{values} ({status.best['trial']})"
        rows["parameters"] = format_values(status.best["parameters"])
    labels = {
        "problem": status.problem,
        "not delivered": status.undelivered,
        "model": status.model,
        "report": status.report,
    }
    return rows | {label: text for label, text in labels.items() if text}


def _counts(status: "Status") -> str:
    """Return the number of trials by state; those that no driver trains are unfinished."""
    driven = status.state in ("running", "stalled", "silent")
    names = {} if driven else {"running": "unfinished"}
    return ", ".join(f"{count} {names.get(state, state)}" for state, count in status.trials.items())


def _objectives(best: Mapping[str, Any]) -> dict[str, str]:
    """Return the objectives of a trial with their standard errors, by metric."""
    from orchestrator.console.tables import objective_texts

    return objective_texts(best)


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
    run(main)
