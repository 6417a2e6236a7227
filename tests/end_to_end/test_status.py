"""What others than its driver see of a job, and how they stop it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator import status, stop
from orchestrator.config import sweep as config
from orchestrator.errors import StorageError
from orchestrator.execution.trial import name as trial_name
from orchestrator.storage import lease
from orchestrator.storage import lookup as existing
from orchestrator.storage.directory import JobDirectory
from orchestrator.storage.lease import Holder
from orchestrator.storage.s3 import Folder
from orchestrator.study.base import SweepStudy
from tests.support import command_line

SWEEP = """
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
config: {marker: "${NOWHERE_SET:-}"}
search: {x: {uniform: [-3, 3]}}
objective: {metric: val/score}
scheduler: none
sampler: {random: {seed: 0}}
budget: {trials: 6, gpu_hours: 2}
resources: {gpus: 1}
enqueue: {origin: {x: 0}}
"""

KEYS = {
    *("name", "kind", "place", "state", "driver", "asked_to_stop", "trials", "budget", "best", "doing"),
    *("failures", "undelivered", "model", "report"),
}


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "store")


@pytest.fixture
def directory(tmp_path: Path, store: Folder) -> JobDirectory:
    """That of a sweep that nobody has driven yet."""
    file = tmp_path / "parabola.yaml"
    file.write_text(SWEEP)
    sweep = config.read(file, [config.Override("storage", store.uri, "--storage")])
    return JobDirectory(sweep)


def fill(directory: JobDirectory, reason: str = "RuntimeError: no", trials: int = 3) -> None:
    """A complete, a failed and a running trial, and a point that waits."""
    study = SweepStudy(directory._job, directory)  # type: ignore[arg-type]
    study.begin([])
    for number in range(trials):
        suggestion = study.ask()
        assert suggestion is not None and suggestion.number == number
    report = {"epoch": 1, "val/score": -0.25, "names": ["val/score"], "checkpoint_path": "/x"}
    study.report(0, report)
    study.end(0, report)
    study.end(1, {"failure": reason, "log": ""})
    study.study.enqueue_trial({"x": 1.0}, user_attrs={"point": "unity"})


@contextmanager
def driven(directory: JobDirectory) -> Iterator[lease.Lease]:
    """A driver of this process at work."""
    with directory.open(fresh=False) as (_, held):
        fill(directory)
        held.record.spent = lease.Spent(seconds=90, gpu_seconds=1800)
        held.record.doing = {"trials": {"trial-0002": "training, epoch 4"}, "undelivered": "3 records"}
        held._renew()
        yield held


def put(store: Folder, **changes: Any) -> Holder:
    """Leave the record of a driver of another machine."""
    fields = {"host": "elsewhere", "pid": 7, "started": "2026-01-01", "identity": "elsewhere:1:2:3"}
    record = Holder(**{**fields, "renewed": time.time(), **changes})
    store.write(lease.record_name("parabola"), record.model_dump_json().encode())
    return record


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def ask(command: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_running_sweep(
    directory: JobDirectory, store: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(directory) as held:
        before = contents(tmp_path)
        code, out, _ = ask(status, capsys, directory.place, "--json")
        assert contents(tmp_path) == before
        found = json.loads(out)
        assert code == 0 and found.keys() == KEYS
        assert found["state"] == "running" and found["driver"].keys() == {"host", "pid", "started", "silent"}
        assert found["trials"] == {"complete": 1, "failed": 1, "running": 1, "waiting": 1}
        assert found["doing"] == {"trial-0002": "training, epoch 4", "trial-0003": "to be tried first: unity"}
        assert found["undelivered"] == "3 records" and not found["asked_to_stop"]
        assert found["budget"]["trials"] == [3, 6] and found["budget"]["gpu_hours"] == [0.5, 2.0]
        assert found["best"]["trial"] == trial_name(0) and found["best"]["parameters"] == {"x": 0.0}

        store.write(lease.request_name("parabola"), held.record.identity.encode())
        code, out, _ = ask(status, capsys, directory.place)
        assert "val/score -0.25 (trial-0000)" in out
        assert "running, asked to stop" in out and "0.5 of 2" in out and "3 records" in out


def test_looking_at_a_job_imports_neither_ray_nor_torch_nor_mlflow(directory: JobDirectory) -> None:
    with directory.open(fresh=False):
        fill(directory)
    program = (
        "import sys; from orchestrator import status; "
        f"status.main([{directory.place!r}]); print({{'ray', 'torch', 'mlflow'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n"), done.stderr


def test_a_driver_that_has_not_made_its_study_is_not_forestalled(
    directory: JobDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        file = directory.path / "study.db"
        for content in (None, b""):
            if content is not None:
                file.write_bytes(content)
            before = contents(tmp_path)
            code, out, _ = ask(status, capsys, directory.place, "--json")
            assert code == 0 and json.loads(out)["trials"] == {}
            assert contents(tmp_path) == before


def test_what_a_driver_left_half_written_is_seen_as_it_was_before(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
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
    code, out, err = ask(status, capsys, directory.place, "--json")
    assert code == 0, err
    assert json.loads(out)["trials"] == {"complete": 1, "failed": 1, "running": 1, "waiting": 1}
    assert contents(file.parent) == before


def test_a_study_that_cannot_be_read_is_one_line(
    directory: JobDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        (directory.path / "study.db").write_bytes(b"no database at all" * 100)
    code, _, err = ask(status, capsys, directory.place)
    assert code == 2 and err.count("\n") == 1 and "study.db cannot be read: file is not a database" in err


def test_the_lock_tells_whether_the_driver_of_another_machine_lives(
    directory: JobDirectory, store: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        fill(directory)
    put(store, renewed=time.time() - 1000)
    with store.lock("parabola"):
        assert status.read(store, "parabola").state == "running"
    found = status.read(store, "parabola")
    assert found.state == "died" and found.doing["trial-0002"] == "goes on when the sweep is continued"
    code, out, _ = ask(stop, capsys, directory.place)
    assert code == 0 and out == f"{directory.place} is not running\n"
    with store.lock("parabola"):
        pass  # whoever looks keeps nobody out afterwards


def test_where_there_is_no_lock_the_record_tells(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "is_held", lambda store, name: None)
    monkeypatch.setattr(lease, "BEAT", 0.1)

    def condition(record: Holder) -> str:
        return existing.condition(store, "parabola", record)

    assert condition(put(store)) == "running"
    assert condition(put(store, renewed=time.time() - 60)) == "silent"
    old = put(store, renewed=time.time() + 3600, beat=1)  # by a clock that goes wrong
    put(store, renewed=time.time() + 3600, beat=2)
    assert condition(old) == "running"
    assert condition(put(store, ended=True)) == "stopped"


@pytest.mark.parametrize("reason", ["OSError: [/tmp/x] is gone [bold]", "KeyError: ]["])
def test_a_reason_is_shown_as_it_is(
    directory: JobDirectory, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        fill(directory, reason)
    code, out, _ = ask(status, capsys, directory.place)
    assert code == 0 and f"{reason} (trial-0001)" in out


def test_an_outcome_counts_until_the_job_goes_on(
    directory: JobDirectory, store: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        fill(directory, trials=2)
        budget = json.loads((directory.path / "sweep.json").read_text())["resolved"]["budget"]
        model = {"name": "parabola", "version": "3", "alias": "champion"}
        outcome = {"budget": budget, "report": "/there/report.html", "model": model, "delivered": False}
        directory.finish(outcome)
        assert status.read(store, "parabola").state == "running"
    code, out, _ = ask(status, capsys, directory.place)
    assert code == 0 and "parabola version 3, alias champion" in out and "/there/report.html" in out
    assert "the same command delivers it" in out

    with directory.open(fresh=False):
        directory.finish({**outcome, "budget": {**budget, "trials": 2}})
    found = status.read(store, "parabola")
    assert found.state == "stopped" and not found.model and not found.report


def test_of_a_comparison_the_last_attempts_count(store: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    store.write("claim/comparison.json", b'{"id": "1", "resolved": {"trainable": "x", "variants": {}}}')
    store.write("claim/results.json", b"[{}, {}, {}]")
    study = optuna.create_study(study_name="claim", storage=f"sqlite:///{store.path}/claim/study.db")
    for variant, state in (("a", TrialState.FAIL), ("b", TrialState.FAIL), ("a", TrialState.COMPLETE)):
        trial = study.ask()
        trial.set_user_attr("cell", {"variant": variant, "seed": 0})
        trial.set_user_attr("reason", "ValueError: so")
        study.tell(trial, 0.0 if state == TrialState.COMPLETE else None, state=state)
    study.ask()  # its driver died before it was anything
    code, out, _ = ask(status, capsys, "claim", "--storage", store.uri, "--json")
    found = json.loads(out)
    assert code == 0 and found["kind"] == "comparison" and found["best"] is None
    assert found["trials"] == {"complete": 1, "failed": 1} and found["budget"]["trials"] == [2, 3]
    assert found["failures"] == [{"reason": "ValueError: so", "trials": ["trial-0001"]}]
    code, out, _ = ask(status, capsys, f"{store.uri}/claim")
    assert code == 0 and "Comparison claim" in out and "2 of 3" in out


def test_a_sweep_that_was_moved_away_is_found(directory: JobDirectory, store: Folder) -> None:
    with directory.open(fresh=False):
        fill(directory)
    store.move("parabola", "parabola.20260101-000000")
    found = status.read(*existing.find(f"{directory.place}.20260101-000000"))
    assert found.driver is None and found.trials["complete"] == 1


def test_a_job_goes_by_many_names(
    directory: JobDirectory, store: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory.open(fresh=False):
        pass
    file = tmp_path / "other.yaml"
    file.write_text(f"name: ${{WHO}}\nstorage: {store.uri}\nconfig: {{data: '${{NOWHERE_SET}}'}}\n")
    monkeypatch.setenv("WHO", "parabola")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "reid-sweeps").symlink_to(store.uri)
    monkeypatch.chdir(directory.place)
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
        assert existing.find(*arguments)[1] == "parabola", arguments


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
        (["/elsewhere/parabola"], "--storage STORE: '/elsewhere/parabola' says already where it is kept"),
        (["parabola", "--set", "name=x"], "--set name=x: goes with the file of a job"),
        (["FILE", "--set", "name=X/Y"], "--set name=X/Y: name: 'X/Y' is no name of a job"),
        (["FILE", "--set", "config"], "--set config: write --set path=value"),
        (["FILE", "--set", "storage=gs://x"], "storage: 'gs://x': sweeps are kept in a folder"),
    ],
)
@pytest.mark.parametrize("command", [status, stop])
def test_bad_input_is_one_line(
    command: Any,
    directory: JobDirectory,
    store: Folder,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(fresh=False):
        store.write(lease.record_name("claim"), b"{}")
    words = {"STORE": store.uri, "FILE": str(tmp_path / "parabola.yaml")}
    for word, meant in words.items():
        arguments = [each.replace(word, meant) for each in arguments]
        expected = expected.replace(word, meant)
    given = [] if "storage=gs://x" in arguments else ["--storage", store.uri]
    code, out, err = ask(command, capsys, *arguments, *given)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith("error: ") and expected in err


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        (status, ["--watch", "parabola"], "--watch: 'parabola' is no number of seconds above 0; see --help"),
        (status, ["x", "--watch", "0"], "'0' is no number of seconds above 0"),
        (stop, ["x", "--timeout", "nan"], "'nan' is no number of seconds above 0"),
        (stop, [], "arguments are required: sweep"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    command: Any, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        command.main(options)
    err = capsys.readouterr().err
    assert refusal.value.code == 2 and expected in err and err.count("\n") == 1


def test_damaged_records_are_one_line(
    directory: JobDirectory, store: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.open(fresh=False):
        pass
    store.write(lease.record_name("parabola"), b"\xff")
    assert status.read(store, "parabola").state == "died"
    for content in (b"{", b'{"resolved": 3}', b'{"resolved": {}}'):
        store.write("parabola/sweep.json", content)
        code, _, err = ask(status, capsys, directory.place)
        assert code == 2 and "sweep.json is damaged" in err and err.count("\n") == 1


def test_watching_lasts_as_long_as_the_driver_and_survives_faults(
    directory: JobDirectory,
    store: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = ["running", "fault", "running", "finished"]

    def read(store: Any, name: str) -> status.Status:
        state = states.pop(0)
        if state == "fault":
            raise StorageError("storage: it is away")
        return status.Status(name, "sweep", "there", state)

    with directory.open(fresh=False):
        pass
    monkeypatch.setattr(status, "read", read)
    code, out, err = ask(status, capsys, directory.place, "--json", "--watch", "0.01")
    assert code == 0 and not states
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["running", "running", "finished"]
    assert err == "storage: it is away; trying again\n"


def test_stop_waits_for_the_end(
    directory: JobDirectory,
    store: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with directory.open(fresh=False):
        pass
    driver = put(store)
    after: list[dict[str, Any]] = []

    def sleep(seconds: float) -> None:
        if after:
            put(store, **after.pop(0))

    monkeypatch.setattr("orchestrator.stop.time.sleep", sleep)
    with store.lock("parabola"):
        code, out, _ = ask(stop, capsys, directory.place, "--timeout", "0.2", "--json")
        found = json.loads(out)
        assert code == 1 and not found["stopped"] and "has not stopped within 0.2 s" in found["line"]
        request = store.read(lease.request_name("parabola"))
        assert request is not None and request[0].decode() == driver.identity

        after[:] = [{"beat": 2}, {"beat": 3, "ended": True}]
        code, out, _ = ask(stop, capsys, directory.place)
        assert code == 0 and out.endswith("has stopped; the command that started it continues it\n")
        assert out.startswith("waiting for process 7 on elsewhere, started 2026-01-01, to end")

        put(store)
        after[:] = [{"identity": "elsewhere:1:2:4", "pid": 8}]
        code, out, _ = ask(stop, capsys, directory.place)
        assert code == 1 and "has ended, but process 8 on elsewhere" in out


@pytest.mark.faults
def test_status_and_stop_reach_a_real_sweep(tmp_path: Path) -> None:
    file = tmp_path / "parabola.yaml"
    file.write_text(SWEEP.replace(", gpu_hours: 2", "").replace("{gpus: 1}", "{concurrent: 1}"))
    options = ["--storage", str(tmp_path / "store"), "--set", "config.seconds=2", "--set", "config.epochs=60"]
    place = str(tmp_path / "store" / "parabola")
    with subprocess.Popen(
        command_line.command("sweep", file, *options),
        env=command_line.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        found: dict[str, Any] = {}
        until = time.monotonic() + 180
        while "training" not in str(found.get("doing")):
            assert process.poll() is None and time.monotonic() < until, found
            time.sleep(1)
            told = command_line.run("status", file, *options, "--json")
            assert "Traceback" not in told.stderr
            found = json.loads(told.stdout) if told.returncode == 0 else {}
        assert found["state"] == "running" and found["driver"]["pid"] == process.pid
        assert found["doing"]["trial-0000"].startswith("training, epoch ")
        stopped = command_line.run("stop", Path(place))
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 130, said
    assert "it was asked to stop" in said and "the same command continues the sweep" in said
    after = json.loads(command_line.run("status", Path(place), "--json").stdout)
    assert after["state"] == "stopped" and after["doing"] == {
        "trial-0000": "goes on when the sweep is continued"
    }
