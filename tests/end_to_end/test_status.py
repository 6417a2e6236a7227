"""The status and stop commands, on jobs of this process and on a real one."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator import status, stop
from orchestrator.errors import InputError, StorageError
from orchestrator.interrupt import Interrupt
from orchestrator.storage import lease, lookup
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import DriverRecord
from orchestrator.storage.local import LocalStore
from orchestrator.study.search import SearchStudy
from orchestrator.study.status import Status, list_status, read_status
from orchestrator.study.trial_report import EpochEnded, Failed, Trained, trial_name
from tests.support import command_line
from tests.support.sweep_files import load_sweep, write_sweep

SWEEP: dict[str, Any] = {
    "config": {"marker": "${NOWHERE_SET:-}"},
    "budget": {"trials": 6, "gpu_hours": 2},
    "resources": {"gpus": 1},
    "enqueue": {"origin": {"x": 0}},
}

KEYS = {
    *("name", "kind", "uri", "state", "driver", "stop_requested", "trials", "budget", "best", "activity"),
    *("failures", "undelivered", "model", "report", "problem", "pareto_set", "infeasible"),
}
DRIVER_KEYS = {"host", "pid", "started", "seconds_since_heartbeat"}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def directory(tmp_path: Path, store: LocalStore) -> JobDirectory:
    """A sweep directory before the first run."""
    return JobDirectory(load_sweep(tmp_path, **SWEEP))


def fill(directory: JobDirectory, reason: str = "RuntimeError: no", trials: int = 3) -> None:
    """Add one complete, one failed and one running trial, and an enqueued point."""
    study = SearchStudy(directory._job, directory)  # type: ignore[arg-type]
    study.seed([])
    for number in range(trials):
        suggestion = study.ask()
        assert suggestion is not None and suggestion.number == number
    report = EpochEnded(1, {"val/score": -0.25}, "/x")
    study.record_epoch(0, report)
    study.should_stop(0, report)
    study.on_trial_end(0, Trained("/x"))
    study.on_trial_end(1, Failed(reason))
    study.study.enqueue_trial({"x": 1.0}, user_attrs={"point": "unity"})


@contextmanager
def driven(directory: JobDirectory) -> Iterator[lease.Lease]:
    """Fill the sweep with trials, and hold its lock as a driver does."""
    with directory.open(False, Interrupt()) as (_, held):
        fill(directory)
        held.record.used = lease.BudgetUsage(seconds=90, gpu_seconds=1800)
        held.record.activity = lease.Activity(
            trials={"trial-0002": "training, epoch 4"}, undelivered="3 records"
        )
        held._renew()
        yield held


def write_record(store: LocalStore, **changes: Any) -> DriverRecord:
    """Write a driver record from another machine."""
    fields = {"host": "elsewhere", "pid": 7, "started": "2026-01-01", "identity": "elsewhere:1:2:3"}
    record = DriverRecord(**{**fields, "renewed": time.time(), **changes})
    store.write(lease.record_name("parabola"), record.to_json())
    return record


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def run_command(command: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_status_of_running_sweep_shows_every_key(
    directory: JobDirectory, store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(directory) as held:
        before = contents(tmp_path)
        code, out, _ = run_command(status, capsys, directory.uri, "--json")
        assert contents(tmp_path) == before
        shown = json.loads(out)
        assert code == 0 and shown.keys() == KEYS
        assert shown["state"] == "running" and shown["driver"].keys() == DRIVER_KEYS
        assert shown["trials"] == {"complete": 1, "failed": 1, "running": 1, "waiting": 1}
        assert shown["activity"] == {"trial-0002": "training, epoch 4", "trial-0003": "enqueued: unity"}
        assert shown["undelivered"] == "3 records" and not shown["stop_requested"]
        assert shown["budget"]["trials"] == [3, 6] and shown["budget"]["gpu_hours"] == [0.5, 2.0]
        assert shown["best"]["trial"] == trial_name(0) and shown["best"]["parameters"] == {"x": 0.0}

        store.write(lease.stop_request_name("parabola"), held.record.identity.encode())
        code, out, _ = run_command(status, capsys, directory.uri)
        assert "val/score -0.25 (trial-0000)" in out
        assert "running, stop requested" in out and "0.5 of 2" in out and "3 records" in out


def test_status_says_when_the_storage_does_not_answer(
    directory: JobDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)

    def be_slow(store: LocalStore, name: str) -> Status:
        time.sleep(0.3)
        return read_status(store, name)

    monkeypatch.setattr("orchestrator.study.status.read_status", be_slow)
    for seconds, expected in ((0.1, "waiting for the storage, or the database of the study\n"), (60.0, "")):
        monkeypatch.setattr(status, "_SLOW_SECONDS", seconds)
        assert status.main([directory.uri, "--json"]) == 0
        assert capsys.readouterr().err == expected


def test_status_imports_neither_ray_nor_torch_nor_mlflow(directory: JobDirectory) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
    program = (
        "import sys; from orchestrator import status; "
        f"status.main([{directory.uri!r}]); print({{'ray', 'torch', 'mlflow'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n"), done.stderr


def test_status_before_study_exists_writes_nothing(
    directory: JobDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        file = directory.path / "study.db"
        for content in (None, b""):
            if content is not None:
                file.write_bytes(content)
            before = contents(tmp_path)
            code, out, _ = run_command(status, capsys, directory.uri, "--json")
            assert code == 0 and json.loads(out)["trials"] == {}
            assert contents(tmp_path) == before


def test_status_of_an_emptied_study_says_so(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
        checkpoint = directory.path / "trials/trial-0000/checkpoint_000001_a_b/state.json"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        (directory.path / "study.db").write_bytes(b"")
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and "study: it holds no trial, but" in " ".join(out.split())


def test_status_shows_what_the_last_driver_did_not_deliver(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()) as (_, held):
        fill(directory)
        held.on_heartbeat = lambda seconds: lease.Activity(undelivered="7 records for http://a: no answer")
    assert read_status(store, "parabola").undelivered == "7 records for http://a: no answer"
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and "7 records for http://a: no answer" in " ".join(out.split())


def test_status_of_half_written_study_shows_last_commit(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
        file = directory.path / "study.db"
    program = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.execute("UPDATE trials SET state = 'FAIL'")
for number in range(300):
    database.execute("INSERT INTO study_user_attributes VALUES (NULL, 1, ?, ?)", (number, "x" * 3000))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
    journal = file.with_name("study.db-journal")
    assert journal.stat().st_size
    before = contents(file.parent)
    code, out, err = run_command(status, capsys, directory.uri, "--json")
    assert code == 0, err
    assert json.loads(out)["trials"] == {"complete": 1, "failed": 1, "running": 1, "waiting": 1}
    assert contents(file.parent) == before


def test_status_of_damaged_study_is_refused(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        (directory.path / "study.db").write_bytes(b"no database at all" * 100)
    code, _, err = run_command(status, capsys, directory.uri)
    assert code == 2 and err.count("\n") == 1 and "study.db cannot be read: file is not a database" in err


def test_driver_state_with_lock_follows_the_lock(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
    write_record(store, renewed=time.time())
    with store.lock("parabola"):
        assert read_status(store, "parabola").state == "running"
    shown = read_status(store, "parabola")
    assert shown.state == "died" and shown.activity["trial-0002"] == "resumes when the command is rerun"
    code, out, _ = run_command(stop, capsys, directory.uri)
    assert code == 0 and out == f"{directory.uri} is not running\n"
    with store.lock("parabola"):
        pass  # reading the status leaves no lock behind


def test_driver_state_without_lock_follows_the_record(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "is_locked", lambda store, name: None)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)

    def state(record: DriverRecord) -> str:
        return lookup.driver_state(store, "parabola", record)

    assert state(write_record(store)) == "running"
    assert state(write_record(store, renewed=time.time() - 60)) == "silent"
    old = write_record(
        store, renewed=time.time() + 3600, heartbeat=1
    )  # written by a host whose clock is ahead
    write_record(store, renewed=time.time() + 3600, heartbeat=2)
    assert state(old) == "running"
    assert state(write_record(store, ended=True)) == "stopped"


def test_driver_that_holds_its_lock_in_silence_is_stalled(
    directory: JobDirectory,
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lookup, "SILENT_SECONDS", 0.5)
    write_record(store, renewed=time.time() - 600)
    with store.lock("parabola"):
        code, out, _ = run_command(status, capsys, directory.uri)
        assert code == 0 and "its driver sends no heartbeat; is its process suspended" in out
        assert "0:10:00 ago" in out
        code, out, _ = run_command(stop, capsys, directory.uri, "--timeout", "30")
        assert code == 1 and "resume (kill -CONT) or kill process 7 on elsewhere" in out
        with pytest.raises(InputError, match=r"without a heartbeat for 0:10:0\d \(is it suspended\?\)"):
            directory.check_driver()


def fail_all(directory: JobDirectory) -> None:
    """Let all trials of the budget fail."""
    study = SearchStudy(directory._job, directory)  # type: ignore[arg-type]
    study.seed([])
    while (suggestion := study.ask()) is not None:
        study.on_trial_end(suggestion.number, Failed("RuntimeError: no"))


def test_status_of_a_sweep_whose_trials_failed_says_what_helps(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fail_all(directory)
        assert read_status(store, "parabola").state == "running"
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and "no trial succeeded; fix the cause, then use --fresh" in out
    assert "RuntimeError: no" in out and "to resume" not in out


@pytest.mark.parametrize("trials", [2, 8])
def test_status_of_a_sweep_that_can_continue_says_so(
    directory: JobDirectory, store: LocalStore, trials: int
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory) if trials == 2 else fail_all(directory)
        if trials == 8:
            resolved = json.loads((directory.path / "sweep.json").read_text())
            resolved["resolved"]["budget"]["trials"] = trials
            (directory.path / "sweep.json").write_text(json.dumps(resolved))
    assert read_status(store, "parabola").state == "stopped"


def test_status_of_a_damaged_study_keeps_the_outcome(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        budget = json.loads((directory.path / "sweep.json").read_text())["resolved"]["budget"]
        directory.finish({"budget": budget, "report": "/there/report.html", "model": None, "delivered": True})
        (directory.path / "study.db").write_bytes(b"no database at all" * 100)
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and "finished" in out and f"{directory.uri}/report.html" in out
    assert "file is not a database; the outcome is intact" in " ".join(out.split())


@pytest.mark.parametrize("reason", ["OSError: [/tmp/x] is gone [bold]", "KeyError: ]["])
def test_status_reason_with_markup_is_shown_literally(
    directory: JobDirectory, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory, reason)
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and f"{reason} (trial-0001)" in out


def test_status_outcome_of_other_budget_is_ignored(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        fill(directory, trials=2)
        budget = json.loads((directory.path / "sweep.json").read_text())["resolved"]["budget"]
        model = {"name": "parabola", "version": "3", "alias": "champion"}
        outcome = {"budget": budget, "report": "/there/report.html", "model": model, "delivered": False}
        directory.finish(outcome)
        assert read_status(store, "parabola").state == "running"
    code, out, _ = run_command(status, capsys, directory.uri)
    assert code == 0 and "parabola version 3, alias champion" in out and f"{directory.uri}/report.html" in out
    assert "some records or files; rerun the command to deliver them" in out

    with directory.open(False, Interrupt()):
        directory.finish({**outcome, "budget": {**budget, "trials": 2}})
    shown = read_status(store, "parabola")
    assert shown.state == "stopped" and not shown.model and not shown.report


def test_status_of_comparison_counts_last_attempts(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write("claim/comparison.json", b'{"id": "1", "resolved": {"trainable": "x", "variants": {}}}')
    store.write("claim/results.json", b"[{}, {}, {}]")
    study = optuna.create_study(study_name="claim", storage=f"sqlite:///{store.path}/claim/study.db")
    for variant, state in (("a", TrialState.FAIL), ("b", TrialState.FAIL), ("a", TrialState.COMPLETE)):
        trial = study.ask()
        trial.set_user_attr("cell", {"variant": variant, "seed": 0})
        trial.set_user_attr("reason", "ValueError: so")
        study.tell(trial, 0.0 if state == TrialState.COMPLETE else None, state=state)
    study.ask()  # the driver died before it recorded the cell
    code, out, _ = run_command(status, capsys, "claim", "--storage", store.uri, "--json")
    shown = json.loads(out)
    assert code == 0 and shown["kind"] == "comparison" and shown["best"] is None
    assert shown["trials"] == {"complete": 1, "failed": 1} and shown["budget"]["trials"] == [2, 3]
    assert shown["failures"] == [{"reason": "ValueError: so", "trials": ["trial-0001"]}]
    code, out, _ = run_command(status, capsys, f"{store.uri}/claim")
    assert code == 0 and "Comparison claim" in out and "2 of 3" in out


def test_status_of_renamed_sweep_is_shown(directory: JobDirectory, store: LocalStore) -> None:
    with directory.open(False, Interrupt()):
        fill(directory)
    store.rename("parabola", "parabola.20260101-000000")
    shown = read_status(*lookup.find_job(f"{directory.uri}.20260101-000000"))
    assert shown.driver is None and shown.trials["complete"] == 1


def test_lookup_accepts_file_folder_and_name(
    directory: JobDirectory, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory.open(False, Interrupt()):
        pass
    file = tmp_path / "other.yaml"
    file.write_text(f"name: ${{WHO}}\nstorage: {store.uri}\nconfig: {{data: '${{NOWHERE_SET}}'}}\n")
    monkeypatch.setenv("WHO", "parabola")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "reid-sweeps").symlink_to(store.uri)
    monkeypatch.chdir(directory.uri)
    for arguments in (
        (str(file),),
        (str(file), store.uri),
        (str(file), None, ["name=parabola"]),
        ("~/store/parabola/",),
        ("parabola",),
        ("~/reid-sweeps/parabola",),
        (".",),
        ("../parabola", store.uri),
    ):
        assert lookup.find_job(*arguments)[1] == "parabola", arguments


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            [],
            "there is no sweep STORE; it is the storage of parabola; add the name of one, or write --storage",
        ),
        (["--trial", "0", "--watch"], "--watch, --trial: give one; --watch repeats the status of the sweep"),
    ],
)
def test_status_of_a_storage_or_of_a_watched_trial_is_refused(
    directory: JobDirectory,
    store: LocalStore,
    options: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(False, Interrupt()):
        pass
    code, out, err = run_command(status, capsys, store.uri, *options)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith(f"error: {expected.replace('STORE', store.uri)}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["parabolla"], "there is no sweep STORE/parabolla; did you mean 'parabola'?"),
        (["clam"], "there is no sweep STORE/clam; did you mean 'claim'?"),
        (["STORE/x"], "there is no sweep STORE/x; valid: claim, parabola"),
        ([""], "there is no sweep STORE/; valid"),
        (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["s3://bucket"], "s3://bucket is a whole bucket; write s3://bucket/prefix/NAME"),
        (["gs://x/parabola"], "kept in a folder or in a bucket"),
        (["/elsewhere/parabola"], "--storage STORE: '/elsewhere/parabola' already says where it is kept"),
        (["parabola", "--set", "name=x"], "--set name=x: goes with the file of a job"),
        (["FILE", "--set", "name=X/Y"], "--set name=X/Y: name: 'X/Y' is not a valid name of a job"),
        (["FILE", "--set", "config"], "--set config: expected --set path=value"),
        (["FILE", "--set", "storage=gs://x"], "invalid storage 'gs://x'; sweeps are kept in a folder"),
    ],
)
@pytest.mark.parametrize("command", [status, stop])
def test_status_and_stop_bad_input_is_refused(
    command: Any,
    directory: JobDirectory,
    store: LocalStore,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(False, Interrupt()):
        store.write(lease.record_name("claim"), b"{}")
    words = {"STORE": store.uri, "FILE": str(tmp_path / "parabola.yaml")}
    for word, meant in words.items():
        arguments = [each.replace(word, meant) for each in arguments]
        expected = expected.replace(word, meant)
    given = [] if "storage=gs://x" in arguments else ["--storage", store.uri]
    code, out, err = run_command(command, capsys, *arguments, *given)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith("error: ") and expected in err


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        (
            status,
            ["--watch", "parabola"],
            "--watch: 'parabola' is not a number of seconds above 0; see --help",
        ),
        (status, ["x", "--watch", "0"], "'0' is not a number of seconds above 0"),
        (stop, ["x", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
        (stop, [], "arguments are required: sweep"),
    ],
)
def test_status_and_stop_refuse_invalid_options_in_one_line(
    command: Any, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        command.main(options)
    err = capsys.readouterr().err
    assert refusal.value.code == 2 and expected in err and err.count("\n") == 1


def test_status_of_damaged_records_is_refused(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        pass
    store.write(lease.record_name("parabola"), b"\xff")
    assert read_status(store, "parabola").state == "died"
    for content in (b"{", b'{"resolved": 3}', b'{"resolved": {}}'):
        store.write("parabola/sweep.json", content)
        code, _, err = run_command(status, capsys, directory.uri)
        assert code == 2 and "sweep.json is damaged" in err and err.count("\n") == 1


def test_status_without_a_name_lists_the_jobs(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_command(status, capsys, "--storage", str(store.uri))
    assert code == 0 and out == f"there is no sweep or comparison in {store.uri}\n"
    with driven(directory):
        pass
    store.write(lease.record_name("broken"), b"{}")
    store.write("broken/sweep.json", b"{")
    code, out, _ = run_command(status, capsys, "--storage", str(store.uri), "--json")
    listed = json.loads(out)
    assert code == 0 and listed["storage"] == str(store.uri)
    broken, parabola = listed["jobs"]
    assert broken["state"] == "unreadable" and "broken/sweep.json is damaged" in broken["problem"]
    assert parabola == asdict(read_status(store, "parabola")) | {"driver": parabola["driver"]}
    code, out, _ = run_command(status, capsys, "--storage", str(store.uri))
    row = next(line for line in out.splitlines() if "parabola" in line)
    assert code == 0 and "stopped" in row and "1 complete" in row and "-0.25" in row


@pytest.mark.parametrize("in_its_place", ["nothing", "folder"])
def test_job_without_the_record_of_its_driver_is_listed(
    directory: JobDirectory, store: LocalStore, tmp_path: Path, in_its_place: str
) -> None:
    with driven(directory):
        pass
    folder = tmp_path / "store"
    shutil.copytree(folder / "parabola", folder / "parabola.20261130-120000")  # as --fresh sets aside
    (folder / "notes").mkdir()
    record = folder / lease.record_name("parabola")
    record.unlink()
    if in_its_place == "folder":
        record.mkdir()
    (listed,) = list_status(store)
    assert listed.name == "parabola"
    if in_its_place == "folder":
        assert listed.state == "unreadable" and "is a folder" in str(listed.problem)
    else:
        assert listed.state == "stopped" and listed.trials["complete"] == 1


@pytest.mark.parametrize("option", [["--trial", "1"], ["--watch"], ["--set", "a=1"]])
def test_status_options_of_one_sweep_need_its_name(
    store: LocalStore, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(status, capsys, "--storage", str(store.uri), *option)
    assert code == 2 and err.startswith(f"error: {option[0]}: name the sweep, too") and err.count("\n") == 1


def test_status_of_a_trial_shows_reason_log_and_last_report(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(directory):
        pass
    shown = {}
    for trial in ("0", "trial-0001", "2"):
        code, out, _ = run_command(status, capsys, directory.uri, "--trial", trial, "--json")
        assert code == 0
        shown[trial[-1]] = json.loads(out)
    complete, failed, running = shown["0"], shown["1"], shown["2"]
    assert complete["objective"] == {"val/score": -0.25} and complete["state"] == "complete"
    assert complete["last_report"]["epoch"] == 1 and complete["last_report"]["seconds_ago"] < 60
    assert complete["last_report"]["metrics"] == {"val/score": -0.25}
    assert complete["checkpoint"] is None or complete["checkpoint"].startswith(directory.uri)
    assert failed["state"] == "failed" and failed["reason"] == "RuntimeError: no"
    assert running["activity"] == "resumes when the command is rerun" and running["last_report"] is None
    code, out, _ = run_command(status, capsys, directory.uri, "--trial", "1")
    assert code == 0 and "RuntimeError: no" in out


@pytest.mark.parametrize(
    ("trial", "says"), [("9", "has no such trial; it has 0 to 3"), ("x", "write the number of the trial")]
)
def test_status_of_a_trial_that_does_not_exist_is_one_line(
    directory: JobDirectory, trial: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(directory):
        pass
    code, _, err = run_command(status, capsys, directory.uri, "--trial", trial)
    assert code == 2 and says in err and err.count("\n") == 1


def test_status_watch_continues_after_storage_fault(
    directory: JobDirectory,
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = ["running", "fault", "running", "finished"]

    def read(store: Any, name: str) -> Status:
        state = states.pop(0)
        if state == "fault":
            raise StorageError("storage: it is away")
        return Status(name, "sweep", "there", state)

    with directory.open(False, Interrupt()):
        pass
    monkeypatch.setattr("orchestrator.study.status.read_status", read)
    code, out, err = run_command(status, capsys, directory.uri, "--json", "--watch", "0.01")
    assert code == 0 and not states
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["running", "running", "finished"]
    assert err == "storage: it is away; trying again\n"


def test_stop_of_a_driver_needs_no_record_of_its_job(
    directory: JobDirectory, store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(False, Interrupt()):
        store.delete("parabola/sweep.json")
        store.write("parabola/results.csv", b"")
        code, out, _ = run_command(stop, capsys, directory.uri, "--timeout", "0.2")
        assert code == 1 and "has not stopped within 0.2 s" in out
        code, _, error = run_command(status, capsys, directory.uri)
        assert code == 2
        assert f"stop its driver with python -m orchestrator.stop {directory.uri}, and then rerun" in error
    code, _, error = run_command(stop, capsys, directory.uri)
    assert code == 2 and "; rerun the command that started it" in error


def test_stop_waits_until_the_driver_ended(
    directory: JobDirectory,
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(False, Interrupt()):
        pass
    driver = write_record(store)
    after: list[dict[str, Any]] = []

    def sleep(seconds: float) -> None:
        if after:
            write_record(store, **after.pop(0))

    monkeypatch.setattr("orchestrator.stop.time.sleep", sleep)
    with store.lock("parabola"):
        code, out, _ = run_command(stop, capsys, directory.uri, "--timeout", "0.2", "--json")
        shown = json.loads(out)
        assert code == 1 and not shown["stopped"] and "has not stopped within 0.2 s" in shown["message"]
        request = store.read(lease.stop_request_name("parabola"))
        assert request is not None and request[0].decode() == driver.identity

        after[:] = [{"heartbeat": 2}, {"heartbeat": 3, "ended": True}]
        code, out, _ = run_command(stop, capsys, directory.uri)
        assert code == 0
        assert out.endswith("has stopped; rerun the command that started it to resume\n")
        assert out.startswith("waiting for process 7 on elsewhere, started 2026-01-01\n")

        write_record(store)
        after[:] = [{"identity": "elsewhere:1:2:4", "pid": 8}]
        code, out, _ = run_command(stop, capsys, directory.uri)
        assert code == 1 and "has ended, but process 8 on elsewhere" in out


@pytest.mark.faults
def test_status_and_stop_reach_a_real_sweep(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, **{**SWEEP, "budget": {"trials": 6}, "resources": {"concurrent": 1}})
    options = ["--storage", str(tmp_path / "store"), "--set", "config.seconds=2", "--set", "config.epochs=60"]
    uri = str(tmp_path / "store" / "parabola")
    with command_line.start("sweep", file, *options) as (process, stdout):
        current: dict[str, Any] = {}
        deadline = time.monotonic() + 180
        while "training" not in str(current.get("activity")):
            assert process.poll() is None and time.monotonic() < deadline, current
            time.sleep(1)
            shown = command_line.run("status", file, *options, "--json")
            assert "Traceback" not in shown.stderr
            current = json.loads(shown.stdout) if shown.returncode == 0 else {}
        assert current["state"] == "running" and current["driver"]["pid"] == process.pid
        assert current["activity"]["trial-0000"].startswith("training, epoch ")
        stopped = command_line.run("stop", Path(uri))
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        output = stdout.read()
    assert process.returncode == 130, output
    assert "a stop was requested" in output and "interrupted; rerun the command to resume the sweep" in output
    after = json.loads(command_line.run("status", Path(uri), "--json").stdout)
    assert after["state"] == "stopped" and after["activity"] == {
        "trial-0000": "resumes when the command is rerun"
    }
