"""MLflow has every trial once, whatever happens to the server and to the driver."""

import http.server
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR, INVALID_STATE, RESOURCE_DOES_NOT_EXIST
from sqlalchemy.exc import OperationalError

from orchestrator.errors import InputError, LeaseLostError, TrackingError, UnreachableError, one_line
from orchestrator.tracking import preflight
from orchestrator.tracking.outbox import Outbox, describe_error
from orchestrator.tracking.preflight import check, ui_command
from orchestrator.tracking.tracker import Tracker


@dataclass
class Record:
    name: str = "walkers"
    role: str = "train"
    source: str = "walkers, 60 identities, seed 0"
    digest: str = "ab" * 32
    counts: dict[str, int] = field(default_factory=lambda: {"identities": 60, "frames": 1440})


def run_sweep(uri: str, sweep_id: str) -> Tracker:
    tracker = Tracker(uri, "alignment", "alignment", sweep_id)
    records = [Record(), Record(role="target"), Record("real", source=str(Path.cwd()), digest="cd")]
    tracker.check_artifacts()
    tracker.log_sweep({"name": "alignment", "budget": {"trials": 3}}, {"budget.trials": 3}, records)
    for number, (state, reason) in enumerate([("COMPLETE", ""), ("PRUNED", ""), ("FAIL", "loss is NaN")]):
        tracker.start_trial(number, "gru 128", {"rnn": {"cell": "gru"}, "rnn.hidden_size": 128})
        for epoch in range(1, 4):
            tracker.log_epoch(number, epoch, {"val/rank1": epoch / 10, "train/loss": 1 / epoch})
        tail = "last line" if reason else ""
        tracker.end_trial(number, state, value=0.3, reason=reason, log_tail=tail)  # type: ignore[arg-type]
    tracker.finish("FINISHED", {"best/val/rank1": 0.3}, note="**best**: gru")
    return tracker


def runs(tracker: Tracker) -> dict[str, mlflow.entities.Run]:
    found = tracker.client.search_runs([tracker.experiment_id], f"tags.`sweep.id` = '{tracker.sweep_id}'")
    names = {run.info.run_name: run for run in found}
    assert len(names) == len(found), "two runs of one name"
    return names


@pytest.fixture(scope="module")
def recorded(uri: str) -> Tracker:
    """The same sweep recorded twice, by two drivers one after the other."""
    for _ in range(2):
        tracker = run_sweep(uri, "same")
        assert tracker.close() is None
    return tracker


