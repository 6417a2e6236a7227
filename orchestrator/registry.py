"""Show and change registered models: ``python -m orchestrator.registry list``.

A version is named ``NAME@ALIAS`` or ``NAME/VERSION``. ``--json`` prints one document: ``list`` prints
``{models: [{model, aliases, versions, data}]}``, with the data sets of the latest version; ``show`` a model
with its versions, and of a version also ``run``, ``trainable``, ``digest``, ``scores``, ``data`` and
``records``; ``compare`` the fields of `orchestrator.tracking.gate.Decision`; ``promote`` and ``rollback``
those of `orchestrator.tracking.promotion.Record`; ``history`` ``{model, records}``; ``pull`` ``{model,
version, folder, digest, verified}``.
"""

import json
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.console.arguments import Parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, TrackingError

if TYPE_CHECKING:
    from orchestrator.tracking.gate import Decision
    from orchestrator.tracking.promotion import Record
    from orchestrator.tracking.registry import Registry

PROG = "python -m orchestrator.registry"

EXAMPLES = """\
examples:
  python -m orchestrator.registry list
  python -m orchestrator.registry show multi-shot-reid@champion
  python -m orchestrator.registry compare multi-shot-reid@challenger multi-shot-reid@champion
  python -m orchestrator.registry promote multi-shot-reid/4 --alias champion
  python -m orchestrator.registry rollback multi-shot-reid
  python -m orchestrator.registry history multi-shot-reid
  python -m orchestrator.registry pull multi-shot-reid@champion champion

exit codes: 0 done, 1 not done or declined by the gate, 2 bad input, 3 MLflow does not answer, 130 interrupted
"""

