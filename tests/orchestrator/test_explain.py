"""The explanation of configs, and the JSON schemas of files."""

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field

from orchestrator import explain, trainable
from orchestrator.config.document import Document
from orchestrator.config.explanation import NAME, ConfigPath, config_paths
from orchestrator.config.file_schema import KINDS, file_schema
from orchestrator.config.search_space import leaves
from orchestrator.errors import InputError
from tests.support.example_trainable import ExampleConfig, ExampleTrainable
from tests.support.paths import ROOT
from tests.support.sweep_files import TRAINABLE, write_comparison, write_sweep

ALIGNMENT = "trainables.alignment:AlignmentTrainable"
RECIPES = sorted((ROOT / "search_spaces").glob("*.yaml"))


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Return the JSON document of the command."""
    assert explain.main([*arguments, "--json"]) == 0
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return entries


def test_paths_without_a_config_are_those_of_the_model() -> None:
    paths = {each.path: each for each in config_paths(ExampleConfig)}
    assert paths["steps"] == ConfigPath("steps", "whole number from 1 to 8", False, 1, False, None, "")
    assert paths["noise.width"].type == "number, at least 0"
    assert f"sets.{NAME}.kind" in paths and "sets" not in paths


def test_paths_of_a_config_have_its_values_and_names() -> None:
    config = ExampleConfig.model_validate({"sets": {"a": {"kind": "uniform"}}, "steps": 3})
    paths = {each.path: each for each in config_paths(ExampleConfig, config)}
    assert (paths["steps"].value, paths["steps"].default) == (3, 1)
    kind = ConfigPath("sets.a.kind", "none or uniform", False, "none", True, "uniform", "")
    assert paths["sets.a.kind"] == kind
    assert list(paths) == leaves(ExampleConfig, {"sets": {"a": {}}})


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Tree(BaseModel):
    depth: int = Field(1, ge=0)
    child: "Tree | None" = None


class OddConfig(BaseModel):
    """Fields that few configs have."""

    colour: Colour = Colour.BLUE
    pair: tuple[int, str] = (1, "a")
    factory: list[float] = Field(default_factory=lambda: [0.5])
    text: str = ""
    rate: float = 1
    renamed: int = Field(2, validation_alias="other_name")
    tree: Tree = Tree()
    group: Tree | None = None


def test_odd_fields_are_described() -> None:
    paths = {each.path: each for each in config_paths(OddConfig, OddConfig())}
    assert paths["colour"].type == "red or blue" and paths["colour"].value == "blue"
    assert paths["pair"].type == "list (whole number; text)" and paths["pair"].default == [1, "a"]
    assert paths["factory"].default == [0.5] and paths["other_name"].value == 2
    assert {"tree.depth", "tree.child.depth", "group.depth"} <= paths.keys()
    assert not paths["group.depth"].is_set, "the config has no such group"
    changed = [each.path for each in paths.values() if each.is_set and each.value != each.default]
    assert changed == []


def test_type_without_a_schema_is_one_line() -> None:
    class Unknown(BaseModel):
        function: Callable[[], None]

    with pytest.raises(InputError, match=r"Unknown has a field that no JSON schema describes"):
        config_paths(Unknown)


def test_every_path_of_the_trainable_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    entries = explained(capsys, ALIGNMENT)
    assert len(entries) > 70
    assert [entry["path"] for entry in entries if not entry["description"]] == []
    required = {entry["path"] for entry in entries if entry["required"]}
    assert required == {f"data.sets.{NAME}.layout", "data.sequences"}


def test_file_shows_what_is_searched_and_the_options_of_components(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REID_DATA", "/data")
    entries = {entry["path"]: entry for entry in explained(capsys, str(ROOT / "search_spaces/prid2011.yaml"))}
    assert entries["rnn.cell"]["varied"] == "searched, choice rnn, gru, lstm"
    assert entries["data.sets.prid.options.minimum_frames"]["value"] == 28


def test_command_explains_a_group_in_two_lines_for_each_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, config={"noise": {"width": 0.5}})
    assert explain.main([str(file), "noise"]) == 0
    assert "noise.width: number, at least 0; default 0.1; in this file 0.5" in capsys.readouterr().out


def test_command_explains_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry["path"]: entry for entry in explained(capsys, str(write_comparison(tmp_path)))}
    assert entries["steps"]["varied"] == "differs between variants"
    assert entries["y"]["varied"] == "varied by splits"
    assert entries["seed"]["varied"] == "varied by seeds"


@pytest.mark.parametrize("alone", [True, False])
def test_command_explains_the_file_of_a_training(
    alone: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "training.yaml"
    file.write_text("steps: 3\n" if alone else f"trainable: {TRAINABLE}\nconfig: {{steps: 3}}\n")
    options = ["--trainable", TRAINABLE] if alone else []
    (entry,) = explained(
        capsys, str(file), "--set", "steps=4" if alone else "config.steps=4", *options, "steps"
    )
    assert entry["value"] == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([TRAINABLE, "step"], "error: the config has no path 'step'; did you mean 'steps'?"),
        (["tests.support.example_trainable:Example"], "has no 'Example'; did you mean 'ExampleTrainable'?"),
        (["missing.yaml"], "missing.yaml"),
        ([f"{'x' * 300}:y"], "there is no module"),
        ([TRAINABLE, "--set", "x=1"], "--set x=1: goes with a file"),
    ],
)
def test_command_refuses_what_it_cannot_explain(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain.main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_schema_in_the_repository_is_that_of_the_command(kind: str) -> None:
    kept = json.loads((ROOT / f"search_spaces/{kind}.schema.json").read_text(encoding="utf-8"))
    assert kept == file_schema(kind, trainable.load(ALIGNMENT))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_schema_accepts_the_recipe_that_names_it(recipe: Path) -> None:
    first, _, _ = recipe.read_text(encoding="utf-8").partition("\n")
    tree = Document.read(recipe).tree
    kind = "sweep" if "search" in tree else "comparison"
    assert first == f"# yaml-language-server: $schema={kind}.schema.json"
    assert [error.message for error in validator(kind).iter_errors(tree)] == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"config": {"rnn": {"hiden_size": 3}}}, "config.rnn"),
        ({"config": {"epochs": 0}}, "config.epochs"),
        ({"budget": {"trials": 4, "wall": "2 hours"}}, "budget.wall"),
        ({"budget": {"trials": 0}}, "budget.trials"),
        ({"sampler": "tep"}, "sampler"),
        ({"search": {"rnn.cell": {"choices": ["gru"]}}}, "search.rnn.cell"),
        ({"schedular": "asha"}, ""),
    ],
)
def test_schema_marks_a_mistake(changes: dict[str, Any], path: str) -> None:
    tree = Document.read(ROOT / "search_spaces/alignment.yaml").tree | changes
    assert [".".join(map(str, error.path)) for error in validator("sweep").iter_errors(tree)] == [path]


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"trials": "${TRIALS:-4}"}},
        {"study": None},
        {"config": {"encoder": {"name": "my_package:Mine", "options": {"width": 3}}}},
        {"resources": {"report_timeout": "1h30m"}},
    ],
)
def test_schema_accepts_what_the_command_reads(changes: dict[str, Any]) -> None:
    tree = Document.read(ROOT / "search_spaces/alignment.yaml").tree | changes
    assert [error.message for error in validator("sweep").iter_errors(tree)] == []


def test_schema_keeps_fields_with_names_of_keywords() -> None:
    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        title: str = ""
        required: int = 0

    class Named(ExampleTrainable):
        pass

    Named.Config = Config  # type: ignore[assignment,misc]
    schema = file_schema("sweep", Named())  # type: ignore[arg-type]
    assert set(schema["properties"]["config"]["properties"]) == {"title", "required"}


def validator(kind: str) -> Any:
    """Return a validator of a kind of file."""
    schema = file_schema(kind, trainable.load(ALIGNMENT))
    chosen = jsonschema.validators.validator_for(schema)
    chosen.check_schema(schema)
    return chosen(schema)
