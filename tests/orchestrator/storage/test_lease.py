"""One driver for each job, what it spent, and how others see and stop it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import status, stop
from orchestrator.config import sweep as config
from orchestrator.errors import InputError
from orchestrator.storage import lease
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Holder, Lease, identify
from orchestrator.storage.s3 import Folder
from orchestrator.study.base import SweepStudy

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.storage.lease import Lease
from orchestrator.storage.s3 import Folder
with Lease(Folder(Path(sys.argv[1])), "job", "sweep job", print):
    print("held", flush=True)
    time.sleep(60)
"""

SWEEP = """
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
search: {x: {uniform: [-3, 3]}}
objective: {metric: val/score}
scheduler: none
sampler: {random: {seed: 0}}
budget: {trials: 4, wall: 1h}
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the job."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def hold(folder: Path, said: list[str]) -> Lease:
    return Lease(Folder(folder), "job", "sweep job", said.append)


def test_a_second_driver_is_refused_by_name_and_takes_over_when_the_first_is_dead(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(InputError) as refusal, hold(tmp_path, []):
        pass
    assert f"the sweep job is driven by process {other.pid} on " in str(refusal.value)
    assert ", started 2" in str(refusal.value)
    assert "python -m orchestrator.stop" in str(refusal.value)
    other.kill()
    other.wait()
    said: list[str] = []
    with hold(tmp_path, said):
        assert said[0].startswith(f"process {other.pid} on ") and said[0].endswith("this one takes over")


def test_what_was_spent_is_kept_until_a_job_starts_over(tmp_path: Path) -> None:
    with hold(tmp_path, []) as first:
        first.record.spent.gpu_seconds = 7200.0
    with hold(tmp_path, []) as second:
        assert second.record.spent.gpu_seconds == 7200.0
    with Lease(Folder(tmp_path), "job", "sweep job", print, fresh=True) as third:
        assert third.record.spent.gpu_seconds == 0.0


def test_the_driver_stops_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    store = Folder(tmp_path)
    with pytest.raises(KeyboardInterrupt), hold(tmp_path, []) as held:
        store.write(lease.request_name("job"), b"an earlier driver")
        time.sleep(0.3)
        assert not held.ending
        store.write(lease.request_name("job"), held.record.identity.encode())
        time.sleep(60)  # is interrupted
    assert held.ending == "it was asked to stop"


def test_a_process_is_not_taken_for_another_of_its_number() -> None:
    mine = Holder(host="h", pid=os.getpid(), started="", identity=identify(os.getpid()))
    assert not mine.is_gone()
    place, _, began = mine.identity.rpartition(":")
    assert mine.model_copy(update={"identity": f"{place}:{int(began) - 1}"}).is_gone()
    elsewhere = mine.model_copy(update={"identity": f"elsewhere:{began}"})
    assert not elsewhere.is_gone()  # nobody here can know
    assert mine.model_copy(update={"pid": 2**22 + 1}).is_gone()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A sweep whose driver was interrupted after one trial, with another one running and one failed."""
    file = tmp_path / "parabola.yaml"
    file.write_text(SWEEP)
    sweep = config.read(file, [config.Override("storage", str(tmp_path / "store"), "--storage")])
    directory = JobDirectory(sweep)
    with directory.open(fresh=False) as (_, held):
        held.record.spent.seconds = 90.0
        study = SweepStudy(sweep, directory)
        study.begin([])
        for number in range(3):
            suggestion = study.ask()
            assert suggestion is not None and suggestion.number == number
        report = {"epoch": 1, "val/score": -0.25, "names": ["val/score"], "checkpoint_path": "/x"}
        study.record(0, report)
        study.report(0, report)
        study.end(0, report)
        study.end(1, {"failure": "RuntimeError: no", "log": ""})
    return file


def ask(command: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_status_tells_how_a_sweep_stands(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    before = sorted(each.name for each in (tmp_path / "store").rglob("*"))
    code, out, _ = ask(status, capsys, str(job), "--storage", store, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["state"] == "stopped" and found["driver"]["pid"] == os.getpid()
    assert found["trials"] == {"complete": 1, "failed": 1, "running": 1}
    assert found["budget"] == {"trials": [3, 4], "seconds": [90.0, 3600.0], "gpu_hours": [0.0, None]}
    assert found["best"]["trial"] == "trial-0000" and found["best"]["val/score"] == -0.25
    assert found["doing"] == {"trial-0002": "goes on when the sweep is continued"}
    assert found["failures"] == [{"reason": "RuntimeError: no", "trials": ["trial-0001"]}]
    for name in (f"{store}/parabola", "parabola"):
        code, out, _ = ask(status, capsys, name, "--storage", store)
        assert code == 0
        assert "RuntimeError: no (trial-0001)" in out and "0:01:30 of 1:00:00" in out
    assert sorted(each.name for each in (tmp_path / "store").rglob("*")) == before


@pytest.mark.parametrize("command", [status, stop])
def test_what_is_not_there_is_one_line(
    command: Any, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ask(command, capsys, "parabolla", "--storage", str(tmp_path / "store"))
    assert code == 2 and not out
    assert err == f"error: there is no sweep {tmp_path}/store/parabolla; did you mean 'parabola'?\n"
    code, _, err = ask(command, capsys, "gs://x/parabola")
    assert code == 2 and "kept in a folder or in a bucket" in err


def test_stop_says_what_does_not_run(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(stop, capsys, f"{tmp_path}/store/parabola")
    assert code == 0 and out == f"{tmp_path}/store/parabola is not running\n"
