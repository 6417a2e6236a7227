"""Stop a sweep or comparison as Ctrl-C does, from any machine: ``python -m orchestrator.stop SWEEP``.

``--json`` prints one document at the end: ``sweep`` (where it is kept), ``stopped``, and ``message``.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from orchestrator.console.arguments import existing_job_parser, report_error, seconds
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, StorageError

if TYPE_CHECKING:
    from orchestrator.storage.base import Store

EXAMPLES = """\
examples:
  python -m orchestrator.stop search_spaces/alignment.yaml
  python -m orchestrator.stop s3://bucket/sweeps/alignment --timeout 600

Trials keep their last checkpoints. Rerun the command that started the sweep to resume it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`: FAILED if the job still runs."""
    parser = existing_job_parser(
        "python -m orchestrator.stop", "Stop the driver of a sweep or comparison.", EXAMPLES
    )
    parser.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="how long to wait (default: 120)"
    )
    parsed = parser.parse_args(arguments)
    progress = Progress()
    try:
        from orchestrator.storage import lookup

        store, name = lookup.find_job(parsed.sweep, parsed.storage, parsed.set, or_driver=True)
        stopped, message = _stop(store, name, parsed.timeout, None if parsed.json else progress)
    except InputError as error:
        return report_error(error)
    except StorageError as error:
        return report_error(error.as_input_error())
    except KeyboardInterrupt:
        progress.print("stopped waiting; the stop request stays in effect")
        return ExitCode.INTERRUPTED
    if parsed.json:
        print(json.dumps({"sweep": store.locate(name), "stopped": stopped, "message": message}))
    else:
        progress.print(message)
    return ExitCode.DONE if stopped else ExitCode.FAILED


def _stop(store: "Store", name: str, timeout: float, progress: Progress | None) -> tuple[bool, str]:
    """Request a stop of a job's driver and wait for it; return whether it stopped, and a message."""
    from orchestrator.storage import lease, lookup

    uri = store.locate(name)
    current = lease.read_driver_record(store, name)
    if current is None or lookup.driver_state(store, name, current[0]) in ("stopped", "died"):
        return True, f"{uri} is not running"
    driver = current[0]
    store.write(lease.stop_request_name(name), driver.identity.encode())
    deadline, trouble = time.monotonic() + timeout, ""
    heartbeat, changed = driver.heartbeat, time.monotonic()
    with nullcontext() if progress is None else progress.activity(f"waiting for {driver}"):
        while time.monotonic() < deadline:
            time.sleep(1.0)
            try:
                current, trouble = lease.read_driver_record(store, name), ""
                if current is None:
                    return True, f"{uri} no longer exists"
                record = current[0]
                if record.identity != driver.identity:
                    return False, f"{driver}, has ended, but {record}, drives {uri} now"
                state = lookup.driver_state(store, name, record)
                if state in ("stopped", "died"):
                    return True, f"{uri} has stopped; rerun the command that started it to resume"
                if record.heartbeat != heartbeat:
                    heartbeat, changed = record.heartbeat, time.monotonic()
                elif state != "running" and time.monotonic() - changed > lookup.SILENT_SECONDS:
                    # It stops if it is alive, which cannot be determined from here.
                    advice = "rerun the command to take over"
                    if state == "stalled":
                        advice = f"it stops when it goes on; resume (kill -CONT) or kill {record}"
                    return False, f"{uri}: no heartbeat from its driver; {advice}"
            except StorageError as error:  # the storage answered before, and may answer again
                trouble = f"; {error}"
    return False, f"{uri} has not stopped within {timeout:g} s; it may still do so{trouble}"


if __name__ == "__main__":
    run(main)
