"""Explain the config of a trainable: ``python -m orchestrator.explain FILE [PATH]``."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.console.arguments import Parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.config.explanation import ConfigPath
    from orchestrator.trainable import Trainable

EXAMPLES = """\
examples:
  python -m orchestrator.explain search_spaces/alignment.yaml
  python -m orchestrator.explain search_spaces/alignment.yaml alignment.weights
  python -m orchestrator.explain trainables.alignment:AlignmentTrainable --json
  python -m orchestrator.explain trainables.alignment:AlignmentTrainable --schema sweep > sweep.schema.json

exit codes: 0 done, 2 bad input
"""


class Subject(NamedTuple):
    """What to explain."""

    trainable: "Trainable"
    config: "BaseModel | None"
    """The config of a file."""
    varied: Mapping[str, str]
    """Path → what the file does with it instead of fixing it."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        "python -m orchestrator.explain",
        "Explain every path of a config: type, range, default, value and meaning.",
        EXAMPLES,
    )
    parser.add_argument(
        "subject", help="file of a sweep, comparison or training, or a trainable, package.module:Class"
    )
    parser.add_argument(
        "path", nargs="?", default="", help="explain only this path, or the paths in this group"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document, for scripts")
    output.add_argument(
        "--schema",
        choices=("sweep", "comparison"),
        help="print the JSON schema of such files, for editors",
    )
    parser.add_argument(
        "--trainable", metavar="PACKAGE.MODULE:CLASS", help="trainable of a file that holds a config alone"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parsed = parse(arguments)
    progress = Progress()
    for_scripts = parsed.json or parsed.schema
    try:
        with nullcontext() if for_scripts else progress.activity(f"reading {parsed.subject}"):
            subject = read(parsed.subject, parsed.set, parsed.trainable)
        if parsed.schema:
            from orchestrator.config.file_schema import file_schema

            print(json.dumps(file_schema(parsed.schema, subject.trainable), indent=1, ensure_ascii=False))
            return ExitCode.DONE
        from orchestrator.config.explanation import config_paths

        paths = _chosen(config_paths(subject.trainable.Config, subject.config), parsed.path)
    except InputError as error:
        return report_error(error)
    if parsed.json:
        entries = [{**each.as_json(), "varied": subject.varied.get(each.path)} for each in paths]
        print(json.dumps(entries, indent=1, ensure_ascii=False))
    else:
        for line in _lines(paths, subject.varied):
            progress.print(line)
    return ExitCode.DONE


def read(subject: str, overrides: Sequence[str] = (), dotted: str | None = None) -> Subject:
    """Return what to explain.

    Args:
        subject: a file, or ``package.module:Class``.
        overrides: ``PATH=VALUE``, for a file.
        dotted: trainable of a file that holds a config alone.

    Raises:
        InputError: the file is not valid, or there is no such trainable.
    """
    from orchestrator import trainable
    from orchestrator.config.comparison import SEED, read_comparison
    from orchestrator.config.document import Document, Override, flatten
    from orchestrator.config.sweep import read_sweep
    from orchestrator.config.training import KEYS, read_config

    if ":" in subject and not _exists(subject):
        if overrides:
            raise InputError(f"--set {overrides[0]}: goes with a file, which {subject} is not")
        return Subject(trainable.load(subject), None, {})
    if (
        re.fullmatch(r"\w+(\.\w+)*", subject)
        and not _exists(subject)
        and not subject.endswith((".yaml", ".yml"))
    ):
        raise InputError(f"there is no file {subject!r}; for a trainable, write package.module:Class")
    changes = [Override.parse(text) for text in overrides]
    document = Document.read(Path(subject))
    if dotted is not None or document.tree.keys() <= KEYS or "trainable" not in document.tree:
        training = read_config(document, changes, dotted)
        return Subject(training.subject, training.config, {})
    if "variants" in document.tree:
        comparison = read_comparison(subject, changes)
        varied = dict.fromkeys(comparison.splits, "varied by splits")
        if len(comparison.seeds) > 1:
            varied[SEED] = "varied by seeds"
        for settings in comparison.variants.values():
            varied |= dict.fromkeys(flatten(settings), "differs between variants")
        return Subject(comparison.implementation, next(comparison.configs_to_check()), varied)
    sweep = read_sweep(subject, changes)
    varied = {path: f"searched, {' '.join(each.describe())}" for path, each in sweep.search.items()}
    return Subject(sweep.implementation, sweep.trial_config({}), varied)


def _exists(file: str) -> bool:
    try:
        return Path(file).exists()
    except OSError:  # a name that is too long
        return False


def _chosen(paths: "list[ConfigPath]", wanted: str) -> "list[ConfigPath]":
    """Return the paths at or below ``wanted``; raises InputError if there are none."""
    chosen = [each for each in paths if f"{each.path}.".startswith(f"{wanted}.") or not wanted]
    if not chosen:
        names = [each.path for each in paths]
        groups = {name.rpartition(".")[0] for name in names} - {""}
        raise InputError(f"the config has no path {wanted!r}{nearest(wanted, [*names, *sorted(groups)])}")
    return chosen


def _lines(paths: "list[ConfigPath]", varied: Mapping[str, str]) -> Iterator[str]:
    """Yield two lines for each path: what it is, and what it means."""
    from orchestrator.config.job import value_text

    for each in paths:
        facts = [
            each.type,
            "required" if each.required else f"default {value_text(each.default) or repr('')}",
        ]
        if each.path in varied:
            facts.append(varied[each.path])
        elif each.is_set and (each.required or each.value != each.default):
            facts.append(f"in this file {value_text(each.value)}")
        yield f"{each.path}: {'; '.join(facts)}"
        if each.description:
            yield f"    {each.description}"


if __name__ == "__main__":
    run(main)
