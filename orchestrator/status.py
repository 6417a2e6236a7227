"""How a sweep or comparison stands: ``python -m orchestrator.status SWEEP``, wherever its storage is reached.

``--json`` prints one document, and with ``--watch`` one a line: ``name``, ``kind``, ``place``, ``state``,
``driver`` (host, pid, started, ``silent``: seconds since its last sign of life, by the clocks of two
machines), ``asked_to_stop``, ``trials`` (number by state; of a comparison the last attempt at each),
``budget`` (``{trials: [used, of], seconds: [...], gpu_hours: [...]}``), ``best`` (trial, objectives,
parameters), ``doing`` (what each unfinished trial does or waits for), ``failures`` (reason, trials),
``undelivered`` (what waits for MLflow), ``model`` and ``report``.

The states: ``running``; ``stopped``, and the same command continues it; ``died``, its driver without a word;
``silent``, a driver in a bucket that gives no sign of life; ``finished``.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.console.progress import Progress, clock
from orchestrator.errors import InputError, StorageError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import RenderableType

    from orchestrator.storage.s3 import Store

EXAMPLES = """\
examples:
  python -m orchestrator.status search_spaces/alignment.yaml
  python -m orchestrator.status alignment --watch
  python -m orchestrator.status s3://bucket/sweeps/alignment --json
"""

# As `orchestrator.study.base` and `orchestrator.execution.trial` have them, whose import takes seconds.
_SOURCE, _POINT, _CELL = "source", "point", "cell"
_STATES = {
    "running": "running",
    "stopped": "stopped; the same command continues it",
    "died": "its driver died; the same command takes over",
    "silent": "its driver gives no sign of life and may be dead; the same command takes over",
    "finished": "finished",
}
"""The states in words."""

_DRIVEN = ("running", "silent")
"""States of a job that has a driver, as far as is known."""

_SHOWN = 12
"""Trials or reasons listed on the terminal, at most."""


@dataclass
class Status:
    """How a job stands; what the command prints as JSON."""

    name: str
    kind: str
    place: str
    state: str
    driver: dict[str, Any] | None = None
    asked_to_stop: bool = False
    trials: dict[str, int] = field(default_factory=dict)
    budget: dict[str, list[float | None]] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    doing: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    undelivered: str = ""
    model: str = ""
    report: str = ""


class Parser(argparse.ArgumentParser):
    """The parser of a command that takes a job which is there."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("sweep", help="file of the sweep, its folder or s3:// address, or its name")
        self.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="as given with the file"
        )
        self.add_argument("--storage", metavar="PLACE", help="where it is kept (default: that of the file)")
        self.add_argument("--json", action="store_true", help="print one JSON document, for scripts")

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"error: {message}; see --help\n")


def seconds(text: str) -> float:
    """Read a number of seconds of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def read(store: "Store", name: str) -> Status:
    """How a job stands; raises InputError or StorageError."""
    from orchestrator.storage import lease
    from orchestrator.storage import lookup as existing
    from orchestrator.storage.directory import read_record

    if (found := existing.record(store, name)) is None:
        raise existing.missing(store, name)
    kind, resolved = found
    status = Status(name, kind, store.locate(name), "stopped")
    doing: Mapping[str, str] = {}
    spent = lease.Spent()
    if (held := lease.holder(store, name)) is not None:
        driver, spent = held[0], held[0].spent
        status.driver = {
            "host": driver.host,
            "pid": driver.pid,
            "started": driver.started,
            "silent": round(max(0.0, time.time() - driver.renewed), 1),
        }
        status.state = existing.condition(store, name, driver)
        if status.state in _DRIVEN:
            request = store.read(lease.request_name(name))
            status.asked_to_stop = request is not None and request[0].decode() == driver.identity
            status.undelivered = driver.doing.get("undelivered", "")
            doing = driver.doing.get("trials", {})
    outcome = read_record(store, f"{name}/outcome.json", "report")
    trials = _counted(kind, existing.trials(store, name, resolved))
    _tell_trials(status, trials, doing)
    status.budget = {
        "trials": [len(trials) - status.trials.get("waiting", 0), _total(store, name, kind, resolved)],
        "seconds": [round(spent.seconds, 1), resolved.get("budget", {}).get("wall")],
        "gpu_hours": [round(spent.gpu_seconds / 3600, 4), resolved.get("budget", {}).get("gpu_hours")],
    }
    if kind == "sweep":
        status.best = _best(trials, resolved["objective"])
    # An outcome may be that of a smaller budget, or of a comparison before it was extended.
    final = outcome is not None and outcome.get("budget") == resolved.get("budget")
    if outcome is not None and final and status.state not in _DRIVEN and "running" not in status.trials:
        status.state, status.report = "finished", outcome["report"]
        if model := outcome.get("model"):
            status.model = "{name} version {version}, alias {alias}".format(**model)
        if not outcome.get("delivered", True):
            status.undelivered = "what was recorded last; the same command delivers it"
    return status


def _counted(kind: str, trials: "Sequence[FrozenTrial]") -> "list[FrozenTrial]":
    """The trials of a job itself: not those of earlier sweeps, nor those that were tried again."""
    if kind == "sweep":
        return [trial for trial in trials if _SOURCE not in trial.user_attrs]
    cells = {str(trial.user_attrs[_CELL]): trial for trial in trials if _CELL in trial.user_attrs}
    return sorted(cells.values(), key=lambda trial: trial.number)


def _tell_trials(status: Status, trials: "Sequence[FrozenTrial]", doing: Mapping[str, str]) -> None:
    """Count the trials, and say what each unfinished one does and why others failed."""
    later = f"goes on when the {status.kind} is continued"
    states = [{"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()) for trial in trials]
    status.trials = {state: states.count(state) for state in sorted(set(states))}
    reasons: dict[str, list[str]] = {}
    for trial, state in zip(trials, states, strict=True):
        label = _name(trial.number)
        if state == "running":
            status.doing[label] = doing.get(label, "starting" if status.state in _DRIVEN else later)
        elif state == "waiting":
            status.doing[label] = f"to be tried first: {trial.user_attrs.get(_POINT, '')}"
        elif state == "failed":
            reasons.setdefault(str(trial.user_attrs.get("reason", "unknown")), []).append(label)
    status.failures = [
        {"reason": reason, "trials": which}
        for reason, which in sorted(reasons.items(), key=lambda each: -len(each[1]))
    ]


def _best(trials: "Sequence[FrozenTrial]", objectives: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The complete trial with the best value of the first objective."""
    sign = 1 if objectives[0]["mode"] == "max" else -1
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = max(complete, key=lambda trial: sign * trial.values[0], default=None)
    if best is None:
        return None
    values = {each["metric"]: value for each, value in zip(objectives, best.values, strict=True)}
    return {"trial": _name(best.number), **values, "parameters": dict(best.params)}