Action = Callable[["Registry", Namespace, Progress], ExitCode]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`: FAILED if the gate declines a promotion."""
    parsed = _parser().parse_args(arguments)
    progress = Progress()
    try:
        with nullcontext() if parsed.json else progress.logging():
            from orchestrator.tracking.registry import Registry, default_address

            registry = Registry(
                parsed.tracking or default_address(), f"orchestrator.registry {parsed.action}"
            )
            action: Action = parsed.run
            return action(registry, parsed, progress)
    except InputError as error:
        return report_error(error)
    except TrackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED


def _parser() -> Parser:
    parser = Parser(PROG, "Show and change registered models, of any trainable.", EXAMPLES)
    tracking_help = "MLflow (default: MLFLOW_TRACKING_URI, else ~/reid-sweeps/mlflow.db)"
    json_help = "print one JSON document, for scripts"
    parser.add_argument("--json", action="store_true", help=json_help)
    parser.add_argument("--tracking", metavar="URI", help=tracking_help)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Subparser)

    def add(name: str, run: Action, about: str, *positional: tuple[str, str]) -> ArgumentParser:
        action: ArgumentParser = actions.add_parser(name, help=about, description=about)
        for metavar, text in positional:
            action.add_argument(metavar.lower(), metavar=metavar, help=text)
        # Both also stand before the action, whose parser must not reset them.
        action.add_argument("--json", action="store_true", default=SUPPRESS, help=json_help)
        action.add_argument("--tracking", metavar="URI", default=SUPPRESS, help=tracking_help)
        action.set_defaults(run=run)
        return action

    version = "NAME@ALIAS or NAME/VERSION"
    add("list", _list, "list the models")
    add("show", _show, "show a model or a version", ("MODEL", f"NAME, {version}"))
    compare = add(
        "compare",
        _compare,
        "say whether a version would take the place of another one; change nothing",
        ("CANDIDATE", version),
        ("CHAMPION", version),
    )
    promote = add("promote", _promote, "move an alias to a version that passes the gate", ("MODEL", version))
    rollback = add("rollback", _rollback, "move an alias back to the version before", ("MODEL", "NAME"))
    shown = add("history", _history, "list who had an alias when, and why", ("MODEL", "NAME"))
    add(
        "pull",
        _pull,
        "download a version and compare its checksum",
        ("MODEL", version),
        ("FOLDER", "new, or pulled before: it is compared again"),
    )
    for action in (compare, promote):
        action.add_argument(
            "--metric", default="", help="score to compare, such as mAP (default: as registered)"
        )
    for action in (promote, rollback):
        action.add_argument("--alias", default="champion", help="the alias to move (default: champion)")
    shown.add_argument("--alias", help="only this alias")
    promote.add_argument("--no-gate", action="store_true", help="move the alias whatever the scores are")
    promote.add_argument("--reason", default="", help="with --no-gate: why, for the record")
    return parser


class _Subparser(ArgumentParser):
    """A parser of one action, which prints an error as one line."""

    def error(self, message: str) -> Any:
        """Exit with one line instead of the usage."""
        self.exit(2, f"error: {message}; see {PROG} --help\n")


def _list(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    models = registry.models()
    if parsed.json:
        print(json.dumps({"models": models}))
    elif not models:
        progress.print(f"there is no registered model at {registry.uri}")
    else:
        columns = ("model", "aliases", "versions", "data sets of the latest version")
        rows = [
            [each["model"], _aliases(each["aliases"]), str(each["versions"]), ", ".join(each["data"])]
            for each in models
        ]
        _show_table(progress, f"Models at {registry.uri}", columns, rows)
    return ExitCode.DONE


def _show(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.console.tables import format_number, pairs
    from orchestrator.tracking.registry import Reference

    found = registry.show(Reference.parse(parsed.model))
    if parsed.json:
        print(json.dumps(found))
        return ExitCode.DONE
    if "versions" in found:
        columns = ("version", "aliases", "created", "sweep", "decision", "reason")
        rows = [
            [str(each["version"]), ", ".join(each["aliases"]), *(each[key] for key in columns[2:])]
            for each in found["versions"]
        ]
        _show_table(progress, f"Model {found['model']}", columns, rows)
        return ExitCode.DONE
    rows_shown = {
        "file checksum" if key == "digest" else key: ", ".join(value)
        if isinstance(value, list)
        else str(value)
        for key, value in found.items()
        if key not in ("scores", "data", "records") and value
    }
    progress.show(pairs(f"Model {found['model']} version {found['version']}", rows_shown))
    progress.show(pairs("Scores", {name: format_number(value) for name, value in found["scores"].items()}))
    progress.show(pairs("Data sets, by the digest of their content", found["data"]))
    return ExitCode.DONE


def _compare(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.tracking.registry import Reference

    names = Reference.parse(parsed.candidate), Reference.parse(parsed.champion)
    with _activity(progress, parsed, "comparing"):
        decision = registry.compare(*names, parsed.metric)
    if parsed.json:
        print(decision.model_dump_json())
    else:
        _show_decision(progress, decision)
        takes = "would take the alias" if decision.promoted else "would not take the alias"
        progress.print(f"{parsed.candidate} {takes}: {decision.reason}")
    return ExitCode.DONE


def _promote(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.tracking.registry import Reference

    if parsed.reason and not parsed.no_gate:
        raise InputError("--reason: the gate gives the reason; remove it, or add --no-gate")
    if parsed.metric and parsed.no_gate:
        raise InputError("--metric: nothing is compared without the gate; remove it, or --no-gate")
    reference = Reference.parse(parsed.model)
    with _activity(progress, parsed, "promoting"):
        record = registry.promote(
            reference, parsed.alias, metric=parsed.metric, gate=not parsed.no_gate, reason=parsed.reason
        )
    return _show_record(progress, reference.name, record, parsed.json)


def _rollback(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.tracking.registry import Reference

    reference = Reference.parse(parsed.model)
    if reference.version is not None or reference.alias is not None:
        raise InputError(
            f"{parsed.model}: give the name alone, and the alias as --alias {reference.alias or 'NAME'}"
        )
    with _activity(progress, parsed, "rolling back"):
        record = registry.rollback(reference.name, parsed.alias)
    return _show_record(progress, reference.name, record, parsed.json)


def _history(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.tracking.registry import Reference

    name = Reference.parse(parsed.model).name
    records = registry.history(name, parsed.alias)
    if parsed.json:
        print(json.dumps({"model": name, "records": records}))
        return ExitCode.DONE
    rows = [
        [each["at"], each["alias"], str(each["version"]), each["verdict"], each["reason"], _by(each["by"])]
        for each in records
    ]
    _show_table(
        progress, f"Decisions about {name}", ("at", "alias", "version", "verdict", "reason", "by"), rows
    )
    return ExitCode.DONE


def _pull(registry: "Registry", parsed: Namespace, progress: Progress) -> ExitCode:
    from orchestrator.tracking.registry import Reference

    with _activity(progress, parsed, f"downloading {parsed.model}"):
        pulled = registry.pull(Reference.parse(parsed.model), Path(parsed.folder))
    if parsed.json:
        print(json.dumps(pulled))
    else:
        checked = (
            f"file checksum {pulled['digest']}" if pulled["verified"] else "registered without a checksum"
        )
        progress.print(f"{pulled['model']} version {pulled['version']} is in {pulled['folder']}, {checked}")
    return ExitCode.DONE


def _activity(progress: Progress, parsed: Namespace, activity: str) -> AbstractContextManager[None]:
    """Show what the command does, unless it prints a document."""
    return nullcontext() if parsed.json else progress.activity(activity)


def _show_record(progress: Progress, name: str, record: "Record", as_json: bool) -> ExitCode:
    if as_json:
        print(record.model_dump_json())
    else:
        _show_decision(progress, record)
        has = "has" if record.verdict == "promoted" else "does not get"
        progress.print(f"version {record.version} of {name} {has} the alias {record.alias}: {record.reason}")
    return ExitCode.DONE if record.verdict == "promoted" else ExitCode.FAILED


def _show_decision(progress: Progress, decision: "Decision | Record") -> None:
    """Show the comparison of a decision, if there is one."""
    from orchestrator.tracking.gate import comparison_rows

    rows = [list(row) for row in comparison_rows(decision.targets, decision.overall)]
    if rows:
        columns = (decision.metric, "candidate", "champion", "difference", "interval")
        _show_table(progress, "Comparison", columns, rows)
    for target, why in decision.not_compared.items():
        progress.print(f"not compared on {target}: {why}")
    for note in decision.notes:
        progress.print(note)


def _show_table(progress: Progress, title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    progress.show(table)


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items()))


def _by(by: dict[str, str]) -> str:
    where = by.get("sweep") or by.get("command", "")
    login = f"login {by['login']}" if "login" in by else ""
    person = f"{by['user']}@{by['host']}" if "user" in by else ""
    return ", ".join(filter(None, [login, person, where]))


if __name__ == "__main__":
    run(main)
