"""The lease of a job: one driver at a time, what it used of the budget, and requests to stop it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import InputError, LeaseLostError
from orchestrator.interrupt import Interrupt
from orchestrator.storage import lease
from orchestrator.storage.lease import (
    Activity,
    DriverRecord,
    Lease,
    check_driver,
    process_identity,
    read_driver_record,
)
from orchestrator.storage.local import LocalStore

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.interrupt import Interrupt
from orchestrator.storage.lease import Lease
from orchestrator.storage.local import LocalStore
with Lease(LocalStore(Path(sys.argv[1])), "job", "sweep job", Interrupt()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the job."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def short_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)


def hold(folder: Path, interrupt: Interrupt | None = None, fresh: bool = False) -> Lease:
    return Lease(LocalStore(folder), "job", "sweep job", interrupt or Interrupt(), fresh)


def wait_for(lease: Lease, interrupt: Interrupt) -> None:
    with pytest.raises(KeyboardInterrupt), lease:
        time.sleep(60)
    assert interrupt.requested


def test_lease_held_by_another_driver_names_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(InputError) as refusal, hold(tmp_path):
        pass
    assert str(refusal.value).startswith(f"sweep job is driven by process {other.pid} on ")
    assert ", started 2" in str(refusal.value)
    assert str(refusal.value).endswith(f"stop it with python -m orchestrator.stop {tmp_path}/job")


def test_driver_ends_when_its_storage_becomes_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Interrupt
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    with pytest.raises(KeyboardInterrupt), hold(tmp_path, interrupt):
        monkeypatch.setattr(LocalStore, "replaced", lambda store: "storage: another folder")
        time.sleep(60)
    assert interrupt.reason == "storage: another folder"


def test_copy_of_a_storage_in_use_names_the_storage_of_the_driver(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / ".job.driver.json", copy)
    with pytest.raises(InputError) as refusal, hold(copy):
        pass
    assert f", in {tmp_path}, of which this storage seems to be a copy; wait" in str(refusal.value)
    assert str(refusal.value).endswith(f"stop it with python -m orchestrator.stop {tmp_path}/job")


def test_check_driver_names_a_running_driver_alone(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match=f"^sweep job is driven by process {other.pid} on "):
        check_driver(LocalStore(tmp_path), "job", "sweep job")
    other.kill()
    other.wait()
    check_driver(LocalStore(tmp_path), "job", "sweep job")
    check_driver(LocalStore(tmp_path / "new"), "job", "sweep job")
    assert {file.name for file in tmp_path.iterdir()} == before


def test_check_driver_of_a_bucket_awaits_the_next_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "heartbeat_only", True)  # as a bucket, which has no locks
    store, file = LocalStore(tmp_path), tmp_path / ".job.driver.json"
    with hold(tmp_path):
        with pytest.raises(InputError, match=r"^sweep job is driven by process .* started "):
            check_driver(store, "job", "sweep job")
        beating = file.read_bytes()
    check_driver(store, "job", "sweep job")  # it recorded its end
    file.write_bytes(beating)
    check_driver(store, "job", "sweep job")  # it died after this heartbeat


def test_check_driver_of_a_bucket_does_not_wait_for_an_old_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "heartbeat_only", True)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: pytest.fail("it waits"))
    store = LocalStore(tmp_path)
    for renewed in (time.time() - 60, time.time() + 60):
        record = own_record().model_copy(update={"renewed": renewed})
        store.write(lease.record_name("job"), record.to_json())
        check_driver(store, "job", "sweep job")


def test_lease_of_a_dead_driver_is_taken_over(
    tmp_path: Path, other: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other.kill()
    other.wait()
    with hold(tmp_path):
        (line,) = caplog.messages
    assert line.startswith(f"previous driver (process {other.pid} on ")
    assert line.endswith(") is gone; taking over sweep job")


def test_lease_after_an_orderly_end_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with hold(tmp_path):
            pass
    assert caplog.messages == []


def test_lease_keeps_what_earlier_drivers_used(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        first.record.used.gpu_seconds = 7200.0
    with hold(tmp_path) as second:
        assert second.record.used.gpu_seconds == 7200.0


def test_lease_of_a_fresh_job_forgets_what_was_used(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        first.record.used.gpu_seconds = 7200.0
    with hold(tmp_path, fresh=True) as second:
        assert second.record.used.gpu_seconds == 0.0


def test_lease_with_a_stop_request_ends_its_driver(tmp_path: Path, interrupt: Interrupt) -> None:
    held = hold(tmp_path, interrupt)
    LocalStore(tmp_path).write(lease.stop_request_name("job"), held.record.identity.encode())
    wait_for(held, interrupt)
    assert interrupt.reason == "a stop was requested"


def test_lease_ignores_a_stop_request_to_another(tmp_path: Path, interrupt: Interrupt) -> None:
    LocalStore(tmp_path).write(lease.stop_request_name("job"), b"an earlier driver")
    with hold(tmp_path, interrupt):
        time.sleep(0.5)
    assert not interrupt.requested


def test_lease_that_another_driver_took_ends_its_driver(
    tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "heartbeat_only", True)  # as a bucket, which has no locks
    store, held = LocalStore(tmp_path), hold(tmp_path, interrupt)
    with pytest.raises(KeyboardInterrupt), held:
        store.write(
            lease.record_name("job"),
            held.record.model_copy(update={"pid": 7, "identity": "elsewhere:1"}).to_json(),
        )
        time.sleep(60)
    assert interrupt.reason.startswith("another driver took over sweep job: process 7 on ")
    current = read_driver_record(store, "job")
    assert current is not None and not current[0].ended, "the record of the other driver stays"


def test_lease_is_checked_before_a_write(
    tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that was suspended asks before its next heartbeat would."""
    monkeypatch.setattr(LocalStore, "heartbeat_only", True)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 60.0)
    store, held = LocalStore(tmp_path), hold(tmp_path, interrupt)
    with held:
        held.check()
        store.write(
            lease.record_name("job"),
            held.record.model_copy(update={"pid": 7, "identity": "elsewhere:1"}).to_json(),
        )
        held.check()  # no other driver may take the job so soon
        assert not held.lost
        monkeypatch.setattr(lease, "_clocks", lambda: (time.monotonic(), time.time() + 30))
        with pytest.raises((LeaseLostError, KeyboardInterrupt)):
            held.check()
        with pytest.raises(LeaseLostError, match=r"^another driver took over sweep job$"):
            held.check()
    assert interrupt.reason.startswith("another driver took over sweep job: process 7 on ")


