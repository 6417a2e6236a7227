"""The resources that a driver removes, on a real Ray cluster."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.execution import reaper
from orchestrator.execution.reaper import ResourceReaper
from orchestrator.interrupt import Interrupt

pytestmark = pytest.mark.faults
WORKERS = [{"CPU": 1, "GPU": 0}]

EARLIER = """
import os, ray, sys
from ray.util.placement_group import placement_group

@ray.remote(num_cpus=0)
class PlacementGroupCleaner:
    def make(self):
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group.id.hex(), os.getpid()

ray.init(sys.argv[1], log_to_driver=False)
# Ray keeps the group of a detached actor when its job ends: so this one stays behind.
maker = PlacementGroupCleaner.options(lifetime="detached").remote()
print("made", ray.get_runtime_context().get_job_id(), *ray.get(maker.make.remote()))
"""


@ray.remote(num_cpus=0)
class Actor:
    def make(self, cpus: float = 1) -> str:
        self.group = placement_group([{"CPU": cpus}])
        ray.get(self.group.ready())
        return str(self.group.id.hex())

    def use(self) -> None:
        within = PlacementGroupSchedulingStrategy(self.group)
        self.user = Actor.options(scheduling_strategy=within).remote()  # type: ignore[attr-defined]
        ray.get(self.user.__ray_ready__.remote())


@ray.remote(num_cpus=0)
class PlacementGroupCleaner:
    def __init__(self, file: str) -> None:
        Path(file).write_text(str(os.getpid()))


@ray.remote
def occupy(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    ray.init(address="local", num_cpus=6, include_dashboard=True, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within a minute")


def there(group: str) -> bool:
    return bool(placement_group_table()[group]["state"] != "REMOVED")


def earlier(address: str) -> list[str]:
    """Run a driver that leaves a group and an actor of Ray Train's kind; gives job, group and process."""
    command = [sys.executable, "-c", EARLIER, address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("made")]
    return line.split()[1:]


def test_group_of_a_killed_actor_ends_while_its_driver_runs(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=reaper.__name__)
    killed, user, other = Actor.remote(), Actor.remote(), Actor.remote()  # type: ignore[attr-defined]
    left, used, small = ray.get([killed.make.remote(), user.make.remote(), other.make.remote(0.05)])
    ray.get(user.use.remote())
    ray.kill(killed)
    time.sleep(3)
    assert there(left)  # Ray keeps it, because its job lives
    interrupt = Interrupt()
    with ResourceReaper([], WORKERS, interrupt, interval=0.5):
        until(lambda: not there(left))
        time.sleep(3)
        assert there(used) and there(small)
    assert not there(used) and there(small)  # at the end every group of the size of a worker group goes
    assert caplog.messages == ["removed 1 unused placement groups"]
    assert not interrupt.requested


def test_group_and_cleaner_of_an_earlier_driver_end(address: str, caplog: pytest.LogCaptureFixture) -> None:
    job, group, process = earlier(address)
    time.sleep(3)
    assert there(group) and psutil.pid_exists(int(process))
    session = ray.get_runtime_context().get_session_name()
    jobs, interrupt = ["another-session/01000000", f"{session}/{job}"], Interrupt()
    with ResourceReaper(jobs, WORKERS, interrupt):
        until(lambda: not there(group))
        until(lambda: not psutil.pid_exists(int(process)))
    assert jobs[2:] == [f"{session}/{ray.get_runtime_context().get_job_id()}"]
    assert caplog.messages == [] and not interrupt.requested


def test_job_that_is_added_later_is_cleaned_up(address: str) -> None:
    """The record of the driver was lost, and the study names the job."""
    job, group, process = earlier(address)
    session = ray.get_runtime_context().get_session_name()
    with ResourceReaper([], WORKERS, Interrupt(), interval=0.5) as reaper:
        assert there(group) and psutil.pid_exists(int(process))  # this driver does not know the job
        reaper.add_earlier([f"{session}/{job}"])
        until(lambda: not there(group))
        until(lambda: not psutil.pid_exists(int(process)))
    assert not there(group) and not psutil.pid_exists(int(process))


def test_cleaner_that_starts_after_its_driver_has_stopped_ends(address: str, tmp_path: Path) -> None:
    """A driver may stop between the request for a cleaner and the start of its process."""
    file = tmp_path / "process"
    with ResourceReaper([], WORKERS, Interrupt()):
        cpus = ray.available_resources()["CPU"]
        occupied = occupy.options(num_cpus=cpus).remote(5.0)
        time.sleep(1)
        cleaner = PlacementGroupCleaner.options(lifetime="detached", num_cpus=cpus)  # type: ignore[attr-defined]
        cleaner.remote(str(file))
        time.sleep(1)
        assert not file.exists()  # it is still to start
    assert file.exists() and not psutil.pid_exists(int(file.read_text()))
    ray.get(occupied)


def test_group_and_cleaner_of_another_job_stay(address: str, caplog: pytest.LogCaptureFixture) -> None:
    _, group, process = earlier(address)
    interrupt = Interrupt()
    with ResourceReaper([], WORKERS, interrupt, interval=0.5):
        time.sleep(5)
    assert there(group) and psutil.pid_exists(int(process))
    assert caplog.messages == [] and not interrupt.requested


def test_reaper_that_cannot_look_says_so_once(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reaper, "list_actors", unanswered)
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    interrupt = Interrupt()
    with ResourceReaper([], WORKERS, interrupt, interval=0.5):
        time.sleep(2)
    assert caplog.messages == ["cannot check for unused placement groups: the dashboard is away"]
    assert not interrupt.requested


def unanswered(**_: object) -> None:
    raise ConnectionError("the dashboard is away")
