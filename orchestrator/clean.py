"""Delete what nothing needs any more in a storage: ``python -m orchestrator.clean --dry-run``.

``--json`` prints one document: ``storage``, ``deleted`` (false with ``--dry-run``) and ``removable``, a list
of ``{job, what, paths, bytes}``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.console.arguments import existing_job_parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, StorageError

if TYPE_CHECKING:
    from orchestrator.storage.base import Store
    from orchestrator.study.cleaning import Removable

EXAMPLES = """\
examples:
  python -m orchestrator.clean --dry-run
  python -m orchestrator.clean search_spaces/alignment.yaml
  python -m orchestrator.clean --storage s3://bucket/sweeps --set-aside

Of a finished sweep it deletes the checkpoints of all trials but the best ones. Outcome, report, study, MLflow
and registered models stay, and the sweep can still get a larger budget or other finals. Nothing of a
comparison, and nothing of a job that runs or is not finished, is deleted.
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
        from orchestrator.study.cleaning import remove

        if parsed.sweep is None:
            store, name = lookup.find_storage(parsed.storage), None
        else:
            store, name = lookup.find_job(parsed.sweep, parsed.storage, parsed.set)
        removable = _find(store, name, parsed.set_aside)
        if not parsed.dry_run:
            for each in removable:
                remove(store, each)
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except KeyboardInterrupt:
        progress.print("interrupted; rerun the command to delete the rest")
        return ExitCode.INTERRUPTED
    if parsed.json:
        document = {
            "storage": store.uri,
            "deleted": not parsed.dry_run,
            "removable": list(map(asdict, removable)),
        }
        print(json.dumps(document))
    else:
        _show(progress, store, removable, parsed.dry_run)
    return ExitCode.DONE


def _find(store: "Store", name: str | None, set_aside: bool) -> "list[Removable]":
    """Return what may be deleted of one job, or of all jobs."""
    from orchestrator.storage import lookup
    from orchestrator.study.cleaning import find_removable, find_set_aside

    jobs = lookup.job_names(store) if name is None else [name]
    removable = [each for job in jobs for each in find_removable(store, job)]
    return removable + (find_set_aside(store, name) if set_aside else [])


def _show(progress: Progress, store: "Store", removable: "Sequence[Removable]", dry_run: bool) -> None:
    for each in removable:
        progress.print(f"{each.job}: {each.what}, {_megabytes(each.bytes)}")
    total = _megabytes(sum(each.bytes for each in removable))
    if not removable:
        progress.print(f"nothing to delete in {store.uri}")
    else:
        progress.print(f"would free {total} in {store.uri}" if dry_run else f"freed {total} in {store.uri}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    run(main)