def test_lease_whose_own_write_was_not_noted_is_kept(
    tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come between the answer of a bucket and the note of the version."""
    monkeypatch.setattr(LocalStore, "heartbeat_only", True)
    with hold(tmp_path, interrupt) as held:
        held._seen = "a version before"
        time.sleep(0.3)
        assert not held.lost and held._thread.is_alive()
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None and current[0].ended and not interrupt.requested


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, LeaseLostError])
def test_lost_lease_explains_what_followed(tmp_path: Path, error: type[BaseException]) -> None:
    held = hold(tmp_path)
    with pytest.raises(error), held.explained_loss():
        raise error
    held.lost = True
    with pytest.raises(LeaseLostError), held.explained_loss():
        raise error
    with pytest.raises(LeaseLostError), held.explained_loss():
        pass


def test_lease_with_a_stop_request_that_is_no_text_goes_on(tmp_path: Path, interrupt: Interrupt) -> None:
    LocalStore(tmp_path).write(lease.stop_request_name("job"), b"\xff\xfe")
    with hold(tmp_path, interrupt) as held:
        time.sleep(0.3)
        assert held._thread.is_alive()
    assert not interrupt.requested


def test_lease_restores_a_record_that_was_deleted(tmp_path: Path, interrupt: Interrupt) -> None:
    with hold(tmp_path, interrupt):
        (tmp_path / lease.record_name("job")).unlink()
        deadline = time.monotonic() + 20
        while read_driver_record(LocalStore(tmp_path), "job") is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not interrupt.requested


def test_lease_whose_lock_file_was_deleted_refuses_others(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    (tmp_path / ".job.lock").unlink()
    for attempt in (hold(tmp_path).__enter__, lambda: check_driver(LocalStore(tmp_path), "job", "sweep job")):
        with pytest.raises(InputError, match=f"^sweep job is driven by process {other.pid} on "):
            attempt()


def test_lease_that_another_driver_wrote_is_lost(tmp_path: Path, interrupt: Interrupt) -> None:
    driver = DriverRecord(host="elsewhere", pid=7, started="2026", identity="elsewhere:1:2:3")
    held = hold(tmp_path, interrupt)
    with pytest.raises(KeyboardInterrupt), held:
        LocalStore(tmp_path).write(lease.record_name("job"), driver.to_json())
        time.sleep(60)
    assert held.lost and "process 7 on elsewhere" in interrupt.reason
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None and current[0] == driver


@pytest.mark.parametrize("changes", [{"ended": True}, {"pid": 2**22 + 1}])
def test_lease_replaces_the_record_of_a_driver_that_ended(
    tmp_path: Path, interrupt: Interrupt, changes: dict[str, object]
) -> None:
    record = own_record().model_copy(update={"identity": own_record().identity[:-1] + "x", **changes})
    with hold(tmp_path, interrupt) as held:
        LocalStore(tmp_path).write(lease.record_name("job"), record.to_json())
        time.sleep(0.5)
        current = read_driver_record(LocalStore(tmp_path), "job")
    assert not held.lost and current is not None and current[0].identity == held.record.identity


def test_lease_records_activity_at_each_heartbeat(tmp_path: Path, interrupt: Interrupt) -> None:
    seconds: list[float] = []

    def on_heartbeat(elapsed: float) -> Activity:
        seconds.append(elapsed)
        return Activity(trials={"trial-0000": "training, epoch 1"})

    with hold(tmp_path, interrupt) as held:
        held.on_heartbeat = on_heartbeat
        time.sleep(0.5)
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None
    assert current[0].activity.trials == {"trial-0000": "training, epoch 1"}
    assert current[0].used.seconds == pytest.approx(sum(seconds), abs=0.2)


def test_lease_is_renewed_although_the_activity_is_not_known(
    tmp_path: Path, interrupt: Interrupt, caplog: pytest.LogCaptureFixture
) -> None:
    def on_heartbeat(elapsed: float) -> Activity:
        raise RuntimeError("no activity")

    with hold(tmp_path, interrupt) as held:
        held.on_heartbeat = on_heartbeat
        before = held.record.heartbeat
        time.sleep(0.5)
        assert held.record.heartbeat > before
    assert "what the driver does is not known: RuntimeError: no activity" in caplog.text


def own_record() -> DriverRecord:
    return DriverRecord(host="h", pid=os.getpid(), started="", identity=process_identity(os.getpid()))


def test_driver_record_of_a_live_process_is_not_gone() -> None:
    assert not own_record().is_gone()
    assert not own_record().is_alive()  # it is this process, and no other


def test_driver_record_of_another_live_process_is_alive() -> None:
    parent = os.getppid()
    record = DriverRecord(host="h", pid=parent, started="", identity=process_identity(parent))
    assert record.is_alive() and not record.is_gone()


def test_driver_record_of_a_reused_pid_is_gone() -> None:
    machine, _, began = own_record().identity.rpartition(":")
    assert own_record().model_copy(update={"identity": f"{machine}:{int(began) - 1}"}).is_gone()


def test_driver_record_of_an_ended_process_is_gone() -> None:
    assert own_record().model_copy(update={"pid": 2**22 + 1}).is_gone()


def test_driver_record_of_another_machine_is_not_gone() -> None:
    began = own_record().identity.rpartition(":")[2]
    assert not own_record().model_copy(update={"identity": f"elsewhere:{began}"}).is_gone()


def test_driver_record_of_version_1_is_read(tmp_path: Path) -> None:
    record = {
        "host": "h",
        "pid": 7,
        "started": "2025-01-31 12:00:00 UTC",
        "identity": "h:boot:1:2",
        "beat": 12,
        "renewed": 1.5,
        "ended": True,
        "spent": {"seconds": 90.0, "gpu_seconds": 30.0},
        "ray_jobs": ["session/01000000"],
        "doing": {"trials": {"trial-0000": "training, epoch 3"}},
    }
    (tmp_path / lease.record_name("job")).write_text(json.dumps(record))
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None
    driver = current[0]
    assert (driver.heartbeat, driver.used.seconds, driver.used.gpu_seconds) == (12, 90.0, 30.0)
    assert driver.activity.trials == {"trial-0000": "training, epoch 3"}
    assert driver.ray_jobs == ["session/01000000"]
    assert str(driver) == "process 7 on h, started 2025-01-31 12:00:00 UTC"


def test_driver_record_survives_writing_and_reading(tmp_path: Path) -> None:
    record = own_record().model_copy(update={"heartbeat": 3, "activity": Activity(undelivered="2 records")})
    (tmp_path / lease.record_name("job")).write_bytes(record.to_json())
    assert json.loads(record.to_json())["schema"] == lease.SCHEMA
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None and current[0] == record


def test_driver_record_that_is_damaged_is_of_an_unknown_driver(tmp_path: Path) -> None:
    (tmp_path / lease.record_name("job")).write_text("{")
    current = read_driver_record(LocalStore(tmp_path), "job")
    assert current is not None
    assert str(current[0]) == "process 0 on unknown, started unknown"


def test_driver_record_of_newer_schema_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    fields = {"schema": 3, "host": "h", "pid": 1, "started": "", "identity": "h:1"}
    store.write(lease.record_name("job"), json.dumps(fields).encode())
    with pytest.raises(InputError, match=r"job\.driver\.json has schema 3, and this version reads up to 2"):
        lease.read_driver_record(store, "job")
