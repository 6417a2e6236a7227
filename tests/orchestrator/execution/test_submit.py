"""What ``--submit`` refuses and how it follows a log; a sweep on a real cluster is in tests/infra."""

import contextlib
import itertools
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from orchestrator.config.document import Override
from orchestrator.console.progress import Progress
from orchestrator.execution import submit
from tests.support.command_line import refused
from tests.support.paths import ROOT

SWEEP = ROOT / "search_spaces/alignment.yaml"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--submit", "head:8265"],
            "error: --submit head:8265: is no address of a Ray dashboard; write http://",
        ),
        (
            ["--submit", "http://127.0.0.1:1"],
            "error: --submit http://127.0.0.1:1: no Ray dashboard answers there",
        ),
        (["--submit", "http://a", "--address", "b:1"], "error: --submit, --address: give one"),
    ],
)
def test_one_line_says_what_is_wrong(options: list[str], expected: str) -> None:
    assert refused("sweep", SWEEP, *options).startswith(expected)


def test_a_file_outside_of_what_is_sent_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(SWEEP.read_text())
    assert "lies outside of the working directory" in refused("sweep", file, "--submit", "http://127.0.0.1:1")


class Head:
    """Stands for Ray's client of a head whose connections break: each shows the log from its beginning."""

    def __init__(self, logs: list[list[str]], states: list[Any]) -> None:
        self._logs, self._states = iter(logs), iter(states)

    async def tail_job_logs(self, number: str) -> AsyncIterator[str]:
        for text in next(self._logs):
            if text == "ctrl-c":  # in a moment when what runs in asyncio swallows it
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
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def follow(head: Head, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = submit._conclude(head, "raysubmit_1", "http://head:8265", Progress())  # type: ignore[arg-type]
    return code, capsys.readouterr().out


def test_a_log_that_breaks_off_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logs = [["one\ntwo\n", "break"], ["one\n", "two\nthree\n"], ["one\ntwo\nthree\n", "four\n"]]
    head = Head(logs, [job(JobStatus.RUNNING), job(JobStatus.RUNNING), job(JobStatus.FAILED, 2)])
    code, out = follow(head, capsys)
    assert code == 2
    told = [line for line in out.splitlines() if "trying again" in line]
    assert len(told) == 2
    shown = "".join(itertools.filterfalse(lambda line: "trying again" in line, out.splitlines(keepends=True)))
    assert shown.replace("\n", "") == "onetwothreefour"


def test_a_job_that_the_head_has_forgotten_ends_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = follow(
        Head([["one\n", "break"]], [RuntimeError("Request failed with status code 404: gone")]), capsys
    )
    assert code == 1
    assert "the same command goes on with the job" in out


def test_a_job_that_was_killed_gives_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = follow(Head([["one\n"]], [job(JobStatus.STOPPED)]), capsys)
    assert (code, out) == (1, "one\nraysubmit_1 stopped: its reason\n")


def test_a_token_that_expired_ends_the_following_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = follow(Head([["one\n", "break"]], [AuthenticationError("the token expired")]), capsys)
    assert code == 1
    assert "http://head:8265 does not accept the token any more: the token expired" in out
    assert out.endswith("raysubmit_1 goes on\n")


def test_a_swallowed_ctrl_c_ends_the_following(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    code, out = follow(Head([["one\n", "ctrl-c", "two\n"]], [job(JobStatus.RUNNING)]), capsys)
    assert code == 130
    assert "raysubmit_1 goes on; the same command follows it again" in out
    assert signal.getsignal(signal.SIGINT) is before


class Cluster(Head):
    """Takes a job, which is done at once."""

    def __init__(self) -> None:
        super().__init__([[]], [job(JobStatus.SUCCEEDED, 0)])
        self.taken: dict[str, Any] = {}

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **given: Any) -> str:
        self.taken = given
        return "raysubmit_1"


def test_a_job_gets_the_variables_that_file_and_overrides_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named.yaml").write_text("name: named\nconfig: {folder: '${FIRST}', other: '${UNSET:-5}'}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("FIRST", "SECOND", "THIRD"):
        monkeypatch.setenv(name, name.lower())
    cluster = Cluster()
    monkeypatch.setattr(submit, "_client", lambda address: cluster)
    override = Override.parse("config.seed=${SECOND}")
    assert submit.submit("sweep named.yaml", "named.yaml", [override], "http://head:8265", Progress()) == 0
    assert cluster.taken["entrypoint"] == "sweep named.yaml"
    assert cluster.taken["runtime_env"]["env_vars"] == {"FIRST": "first", "SECOND": "second"}
