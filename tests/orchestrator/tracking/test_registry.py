"""The command for registered models, on three versions of one model: better, then worse."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from orchestrator import registry
from orchestrator.tracking import evidence as evidences
from orchestrator.tracking.evidence import Evidence
from orchestrator.tracking.gate import TargetResults
from orchestrator.tracking.promotion import Record, champion_before
from tests.support import command_line
from tests.support.example_trainable import ComparableTrainable
from tests.support.registered_models import exported, finish_sweep, register_best

NAME = "reid-command"
TRAINABLE = "tests.support.example_trainable:ComparableTrainable"


@pytest.fixture(scope="module")
def store(sqlite_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with versions 1 to 3 and rank-1 0.6, 0.75 and 0.7; to be copied before it is changed."""
    export = exported(tmp_path_factory.mktemp("export"))
    for sweep, rank1 in (("command-a", 0.6), ("command-b", 0.75), ("command-c", 0.7)):
        with finish_sweep(sqlite_uri, sweep) as tracker:
            register_best(tracker, export, rank1)
    return Path(sqlite_uri.removeprefix("sqlite:///"))


@pytest.fixture
def uri(store: Path, tmp_path: Path) -> str:
    with sqlite3.connect(store) as source, sqlite3.connect(tmp_path / "mlflow.db") as copy:
        source.backup(copy)
    return f"sqlite:///{tmp_path}/mlflow.db"


def run(capsys: pytest.CaptureFixture[str], uri: str, *arguments: str) -> tuple[int, Any]:
    """Run the command; return its exit code, and its document or its error."""
    capsys.readouterr()
    code = registry.main([*arguments, "--json", "--tracking", uri])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else captured.err


def aliases(uri: str) -> dict[str, int]:
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_list_shows_models_with_their_aliases(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "list")
    mine = {"model": NAME, "aliases": {"champion": 2, "challenger": 3}, "versions": 3, "data": ["walkers"]}
    assert code == 0 and mine in found["models"]
    assert registry.main(["--json", "--tracking", uri, "list"]) == 0  # before the action
    assert json.loads(capsys.readouterr().out) == found


