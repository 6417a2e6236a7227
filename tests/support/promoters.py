"""Processes that promote versions of one model at once; some are killed or suspended before a request.

``python -m tests.support.promoters URI MODEL SEED PATIENCE`` forks one process for each version, whose score
is in its tag ``score``. A third of them kill or suspend themselves before a random request; the suspended
ones are continued when all others have ended.
"""

import os
import random
import signal
import sys
from typing import Any

from mlflow import MlflowClient

from orchestrator.tracking.alias import Alias
from orchestrator.tracking.gate import Decision
from orchestrator.tracking.promotion import promote, who
from orchestrator.tracking.store import quiet_mlflow

LONGEST = 30
"""Highest number of the request before which a process stops."""


class Stopping:
    """A client that sends a signal to its own process before one of its requests."""

    def __init__(self, client: MlflowClient, step: int, number: int) -> None:
        self._client, self._step, self._signal, self._sent = client, step, number, 0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)

        def send(*arguments: Any, **options: Any) -> Any:
            self._sent += 1
            if self._sent == self._step:
                os.kill(os.getpid(), self._signal)
            return attribute(*arguments, **options)

        return send


def run(uri: str, model: str, number: int, plan: tuple[int, int] | None, patience: float) -> None:
    """Promote one version if its score is higher than that of the champion."""
    quiet_mlflow()
    plain = MlflowClient(uri, registry_uri=uri)
    client: Any = plain if plan is None else Stopping(plain, *plan)
    version = plain.get_model_version(model, str(number))

    def judge(champion: int | None) -> Decision:
        other = None if champion is None else plain.get_model_version(model, str(champion)).tags["score"]
        better = other is None or float(version.tags["score"]) > float(other)
        verdict = "promoted" if better else "declined"
        return Decision(verdict=verdict, reason=f"against {champion}", method="scores alone")

    alias = Alias(client, model, "champion", patience)
    promote(client, version, alias, judge, by=who(sweep=f"promoter {number}"))


def fork(uri: str, model: str, number: int, plan: tuple[int, int] | None, patience: float) -> int:
    """Run one promoter in a process of its own; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run(uri, model, number, plan, patience)
        os._exit(0)
    except BaseException as error:
        print(f"version {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def main(uri: str, model: str, count: int, seed: int, patience: float) -> None:
    """Run all promoters; print the version and how it ended, one line each."""
    chance, processes = random.Random(seed), dict[int, int]()
    for number in range(1, count + 1):
        plan = None
        if chance.random() < 1 / 3:
            plan = chance.randint(1, LONGEST), chance.choice([signal.SIGKILL, signal.SIGSTOP])
        processes[fork(uri, model, number, plan, patience)] = number
    ended, stopped = dict[int, str](), set[int]()
    while processes.keys() - stopped:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(pid)
        else:
            ended[processes.pop(pid)] = _end(status)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        ended[processes[pid]] = f"continued, {_end(status)}"
    for number, how in sorted(ended.items()):
        print(number, how)


def _end(status: int) -> str:
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), float(sys.argv[5]))
