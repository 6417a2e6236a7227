"""State on disk of version 0.1.0, whose records have no schema; and records of a later version."""

import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial

from orchestrator import compare, status, stop, sweep
from orchestrator.config.sweep import read_sweep
from orchestrator.errors import InputError
from orchestrator.storage.directory import JobDirectory
from orchestrator.study.search import SearchStudy
from tests.support import command_line
from tests.support.paths import ROOT
from tests.support.state_archive import unpack

ARCHIVE = ROOT / "tests" / "assets" / "state-0.1.0.tar.xz"
SCHEMA = 2
MODEL_TAGS = {
    "decision": "promoted",
    "score.test/parabola/score": "-0.018105092226168025",
    "data.parabola": "0f1e2d3c",
    "sweep.name": "finished",
    "trial.number": "3",
}
MODULES = str(ROOT / "tests" / "support")
"""Where the trainable has the dotted path by which the archived sweep files name it."""

PICKLE = re.compile(rb"^\x80[\x02-\x05]")
IMPORT_PATH = re.compile(rb"(?<![\w./-])(?:orchestrator|trainables)\.[a-z_]\w*")
MACHINE_PATH = re.compile(rb"/(?:root|home|work|usr|opt|mnt|var|tmp)/[\w./-]*")

Command = Callable[[Sequence[str]], int]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpack sweep files and storage; the files have the present keys."""
    monkeypatch.syspath_prepend(MODULES)
    return unpack_state(tmp_path)


def unpack_state(folder: Path) -> Path:
    unpack(ARCHIVE, folder)
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("silence", "report_timeout"))
    return folder


def run_sweep(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep that starts Ray."""
    environment = command_line.environment()
    return subprocess.run(
        command_line.command("sweep", file, *options),
        env=environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}:{MODULES}"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def trials(state: Path, name: str = "interrupted") -> list[FrozenTrial]:
    url = f"sqlite:///{state}/storage/{name}/study.db"
    return optuna.load_study(study_name=name, storage=url).trials


def mlflow_client(state: Path) -> MlflowClient:
    uri = f"sqlite:///{state}/storage/mlflow.db"
    return MlflowClient(uri, registry_uri=uri)


def mlflow_runs(state: Path, name: str = "interrupted") -> list[Run]:
    client = mlflow_client(state)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return [run for run in runs if run.data.tags.get("run.kind") == "trial"]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


# What is finished


