"""The mailbox of a worker group, without Ray."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.execution.mailbox import Mailbox, TrialJob


def job(number: int) -> TrialJob:
    return TrialJob(number, {}, {}, None, trained=False)


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
        await mailbox.answer(True)
        assert await report is True

    run(scenario)


def test_message_without_verdict_does_not_wait() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        await mailbox.hand(job(3))
        await mailbox.tell(3, {"started": True})
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
        await mailbox.answer(False)
        assert await asyncio.gather(*reports) == [False] * 3

    run(scenario)


def test_report_counts_when_all_ranks_have_reported() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2, 10)
        await mailbox.hand(job(0))
        first = asyncio.create_task(mailbox.report(0, 0, {"epoch": 1}))
        assert await mailbox.receive(0.01) is None
        second = asyncio.create_task(mailbox.report(0, 1, {}))
        assert await mailbox.receive(5) == ({"epoch": 1}, True)
        await mailbox.answer(True)
        assert await asyncio.gather(first, second) == [True, True]

    run(scenario)


def test_messages_of_the_trial_before_are_dropped() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        await mailbox.hand(job(0))
        await mailbox.tell(0, {"failed": True})
        await mailbox.hand(job(1))
        await mailbox.tell(0, {"failed": True})
        assert await mailbox.report(0, 0, {"epoch": 9}) is False
        assert await mailbox.receive(0.01) is None
        await mailbox.tell(1, {"started": True})
        assert await mailbox.receive(5) == ({"started": True}, False)

    run(scenario)


def test_ranks_finish_a_trial_together() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2, 10)
        first = asyncio.create_task(mailbox.finish())
        await asyncio.sleep(0.01)
        assert not first.done()
        await asyncio.gather(first, mailbox.finish())

    run(scenario)


def test_trial_is_taken_once_a_worker_has_it() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1, 10)
        await mailbox.hand(job(5))
        assert not await mailbox.was_taken(5)
        await mailbox.next_trial(0, "")
        assert await mailbox.was_taken(5)

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
        task = asyncio.create_task(mailbox.train())
        await asyncio.sleep(0)
        assert not task.done()
        await mailbox.end()
        await task

    run(scenario)
