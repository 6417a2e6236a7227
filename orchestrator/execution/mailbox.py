"""The mailbox of a worker group: trials go to the workers, their reports to the lane, and verdicts back."""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrialJob:
    """What the workers need to know of one trial."""

    number: int
    config: dict[str, Any]
    checkpoint: str | None
    """Path of the checkpoint to continue from."""

    trained: bool
    """Whether the trial only has to be scored."""


class Mailbox:
    """An actor of Ray that belongs to one worker group. It imports neither Ray Tune nor Ray Train.

    Messages are encoded reports. A worker that reports waits for the verdict: whether its trial continues.
    """

    def __init__(self, workers: int, trials: int) -> None:
        """Serve ``workers`` workers until they have run ``trials`` trials."""
        self._limit = trials
        self._taken = [0] * workers
        self._idle = asyncio.Barrier(workers)
        self._trials: list[asyncio.Queue[TrialJob | None]] = [asyncio.Queue() for _ in range(workers)]
        self._messages: asyncio.Queue[tuple[dict[str, Any], bool]] = asyncio.Queue()
        self._verdicts: dict[int, list[asyncio.Queue[bool]]] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._fault = ""

    async def hand(self, job: TrialJob) -> None:
        """Give all workers their next trial."""
        # Ranks of the trial before may still ask for their last verdict.
        for number in list(self._verdicts)[:-1]:
            del self._verdicts[number]
        self._verdicts[job.number] = [asyncio.Queue() for _ in self._trials]
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

    async def answer(self, number: int, continues: bool) -> None:
        """Give the verdict on the last report of a trial to all workers."""
        for verdicts in self._verdicts[number]:
            verdicts.put_nowait(continues)

    async def fault(self) -> str:
        """Return why the workers do not take another trial; empty if they have run all that they may."""
        return self._fault

    async def next_trial(self, rank: int, fault: str) -> TrialJob | None:
        """Return the next trial of a worker, or None when it has to end.

        All workers end together.

        Args:
            rank: of the worker.
            fault: what its last trial left behind, so that its process cannot run another one.
        """
        self._fault = self._fault or fault
        await self._idle.wait()
        if self._fault or self._taken[rank] >= self._limit:
            return None
        self._taken[rank] += 1
        return await self._trials[rank].get()

    async def tell(self, message: dict[str, Any]) -> None:
        """Take a message that needs no verdict."""
        self._messages.put_nowait((message, False))

    async def report(self, number: int, rank: int, message: dict[str, Any]) -> bool:
        """Take the report of a worker; return the verdict. Only the message of rank 0 counts."""
        if rank == 0:
            self._messages.put_nowait((message, True))
        return await self._verdicts[number][rank].get()

    async def train(self, number: int) -> None:
        """Return when a trial has ended: a task with the name of the trial, for the Ray dashboard."""
        await self._ended.setdefault(number, asyncio.Event()).wait()

    async def end(self, number: int) -> None:
        """End the task `train` of a trial."""
        self._ended.pop(number, asyncio.Event()).set()
