"""What a driver looks after, on a real Ray: the groups of makers who were killed, and its own node."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.watch import Watch

EARLIER = """
import ray, sys
from ray.util.placement_group import placement_group

@ray.remote(num_cpus=0)
class Maker:
    def make(self):
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group.id.hex()

ray.init(sys.argv[1], log_to_driver=False)
# Ray keeps the group of a detached actor when its job ends: so this one stays behind.
maker = Maker.options(lifetime="detached", name="maker", namespace="test").remote()
print("made", ray.get_runtime_context().get_job_id(), ray.get(maker.make.remote()))
"""


@ray.remote(num_cpus=0)
class Actor:
    def make(self, name: str = "") -> str:
        self.group = placement_group([{"CPU": 1}], name=name)
        ray.get(self.group.ready())
        return str(self.group.id.hex())

    def use(self) -> None:
        within = PlacementGroupSchedulingStrategy(self.group)
        self.user = Actor.options(scheduling_strategy=within).remote()  # type: ignore[attr-defined]
        ray.get(self.user.__ray_ready__.remote())


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


def test_the_group_of_a_killed_maker_goes_while_its_driver_runs(address: str) -> None:
    killed, user, caller = Actor.remote(), Actor.remote(), Actor.remote()  # type: ignore[attr-defined]
    left, used, named = ray.get([killed.make.remote(), user.make.remote(), caller.make.remote("of-tune")])
    ray.get(user.use.remote())
    ray.kill(killed)
    time.sleep(3)
    assert there(left)  # as Ray has it: its job lives
    said: list[str] = []
    ended: list[str] = []
    with Watch([], said.append, ended.append, interval=0.5):
        until(lambda: not there(left))
        time.sleep(3)
        assert there(used) and there(named)
    assert not there(used) and there(named)  # whatever is there at the end was used by trials that are over
    assert said == ["placement groups that nobody used any more, removed: 1"] * 2
    assert not ended


def test_the_group_of_an_earlier_driver_goes(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLIER, address], capture_output=True, text=True, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("made")]
    _, job, group = line.split()
    time.sleep(3)
    assert there(group)
    session = ray.get_runtime_context().get_session_name()
    jobs = ["another-session/01000000", f"{session}/{job}"]
    with Watch(jobs, print, print):
        until(lambda: not there(group))
    assert jobs == [f"{session}/{job}", f"{session}/{ray.get_runtime_context().get_job_id()}"]


def test_a_driver_whose_node_died_is_told(address: str) -> None:
    ended: list[str] = []
    with Watch([], print, ended.append, interval=0.5):
        time.sleep(3)
        assert not ended
        (raylet,) = [each for each in psutil.Process().children() if each.name() == "raylet"]
        raylet.kill()
        until(lambda: bool(ended))
    assert ended == ["the Ray node of this driver died"]