def test_show_of_a_model_lists_its_versions(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    _, found = run(capsys, uri, "show", NAME)
    decisions = [(each["version"], each["decision"], each["aliases"]) for each in found["versions"]]
    assert decisions == [(1, "promoted", []), (2, "promoted", ["champion"]), (3, "declined", ["challenger"])]


def test_show_of_an_alias_has_scores_and_records(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    _, found = run(capsys, uri, "show", f"{NAME}@champion")
    assert (found["version"], found["scores"]) == (2, {"test/walkers/rank1": 0.75})
    assert found["records"][0]["by"]["sweep"] == "alignment" and found["trainable"] == "a:B"
    assert mlflow.MlflowClient(uri).get_run(found["run"]).info.run_name == found["run name"] != ""
    assert registry.main(["show", f"{NAME}@champion", "--tracking", uri]) == 0
    shown = capsys.readouterr().out
    assert "test/walkers/rank1" in shown and all(digest in shown for digest in found["data"].values())


def test_compare_says_what_the_gate_says_and_moves_nothing(
    capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    code, found = run(capsys, uri, "compare", f"{NAME}/3", f"{NAME}/1")
    assert (code, found["verdict"]) == (0, "promoted")
    assert found["overall"]["difference"] == pytest.approx(0.1)
    assert aliases(uri) == {"champion": 2, "challenger": 3}


def test_promotion_that_the_gate_declines_exits_with_1(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "promote", f"{NAME}/1")
    assert (code, found["verdict"], found["champion"]) == (1, "declined", 2)
    assert aliases(uri)["champion"] == 2


@pytest.mark.parametrize("action", [("promote", f"{NAME}/1", "--no-gate"), ("rollback", NAME)])
def test_login_that_may_not_write_is_refused_and_leaves_nothing(
    action: tuple[str, ...], capsys: pytest.CaptureFixture[str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> None:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_tag", deny)
    before = [model.name for model in mlflow.MlflowClient(uri, registry_uri=uri).search_registered_models()]
    code, error = run(capsys, uri, *action)
    assert (code, error) == (
        2,
        f"error: {NAME}: this login may not change the model; use another one, or ask its owner\n",
    )
    after = [model.name for model in mlflow.MlflowClient(uri, registry_uri=uri).search_registered_models()]
    assert after == before and aliases(uri)["champion"] == 2


def test_promotion_through_the_gate_is_recorded_as_such(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    run(capsys, uri, "promote", f"{NAME}/1", "--no-gate")
    code, found = run(capsys, uri, "promote", f"{NAME}/3")
    assert (code, found["action"], found["verdict"]) == (0, "gate", "promoted")
    assert found["by"]["command"] == "orchestrator.registry promote" and aliases(uri)["champion"] == 3


def test_promotion_without_the_gate_says_who_and_why(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "promote", f"{NAME}/1", "--no-gate", "--reason", "the others leak")
    assert (code, found["action"]) == (0, "promoted by hand")
    assert found["reason"] == "moved without the gate: the others leak"
    assert {"user", "host"} <= found["by"].keys() and found["by"][
        "command"
    ] == "orchestrator.registry promote"
    assert aliases(uri)["champion"] == 1


def test_rollback_returns_to_the_champion_before(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    code, found = run(capsys, uri, "rollback", NAME)
    assert (code, found["version"], found["reason"]) == (0, 1, "rolled back from version 2")
    assert aliases(uri)["champion"] == 1
    code, line = run(capsys, uri, "rollback", NAME)
    assert code == 2 and "nothing could take its place" in line and aliases(uri)["champion"] == 1


def test_history_says_who_held_the_alias_and_why(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    run(capsys, uri, "rollback", NAME)
    _, found = run(capsys, uri, "history", NAME)
    events = [(each["version"], each["action"], each["verdict"]) for each in found["records"]]
    gate = [(1, "gate", "promoted"), (2, "gate", "promoted"), (3, "gate", "declined")]
    assert events == [*gate, (1, "rolled back", "promoted")]
    code, line = run(capsys, uri, "history", NAME, "--alias", "champoin")
    assert code == 2 and line == f"error: {NAME} has no alias 'champoin'; did you mean 'champion'?\n"


def test_pull_compares_the_files_with_their_checksum(
    capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path
) -> None:
    code, found = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 0, found
    assert found["verified"] and (tmp_path / "model" / "MLmodel").is_file()
    assert not list(tmp_path.glob(".model*"))
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model")) == (0, found)
    (tmp_path / "model" / "MLmodel").write_text("other")
    code, line = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 2 and "its files are not those of version 2; name a new folder" in line
    assert (tmp_path / "model" / "MLmodel").read_text() == "other"


def test_pull_of_other_files_is_refused(capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    client.set_model_version_tag(NAME, "2", "digest", "sha256:0")
    code, line = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 2 and "are not those that were registered" in line and line.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_pull_of_files_that_are_gone_is_refused(
    capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = (tmp_path / "gone").as_uri()
    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_download_uri", lambda *names: gone)
    code, line = run(capsys, uri, "pull", f"{NAME}@champion", str(tmp_path / "model"))
    assert code == 2 and f"the files of version 2 are no longer at {gone}; restore them" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "reid-comand"], f"no model 'reid-comand' .*did you mean '{NAME}'?"),
        (["show", f"{NAME}@champoin"], "has no alias 'champoin'; did you mean 'champion'?"),
        (["show", f"{NAME}/9"], "has no version 9; it has 1, 2, 3"),
        (["show", "a/b/c"], "names no model; expected NAME, NAME@ALIAS or NAME/VERSION"),
        (["promote", f"{NAME}@champion"], "version 2 of reid-command has the alias champion already"),
        (["promote", f"{NAME}/1", "--alias", "v3"], "--alias: MLflow reserves the alias 'v3'"),
        (["promote", NAME], "name a version, as reid-command@champion or reid-command/1"),
        (["rollback", NAME, "--alias", "none"], "no version has the alias none"),
        (["rollback", f"{NAME}@champion"], "give the name alone"),
        (["promote", f"{NAME}/1", "--reason", "x"], "--reason: the gate gives the reason"),
        (["promote", f"{NAME}/1", "--no-gate", "--metric", "rank1"], "--metric: nothing is compared"),
        (["promote", f"{NAME}/1", "--metric", "rnak1"], "has no score 'rnak1'; did you mean 'rank1'?"),
        (["compare", f"{NAME}/2", f"{NAME}@champion"], "both names are of version 2 of reid-command"),
        (["compare", f"{NAME}/3", f"{NAME}/1", "--metric", "x"], "--metric: .*no score 'x'; valid: rank1"),
        (["pull", f"{NAME}@champion", "/"], "/ exists; name a new folder"),
        (["pull", f"{NAME}@champion", "x" * 300], "File name too long"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    before = contents(uri)
    code, error = run(capsys, uri, *arguments)
    assert code == 2 and error.count("\n") == 1
    assert all(part in error for part in line.split(".*"))
    assert contents(uri) == before


def contents(uri: str) -> list[str]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        return list(database.iterdump())


def test_model_that_a_login_may_not_read_is_told(
    capsys: pytest.CaptureFixture[str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:  # MLflow also answers so for a model that does not exist
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", denied)
    code, line = run(capsys, uri, "history", "reid-comand")
    assert code == 2 and f"no model 'reid-comand' at {uri} that this login may read; did you mean" in line


def test_rollback_after_the_champion_was_deleted_restores_the_one_before(
    capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    mlflow.MlflowClient(uri, registry_uri=uri).delete_model_version(NAME, "2")
    assert "champion" not in aliases(uri)
    code, found = run(capsys, uri, "rollback", NAME)
    assert (code, found["version"], found["reason"]) == (0, 1, "rolled back; no version had the alias")
    assert aliases(uri)["champion"] == 1


@pytest.mark.parametrize("action", ["list", "show", "compare", "history", "pull"])
def test_what_a_suspended_process_left_is_only_read(
    action: str, capsys: pytest.CaptureFixture[str], uri: str, tmp_path: Path
) -> None:
    """It moved the alias to version 3 late, so that version 2 has it by right."""
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    intent = {"version": 3, "moves": {"champion": 3}, "tags": {}}
    client.set_registered_model_tag(NAME, "champion.closed.9", json.dumps({"holder": 2, "own": False}))
    client.set_registered_model_tag(NAME, "champion.intent.9", json.dumps(intent))
    client.set_registered_model_alias(NAME, "champion", "3")
    before, champion = contents(uri), f"{NAME}@champion"
    arguments = {
        "list": [],
        "show": [champion],
        "compare": [f"{NAME}/3", champion],
        "history": [NAME],
        "pull": [champion, str(tmp_path / "model")],
    }
    code, found = run(capsys, uri, action, *arguments[action])
    assert code == 0 and contents(uri) == before
    assert found.get("version", 2) == 2


BROKEN = {
    "config": ({"epochs": "many"}, None, "config.epochs: "),
    "import": ({}, ImportError("no module named 'x'"), "ImportError: no module named 'x'"),
    "runtime": ({}, RuntimeError("two\nlines"), "RuntimeError: two lines"),
    "numbers": ({}, FloatingPointError("overflow"), "FloatingPointError: overflow"),
}


@pytest.mark.parametrize(("config", "raised", "reason"), BROKEN.values(), ids=BROKEN)
def test_champion_that_cannot_be_scored_anew_is_one_line(
    config: dict[str, Any],
    raised: Exception | None,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results(data: str) -> dict[str, TargetResults]:
        names = ("a", "b")
        found = TargetResults(
            data=data,
            protocol="p",
            version="1",
            queries=names,
            identities=names,
            metrics={"score": (0.1, 0.2)},
        )
        return {"t": found}

    def read(_: Any, version: Any) -> Evidence:
        return Evidence(trainable=TRAINABLE, config=config, results=results(str(version.version)))

    def score_model(*_: Any) -> Any:
        raise raised or AssertionError("the config is valid")

    monkeypatch.setattr(evidences, "read", read)
    monkeypatch.setattr(ComparableTrainable, "score_model", score_model)
    monkeypatch.setattr("orchestrator.tracking.promotion.check_family", lambda *_: None)
    code, found = run(capsys, uri, "compare", f"{NAME}/3", f"{NAME}/1", "--metric", "score")
    assert (code, found["verdict"]) == (0, "declined")
    assert found["not_compared"]["t"].startswith(f"version 1 cannot be scored anew: {reason}")
    assert "\n" not in found["not_compared"]["t"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_on_a_full_disk_is_one_line(uri: str, options: list[str]) -> None:
    command = [sys.executable, "-m", "orchestrator.registry", "list", "--tracking", uri, *options]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            env=command_line.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    line = "error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_missing_database_is_not_created(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = run(capsys, f"sqlite:///{tmp_path}/none.db", "list")
    assert code == 2 and "no MLflow database" in line and not list(tmp_path.iterdir())


def holder(version: int, action: str, champion: int | None) -> Record:
    return Record.model_validate(
        {
            "alias": "champion",
            "number": version,
            "version": version,
            "action": action,
            "verdict": "promoted",
            "reason": "",
            "champion": champion,
            "at": "",
            "by": {},
        }
    )


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ([(1, "gate", None)], None),
        ([(1, "gate", None), (2, "gate", 1)], 1),
        ([(2, "gate", 1)], 1),
        ([(1, "gate", None), (2, "gate", 1), (3, "gate", 2), (2, "rolled back", 3)], 1),
        ([(1, "gate", None), (2, "gate", 1), (1, "promoted by hand", 2)], 2),
        ([(1, "gate", None), (3, "gate", 2)], 2),
        ([(1, "gate", None), (2, "gate", 1), (3, "gate", 1)], 1),
    ],
    ids=["first", "second", "unrecorded", "after a rollback", "by hand", "in MLflow", "back in MLflow"],
)
def test_champion_before_is_that_of_the_records(
    changes: list[tuple[int, str, int | None]], before: int | None
) -> None:
    records = [holder(*change) for change in changes]
    assert champion_before(records, changes[-1][0], {1, 2, 3}) == before
    assert champion_before(records, changes[-1][0], set()) is None