def _total(store: "Store", name: str, kind: str, resolved: Mapping[str, Any]) -> int | None:
    """How many trials there are going to be; of a comparison its results tell, once there are some."""
    if kind == "sweep":
        return int(resolved["budget"]["trials"])
    found = store.read(f"{name}/results.json")
    try:
        return None if found is None else len(json.loads(found[0]))
    except (ValueError, TypeError):
        return None


def show(status: Status) -> "RenderableType":
    """The status for the terminal."""
    from rich.console import Group
    from rich.text import Text

    from orchestrator.drivers.plan import pairs

    rows = {"state": _STATES[status.state]}
    if status.asked_to_stop:
        rows["state"] += ", asked to stop"
    rows["kept in"] = status.place
    if (driver := status.driver) is not None:
        rows["driver"] = f"process {driver['pid']} on {driver['host']}, started {driver['started']}"
        if status.state in _DRIVEN:
            rows["last sign"] = f"{driver['silent']:.0f} s ago"
    rows["trials"] = ", ".join(f"{count} {state}" for state, count in status.trials.items()) or "none yet"
    for what, (used, limit) in status.budget.items():
        text = [clock(each or 0) if what == "seconds" else f"{each or 0:g}" for each in (used, limit)]
        if limit is not None or what == "seconds" or (what == "gpu_hours" and used):
            label = {"seconds": "time", "gpu_hours": "GPU hours"}.get(what, "begun")
            rows[label] = text[0] + (f" of {text[1]}" if limit is not None else "")
    if status.best is not None:
        best = dict(status.best)
        parameters = best.pop("parameters")
        label = best.pop("trial")
        rows["best"] = ", ".join(f"{metric} {_text(value)}" for metric, value in best.items()) + f" ({label})"
        rows["with"] = ", ".join(f"{path}={_text(value)}" for path, value in parameters.items())
    for name in ("undelivered", "model", "report"):
        if text := getattr(status, name):
            rows[{"undelivered": "waits for MLflow"}.get(name, name)] = text
    parts: list[RenderableType] = [pairs(f"{status.kind.capitalize()} {status.name}", rows)]
    if status.doing:
        parts += ["", pairs("Unfinished trials", _shortened(status.doing))]
    if status.failures:
        table = pairs("Failures", {})
        for each in status.failures[:_SHOWN]:
            table.add_row(str(len(each["trials"])), Text(f"{each['reason']} ({_list(each['trials'])})"))
        parts += ["", table]
    return Group(*parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for bad input."""
    parser = Parser("python -m orchestrator.status", "Show how a sweep or comparison stands.", EXAMPLES)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=5.0,
        metavar="SECONDS",
        help="again and again, until it ended",
    )
    parsed = parser.parse_args(arguments)
    try:
        from orchestrator.storage import lookup as existing

        store, name = existing.find(parsed.sweep, parsed.storage, parsed.set)
        status = read(store, name)
        with _output(parsed.json, parsed.watch is not None) as tell:
            tell(status)
            while parsed.watch is not None and status.state in _DRIVEN:
                time.sleep(parsed.watch)
                try:
                    status = read(store, name)
                except StorageError as error:  # it was there a moment ago, and may be there again
                    print(f"{error}; trying again", file=sys.stderr)
                else:
                    tell(status)
        return 0
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


@contextmanager
def _output(as_json: bool, watched: bool) -> Iterator[Callable[[Status], None]]:
    """What tells a status: as JSON, as a table, or on a terminal as a table that is replaced."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if as_json:
        yield lambda status: print(json.dumps(asdict(status)), flush=True)
    elif watched and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda status: live.update(show(status), refresh=True)
    else:
        progress = Progress()
        yield lambda status: progress.show(show(status))


def _name(number: int) -> str:
    return f"trial-{number:04d}"


def _shortened(rows: dict[str, str]) -> dict[str, str]:
    shown = dict(list(rows.items())[:_SHOWN])
    more = len(rows) - len(shown)
    return shown | ({"...": f"and {more} more"} if more else {})


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
