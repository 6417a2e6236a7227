"""The section `finals` of a sweep file, and the runs that follow from it."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from tests.support.sweep_files import load_sweep


def test_final_runs_are_each_finalist_on_each_split_and_seed(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, finals={"top": 2, "seeds": [0, 7], "splits": {"y": [0, 1]}})
    runs = sweep.final_runs({"trial-0003": {"x": 0.5}, "trial-0001": {"x": 0.1}})
    assert runs.name == "parabola.finals"
    assert [tuple(cell.values.values()) for cell in runs.cells[:3]] == [
        ("trial-0003", 0, 0),
        ("trial-0001", 0, 0),
        ("trial-0003", 0, 7),
    ]
    config = runs.cell_config(runs.cells[2]).model_dump()
    assert (config["x"], config["y"], config["seed"], config["epochs"]) == (0.5, 0.0, 7, 4)
    assert len(runs.cells) == 8


@pytest.mark.parametrize(
    ("finals", "changes", "expected"),
    [
        ({"top": 5, "seeds": [0]}, {}, "finals.top: 5 is more than budget.trials, 4; lower it, or"),
        ({"top": 0, "seeds": [0]}, {}, "finals.top: should be greater than or equal to 1, not 0"),
        ({"top": 1}, {}, "finals.seeds: missing"),
        ({"top": 1, "seeds": []}, {}, "finals.seeds: invalid list []"),
        ({"top": 1, "seeds": [0, "one"]}, {}, "finals.seeds.1: should be a whole number, not 'one'"),
        (
            {"top": 1, "seeds": [0], "splits": {"y": [0], "steps": [1]}},
            {},
            "expected one path and its values",
        ),
        ({"top": 1, "seeds": [0], "splits": {"y": [0, 11]}}, {}, "finals.splits.y.1: should be less than"),
        ({"top": 1, "seeds": [0], "splits": {"z": [0]}}, {}, "finals.splits.z.0: unknown key"),
        (
            {"top": 1, "seeds": [0], "splits": {"x": [0]}},
            {},
            "finals.splits.x: 'x' is searched; remove it here",
        ),
        ({"top": 1, "seeds": [0], "splits": {"seed": [0]}}, {}, "write finals.seeds: [...] instead"),
        (
            {"top": 1, "seeds": [0], "train": {"seed": [0]}},
            {},
            "finals.train.seed: write finals.seeds: [...]",
        ),
        (
            {"top": 1, "seeds": [0], "splits": {"y": [0]}, "train": {"y": [0, 1]}},
            {},
            "finals.train.y: 'y' is the path of finals.splits",
        ),
        ({"topp": 1, "seeds": [0]}, {}, "finals.topp: unknown key; did you mean 'top'?"),
        ({"top": 1, "seeds": [0]}, {"search": {"seed": {"int": [0, 9]}}}, "finals.seeds: 'seed' is searched"),
        ({"top": 1, "seeds": [0]}, {"name": "x" * 60}, "name: with finals, the name may have 55 characters"),
    ],
)
def test_finals_invalid_value_is_named(
    tmp_path: Path, finals: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as error:
        load_sweep(tmp_path, finals=finals, **changes)
    assert expected in str(error.value)


def test_finals_may_change_between_two_runs_of_a_sweep(tmp_path: Path) -> None:
    before = load_sweep(tmp_path).record(None)
    assert load_sweep(tmp_path, finals={"top": 1, "seeds": [3]}).differences(before) == []


def test_crossed_runs_leave_out_the_own_set_and_missing_splits(tmp_path: Path) -> None:
    finals = {"top": 1, "seeds": [0], "splits": {"y": [0, 1]}, "train": {"steps": [1, 2, 3]}}
    sweep = load_sweep(tmp_path, finals=finals)
    runs = sweep.crossed_runs({"x": 0.5})
    assert runs is not None and list(runs.variants) == ["2", "3"], "the config has steps: 1"
    missing = next(cell for cell in runs.cells if cell.values == {"variant": "3", "y": 1, "seed": 0})
    fewer = sweep.crossed_runs({"x": 0.5}, [missing])
    assert fewer is not None and len(fewer.cells) == 3
    assert [cell.variant for cell in fewer.first_cells] == ["2", "3"]


def test_crossed_runs_invalid_training_set_is_named(tmp_path: Path) -> None:
    finals = {"top": 1, "seeds": [0], "train": {"steps": [1, 9]}}
    with pytest.raises(InputError, match=r"finals.train.steps.1: should be less than or equal to 8, not 9"):
        load_sweep(tmp_path, finals=finals)


def test_place_of_a_split_is_in_the_finals(tmp_path: Path) -> None:
    sweep = load_sweep(tmp_path, finals={"top": 1, "seeds": [0], "splits": {"y": [0, 1]}})
    base, other = sweep.trial_config({}), sweep.trial_config({"y": 1})
    assert sweep.place_of("y", other) == "finals.splits.y"
    assert sweep.place_of("y", base) == "config.y" and sweep.place_of("x", base) == "search.x"
