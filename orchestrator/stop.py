"""Stop a sweep or comparison as Ctrl-C does, from anywhere: ``python -m orchestrator.stop SWEEP``."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from orchestrator.errors import InputError, StorageError
from orchestrator.progress import Progress
from orchestrator.status import Parser, find

EXAMPLES = """\
examples:
  python -m orchestrator.stop search_spaces/alignment.yaml
  python -m orchestrator.stop s3://bucket/sweeps/alignment --timeout 600

Trials keep their last checkpoints; the command that started the sweep continues it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 it does not run, 1 it still does, 2 bad input."""
    parser = Parser("python -m orchestrator.stop", "Stop the driver of a sweep or comparison.", EXAMPLES)
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="default: 120")
    parsed = parser.parse_args(arguments)
    progress = Progress()
    try:
        store, name = find(parsed.sweep, parsed.storage)
        from orchestrator import lease

        found = lease.holder(store, name)
        if found is None or found[0].ended or found[0].is_gone():
            line, stopped = f"{store.locate(name)} is not running", True
        else:
            driver = found[0]
            store.write(lease.request_name(name), driver.identity.encode())
            deadline, stopped = time.monotonic() + parsed.timeout, False
            with nullcontext() if parsed.json else progress.doing(f"asked {driver} to stop"):
                while not stopped and time.monotonic() < deadline:
                    time.sleep(1.0)
                    found = lease.holder(store, name)
                    stopped = found is None or found[0].ended or found[0].is_gone()
            line = f"{store.locate(name)} " + (
                "has stopped; the command that started it continues it"
                if stopped
                else f"has not stopped within {parsed.timeout:g} s; it may still"
            )
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if parsed.json:
        print(json.dumps({"sweep": store.locate(name), "stopped": stopped}))
    else:
        progress.say(line)
    return 0 if stopped else 1


if __name__ == "__main__":
    sys.exit(main())
