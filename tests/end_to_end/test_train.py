"""One config trained by ``python -m orchestrator.train``."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from orchestrator import train
from tests.support.example_trainable import ExampleTrainable
from tests.support.paths import ROOT
from tests.support.sweep_files import TRAINABLE, sweep_text, write_comparison, write_sweep

pytestmark = pytest.mark.usefixtures("restored_signals")
FORMS = ("sweep", "comparison", "trainable and config", "config")


def write_form(form: str, folder: Path, **config: Any) -> list[str]:
    """Write the example's config in one form of file; return the arguments of the command for it."""
    config = {"epochs": 4, **config}
    if form == "sweep":
        return [str(write_sweep(folder, config=config))]
    if form == "comparison":
        return [str(write_comparison(folder, config=config)), "--variant", "plain"]
    content = {"trainable": TRAINABLE, "config": config} if form == "trainable and config" else config
    file = folder / "parabola.yaml"
    file.write_text(yaml.safe_dump(content))
    return [str(file), *(["--trainable", TRAINABLE] if form == "config" else [])]


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "rate"} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_train_keeps_config_curves_scores_and_checkpoint(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "trained"
    assert train.main([*write_form(form, tmp_path), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch ") and "  " in line] == [
        f"epoch {epoch}" for epoch in range(1, 5)
    ]
    recorded = yaml.safe_load((output / "config.yaml").read_text())
    assert recorded["trainable"] == TRAINABLE and recorded["config"]["epochs"] == 4
    assert [row["epoch"] for row in curves(output)] == ["1.0", "2.0", "3.0", "4.0"]
    (scored,) = json.loads((output / "scores.json").read_text())
    assert scored["settings"] == {} and list(scored["scores"]) == ["test/parabola/score"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(output.glob("checkpoint_000004_*.complete"))) == 1


def test_train_again_says_that_it_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*write_form("config", tmp_path), "--output", str(tmp_path / "trained")]
    assert train.main(command) == train.main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert train.main([str(tmp_path / "trained/config.yaml"), "--output", str(tmp_path / "trained")]) == 0


def test_train_that_was_killed_resumes(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = write_form("config", tmp_path, seconds=0.3, epochs=6)
    assert train.main([*arguments, "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "orchestrator.train", *arguments, "--output", str(resumed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 3  "):
                process.kill()
    (resumed / "curves.png").unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "resuming after epoch" in done.stdout
    assert curves(resumed) == curves(whole)
    assert (resumed / "curves.png").exists()


def test_train_refuses_to_resume_with_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "trained"
    crashes = [*write_form("config", tmp_path, fault="crash"), "--output", str(output)]
    assert train.main(crashes) == 1  # in epoch 2
    monkeypatch.setenv("PARABOLA_DATA", "other")
    assert train.main(crashes) == 2
    line = f"data set parabola: the content has changed since the training in {output} began; put the data"
    assert f"error: {line}" in capsys.readouterr().err
    for content in (b"[1]", None):  # damaged, and of an earlier version
        (output / "data.json").unlink() if content is None else (output / "data.json").write_bytes(content)
        assert train.main(crashes) == 1

    finished = [*write_form("config", tmp_path), "--output", str(tmp_path / "finished")]
    assert train.main(finished) == 0
    monkeypatch.delenv("PARABOLA_DATA")
    assert train.main(finished) == 2
    assert train.main([*finished, "--score"]) == 0, "a checkpoint may be scored on other data"


def test_train_warns_of_code_that_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "my_parabola.py"
    module.write_text("from tests.support.example_trainable import ExampleTrainable as MyTrainable\n")
    monkeypatch.syspath_prepend(tmp_path)
    file, output = tmp_path / "mine.yaml", tmp_path / "trained"
    command = [str(file), "--output", str(output)]

    def run(*options: str, **config: Any) -> str:
        content = {"trainable": "my_parabola:MyTrainable", "config": {"epochs": 4, **config}}
        file.write_text(yaml.safe_dump(content))
        assert train.main([*command, *options]) == (0 if options or not config else 1)
        return capsys.readouterr().out

    def entries() -> list[dict[str, str]]:
        return [entry["settings"] for entry in json.loads((output / "scores.json").read_text())]

    warning = "warning: the code of my_parabola has changed since the training"
    assert warning not in run(fault="crash") + run(fault="crash")
    module.write_text(f"{module.read_text()}# changed\n")
    assert warning in run(fault="crash")
    assert warning not in run(fault="crash"), "it was changed once"
    output = tmp_path / "finished"
    command[2] = str(output)
    assert warning not in run() + run("--score")
    module.write_text(f"{module.read_text()}# again\n")
    assert run("--score").count(warning) == 1
    command[2] = str(tmp_path / "edited")
    fit = ExampleTrainable.fit

    def edit_and_fit(*arguments: Any) -> None:
        module.write_text(f"{module.read_text()}# while it trains\n")
        fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleTrainable, "fit", edit_and_fit)
        assert warning not in run()
    assert entries() == [{}, {"code of my_parabola": "changed"}]


def test_train_exports_a_model_that_mlflow_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "new/model"
    command = [*write_form("config", tmp_path), "--output", str(tmp_path / "trained"), "--export", str(model)]
    assert train.main([*command, "--dry-run"]) == 0 and not model.parent.exists()
    assert train.main(command) == 0
    assert f"model: {model}" in capsys.readouterr().out
    assert mlflow.pyfunc.load_model(str(model)).metadata.flavors and list(model.parent.iterdir()) == [model]
    assert train.main([*command, "--score"]) == 2
    assert f"error: --export: {model} exists; name a new folder" in capsys.readouterr().err


def test_train_without_output_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_form("config", tmp_path)
    before = set(tmp_path.rglob("*"))
    assert train.main(arguments) == 0
    assert "nothing is kept" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", [[], ["--output", "trained"]], ids=["nowhere", "folder"])
def test_train_dry_run_checks_and_writes_nothing(
    output: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*write_form("config", tmp_path), *output, "--dry-run"]
    before = set(tmp_path.rglob("*"))
    assert train.main(arguments) == 0
    assert capsys.readouterr().out.endswith("dry run: file and data were checked; nothing was trained\n")
    assert train.main([*write_form("config", tmp_path, fault="data"), *output, "--dry-run"]) == 2
    assert set(tmp_path.rglob("*")) == before


def test_score_uses_the_checkpoint_with_other_settings(tmp_path: Path) -> None:
    output = tmp_path / "trained"
    arguments = [*write_form("config", tmp_path), "--output", str(output)]
    assert train.main(arguments) == 0
    for _ in range(2):
        assert train.main([*arguments, "--score", "--set", "seed=3"]) == 0
    scored = json.loads((output / "scores.json").read_text())
    assert [each["settings"] for each in scored] == [{}, {"seed": "3"}]
    assert yaml.safe_load((output / "config.yaml").read_text())["config"]["seed"] == 0


def test_score_refuses_settings_that_the_training_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExampleTrainable, "scoring_paths", ("marker",), raising=False)
    arguments = [*write_form("config", tmp_path), "--output", str(tmp_path / "trained")]
    assert train.main(arguments) == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert train.main([*arguments, "--score", "--set", "seed=3", "--set", "marker=other"]) == 2
    line = capsys.readouterr().err
    assert "other settings: seed: 0 → 3; only marker may differ when a checkpoint is scored again" in line
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert train.main([*arguments, "--score", "--set", "marker=other"]) == 0


BAD: dict[str, tuple[str, list[str], str]] = {
    "no file": ("", [], "parabola.yaml: there is no such file"),
    "no YAML": ("epochs: [", [], "parabola.yaml:1: "),
    "a list": ("[1]", [], "parabola.yaml:1: the file holds"),
    "unknown key": ("epocs: 3", [], "parabola.yaml:1: epocs: unknown key; did you mean 'epochs'"),
    "twice": ("epochs: 3\nepochs: 4", [], "parabola.yaml:2: epochs is given twice"),
    "variable": ("marker: ${NOWHERE}", [], "parabola.yaml:1: marker: the environment variable NOWHERE"),
    "data": ("fault: data", [], "parabola.yaml:1: fault: data is at fault"),
    "override": ("epochs: 3", ["--set", "x=far"], "--set x=far: x: "),
    "no trainable": ("epochs: 3", ["--trainable", "tests.support.nothing:Class"], "tests.support.nothing"),
    "another key": ("trainable: a:B\nconfigs: {}", [], "parabola.yaml:2: configs: unknown key"),
    "no checkpoint": ("epochs: 3", ["--score", "--output", "empty"], "--score: "),
    "score alone": ("epochs: 3", ["--score"], "--score: name the folder"),
    "device": ("epochs: 3", ["--device", "cuda:77"], "--device cuda:77: there is no such device"),
    "no mapping": (f"trainable: {TRAINABLE}\nconfig: []", [], "parabola.yaml:2: config: [] is not a mapping"),
    "override of a searched value": (
        sweep_text(),
        ["--set", "config.x=far"],
        "--set config.x=far: config.x: ",
    ),
    "folder below a file": ("epochs: 3", ["--output", "parabola.yaml/out"], "--output: "),
    "folder without access": ("epochs: 3", ["--output", "/proc/nothing/out"], "--output: "),
    "long name": ("epochs: 3", ["--output", "x" * 300], "--output: "),
    "name that is not UTF-8": ("epochs: 3", ["--output", "a\udc80"], "--output: "),
    "no comparison": ("epochs: 3", ["--variant", "a"], "--variant: "),
}


@pytest.mark.parametrize("case", BAD)
def test_train_bad_input_is_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, options, line = BAD[case]
    monkeypatch.chdir(tmp_path)
    if content:
        Path("parabola.yaml").write_text(content)
    arguments = ["parabola.yaml", "--trainable", TRAINABLE, *options]
    assert train.main(arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
    assert [path.name for path in tmp_path.iterdir()] == ["parabola.yaml"] * bool(content)


def test_train_comparison_needs_one_of_its_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_comparison(tmp_path))
    assert train.main([file]) == 2
    assert "choose with --variant one of plain, quick, noisy" in capsys.readouterr().err
    assert train.main([file, "--variant", "plane"]) == 2
    assert "did you mean 'plain'" in capsys.readouterr().err


def test_train_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, output = write_form("config", tmp_path), tmp_path / "trained"
    assert train.main([*arguments, "--output", str(output)]) == 0
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    assert train.main([*arguments, "--output", str(output), "--set", "x=1"]) == 2
    assert "with other settings: x: 0.0 → 1.0; name another folder" in capsys.readouterr().err
    assert train.main([*arguments, "--output", str(tmp_path)]) == 2
    assert "has other files" in capsys.readouterr().err
    assert train.main([*arguments, "--output", arguments[0]]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before


DAMAGES = {
    "config.yaml": ("config: [", "[" * 5000, "trainable: a:B", ""),
    "curves.csv": ("epoch,x\n1,far\n", "x\n1\n"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_train_in_a_damaged_folder_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "trained"
    arguments = [*write_form("config", tmp_path), "--output", str(output)]
    assert train.main(arguments) == 0
    for content in DAMAGES[name]:
        (output / name).write_text(content)
        capsys.readouterr()
        assert train.main(arguments) == 2, content
        (error,) = capsys.readouterr().err.splitlines()
        assert f"{output / name} is damaged" in error
        assert (output / name).read_text() == content


def test_train_sets_a_value_that_the_sweep_searches(tmp_path: Path) -> None:
    output = tmp_path / "trained"
    arguments = [*write_form("sweep", tmp_path), "--set", "config.x=2", "--output", str(output)]
    assert train.main(arguments) == 0
    assert yaml.safe_load((output / "config.yaml").read_text())["config"]["x"] == 2.0


def test_config_that_was_recorded_is_read_alike(tmp_path: Path) -> None:
    texts = ("1e3", "007", "no", "null", "0x1F", "2001-01-01", "größe: a", "")
    for number, marker in enumerate(texts):
        folder, arguments = tmp_path / str(number), write_form("config", tmp_path)
        Path(arguments[0]).write_text(f"epochs: 1\nmarker: {json.dumps(marker)}")
        assert train.main([*arguments, "--output", str(folder)]) == 0
        assert train.main([str(folder / "config.yaml"), "--output", str(folder)]) == 0


def test_exception_of_the_trainable_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "trained"
    arguments = [*write_form("config", tmp_path, fault="crash"), "--output", str(output)]
    assert train.main(arguments) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: the trainable crashed as asked" in error and f"{output}/error.txt" in error
    assert (output / "error.txt").read_text().startswith("Traceback")
    assert (output / "curves.png").exists()


def test_thread_that_the_trainable_leaves_keeps_no_process(tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(
        "trainable: tests.support.hostile_trainable:HostileTrainable\nconfig: {act: lasting thread}"
    )
    command = [sys.executable, "-m", "orchestrator.train", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the trainable left threads that still ran: lasting\n")


def test_title_with_any_signs_is_drawn(tmp_path: Path) -> None:
    file = Path(write_form("config", tmp_path)[0]).rename(tmp_path / "a$_$.yaml")
    output = tmp_path / "trained"
    assert train.main([str(file), "--trainable", TRAINABLE, "--output", str(output)]) == 0
    assert (output / "curves.png").exists()


def test_train_that_diverges_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(write_form("config", tmp_path, fault="diverge")) == 1
    assert "the training diverged: train/loss is nan" in capsys.readouterr().out
