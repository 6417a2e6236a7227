"""Stop a sweep or comparison as Ctrl-C does, from anywhere: ``python -m orchestrator.stop SWEEP``.

``--json`` prints one document at the end: ``sweep`` (where it is kept), ``stopped``, and ``line`` (what is
said otherwise).
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from orchestrator.console.progress import Progress
from orchestrator.errors import InputError, StorageError
from orchestrator.status import Parser, seconds

if TYPE_CHECKING:
    from orchestrator.storage.s3 import Store

EXAMPLES = """\
examples:
  python -m orchestrator.stop search_spaces/alignment.yaml
  python -m orchestrator.stop s3://bucket/sweeps/alignment --timeout 600

Trials keep their last checkpoints; the command that started the sweep continues it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 it does not run, 1 it still does, 2 bad input."""
    parser = Parser("python -m orchestrator.stop", "Stop the driver of a sweep or comparison.", EXAMPLES)
    parser.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="how long to wait (default: 120)"
    )
    parsed = parser.parse_args(arguments)
    progress = Progress()
    try:
        from orchestrator.storage import lookup as existing

        store, name = existing.find(parsed.sweep, parsed.storage, parsed.set)
        stopped, line = _stop(store, name, parsed.timeout, None if parsed.json else progress)
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.say("no longer waiting; what was asked stays asked")
        return 130
    if parsed.json:
        print(json.dumps({"sweep": store.locate(name), "stopped": stopped, "line": line}))
    else:
        progress.say(line)
    return 0 if stopped else 1


def _stop(store: "Store", name: str, timeout: float, progress: Progress | None) -> tuple[bool, str]:
    """Ask the driver of a job to stop, and wait until it has; says whether it did, and what came of it."""
    from orchestrator.storage import lease
    from orchestrator.storage import lookup as existing

    place = store.locate(name)
    found = lease.holder(store, name)
    if found is None or existing.condition(store, name, found[0]) in ("stopped", "died"):
        return True, f"{place} is not running"
    driver = found[0]
    store.write(lease.request_name(name), driver.identity.encode())
    what = f"waiting for {driver}, to end"
    until, trouble = time.monotonic() + timeout, ""
    beat, changed = driver.beat, time.monotonic()
    with nullcontext() if progress is None else progress.doing(what):
        while time.monotonic() < until:
            time.sleep(1.0)
            try:
                found, trouble = lease.holder(store, name), ""
                if found is None:
                    return True, f"{place} is gone"
                if found[0].identity != driver.identity:
                    return False, f"{driver}, has ended, but {found[0]}, drives {place} now"
                state = existing.condition(store, name, found[0])
                if state in ("stopped", "died"):
                    return True, f"{place} has stopped; the command that started it continues it"
                if found[0].beat != beat:
                    beat, changed = found[0].beat, time.monotonic()
                elif state == "silent" and time.monotonic() - changed > existing.SILENT:
                    # It was asked, so it stops if it should live; that it is dead nobody here can know.
                    return False, f"{place}: its driver gives no sign of life; the same command takes over"
            except StorageError as error:  # it was there a moment ago, and may be there again
                trouble = f"; {error}"
    return False, f"{place} has not stopped within {timeout:g} s; it may still{trouble}"


if __name__ == "__main__":
    sys.exit(main())