def test_old_finished_sweep_shows_its_summary(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([f"{state}/finished.yaml"]) == 0
    output = capsys.readouterr().out
    assert "the sweep finished is finished" in output
    assert "2 complete, 2 pruned, 0 failed" in output
    assert "parabola version 1, alias champion" in output
    assert re.search(r"test/parabola/score +-0\.01811", output)


def test_old_finished_sweep_shows_its_status(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([f"{state}/storage/finished", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["model"]) == ("finished", "parabola version 1, alias champion")
    assert shown["trials"] == {"complete": 2, "pruned": 2}
    assert shown["best"]["trial"] == "trial-0003"
    assert shown["budget"]["seconds"] == [100.2, None]
    assert shown["driver"]["host"] == "elsewhere" and shown["activity"] == {}


def test_old_finished_comparison_shows_its_table(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([f"{state}/compared.yaml"]) == 0
    output = capsys.readouterr().out
    assert "the comparison compared is finished" in output
    assert re.search(r"fast +│ +2 │ +-0\.020 ± 0\.000 \* │ +\+0\.293", output)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (sweep.main, "finished.yaml"),
        (compare.main, "compared.yaml"),
        (status.main, "finished.yaml"),
        (status.main, "interrupted.yaml"),
        (status.main, "compared.yaml"),
    ],
)
def test_old_state_is_read_without_writing(state: Path, command: Command, file: str) -> None:
    before = contents(state)
    assert command([f"{state}/{file}"]) == 0
    assert contents(state) == before


def test_old_sweep_file_key_is_read_with_one_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpack(ARCHIVE, state)  # with the old keys
    assert sweep.main([f"{state}/finished.yaml"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "silence" in line]
    assert lines == ["resources.silence is now called resources.report_timeout; rename it in the file"]


# The registered version


def test_old_registered_version_keeps_its_tags(state: Path) -> None:
    version = mlflow_client(state).get_model_version_by_alias("parabola", "champion")
    assert version.version == 1 and version.tags.items() >= MODEL_TAGS.items()


@pytest.mark.slow
@pytest.mark.sweep
def test_old_registered_version_is_not_registered_again(state: Path) -> None:
    (state / "storage" / "finished" / "outcome.json").unlink()
    done = run_sweep(state / "finished.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parabola version 1, alias champion" in done.stdout
    (version,) = mlflow_client(state).search_model_versions("name = 'parabola'")
    assert version.tags.items() >= MODEL_TAGS.items()
    assert mlflow_client(state).get_model_version_by_alias("parabola", "champion").version == version.version
    assert read_json(state / "storage" / "finished" / "outcome.json")["model"]["created"] is False


# The interrupted sweep


@dataclass(frozen=True)
class Resumed:
    """The interrupted sweep after the present version resumed it."""

    state: Path
    trials_before: list[FrozenTrial]
    runs_before: list[Run]
    reports_before: list[dict[str, float]]
    """What trial 3, which was running, had reported when its last checkpoint was written."""

    output: str

    @property
    def folder(self) -> Path:
        return self.state / "storage" / "interrupted"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resumed]:
    state = unpack_state(tmp_path_factory.mktemp("state"))
    (reported,) = (state / "storage" / "interrupted" / "trials" / "trial-0003").glob("*/reported.json")
    before = trials(state), mlflow_runs(state), read_json(reported)
    assert [trial.state.name for trial in before[0]] == ["COMPLETE", "PRUNED", "PRUNED", "RUNNING"]
    done = run_sweep(state / "interrupted.yaml", "--trials", "5", "--set", "checkpoints=all")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Resumed(state, *before, done.stdout)


@pytest.mark.slow
@pytest.mark.sweep
def test_old_interrupted_sweep_keeps_its_ended_trials(resumed: Resumed) -> None:
    after = trials(resumed.state)
    assert [trial.number for trial in after] == [0, 1, 2, 3, 4]
    assert all(trial.state.is_finished() for trial in after)
    assert after[:3] == resumed.trials_before[:3]
    assert "resuming: 4 trials started before, 2 remain" in resumed.output


@pytest.mark.slow
@pytest.mark.sweep
def test_old_running_trial_resumes_from_its_checkpoint(resumed: Resumed) -> None:
    before, after = resumed.trials_before[3], trials(resumed.state)[3]
    assert after.params == before.params
    recorded = {key for key in before.user_attrs if key.startswith("epoch ")}
    assert recorded == {"epoch 1", "epoch 2"}
    assert all(after.user_attrs[key] == before.user_attrs[key] for key in recorded)
    # The third epoch was in the checkpoint only. A repeated epoch would have another rate.
    assert [report["epoch"] for report in resumed.reports_before] == [1, 2, 3]
    assert after.user_attrs["epoch 3"]["rate"] == resumed.reports_before[2]["rate"]
    assert after.last_step == 6 and len(after.intermediate_values) == 6


@pytest.mark.slow
@pytest.mark.sweep
def test_old_mlflow_runs_are_continued_not_duplicated(resumed: Resumed) -> None:
    runs = {int(run.data.tags["trial.number"]): run for run in mlflow_runs(resumed.state)}
    assert len(runs) == len(mlflow_runs(resumed.state)) == 5
    for before in resumed.runs_before:
        assert runs[int(before.data.tags["trial.number"])].info.run_id == before.info.run_id
    client = mlflow_client(resumed.state)
    for trial in trials(resumed.state):
        points = client.get_metric_history(runs[trial.number].info.run_id, "val/score")
        steps = Counter(point.step for point in points)
        assert steps == Counter(trial.intermediate_values.keys())
        assert runs[trial.number].data.tags["trial.state"] == trial.state.name


@pytest.mark.slow
@pytest.mark.sweep
def test_old_driver_record_hands_over_its_budget(resumed: Resumed) -> None:
    record = read_json(resumed.state / "storage" / ".interrupted.driver.json")
    assert record["used"]["seconds"] > 65.09  # the earlier drivers used 65.092 s
    assert len(record["ray_jobs"]) == 3
    assert not {"spent", "beat", "doing"} & record.keys()


@pytest.mark.slow
@pytest.mark.sweep
def test_resumed_sweep_has_records_of_the_present_schema(resumed: Resumed) -> None:
    reported = (resumed.folder / "trials" / "trial-0004").glob("checkpoint_*/reported.json")
    files = [resumed.folder / "sweep.json", resumed.folder / "outcome.json", *reported]
    files.append(resumed.state / "storage" / ".interrupted.driver.json")
    assert len(files) >= 4
    assert {file.name: read_json(file)["schema"] for file in files} == {file.name: SCHEMA for file in files}
    url = f"sqlite:///{resumed.folder}/study.db"
    study = optuna.load_study(study_name="interrupted", storage=url)
    assert study.user_attrs["schema"] == SCHEMA


# Import paths


def import_paths(folder: Path) -> dict[str, set[bytes]]:
    """Return the import paths of this project in each file of a folder, and ``b"pickle"`` for a pickle."""
    paths = {
        name: set(IMPORT_PATH.findall(content)) | {b"pickle" for _ in PICKLE.findall(content)}
        for name, content in contents(folder).items()
    }
    return {name: in_file for name, in_file in paths.items() if in_file}


def test_old_state_holds_neither_pickles_nor_import_paths(state: Path) -> None:
    assert import_paths(state) == {}


@pytest.mark.slow
@pytest.mark.sweep
def test_new_state_holds_neither_pickles_nor_import_paths(resumed: Resumed) -> None:
    assert import_paths(resumed.state) == {}


# Later versions


@pytest.mark.parametrize(
    ("command", "record"),
    [
        (sweep.main, "sweep.json"),
        (sweep.main, "outcome.json"),
        (status.main, "sweep.json"),
        (status.main, "outcome.json"),
        (stop.main, "sweep.json"),
    ],
)
def test_record_of_later_version_is_refused(
    state: Path, command: Command, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    location = state / "storage" / "finished" / record
    location.write_text(json.dumps({**read_json(location), "schema": SCHEMA + 1}))
    assert command([f"{state}/finished.yaml"]) == 2
    assert capsys.readouterr().err == (
        f"error: {location} has schema {SCHEMA + 1}, and this version reads up to {SCHEMA}; "
        "upgrade multi-shot-reid to the version that wrote it\n"
    )


def test_study_of_later_version_is_refused(state: Path) -> None:
    url = f"sqlite:///{state}/storage/interrupted/study.db"
    optuna.load_study(study_name="interrupted", storage=url).set_user_attr("schema", SCHEMA + 1)
    job = read_sweep(state / "interrupted.yaml", environment={})
    with pytest.raises(
        InputError, match=f"study: it has schema {SCHEMA + 1}, and this version reads up to {SCHEMA}"
    ):
        SearchStudy(job, JobDirectory(job))


def test_archive_holds_no_path_of_a_machine(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    files = contents(tmp_path)
    assert len(files) > 40
    assert {path for content in files.values() for path in MACHINE_PATH.findall(content)} == set()