def test_experiment_that_another_sweep_creates_is_used(
    recorded: Tracker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = mlflow.MlflowClient.get_experiment_by_name, []

    def too_early(client: mlflow.MlflowClient, name: str) -> Any:
        looks.append(name)
        return None if len(looks) == 1 else look(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", too_early)
    with Tracker(uri, "alignment", "faster", "faster") as tracker:
        assert tracker.experiment_id == recorded.experiment_id and len(looks) == 2


def test_sweep_and_trials_are_recorded_once(recorded: Tracker) -> None:
    found = runs(recorded)
    assert set(found) == {"alignment", *(f"trial-000{n} gru 128" for n in range(3))}
    parent = found.pop("alignment")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "**best**: gru"
    assert parent.data.metrics["best/val/rank1"] == 0.3
    statuses = {name[:10]: run.info.status for name, run in found.items()}
    assert statuses == {"trial-0000": "FINISHED", "trial-0001": "KILLED", "trial-0002": "FAILED"}
    for run in found.values():
        assert run.data.params == {"rnn.cell": "gru", "rnn.hidden_size": "128"}
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = recorded.client.get_metric_history(run.info.run_id, "val/rank1")
        assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    failed = found["trial-0002 gru 128"]
    assert failed.data.tags["trial.reason"] == "loss is NaN"
    assert [file.path for file in recorded.client.list_artifacts(failed.info.run_id)] == ["log-tail.txt"]


def test_data_sets_are_inputs_with_digest_role_and_counts(recorded: Tracker) -> None:
    inputs = runs(recorded)["alignment"].inputs.dataset_inputs
    seen = {i.dataset.name: (i.dataset.digest, i.tags[0].value, i.dataset.source_type) for i in inputs}
    assert seen == {"walkers": ("ab" * 18, "train, target", "code"), "real": ("cd", "train", "local")}
    profile = json.loads(next(i.dataset.profile for i in inputs if i.dataset.name == "walkers"))
    assert profile == {"identities": 60, "frames": 1440, "digest": "ab" * 32}


def test_sweep_keeps_config_packages_and_machine(recorded: Tracker) -> None:
    parent = runs(recorded)["alignment"]
    folder = Path(recorded.client.download_artifacts(parent.info.run_id, ""))
    assert (folder / "config.yaml").read_text() == "name: alignment\nbudget:\n  trials: 3\n"
    assert "mlflow==3.17.2\n" in (folder / "requirements.txt").read_text()
    assert int(parent.data.tags["host.cpus"]) == os.cpu_count()


def test_sweep_records_system_metrics_of_the_driver(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = Tracker(sqlite_uri, "alignment", "alignment", "load")
    tracker.log_sweep({}, {}, [])
    deadline = time.monotonic() + 20
    while "system/cpu_utilization_percentage" not in runs(tracker)["alignment"].data.metrics:
        assert time.monotonic() < deadline, "no system metrics"
        time.sleep(0.1)
    tracker.finish("FINISHED")
    assert tracker.close() is None


def test_resumed_trial_continues_after_its_last_epoch(uri: str) -> None:
    tracker = Tracker(uri, "alignment", "alignment", "resumed")
    tracker.start_trial(0, "gru 128", {})
    for epoch in (1, 2, 3):
        tracker.log_epoch(0, epoch, {"val/rank1": epoch / 10})
    assert tracker.close() is None
    tracker = Tracker(uri, "alignment", "alignment", "resumed")
    tracker.start_trial(0, "gru 128", {})
    for epoch in (2, 3, 4):  # from a checkpoint after the first epoch
        tracker.log_epoch(0, epoch, {"val/rank1": epoch / 10})
    assert tracker.flush() is None
    history = tracker.client.get_metric_history(tracker.run_id(0), "val/rank1")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert tracker.client.get_run(tracker.run_id(0)).info.status == "RUNNING"
    assert tracker.close() is None


def test_metrics_that_are_not_finite_are_recorded_as_nan(uri: str) -> None:
    tracker = Tracker(uri, "alignment", "alignment", "nan")
    tracker.start_trial(0, "", {})
    for epoch, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0], start=1):
        tracker.log_epoch(0, epoch, {"train/loss": value})
    assert tracker.flush() is None
    history = tracker.client.get_metric_history(tracker.run_id(0), "train/loss")
    assert [None if math.isnan(point.value) else point.value for point in history] == [1, None, None, None, 2]
    assert tracker.client.get_run(tracker.run_id(0)).info.run_name == "trial-0000"
    assert tracker.close() is None


def test_write_that_is_refused_is_named_and_skipped(sqlite_uri: str) -> None:
    tracker = Tracker(sqlite_uri, "alignment", "alignment", "refused")
    tracker.start_trial(0, "gru", {})
    tracker.log_epoch(0, 1, {"no/such?metric": 1.0})
    tracker.log_epoch(0, 2, {"val/rank1": 0.5})
    line = tracker.flush()
    assert line is not None and "epoch 1 of trial 0" in line and "\n" not in line
    assert tracker.delivery_problem().startswith(f"1 records refused by {sqlite_uri}, the first: epoch 1 of")
    assert tracker.undelivered() == 1
    assert tracker.client.get_run(tracker.run_id(0)).data.metrics["val/rank1"] == 0.5
    with pytest.raises(TrackingError, match="refused"):
        tracker.run_id(9)
    tracker.close()


def test_epoch_that_is_refused_is_not_sent_with_later_ones(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, sent = mlflow.MlflowClient.log_batch, []

    def counted(client: mlflow.MlflowClient, *arguments: Any, **options: Any) -> Any:
        sent.append({point.step for point in options["metrics"]})
        return log_batch(client, *arguments, **options)

    with Tracker(sqlite_uri, "alignment", "alignment", "refused once") as tracker:
        tracker.start_trial(0, "gru", {})
        tracker.log_epoch(0, 1, {"no/such?metric": 1.0})
        assert tracker.flush() is not None
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
        tracker.log_epoch(0, 2, {"val/rank1": 0.5})
        tracker.flush()
        assert sent == [{2}]


def test_trial_without_a_run_is_one_line(sqlite_uri: str) -> None:
    tracker = Tracker(sqlite_uri, "alignment", "alignment", "unknown")
    with tracker, pytest.raises(TrackingError, match="no run of trial 9"):
        tracker.run_id(9)


def test_error_of_a_database_is_told_in_its_own_words() -> None:
    cause = sqlite3.OperationalError("database or disk is full")
    error = OperationalError("INSERT INTO metrics", {"key": "x" * 5000}, cause)
    error.add_detail("raised as a result of Query-invoked autoflush")
    assert describe_error(MlflowException(error)) == "database or disk is full"
    assert describe_error(error) == "database or disk is full"


def test_server_that_answers_with_errors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = mlflow.MlflowClient(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(MlflowException) as failure:
            client.search_experiments()
        server.shutdown()
    assert describe_error(failure.value) == (
        "the server answers Internal Server Error (500), again and again; see its log"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("Permission denied", "Permission denied (403)"),
        ("", "Forbidden (403)"),
        ("<html><title>Sign in</title></html>", "Forbidden (403)"),
        ("no " * 2000, f"{one_line('no ' * 2000, 200)} (403)"),
    ],
    ids=["text", "empty", "page", "long"],
)
def test_refusal_is_told_in_the_words_of_the_server(body: str, reason: str) -> None:
    error = MlflowException(
        "API request to endpoint /api/2.0/mlflow/registered-models/get failed with error code 403 != 200."
        f" Response body: '{body}'"
    )
    assert describe_error(error) == reason


def test_page_instead_of_an_answer_is_not_shown() -> None:
    error = MlflowException(
        "API request to endpoint was successful but the response body was not in a valid JSON format."
        " Response body: '<!DOCTYPE html><html>Sign in</html>'"
    )
    assert describe_error(error) == "the answer is not MLflow's, but for example the page of a login"


def test_outbox_after_an_error_delivers_what_follows() -> None:
    outbox, arrived = Outbox("here"), []
    outbox.post("a slip", lambda: {}["missing"])  # type: ignore[index]
    outbox.post("the next", lambda: arrived.append(1))
    assert outbox.flush(5) == ("tracking: 1 writes refused by here, the first is a slip: KeyError: 'missing'")
    assert arrived == [1]
    outbox.close(5)


def test_tracker_at_its_first_start_prints_nothing(tmp_path: Path) -> None:
    code = "import sys; from orchestrator.tracking.tracker import Tracker\n"
    code += (
        "t = Tracker(sys.argv[1], 'x', 'x', 'x'); t.log_sweep({}, {}, []); t.finish('FINISHED'); t.close()"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_server_that_is_away_for_a_while_loses_nothing(mlflow_server: Any) -> None:
    tracker = Tracker(mlflow_server.uri, "alignment", "alignment", "outage")
    tracker.start_trial(0, "gru", {})
    tracker.log_epoch(0, 1, {"val/rank1": 0.1})
    assert tracker.flush() is None
    mlflow_server.kill()
    try:
        started = time.monotonic()
        for epoch in range(2, 30):
            tracker.log_epoch(0, epoch, {"val/rank1": epoch / 100})
        tracker.start_trial(1, "lstm", {})
        tracker.end_trial(0, "COMPLETE", value=0.3)
        assert time.monotonic() - started < 1, "recording waited for the server"
        line = tracker.flush(timeout=20)
        assert line is not None and "\n" not in line
        assert "30 writes not delivered" in line and "connection refused" in line
    finally:
        mlflow_server.start()
    assert tracker.flush() is None
    history = tracker.client.get_metric_history(tracker.run_id(0), "val/rank1")
    assert [point.step for point in history] == list(range(1, 30))
    assert set(runs(tracker)) == {"alignment", "trial-0000 gru", "trial-0001 lstm"}
    assert tracker.close() is None


def test_outbox_of_a_server_that_hangs_keeps_its_limit(tmp_path: Path) -> None:
    """A delivery that gets no answer: recording returns, and flush keeps its time limit."""
    outbox, release = Outbox("http://stuck"), threading.Event()
    outbox.post("epoch 1 of trial 0", lambda: release.wait(60) and None)
    outbox.post("epoch 2 of trial 0", lambda: None)
    line = outbox.close(timeout=0.2)
    release.set()
    start = "tracking: 2 writes not delivered to http://stuck, the first is epoch 1 of trial 0"
    assert line == f"{start}: no answer within 0.2 s"


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that gives /health and everything else the two status codes of the parameter."""
    health, rest = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"answer"
            self.send_response(health if self.path == "/health" else rest)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answering", "says"),
    [
        ((200, 401), "401.*MLFLOW_TRACKING_USERNAME"),
        ((200, 403), "403.*allowed-hosts"),
        ((404, 404), "404.*is it an MLflow server"),
        ((200, 404), "404"),
    ],
    indirect=["answering"],
)
def test_server_that_refuses_is_explained_in_one_line(answering: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check(answering)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_server_that_is_down_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(
        InputError, match=r"does not answer: connection refused; is `mlflow server` running\?"
    ):
        check(uri)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("proxy", ["http://me:secret@127.0.0.1:1/", "127.0.0.1:1"])
def test_proxy_of_a_server_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(UnreachableError) as caught:
        check("http://mlflow:5000")
    start = "tracking.uri: the MLflow server at http://mlflow:5000, asked through the proxy 127.0.0.1:1"
    assert str(caught.value).startswith(f"{start} (HTTP_PROXY, NO_PROXY), does not answer: ")


def test_server_that_never_answers_is_refused_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(InputError, match="no answer in time"):
            check(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 10


def test_check_passes_and_writes_nothing(uri: str, tmp_path: Path) -> None:
    check(uri)
    check(f"sqlite:///{tmp_path}/not/yet/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("sqlite:////proc/sys/mlflow.db", "cannot write in /proc/sys"),
        ("sqlite:////tmp/a%2520b/mlflow.db", "cannot load models from a path with '%20'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("file:///tmp/mlruns", "neither"),
        ("mlruns", "neither"),
        ("postgresql://host/db", "neither"),
        ("postgresql://me:secret@host/db", "'postgresql://me:...@host/db' is neither"),
        ("SQLITE:////tmp/mlflow.db", "neither"),
        ("sqlite:///~/mlflow.db", f"~ is not replaced in .*; write sqlite:///{Path.home()}/mlflow.db"),
    ],
)
def test_store_that_cannot_be_used_is_refused(uri: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(uri)


def test_deleted_experiment_is_refused_before_anything_is_written(uri: str) -> None:
    client = mlflow.MlflowClient(uri)
    number = client.create_experiment("deleted")
    check(uri, "deleted")
    check(uri, "another")
    client.delete_experiment(number)
    with pytest.raises(InputError, match=f"'deleted' was deleted .*--experiment-id {number}`"):
        check(uri, "deleted")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("notes.txt", "is not an SQLite database"),
        ("notes.txt/mlflow.db", r"cannot write in .*Not a directory"),
    ],
)
def test_store_in_a_text_file_is_refused(tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database " * 100)
    with pytest.raises(InputError, match=says):
        check(f"sqlite:///{tmp_path}/{file}")


def test_experiment_that_was_deleted_is_refused(sqlite_uri: str) -> None:
    with Tracker(sqlite_uri, "gone", "x", "x") as tracker:
        tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match=r"was deleted.*mlflow experiments restore"):
        Tracker(sqlite_uri, "gone", "x", "x")


def test_store_of_a_driver_that_died_while_it_wrote_passes(tmp_path: Path) -> None:
    program = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("CREATE TABLE kept (text)")
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
for number in range(300):
    database.execute("INSERT INTO kept VALUES (?)", ("x" * 3000,))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "mlflow.db")], check=True)
    before = (tmp_path / "mlflow.db-journal").read_bytes()
    check(f"sqlite:///{tmp_path}/mlflow.db")
    assert before and (tmp_path / "mlflow.db-journal").read_bytes() == before


def test_store_that_another_process_locks_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_ANSWER_SECONDS", 0.1)
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    database.execute("CREATE TABLE kept (text)")
    database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UnreachableError, match="is locked: another process writes to it"):
        check(f"sqlite:///{tmp_path}/mlflow.db")
    database.close()
    check(f"sqlite:///{tmp_path}/mlflow.db")


def test_ui_command_quotes_a_path_for_the_shell() -> None:
    expected = "mlflow ui --backend-store-uri 'sqlite:////my sweeps/mlflow.db'"
    assert ui_command("sqlite:////my sweeps/mlflow.db") == expected
    assert ui_command("http://server:5000") == "http://server:5000"


def test_epochs_that_wait_are_delivered_in_one_request(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Tracker(uri, "alignment", "alignment", "waiting") as tracker:
        tracker.start_trial(0, "gru", {}, new=True)
        assert tracker.flush() is None
        requests: list[int] = []
        original = tracker.client.log_batch

        def log_batch(run_id: str, metrics: Any) -> None:
            requests.append(len(metrics))
            original(run_id, metrics=metrics)

        monkeypatch.setattr(tracker.client, "log_batch", log_batch)
        posted = threading.Event()
        tracker._outbox.post("a wait", lambda: posted.wait() and None)
        for epoch in range(1, 9):
            tracker.log_epoch(0, epoch, {"train/loss": 1 / epoch}, time=epoch)
        posted.set()
        assert tracker.flush() is None
        assert requests == [16]
        history = tracker.client.get_metric_history(tracker.run_id(0), "train/loss")
        assert sorted(point.step for point in history) == list(range(1, 9))


def test_epoch_that_is_refused_leaves_those_beside_it(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "refused epoch") as tracker:
        tracker.start_trial(0, "gru", {}, new=True)
        tracker.log_epoch(0, 1, {"train/loss": 1.0}, time=1)
        tracker.log_epoch(0, 2, {"not a valid name;": 1.0}, time=2)
        tracker.log_epoch(0, 3, {"train/loss": 0.5}, time=3)
        line = tracker.flush()
        assert line is not None and line.startswith("tracking: 1 writes refused") and "epoch 2" in line
        history = tracker.client.get_metric_history(tracker.run_id(0), "train/loss")
        assert sorted(point.step for point in history) == [1, 3]


def test_delivered_trials_are_noted_for_the_next_driver(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "noted") as tracker:
        assert tracker.delivered == 0
        tracker.start_trial(0, "gru", {}, new=True)
        tracker.end_trial(0, "COMPLETE", value=0.5)
        tracker.note_delivered(1)
        assert tracker.flush() is None
    with Tracker(uri, "alignment", "alignment", "noted") as tracker:
        assert tracker.delivered == 1


def test_delivery_after_a_refusal_is_not_noted(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "not noted") as tracker:
        tracker.end_trial(0, "COMPLETE", value=0.5)
        tracker.note_delivered(1)
        assert "refused" in (tracker.flush() or "")
        assert tracker.delivered == 0


def test_recorded_trials_are_only_those_asked_for(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "asked") as tracker:
        for number in range(3):
            tracker.start_trial(number, "gru", {}, new=True)
        assert tracker.flush() is None
        assert tracker.recorded_trials([1, 7]).keys() == {1}
        assert tracker.run_ids([0, 7]).keys() == {0}


class Refusing:
    """A store whose answer to some requests is an error, until it is mended."""

    def __init__(self, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.runs: set[str] = set()
        self.error: Exception | None = error
        for method in ("log_batch", "set_terminated", "log_text", "set_tag"):
            monkeypatch.setattr(tracker.client, method, self._guarded(getattr(tracker.client, method)))

    def _guarded(self, original: Any) -> Any:
        def call(run_id: str, *arguments: Any, **options: Any) -> Any:
            if run_id in self.runs and self.error is not None:
                raise self.error
            return original(run_id, *arguments, **options)

        return call


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("internal error", INTERNAL_ERROR),
        MlflowException("The run x must be in the 'active' state. Current state is deleted.", BAD_REQUEST),
        MlflowException("invalid state", INVALID_STATE),
        requests.HTTPError("413 Client Error: Request Entity Too Large"),
        EndpointConnectionError(endpoint_url="http://s3"),
        MlflowException("no such run", RESOURCE_DOES_NOT_EXIST),
        PermissionError("the artifacts cannot be written"),
    ],
)
def test_record_that_never_arrives_holds_up_no_other_trial(
    uri: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Tracker(uri, "alignment", "alignment", f"poison {type(error).__name__}{len(str(error))}") as tracker:
        tracker.start_trial(0, "gru", {}, new=True)
        assert tracker.flush() is None
        store = Refusing(tracker, monkeypatch, error)
        store.runs.add(tracker.run_id(0))
        for epoch in (1, 2):
            tracker.log_epoch(0, epoch, {"val/mAP": 0.5}, time=epoch)
        tracker.end_trial(0, "FAIL", reason="as asked", log_tail="a log")
        for number in range(1, 9):
            tracker.start_trial(number, "gru", {}, new=True)
            tracker.log_epoch(number, 1, {"val/mAP": 0.5}, time=1)
            tracker.end_trial(number, "COMPLETE", value=0.5)
        tracker.note_delivered(9)
        line = tracker.flush()
        assert line is not None and "4 writes not delivered" in line and "epoch 1 of trial 0" in line
        assert "4 records" in tracker.delivery_problem()
        assert tracker.delivered == 0
        status = {run.info.run_name: run.info.status for run in runs(tracker).values()}
        assert [status[f"trial-{number:04d} gru"] for number in range(1, 9)] == ["FINISHED"] * 8
        store.error = None
        assert tracker.flush() is None and tracker.delivery_problem() == ""
        assert tracker.recorded_epochs(0) == {1, 2}
        tracker.note_delivered(9)
        assert tracker.flush() is None and tracker.delivered == 9


def test_many_trials_that_are_refused_do_not_hold_up_the_others(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(sqlite_uri, "alignment", "alignment", "much poison") as tracker:
        for number in range(20):
            tracker.start_trial(number, "gru", {}, new=True)
        assert tracker.flush() is None
        store = Refusing(tracker, monkeypatch, MlflowException("internal error", INTERNAL_ERROR))
        store.runs.update(tracker.run_id(number) for number in range(12))
        for number in range(20):
            tracker.end_trial(number, "COMPLETE", value=0.5)
        for _ in range(5):
            line = tracker.flush()
        assert line is not None and "12 writes not delivered" in line
        states = {run.info.run_name: run.info.status for run in runs(tracker).values()}
        assert sum(status == "FINISHED" for status in states.values()) == 8


def test_artifact_that_is_refused_holds_up_no_metric(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/mlartifacts")

    with Tracker(sqlite_uri, "alignment", "alignment", "no artifacts") as tracker:
        monkeypatch.setattr(tracker.client, "log_text", refuse)
        monkeypatch.setattr(tracker.client, "log_artifact", refuse)
        tracker.log_sweep({"name": "x"}, {"trials": 1}, [])
        tracker.start_trial(0, "gru", {}, new=True)
        tracker.end_trial(0, "FAIL", reason="as asked", log_tail="a log")
        tracker.finish("FINISHED", {"val/mAP": 0.5})
        line = tracker.flush()
        assert line is not None and "2 writes not delivered" in line and "Permission denied" in line
        runs_now = runs(tracker)
        assert runs_now["trial-0000 gru"].info.status == "FAILED"
        assert runs_now["alignment"].info.status == "FINISHED"


def test_text_that_no_store_keeps_is_replaced(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "odd text") as tracker:
        tracker.start_trial(0, "gru", {"choice": "a\0b\udc80"}, new=True)
        tracker.end_trial(0, "FAIL", reason="NUL \0 and \udc80")
        assert tracker.flush() is None
        data = tracker.client.get_run(tracker.run_id(0)).data
        assert data.tags["trial.reason"] == "NUL ? and ?" and data.params["choice"] == "a?b?"


def test_outbox_at_a_flush_tries_again_what_failed_before_it() -> None:
    """A round that runs when `flush` is called has given the job up already."""
    outbox, arrived, begun, go = Outbox("here"), [], threading.Event(), threading.Event()

    def fail_once() -> None:
        arrived.append(1)
        if len(arrived) == 1:
            raise OSError("database is locked")

    def take_long() -> None:
        begun.set()
        go.wait(10)

    outbox.post("the end of trial 7", fail_once, 7)
    outbox.post("the report", take_long, "report")
    assert begun.wait(10)
    threading.Timer(0.1, go.set).start()
    assert outbox.flush(10) is None and len(arrived) == 2
    outbox.close(5)


def test_outbox_tries_a_subject_again_when_it_is_posted_to() -> None:
    outbox, tries, go = Outbox("here"), [], threading.Event()

    def fail() -> None:
        tries.append(1)
        raise OSError("database is locked")

    outbox.post("epoch 1", fail, 7)
    for number in range(3):
        outbox.post("a wait", lambda: go.wait(0.1) and None, f"wait {number}")
    time.sleep(0.15)
    outbox.post("epoch 2", lambda: None, 7)
    outbox.close(5)
    assert len(tries) >= 3, "once when posted, once with the next epoch, once at the end"


def test_outbox_skips_a_job_that_has_to_come_last() -> None:
    outbox, arrived = Outbox("here"), []
    failing = [True]

    def write() -> None:
        if failing[0]:
            raise OSError("not yet")
        arrived.append("first")

    outbox.post("the first", write, 1)
    outbox.post("the last", lambda: arrived.append("last"), 2, after_all=True)
    assert "the first: not yet" in (outbox.flush(5) or "")
    failing[0] = False
    assert outbox.flush(5) is None and arrived == ["first"]
    outbox.post("the last", lambda: arrived.append("last"), 2, after_all=True)
    assert outbox.flush(5) is None and arrived == ["first", "last"]
    outbox.close(5)


@pytest.mark.parametrize("name", ["/Users/me/prid", "../../up", "..", ".", "a b/c", "größe"])
def test_artifacts_stay_beside_the_database(tmp_path: Path, name: str) -> None:
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    with Tracker(uri, name, "alignment", "where") as tracker:
        location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
        tracker.log_sweep({"name": "x"}, {}, [])
        assert tracker.flush() is None
    folder = Path(unquote(urlsplit(location).path))
    assert folder.resolve().parent == tmp_path / "store/artifacts"
    assert list(folder.rglob("config.yaml"))


def test_store_that_accepts_no_files_is_refused_at_the_start(uri: str) -> None:
    name = f"unwritable {uri[:6]}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(name, artifact_location="file:///proc/nowhere")
    refusal = pytest.raises(TrackingError, match=r"cannot write files to file:///proc/nowhere.*, where")
    with Tracker(uri, name, "alignment", "unwritable") as tracker, refusal:
        tracker.check_artifacts()
    assert len(client.search_runs([experiment])) == 1


def test_tracker_of_a_lost_lease_writes_nothing(uri: str) -> None:
    lost = False

    def check() -> None:
        if lost:
            raise LeaseLostError("another driver took over sweep alignment")

    with Tracker(uri, "alignment", "alignment", "taken over", check=check) as tracker:
        tracker.start_trial(0, "", {})
        assert tracker.flush() is None
        lost = True
        tracker.log_epoch(0, 1, {"val/score": 0.5})
        tracker.finish("FAILED")
        assert tracker.flush() is None and tracker.undelivered() == 0
        client, trial = tracker.client, tracker.run_id(0)
    assert client.get_run(tracker.parent_run_id).info.status == "RUNNING"
    assert client.get_metric_history(trial, "val/score") == []


@pytest.mark.parametrize("when", ["before the request arrives", "after the other driver has adopted the run"])
def test_job_has_one_run_after_its_driver_was_suspended_while_it_created_it(
    uri: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = False
    sweep_id = f"job suspended {when}"
    create = mlflow.MlflowClient.create_run

    def check() -> None:
        if lost:
            raise LeaseLostError("another driver took over sweep alignment")

    def take_over() -> str:
        nonlocal lost
        with Tracker(uri, "alignment", "alignment", sweep_id) as second:
            lost = True
            return second.parent_run_id

    def suspended(client: mlflow.MlflowClient, *arguments: Any, **options: Any) -> Run:
        monkeypatch.setattr(mlflow.MlflowClient, "create_run", create)
        if when.startswith("before"):
            adopted.append(take_over())
        run = create(client, *arguments, **options)
        if when.startswith("after"):
            adopted.append(take_over())
        return run

    adopted: list[str] = []
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", suspended)
    with pytest.raises(LeaseLostError):
        Tracker(uri, "alignment", "alignment", sweep_id, check=check)
    with Tracker(uri, "alignment", "alignment", sweep_id) as later:
        runs = later.client.search_runs([later.experiment_id], f"tags.`sweep.id` = '{sweep_id}'")
    assert [run.info.run_id for run in runs] == adopted == [later.parent_run_id]


@pytest.mark.parametrize("when", ["before the request arrives", "after the other driver has adopted the run"])
def test_trial_has_one_run_after_its_driver_was_suspended_while_it_created_it(
    uri: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = False
    sweep_id = f"suspended {when}"

    def check() -> None:
        if lost:
            raise LeaseLostError("another driver took over sweep alignment")

    with (
        Tracker(uri, "alignment", "alignment", sweep_id, check=check) as first,
        Tracker(uri, "alignment", "alignment", sweep_id) as second,
    ):
        create = mlflow.MlflowClient.create_run

        def take_over() -> None:
            nonlocal lost
            second.start_trial(0, "", {})
            second.end_trial(0, "COMPLETE", value=0.5)
            assert second.flush() is None
            lost = True

        def suspended(client: mlflow.MlflowClient, *arguments: Any, **options: Any) -> Run:
            monkeypatch.setattr(mlflow.MlflowClient, "create_run", create)
            if when.startswith("before"):
                take_over()
            run = create(client, *arguments, **options)
            if when.startswith("after"):
                take_over()
            return run

        monkeypatch.setattr(mlflow.MlflowClient, "create_run", suspended)
        first.start_trial(0, "", {}, new=True)
        assert first.flush() is None
        which = f"tags.`sweep.id` = '{sweep_id}' AND tags.`run.kind` = 'trial'"
        (run,) = second.client.search_runs([second.experiment_id], which)
        assert (run.info.run_id, run.info.status) == (second.run_id(0), "FINISHED")


def test_store_that_accepts_files_passes_the_check(uri: str) -> None:
    with Tracker(uri, "alignment", "alignment", "writable") as tracker:
        tracker.check_artifacts()
        assert [file.path for file in tracker.client.list_artifacts(tracker.parent_run_id)] == [
            "requirements.txt"
        ]
