"""The mailbox of a worker group, without Ray."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.execution.mailbox import Mailbox, TrialJob


def job(number: int) -> TrialJob:
    return TrialJob(number, {}, None, trained=False)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 10))  # type: ignore[arg-type]


def test_worker_waits_for_the_verdict_on_its_report() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        await mailbox.hand(job(3))
        trial = await mailbox.next_trial(0, "")
        assert trial is not None and trial.number == 3
        report = asyncio.create_task(mailbox.report(3, 0, {"epoch": 1}))
        assert await mailbox.receive(5) == ({"epoch": 1}, True)
        assert not report.done()
        await mailbox.answer(3, True)
        assert await report is True

    run(scenario)


def test_message_without_verdict_does_not_wait() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        await mailbox.tell({"started": True})
        assert await mailbox.receive(5) == ({"started": True}, False)

    run(scenario)


def test_receive_without_a_message_returns_none() -> None:
    assert run(lambda: Mailbox(1, 10).receive(0.01)) is None


def test_all_ranks_get_the_verdict_on_the_report_of_rank_0() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(3, 10)
        await mailbox.hand(job(0))
        await asyncio.gather(*(mailbox.next_trial(rank, "") for rank in range(3)))
        reports = [asyncio.create_task(mailbox.report(0, rank, {"rank": rank})) for rank in (2, 0, 1)]
        assert await mailbox.receive(5) == ({"rank": 0}, True)
        assert await mailbox.receive(0.01) is None
        await mailbox.answer(0, False)
        assert await asyncio.gather(*reports) == [False] * 3

    run(scenario)


def test_late_rank_gets_the_verdict_of_its_own_trial() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2, 10)
        await mailbox.hand(job(0))
        await mailbox.answer(0, False)
        await mailbox.hand(job(1))
        await mailbox.answer(1, True)
        assert await mailbox.report(0, 1, {}) is False
        assert await mailbox.report(1, 1, {}) is True

    run(scenario)


@pytest.mark.parametrize("fault", ["", "it left 2 threads"])
def test_all_ranks_end_together_after_a_fault(fault: str) -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2, 10)
        await mailbox.hand(job(0))
        trials = await asyncio.gather(mailbox.next_trial(0, ""), mailbox.next_trial(1, fault))
        assert [trial is None for trial in trials] == [bool(fault)] * 2
        assert await mailbox.fault() == fault

    run(scenario)


def test_workers_end_after_their_number_of_trials() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 2)
        numbers = []
        for number in range(3):
            await mailbox.hand(job(number))
            trial = await mailbox.next_trial(0, "")
            numbers.append(None if trial is None else trial.number)
        assert numbers == [0, 1, None] and await mailbox.fault() == ""

    run(scenario)


def test_closed_mailbox_ends_idle_workers() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2, 10)
        waiting = [asyncio.create_task(mailbox.next_trial(rank, "")) for rank in range(2)]
        await mailbox.close()
        assert await asyncio.gather(*waiting) == [None, None]

    run(scenario)


def test_task_of_a_trial_lasts_until_the_trial_ends() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        task = asyncio.create_task(mailbox.train(4))
        await asyncio.sleep(0)
        assert not task.done()
        await mailbox.end(4)
        await task

    run(scenario)
