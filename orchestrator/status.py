"""How a sweep or comparison stands: ``python -m orchestrator.status SWEEP``, wherever its storage is reached.

``--json`` prints one document: ``name``, ``kind``, ``place``, ``state`` (running, stopped, died, finished),
``driver`` (host, pid, started, seconds since its last sign of life), ``trials`` (number by state), ``budget``
(``{trials: [used, of], seconds: [...], gpu_hours: [...]}``), ``best`` (trial, objective, parameters),
``doing`` (what each unfinished trial does or waits for), ``failures`` (reason, trials), ``undelivered`` (what
waits for MLflow), ``model`` and ``report``.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.errors import InputError, StorageError, nearest
from orchestrator.progress import Progress, clock

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.storage import Store

EXAMPLES = """\
examples:
  python -m orchestrator.status search_spaces/alignment.yaml
  python -m orchestrator.status alignment --watch
  python -m orchestrator.status s3://bucket/sweeps/alignment --json
"""

_SILENT = 30.0
"""Seconds without a sign of life after which a driver may be dead."""

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
        self.add_argument("--storage", metavar="PLACE", help="where it is kept (default: that of the file)")
        self.add_argument("--json", action="store_true", help="print one JSON document, for scripts")

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"error: {message}; see --help\n")


def find(sweep: str, storage: str | None) -> "tuple[Store, str]":
    """The store of a job and its name, from what the user calls it; raises InputError."""
    from orchestrator.document import Document
    from orchestrator.storage import normalize, open_store

    default = "~/reid-sweeps"
    if sweep.endswith((".yaml", ".yml")) or Path(sweep).is_file():
        document = Document.read(Path(sweep))
        document.fill(os.environ)
        name, default = str(document.tree.get("name", "")), document.tree.get("storage", default)
    else:
        above, _, name = sweep.rstrip("/").rpartition("/")
        default = above or default
    try:
        store = open_store(normalize(storage or default, "sweep"))
    except ValueError as error:
        raise InputError(f"storage: {error}") from error
    store.check()
    if not name or _record(store, name) is None:
        others = Path(store.path).glob("*/sweep.json") if not store.watched else ()
        known = [each.parent.name for each in others]
        raise InputError(f"there is no sweep {store.locate(name)}{nearest(name, known)}")
    return store, name


def read(store: "Store", name: str) -> Status:
    """How a job stands; raises InputError or StorageError."""
    import optuna

    from orchestrator import lease
    from orchestrator.directory import read_record, study_storage
    from orchestrator.trial import name as trial_name

    found = _record(store, name)
    assert found is not None
    kind, record = found
    resolved = record["resolved"]
    status = Status(name, kind, store.locate(name), "stopped")
    held = lease.holder(store, name)
    spent = lease.Spent()
    if held is not None:
        driver = held[0]
        spent = driver.spent
        silent = max(0.0, time.time() - driver.renewed)
        status.driver = {
            "host": driver.host,
            "pid": driver.pid,
            "started": driver.started,
            "silent": round(silent, 1),
        }
        if not driver.ended:
            status.state = "died" if driver.is_gone() else "running"
            status.undelivered = driver.doing.get("undelivered", "")
    outcome = read_record(store, f"{name}/outcome.json")
    if outcome is not None and status.state != "running":
        status.state, status.report = "finished", outcome["report"]
        if model := outcome.get("model"):
            status.model = "{name} version {version}, alias {alias}".format(**model)
    try:
        study = optuna.load_study(
            study_name=name, storage=study_storage(store, name, resolved.get("study", ""))
        )
    except KeyError:
        return status  # its driver has not come that far
    trials = [trial for trial in study.get_trials(deepcopy=False) if "source" not in trial.user_attrs]
    states = [{"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()) for trial in trials]
    status.trials = {state: states.count(state) for state in sorted(set(states))}
    doing = held[0].doing.get("trials", {}) if held is not None and status.state == "running" else {}
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        label = trial_name(trial.number)
        if trial.state.name == "RUNNING":
            status.doing[label] = doing.get(label, "goes on when the sweep is continued")
        elif trial.state.name == "WAITING":
            status.doing[label] = f"to be tried first: {trial.user_attrs.get('point', '')}"
        elif trial.state.name == "FAIL":
            reasons.setdefault(str(trial.user_attrs.get("reason", "unknown")), []).append(label)
    status.failures = [
        {"reason": reason, "trials": which}
        for reason, which in sorted(reasons.items(), key=lambda each: -len(each[1]))
    ]
    if kind == "sweep":
        budget, objective = resolved["budget"], resolved["objective"][0]
        begun = len(trials) - states.count("waiting")
        status.budget = {
            "trials": [begun, budget["trials"]],
            "seconds": [round(spent.seconds, 1), budget.get("wall")],
            "gpu_hours": [round(spent.gpu_seconds / 3600, 4), budget.get("gpu_hours")],
        }
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        sign = 1 if objective["mode"] == "max" else -1
        if complete:
            best = max(complete, key=lambda trial: sign * trial.values[0])
            status.best = {
                "trial": trial_name(best.number),
                objective["metric"]: best.values[0],
                "parameters": dict(best.params),
            }
    return status


def show(status: Status) -> "RenderableType":
    """The status for the terminal."""
    from rich.console import Group

    from orchestrator.plan import pairs

    rows = {"state": status.state}
    if (driver := status.driver) is not None:
        rows["driver"] = f"process {driver['pid']} on {driver['host']}, started {driver['started']}"
        if status.state == "running":
            silent = driver["silent"] > _SILENT
            rows["last sign"] = f"{driver['silent']:.0f} s ago" + (
                "; it may be dead, and then the same command takes over" if silent else ""
            )
    rows["trials"] = ", ".join(f"{count} {state}" for state, count in status.trials.items()) or "none yet"
    for what, (used, limit) in status.budget.items():
        text = [clock(each or 0) if what == "seconds" else f"{each or 0:g}" for each in (used, limit)]
        if limit is not None or what == "seconds":
            name = {"seconds": "time", "gpu_hours": "GPU hours"}.get(what, "budget")
            rows[name] = text[0] + (f" of {text[1]}" if limit is not None else "")
    if status.best is not None:
        best = dict(status.best)
        parameters = best.pop("parameters")
        rows["best"] = ", ".join(_text(value) for value in best.values())
        rows["with"] = ", ".join(f"{path}={_text(value)}" for path, value in parameters.items())
    for name in ("undelivered", "model", "report"):
        if text := getattr(status, name):
            rows[{"undelivered": "waits for MLflow"}.get(name, name)] = text
    parts: list[RenderableType] = [pairs(f"{status.kind.capitalize()} {status.place}", rows)]
    if status.doing:
        parts += ["", pairs("Unfinished trials", _shortened(status.doing))]
    if status.failures:
        table = pairs("Failures", {})
        for each in status.failures[:_SHOWN]:
            table.add_row(str(len(each["trials"])), f"{each['reason']} ({_list(each['trials'])})")
        parts += ["", table]
    return Group(*parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for bad input."""
    parser = Parser("python -m orchestrator.status", "Show how a sweep or comparison stands.", EXAMPLES)
    parser.add_argument(
        "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again and again, until it ended"
    )
    parsed = parser.parse_args(arguments)
    progress = Progress()
    try:
        store, name = find(parsed.sweep, parsed.storage)
        while True:
            status = read(store, name)
            if parsed.json:
                print(json.dumps(asdict(status)), flush=True)
            else:
                progress.show(show(status))
            if parsed.watch is None or status.state != "running":
                return 0
            time.sleep(parsed.watch)
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _record(store: "Store", name: str) -> tuple[str, dict[str, Any]] | None:
    """The kind of a job and what was recorded of its file."""
    from orchestrator.directory import KINDS, read_record

    for kind in KINDS:
        record = read_record(store, f"{name}/{kind}.json", "resolved")
        if record is not None:
            return kind, record
    return None


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
