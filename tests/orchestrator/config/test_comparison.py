"""Reading a comparison file: its trials, its faults, and what may change between two runs."""

from pathlib import Path

import pytest

from orchestrator.config.comparison import Comparison, read_comparison
from orchestrator.config.document import Override
from orchestrator.config.sweep import read_sweep
from orchestrator.errors import InputError
from tests.support.sweep_files import comparison_text, write_comparison, write_sweep


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_comparison(tmp_path)


def read(file: Path, *overrides: str) -> Comparison:
    return read_comparison(file, [Override.parse(text) for text in overrides], environment={})


def test_cells_all_variants_precede_the_next_grid_point(file: Path) -> None:
    comparison = read(file)
    assert [cell.values for cell in comparison.cells[:4]] == [
        {"variant": "plain", "y": 0, "seed": 0},
        {"variant": "quick", "y": 0, "seed": 0},
        {"variant": "noisy", "y": 0, "seed": 0},
        {"variant": "plain", "y": 0, "seed": 7},
    ]
    assert len(comparison.cells) == 12
    assert comparison.cells[-1].values == {"variant": "noisy", "y": 1, "seed": 7}


def test_cell_config_has_variant_split_and_seed(file: Path) -> None:
    comparison = read(file)
    config = comparison.cell_config(comparison.cells[-1]).model_dump()
    assert (config["x"], config["y"], config["seed"], config["epochs"]) == (1.0, 1.0, 7, 4)
    assert config["noise"] == {"kind": "uniform", "width": 0.1}


def test_read_comparison_absent_keys_have_defaults(file: Path) -> None:
    config = {"epochs": 4, "seed": 3}
    file.write_text(comparison_text(config=config, splits=None, seeds=None, baseline=None))
    comparison = read(file)
    assert comparison.baseline == "plain"
    assert [cell.grid_point for cell in comparison.cells] == [(("seed", 3),)] * 3
    assert comparison.tracking.experiment == "parabola"


def test_read_comparison_overrides_reach_variants_and_splits(file: Path) -> None:
    comparison = read(
        file, "variants.quick.noise.width=0.5", "variants.noisy.noise.kind=none", "splits.y=[3]", "seeds=[1]"
    )
    assert comparison.variants["quick"] == {"steps": 2, "noise.width": 0.5}
    assert comparison.variants["noisy"]["noise.kind"] == "none"
    assert comparison.grid_points == [(("y", 3), ("seed", 1))]


