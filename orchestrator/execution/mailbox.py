"""The mailbox of a worker group: trials go to the workers, their reports to the lane, and verdicts back."""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrialJob:
    """What the workers need to know of one trial."""

    number: int
    values: dict[str, Any]
    """The values that define it."""

    config: dict[str, Any]
    checkpoint: str | None
    """Path of the checkpoint to continue from."""

    trained: bool
    """Whether the trial only has to be scored."""


class Mailbox:
    """An actor of Ray that belongs to one worker group. It imports neither Ray Tune nor Ray Train.

    Messages are encoded reports. Those of a trial that is not the current one are dropped. A worker that
    reports waits for the verdict: whether its trial continues.
    """

    def __init__(self, workers: int, trials: int) -> None:
        """Serve ``workers`` workers until they have run ``trials`` trials."""
        self._workers, self._limit = workers, trials
        self._current: int | None = None
        self._taken: list[list[int]] = [[] for _ in range(workers)]
        self._idle, self._finished = asyncio.Barrier(workers), asyncio.Barrier(workers)
        self._trials: list[asyncio.Queue[TrialJob | None]] = [asyncio.Queue() for _ in range(workers)]
        self._messages: asyncio.Queue[tuple[dict[str, Any], bool]] = asyncio.Queue()
        self._report: dict[str, Any] = {}
        self._arrived = 0
        self._verdict: asyncio.Future[bool] | None = None
        self._task = asyncio.Event()
        self._fault = ""

    async def hand(self, job: TrialJob) -> None:
        """Give all workers their next trial."""
        self._current = job.number
        self._messages = asyncio.Queue()
        self._arrived, self._verdict = 0, None
        for trials in self._trials:
            trials.put_nowait(job)

    async def close(self) -> None:
        """Let the workers end as soon as they are idle."""
        for trials in self._trials:
            trials.put_nowait(None)

    async def receive(self, seconds: float) -> tuple[dict[str, Any], bool] | None:
        """Return the next message and whether its sender waits for a verdict; None if there is none."""
        try:
            return await asyncio.wait_for(self._messages.get(), seconds)
        except TimeoutError:
            return None

    async def answer(self, continues: bool) -> None:
        """Give the verdict on the last report to all workers."""
        assert self._verdict is not None
        verdict, self._verdict = self._verdict, None
        verdict.set_result(continues)

    async def was_taken(self, number: int) -> bool:
        """Return whether a worker has taken a trial."""
        return any(number in taken for taken in self._taken)

    async def fault(self) -> str:
        """Return why the workers do not take another trial; empty if they have run all that they may."""
        return self._fault

    async def next_trial(self, rank: int, fault: str) -> TrialJob | None:
        """Return the next trial of a worker, or None when it has to end. All workers end together.

        Args:
            rank: of the worker.
            fault: what its last trial left behind, so that its process cannot run another one.
        """
        self._fault = self._fault or fault
        await self._idle.wait()
        if self._fault or len(self._taken[rank]) >= self._limit:
            return None
        trial = await self._trials[rank].get()
        if trial is not None:
            self._taken[rank].append(trial.number)
        return trial

    async def tell(self, number: int, message: dict[str, Any]) -> None:
        """Take a message of a trial that needs no verdict."""
        if number == self._current:
            self._messages.put_nowait((message, False))

    async def report(self, number: int, rank: int, message: dict[str, Any]) -> bool:
        """Take the report of a worker; return the verdict.

        The message of rank 0 counts, once all ranks have reported.
        """
        if number != self._current:
            return False
        if self._verdict is None:
            self._verdict = asyncio.get_running_loop().create_future()
        verdict = self._verdict
        if rank == 0:
            self._report = message
        self._arrived += 1
        if self._arrived == self._workers:
            self._arrived = 0
            self._messages.put_nowait((self._report, True))
        return await asyncio.shield(verdict)

    async def finish(self) -> None:
        """Return when all ranks have trained their trial to its end."""
        await self._finished.wait()

    async def train(self) -> None:
        """Return when the trial has ended: a task with the name of the trial, for the Ray dashboard."""
        self._task = asyncio.Event()
        await self._task.wait()

    async def end(self) -> None:
        """End the task `train`."""
        self._task.set()
