"""What ``--submit`` refuses, and how it follows the log of a job; tests/infra submits to a real cluster."""

import contextlib
import logging
import os.path
import signal
import threading
from collections.abc import AsyncIterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from orchestrator import sweep
from orchestrator.config.document import Override
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, UnreachableError
from orchestrator.execution import submit
from orchestrator.interrupt import Interrupt
from tests.support.command_line import refused
from tests.support.paths import ROOT

SWEEP = ROOT / "search_spaces/alignment.yaml"


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (
            ["--submit", "head:8265"],
            ExitCode.BAD_INPUT,
            "error: --submit head:8265: not the address of a Ray dashboard; write http://",
        ),
        (
            ["--submit", "http://127.0.0.1:1"],
            ExitCode.UNREACHABLE,
            "error: --submit http://127.0.0.1:1: no Ray dashboard answers there",
        ),
        (
            ["--submit", "http://head:99999"],
            ExitCode.BAD_INPUT,
            "error: --submit http://head:99999: not the address of a Ray dashboard; write http://",
        ),
        (
            ["--submit", "http://:8265"],
            ExitCode.BAD_INPUT,
            "error: --submit http://:8265: not the address of a Ray dashboard; write http://",
        ),
        (
            ["--submit", "http://me:secret@head:8265"],
            ExitCode.BAD_INPUT,
            "error: --submit: the address holds a login; a Ray dashboard takes a token",
        ),
        (
            ["--submit", "http://a", "--address", "b:1"],
            ExitCode.BAD_INPUT,
            "error: --submit, --address: give one",
        ),
    ],
)
def test_submit_to_a_wrong_address_is_one_line(options: list[str], code: ExitCode, expected: str) -> None:
    assert refused("sweep", SWEEP, *options, code=code).startswith(expected)