@pytest.mark.parametrize(
    ("score", "mode"),
    [
        ("test/parabola/score", "max"),
        ("test/parabola/loss", "min"),
        ("val/score", "max"),
        ("train/loss", "min"),
        ("test/parabola/unheard-of", "max"),
    ],
)
def test_mode_is_that_of_the_metric_with_the_same_name(file: Path, score: str, mode: str) -> None:
    assert read(file).mode(score) == mode


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("variants={}", "variants: no variant; expected for example {small: {rnn.hidden_size: 64}}"),
        ("variants=3", "variants: should be a mapping of keys to values, not 3"),
        ("variants={a: 1, b: {}}", "variants.a: should be a mapping of keys to values, not 1"),
        ("variants={'a/b': {}, c: {steps: 2}}", "invalid name of a variant 'a/b'; expected at most 40"),
        ("variants.twin={steps: 2}", "variants.twin: has the same config as quick; remove one of them"),
        ("variants.quick.stpes=2", "variants.quick.stpes: unknown key; did you mean 'steps'?"),
        ("variants.quick.steps=9", "variants.quick.steps: should be less than or equal to 8, not 9"),
        ("variants.quick.noise.kin=x", "variants.quick.noise.kin: unknown key; did you mean 'kind'?"),
        ("variants.quick.noise={kin: x}", "variants.quick.noise.kin: unknown key; did you mean 'kind'?"),
        ("variants.quick.seed=3", "variants.quick.seed: seed is varied for all variants; remove it here"),
        ("variants.quick.y=3", "variants.quick.y: y is varied for all variants; remove it here"),
        ("config.epohcs=3", "config.epohcs: unknown key; did you mean 'epochs'?"),
        ("config.y=3", "y is varied by splits; write --set 'splits.y=[...]'"),
        ("config.seed=3", "seed is varied by seeds; write --set 'seeds=[...]'"),
        ("splits.y=[]", "splits.y: invalid list []; expected [first, second, ...]"),
        ("splits.y=[0, 0]", "splits.y: 0 is given twice"),
        ("splits.y=[0, 11]", "splits.y.1: should be less than or equal to 10, not 11"),
        ("splits.x=[0]", "splits.x: expected one path and its values, not 2: y, x"),
        ("splits={z: [0]}", "splits.z.0: unknown key"),
        ("splits={seed: [0]}", "splits.seed: write seeds: [...] instead"),
        ("seeds=[0, one]", "seeds.1: should be a whole number, not 'one'"),
        ("seeds=3", "seeds: invalid list 3; expected [first, second, ...]"),
        ("baseline=plian", "baseline: unknown variant 'plian'; did you mean 'plain'?"),
        ("metrics=[a, a]", "metrics: 'a' is given twice"),
        ("metrcis=[a]", "metrcis: unknown key; did you mean 'metrics'?"),
        ("budget.trials=3", "budget: unknown key"),
        ("resources.workers=0", "resources.workers: should be greater than or equal to 1, not 0"),
        ("trainable=tests.support.example_trainable:Example", "did you mean 'ExampleTrainable'?"),
    ],
)
def test_read_comparison_invalid_override_is_named_first(file: Path, override: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        read(file, override)
    assert expected in str(error.value)
    assert str(error.value).startswith(f"--set {override}: ")


def test_read_comparison_fault_in_the_file_names_its_line(file: Path) -> None:
    variants = "variants:\n  plain:\n  quick: {stpes: 2}\n"
    file.write_text(variants + comparison_text(variants=None))
    with pytest.raises(InputError, match=r"parabola.yaml:3: variants\.quick\.stpes: unknown key"):
        read(file)


def test_read_comparison_empty_file_fails(file: Path) -> None:
    file.write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        read(file)


def test_record_keeps_variants_of_earlier_files(file: Path) -> None:
    before = read(file).record(None)
    after = read(file, "variants={plain: {}, far: {x: 5}}").record(before)
    assert list(after["variants"]) == ["plain", "quick", "noisy", "far"]
    assert after["variants"]["far"]["x"] == "5.0"


def test_differences_more_variants_and_seeds_are_allowed(file: Path) -> None:
    before = read(file).record(None)
    after = read(file, "variants.far.x=5", "splits.y=[2, 0, 1]", "seeds=[0, 7, 8]", "resources.cpus=2")
    assert after.differences(before) == []


def test_differences_fewer_seeds_and_other_baseline_are_allowed(file: Path) -> None:
    before = read(file).record(None)
    assert read(file, "seeds=[0]", "baseline=quick", "metrics=[a]").differences(before) == []


def test_differences_variant_of_an_earlier_file_is_compared(file: Path) -> None:
    enlarged = read(file, "variants.far.x=5").record(None)
    before = read(file).record(enlarged)
    assert read(file, "variants.far.x=6").differences(before) == ["variants.far: x: 5.0 → 6.0"]


def test_differences_changes_of_several_variants_are_listed(file: Path) -> None:
    before = read(file).record(None)
    after = read(file, "variants.noisy.steps=2", "variants.quick.steps=1", "variants.quick.x=2")
    assert after.differences(before) == [
        "variants.quick: x: 0.0 → 2.0",
        "variants.quick: steps: 2 → 1",
        "variants.noisy: steps: 1 → 2",
    ]


def test_differences_change_with_another_split_is_listed(file: Path) -> None:
    before = read(file).record(None)
    after = read(file, "splits={x: [0, 1]}", "variants.noisy={steps: 3}")
    assert after.differences(before) == [
        "variants.noisy: steps: 1 → 3",
        "variants.noisy: noise.kind: uniform → none",
    ]


def test_differences_change_of_one_variant_names_it(file: Path) -> None:
    before = read(file).record(None)
    assert read(file, "variants.quick.x=2").differences(before) == ["variants.quick: x: 0.0 → 2.0"]


def test_differences_change_of_all_variants_names_config(file: Path) -> None:
    before = read(file).record(None)
    assert read(file, "config.epochs=5").differences(before) == ["config.epochs: 4 → 5"]


def test_differences_absent_path_equals_its_default(file: Path) -> None:
    before = read(file).record(None)
    for texts in before["variants"].values():
        del texts["marker"], texts["noise.width"], texts["sets"]
    assert read(file).differences(before) == []


def test_differences_absent_path_with_other_value_is_listed(file: Path) -> None:
    before = read(file).record(None)
    for texts in before["variants"].values():
        del texts["noise.width"]
    after = read(file, "variants.noisy.noise.width=0.5")
    assert after.differences(before) == ["variants.noisy: noise.width: 0.1 → 0.5"]


def test_differences_text_that_looks_like_a_number_is_kept(file: Path) -> None:
    before = read(file, "config.marker='007'").record(None)
    del before["variants"]["plain"]["sets"]
    assert read(file, "config.marker='007'").differences(before) == []
    assert "config.marker: 007 → 7" in read(file, "config.marker='7'").differences(before)


def test_read_comparison_of_a_sweep_file_names_its_command(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    expected = "search: this is the file of a sweep; run python -m orchestrator.sweep"
    with pytest.raises(InputError, match=rf"^{sweep}:3: {expected}$"):
        read_comparison(sweep, environment={})


def test_read_sweep_of_a_comparison_file_names_its_command(file: Path) -> None:
    expected = "variants: this is the file of a comparison; run python -m orchestrator.compare"
    with pytest.raises(InputError, match=rf"^{file}:\d+: {expected}$"):
        read_sweep(file, environment={})


def test_group_of_a_variant_is_merged_into_the_config(tmp_path: Path) -> None:
    variants = {"plain": {}, "noisy": {"noise": {"kind": "uniform"}}}
    comparison = read(write_comparison(tmp_path, config={"noise": {"width": 0.7}}, variants=variants))
    assert comparison.variants["noisy"] == {"noise.kind": "uniform"}
    for cell in comparison.first_cells:
        assert comparison.cell_config(cell).noise.width == 0.7  # type: ignore[attr-defined]


def test_path_that_a_variant_sets_twice_is_refused(tmp_path: Path) -> None:
    variants = {"noisy": {"noise": {"kind": "uniform"}, "noise.kind": "none"}}
    with pytest.raises(InputError, match=r"noisy sets noise\.kind twice; keep one of them"):
        read(write_comparison(tmp_path, variants=variants, baseline="noisy"))


def test_place_of_a_path_is_where_the_file_sets_it(file: Path) -> None:
    comparison = read(file)
    quick = next(cell for cell in comparison.cells if cell.variant == "quick")
    config = comparison.cell_config(quick)
    assert comparison.place_of("y", config) == "splits.y"
    assert comparison.place_of("steps", config) == "variants.quick.steps"
    assert comparison.place_of("epochs", config) == "config.epochs"
