"""Delete checkpoints that are no longer needed: ``python -m orchestrator.clean --dry-run``.

``--json`` prints one document: ``storage``, ``deleted`` (false with ``--dry-run``), ``removable``, a list of
``{job, what, paths, bytes}``, and ``problems``, one line for each job that was left alone.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.console.arguments import existing_job_parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.console.tables import format_megabytes
from orchestrator.errors import ExitCode, InputError, StorageError

if TYPE_CHECKING:
    from orchestrator.storage.base import Store
    from orchestrator.study.cleaning import Cleaner, Removable

EXAMPLES = """\
examples:
  python -m orchestrator.clean --dry-run
  python -m orchestrator.clean search_spaces/alignment.yaml
  python -m orchestrator.clean --storage s3://bucket/sweeps --set-aside --dry-run

Of a finished sweep it deletes the checkpoints of all trials but the best ones. Outcome, report, study, MLflow
and registered models stay, and the sweep can still get a larger budget or other finals. Nothing of a
comparison, and nothing of a job that runs or is not finished, is deleted.

exit codes: 0 done, 1 not all could be deleted, 2 bad input, 3 the storage does not answer, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parser = existing_job_parser(
        "python -m orchestrator.clean",
        "Delete the checkpoints that finished sweeps do not need.",
        EXAMPLES,
        optional=True,
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    parser.add_argument(
        "--set-aside", action="store_true", help="also delete the results that --fresh has set aside"
    )
    parsed = parser.parse_args(arguments)
    progress = Progress()
    try:
        from orchestrator.storage import lookup
        from orchestrator.study.cleaning import Cleaner

        if parsed.sweep is not None:
            store, name = lookup.find_job(parsed.sweep, parsed.storage, parsed.set)
        elif parsed.set:
            raise InputError("--set: name the file of the sweep, too; without it, all sweeps are cleaned")
        else:
            store, name = lookup.find_storage(parsed.storage), None
        jobs = lookup.job_names(store) if name is None else [name]
        return _clean(Cleaner(store), store, jobs, name, parsed, progress)
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except KeyboardInterrupt:
        progress.print("interrupted; rerun the command to delete the rest")
        return ExitCode.INTERRUPTED


def _clean(
    cleaner: "Cleaner",
    store: "Store",
    jobs: Sequence[str],
    name: str | None,
    parsed: argparse.Namespace,
    progress: Progress,
) -> ExitCode:
    """Delete job by job what may be deleted, and tell it."""
    problems: list[str] = []

    def found() -> "Iterator[Removable]":
        for job in jobs:
            try:
                removable = cleaner.checkpoints(job)
            except (InputError, StorageError) as error:
                if name is not None:
                    raise
                problems.append(f"{job}: left alone: {error}")
            else:
                if removable is not None:
                    yield removable
        if parsed.set_aside:
            yield from cleaner.set_aside(name)
            problems.extend(
                f"{folder}: left alone: it has no mark of --fresh; delete it yourself if you do not need it"
                for folder in cleaner.unmarked(name)
            )

    removed: list[Removable] = []
    failed = False
    for removable in found():
        try:
            if not parsed.dry_run:
                cleaner.remove(removable)
        except StorageError as error:
            failed = True
            problems.append(f"{removable.job}: not all could be deleted: {error}")
            continue
        removed.append(removable)
        if not parsed.json:
            progress.print(f"{removable.job}: {removable.what}, {format_megabytes(removable.bytes)}")
    if parsed.json:
        document = {"storage": store.uri, "deleted": not parsed.dry_run, "problems": problems}
        print(json.dumps(document | {"removable": list(map(asdict, removed))}))
    else:
        for problem in problems:
            progress.print(problem)
        total = format_megabytes(sum(removable.bytes for removable in removed))
        verb = "would free" if parsed.dry_run else "freed"
        progress.print(f"{verb} {total} in {store.uri}" if removed else f"nothing to delete in {store.uri}")
    return ExitCode.FAILED if failed else ExitCode.DONE


if __name__ == "__main__":
    run(main)