def test_submit_of_a_file_that_is_not_sent_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(SWEEP.read_text())
    assert "lies outside of the working directory" in refused("sweep", file, "--submit", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "answers",
    [
        {"api/version": "<html>Welcome</html>"},
        {"api/version": "[]"},
        {"api/version": '{"version": "1"}'},
        {"api/version": '{"ray_version": "2.60.0"}', "api/jobs/index.html": '[{"id": 1}]'},
    ],
)
def test_submit_to_another_program_is_refused(tmp_path: Path, answers: dict[str, str]) -> None:
    for path, content in answers.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = refused("sweep", SWEEP, "--submit", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "what answers there is no Ray dashboard" in line


@pytest.mark.parametrize("storage", ["results", "./results", "../results", "${SUBMIT_TEST_STORAGE}/results"])
def test_submit_with_a_relative_storage_is_refused(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.setenv("SUBMIT_TEST_STORAGE", "some")
    shown = storage.replace("${SUBMIT_TEST_STORAGE}", "some")
    line = refused("sweep", SWEEP, "--submit", "http://127.0.0.1:1", "--storage", storage)
    assert line.startswith(f"error: --submit: storage '{shown}' is a relative folder")


class Head:
    """Stands for Ray's client of a head whose connections break: each shows the log from its beginning."""

    def __init__(self, logs: list[list[str]], states: list[Any]) -> None:
        self._logs, self._states = iter(logs), iter(states)

    async def tail_job_logs(self, number: str) -> AsyncIterator[str]:
        for text in next(self._logs):
            if text == "ctrl-c":  # at a moment when code that runs in asyncio swallows it
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
                continue
            if text == "break":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text

    def get_job_info(self, number: str) -> Any:
        state = next(self._states)
        if isinstance(state, Exception):
            raise state
        return state


def job(status: JobStatus, code: int | None = None) -> Any:
    return SimpleNamespace(status=status, driver_exit_code=code, message="its reason")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    caplog.set_level(logging.INFO, logger=submit.__name__)


def follow(head: Head, interrupt: Interrupt | None = None) -> int:
    interrupt = interrupt or Interrupt()
    return submit._follow(head, "raysubmit_1", "http://head:8265", interrupt)  # type: ignore[arg-type]


def test_log_that_breaks_off_continues_where_it_was(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logs = [["one\ntwo\n", "break"], ["one\n", "two\nthree\n"], ["one\ntwo\nthree\n", "four\n"]]
    head = Head(logs, [job(JobStatus.RUNNING), job(JobStatus.RUNNING), job(JobStatus.FAILED, 2)])
    assert follow(head) == 2
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"
    end = "; trying again (the job does not depend on this terminal)"
    assert caplog.messages == [
        f"http://head:8265: WebSocket connection closed unexpectedly{end}",
        f"http://head:8265: the log broke off{end}",
    ]


def test_head_that_is_away_for_long_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    away = [requests.ConnectionError("refused") for _ in range(5)]
    logs = [["one\n", "break"], *(["break"] for _ in away), ["one\ntwo\n"]]
    assert follow(Head(logs, [*away, job(JobStatus.RUNNING), job(JobStatus.SUCCEEDED, 0)])) == 0
    assert [line.partition(";")[0] for line in caplog.messages] == ["http://head:8265: it does not answer"]


def test_job_that_the_head_forgot_ends_the_following(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("Request failed with status code 404: gone")
    assert follow(Head([["one\n", "break"]], [error])) == 1
    assert caplog.messages == [
        "http://head:8265 does not know raysubmit_1: it was restarted; rerun the command to resume"
    ]


def test_job_that_was_killed_gives_its_reason(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert follow(Head([["one\n"]], [job(JobStatus.STOPPED)])) == 1
    assert capsys.readouterr().out == "one\n"
    assert caplog.messages == ["raysubmit_1 stopped: its reason"]


def test_token_that_expired_ends_the_following_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert follow(Head([["one\n", "break"]], [AuthenticationError("the token expired")])) == 1
    (line,) = caplog.messages
    assert line.startswith("http://head:8265 no longer accepts the token: the token expired")
    assert line.endswith("; raysubmit_1 continues")


def test_ctrl_c_that_was_swallowed_ends_the_following(
    interrupt: Interrupt, caplog: pytest.LogCaptureFixture
) -> None:
    head = Head([["one\n", "ctrl-c", "two\n"]], [job(JobStatus.RUNNING)])
    assert follow(head, interrupt) == 130
    assert caplog.messages == [
        "raysubmit_1 continues; rerun the command to follow it again, "
        "or run ray job stop raysubmit_1 to end it"
    ]


class Cluster(Head):
    """Takes a job, which is done at once."""

    def __init__(self, *jobs: Any) -> None:
        super().__init__([[]], [job(JobStatus.SUCCEEDED, 0)])
        self.submitted: dict[str, Any] = {}
        self._jobs = list(jobs)

    def list_jobs(self) -> list[Any]:
        return self._jobs

    def submit_job(self, **options: Any) -> str:
        self.submitted = options
        return "raysubmit_1"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep file in the working directory, which names environment variables."""
    content = "name: named\nstorage: /store\nconfig: {folder: '${FIRST}', other: '${UNSET:-5}'}\n"
    (tmp_path / "named.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    for name in ("FIRST", "SECOND", "THIRD"):
        monkeypatch.setenv(name, name.lower())
    return "named.yaml"


def send(cluster: Cluster, file: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(submit, "_client", lambda address: cluster)
    override = Override.parse("config.seed=${SECOND}")
    return submit.submit(f"sweep {file}", file, [override], "http://head:8265", Progress(), Interrupt())


def test_submitted_job_gets_the_variables_that_it_names(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    assert send(cluster, file, monkeypatch) == 0
    assert cluster.submitted["runtime_env"]["env_vars"] == {"FIRST": "first", "SECOND": "second"}


def test_submitted_job_runs_the_command_in_its_directory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    send(cluster, file, monkeypatch)
    assert cluster.submitted["entrypoint"] == "sweep named.yaml"
    assert cluster.submitted["runtime_env"]["working_dir"] == "."
    assert cluster.submitted["metadata"]["job"] == "/store/named"
    assert "first" not in cluster.submitted["metadata"]["file"], "values of variables may be secrets"


def running(command: str) -> Any:
    return SimpleNamespace(
        metadata={"job": "/store/named"},
        status=JobStatus.RUNNING,
        entrypoint=command,
        submission_id="raysubmit_0",
    )


def test_submitted_command_names_the_file_from_the_working_directory(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    monkeypatch.setattr(submit, "_client", lambda address: cluster)
    arguments = [os.path.abspath(file), "--submit", "http://head:8265", "--set", "config.seed=1"]
    assert sweep.main(arguments) == ExitCode.DONE
    assert cluster.submitted["entrypoint"] == "python -m orchestrator.sweep named.yaml --set config.seed=1"


def test_connection_that_breaks_while_a_job_is_sent_is_no_bad_input(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    cluster.submit_job = Mock(side_effect=requests.ConnectionError("reset"))  # type: ignore[method-assign]
    with pytest.raises(UnreachableError, match="reset; rerun the command, which follows the job"):
        send(cluster, file, monkeypatch)


def test_job_that_already_runs_there_is_followed(
    file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(running("sweep named.yaml"))
    assert send(cluster, file, monkeypatch) == 0
    assert not cluster.submitted
    assert caplog.messages == ["named already runs there as raysubmit_0; this is its log"]


def test_job_that_runs_with_another_command_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"named already runs there with another command line \(sweep x\)"):
        send(Cluster(running("sweep x")), file, monkeypatch)


def test_job_that_runs_with_another_file_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Cluster()
    send(first, file, monkeypatch)
    job = running("sweep named.yaml")
    job.metadata = first.submitted["metadata"]
    assert send(Cluster(job), file, monkeypatch) == 0
    Path(file).write_text(Path(file).read_text().replace("UNSET:-5", "UNSET:-6"))
    with pytest.raises(InputError) as refusal:
        send(Cluster(job), file, monkeypatch)
    start, _, end = str(refusal.value).partition(", sent by ")
    assert start == "--submit http://head:8265: named already runs there with other settings"
    assert "config.other: ${UNSET:-5} → ${UNSET:-6}; give this one another name, or stop that one" in end
