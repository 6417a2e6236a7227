"""Reading a sweep file: its defaults, overrides, variables, and what may change between two runs."""

import logging
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.config.document import Override
from orchestrator.config.sweep import Sweep, read_sweep
from orchestrator.errors import InputError, nearest

SWEEP = """\
name: parabola
trainable: tests.support.example_trainable:ExampleTrainable
config: {epochs: 9, seed: 1}
search:
  x: {uniform: [-5, 5]}
  steps: {int: [1, 8], log: true}
objective: {metric: val/score}
budget: {trials: 4}
storage: "${ROOM:-/tmp}/sweeps"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "parabola.yaml"
    path.write_text(SWEEP)
    return path


def read(file: Path, *overrides: str, **environment: str) -> Sweep:
    return read_sweep(file, [Override.parse(text) for text in overrides], environment=environment)


def test_read_sweep_absent_keys_have_defaults(file: Path) -> None:
    sweep = read(file)
    assert sweep.objective[0].direction == "maximize"
    assert isinstance(sweep.sampler.build(), optuna.samplers.TPESampler)
    assert isinstance(sweep.scheduler.build(sweep.epochs), optuna.pruners.SuccessiveHalvingPruner)
    assert sweep.scheduler.rungs(sweep.epochs) == [1, 3]
    assert (sweep.resources.workers, sweep.resources.concurrent, sweep.registry) == (1, "auto", None)
    assert sweep.storage == "/tmp/sweeps"
    assert sweep.tracking.uri == "sqlite:////tmp/sweeps/mlflow.db"
    assert sweep.tracking.experiment == "parabola"


def test_read_sweep_environment_fills_strings_and_tracking(file: Path) -> None:
    sweep = read(file, ROOM="/data", MLFLOW_TRACKING_URI="http://tracking:5000")
    assert sweep.storage == "/data/sweeps"
    assert sweep.tracking.uri == "http://tracking:5000"


def test_read_sweep_variable_without_braces_is_refused_if_it_is_set(file: Path) -> None:
    with pytest.raises(InputError, match=r"'\$ROOM' is not replaced by .* variable; write \$\{ROOM\}"):
        read(file, "storage=$ROOM/sweeps", ROOM="/data")
    assert read(file, "storage=$ROOM/sweeps").storage.endswith("/$ROOM/sweeps")


def test_read_sweep_overrides_reach_every_section(file: Path) -> None:
    sweep = read(
        file,
        "budget.trials=7",
        "budget.wall=1h30m",
        "config.noise.kind=uniform",
        "config.sets.walkers-b.width=1e-3",
        "search.noise.width={log_uniform: [1e-3, 1]}",
        "search.steps.int=[2, 4]",
        "registry.model=multi-shot-reid",
        "scheduler.median.warmup=2",
    )
    assert (sweep.budget.trials, sweep.budget.wall) == (7, 5400)
    config = sweep.trial_config({"noise.width": 0.5}).model_dump()
    assert config["noise"] == {"kind": "uniform", "width": 0.5}
    assert config["sets"]["walkers-b"]["width"] == 1e-3
    assert sweep.search["steps"].integer == (2, 4)
    assert sweep.registry is not None and sweep.registry.alias == "champion"
    assert sweep.scheduler.rungs(6) == [2, 3, 4, 5]


def test_read_sweep_override_may_be_any_text(file: Path) -> None:
    sweep = read_sweep(file, [Override("storage", "/tmp/a: b # c", "--storage")], environment={})
    assert sweep.storage == "/tmp/a: b # c"


def test_read_sweep_scalars_follow_yaml_1_2(file: Path) -> None:
    sweep = read(file, "search.fault={choice: [none]}", "search.seconds={choice: [1e-3, 0.5]}")
    assert sweep.search["fault"].choice == ("none",)
    assert sweep.search["seconds"].choice == (1e-3, 0.5)


def test_read_sweep_yaml_1_1_boolean_is_text(file: Path) -> None:
    with pytest.raises(InputError, match="mode: invalid value 'on'; expected 'max' or 'min'"):
        read(file, "objective.mode=on")


@pytest.mark.parametrize(
    "written",
    [
        "tpe",
        "random",
        "gp",
        "nsgaii",
        "nsgaiii",
        "qmc",
        "{tpe: {seed: 3, multivariate: true}}",
    ],
)
def test_sampler_name_builds_the_sampler(file: Path, written: str) -> None:
    assert isinstance(read(file, f"sampler={written}").sampler.build(), optuna.samplers.BaseSampler)


def test_sampler_offset_moves_its_seed(file: Path) -> None:
    sweep = read(file, "sampler={random: {seed: 3}}")

    def first(offset: int) -> dict[str, object]:
        return sweep.space.suggest(optuna.create_study(sampler=sweep.sampler.build(offset)).ask())

    assert first(0) == first(0)
    assert first(0) != first(1)


@pytest.mark.parametrize(
    ("written", "name", "pruner", "rungs"),
    [
        ("none", "none", optuna.pruners.NopPruner, []),
        ("null", "none", optuna.pruners.NopPruner, []),
        ("asha", "asha", optuna.pruners.SuccessiveHalvingPruner, [1, 3]),
        ("hyperband", "hyperband", optuna.pruners.HyperbandPruner, [1, 3]),
        ("{median: {startup: 2}}", "median", optuna.pruners.MedianPruner, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_scheduler_name_builds_the_pruner(
    file: Path, written: str, name: str, pruner: type, rungs: list[int]
) -> None:
    scheduler = read(file, f"scheduler={written}").scheduler
    assert (scheduler.name, type(scheduler.build(9)), scheduler.rungs(9)) == (name, pruner, rungs)


@pytest.mark.parametrize(
    ("written", "recorded"),
    [
        ("asha", {"asha": {"grace": 1, "reduction": 3}}),
        ("{median: {warmup: 2}}", {"median": {"warmup": 2, "startup": 5}}),
        ("none", "none"),
    ],
)
def test_scheduler_is_recorded_with_its_defaults(file: Path, written: str, recorded: Any) -> None:
    assert read(file, f"scheduler={written}").resolved()["scheduler"] == recorded


def test_sampler_is_recorded_as_written(file: Path) -> None:
    assert read(file).resolved()["sampler"] == {"tpe": {}}
    assert read(file, "sampler.random.seed=3").resolved()["sampler"] == {"random": {"seed": 3}}


BOTH = "objective=[{metric: val/score}, {metric: train/loss}]"


def test_read_sweep_several_objectives_have_no_scheduler(file: Path) -> None:
    sweep = read(file, BOTH)
    assert [objective.direction for objective in sweep.objective] == ["maximize", "minimize"]
    assert sweep.scheduler.name == "none"


def test_read_sweep_several_objectives_with_scheduler_fails(file: Path) -> None:
    with pytest.raises(InputError, match="write scheduler: none"):
        read(file, BOTH, "scheduler=asha")


def test_epochs_are_the_highest_that_is_searched(file: Path) -> None:
    assert read(file).epochs == 9
    assert read(file, "search.epochs={int: [2, 12]}").epochs == 12


def test_enqueue_values_have_the_types_of_suggestions(file: Path) -> None:
    sweep = read(
        file,
        "enqueue.paper={x: 1, steps: 4.0}",
        "enqueue.v1.x=${WIDE}",
        "search.noise.width={uniform: [0, 1]}",
        "enqueue.v1.noise.width=1",
        WIDE="2.5",
    )
    assert sweep.enqueue == {"paper": {"x": 1.0, "steps": 4}, "v1": {"x": 2.5, "noise.width": 1.0}}
    types = [type(value) for point in sweep.enqueue.values() for value in point.values()]
    assert types == [float, int, float, float]
    assert sweep.resolved()["enqueue"] == sweep.enqueue


def test_read_sweep_override_reaches_name_with_dots(file: Path) -> None:
    file.write_text(SWEEP + "enqueue: {v1.2: {x: 1}, v1: {x: 2}}\n")
    sweep = read(file, "enqueue.v1.2.x=3", "enqueue.v1.steps=2", "enqueue.v1.2.steps=8")
    assert sweep.enqueue == {"v1.2": {"x": 3.0, "steps": 8}, "v1": {"x": 2.0, "steps": 2}}
    assert read(file, "enqueue.v1.2={steps: 8}").enqueue["v1.2"] == {"steps": 8}


def test_enqueue_point_is_suggested_first(file: Path) -> None:
    sweep = read(file, "enqueue.paper.x=1", "sampler={random: {seed: 0}}")
    study = optuna.create_study(sampler=sweep.sampler.build())
    study.enqueue_trial(sweep.enqueue["paper"], user_attrs={"point": "paper"})
    trial = study.ask()
    values = sweep.space.suggest(trial)
    assert values["x"] == 1.0 and 1 <= values["steps"] <= 8
    assert trial.user_attrs == {"point": "paper"}


@pytest.mark.parametrize(
    ("overrides", "sources"),
    [
        ([], ()),
        (["warm_start=earlier"], ("earlier",)),
        (
            ["warm_start=[earlier, mlflow:a/b 2025, mlflow:parabola]"],
            ("earlier", "mlflow:a/b 2025", "mlflow:parabola"),
        ),
    ],
)
def test_warm_start_names_sweeps_and_experiments(
    file: Path, overrides: list[str], sources: tuple[str, ...]
) -> None:
    sweep = read(file, *overrides)
    assert sweep.warm_start == sources
    assert sweep.resolved()["warm_start"] == list(sources)


def test_trial_config_invalid_value_is_one_line(file: Path) -> None:
    with pytest.raises(InputError, match=r"^config\.x: should be less than or equal to 10, not 11$"):
        read(file).trial_config({"x": 11})


def test_resources_one_worker_may_share_a_gpu(file: Path) -> None:
    assert read(file, "resources.gpus=0.5").resources.gpus == 0.5


def test_resources_several_workers_on_a_shared_gpu_fail(file: Path) -> None:
    with pytest.raises(InputError, match="2 workers cannot train together on shares of a GPU"):
        read(file, "resources.gpus=0.5", "resources.workers=2")


def test_resources_old_key_is_read_with_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(file, "resources.silence=2m").resources.report_timeout == 120
    assert caplog.messages == [
        "resources.silence is now called resources.report_timeout; rename it in the file"
    ]


def test_resources_present_key_logs_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(file, "resources.report_timeout=2m").resources.report_timeout == 120
    assert caplog.messages == []


def test_resources_old_and_present_key_together_fail(file: Path) -> None:
    line = "resources: silence is the old name of report_timeout; give only report_timeout"
    with pytest.raises(InputError, match=line):
        read(file, "resources={silence: 2m, report_timeout: 2m}")


def test_differences_changed_settings_are_readable(file: Path) -> None:
    before = read(file).resolved()
    after = read(
        file, "search.steps.int=[1, 4]", "config.seed=2", "search.y={uniform: [0, 1]}", "scheduler=none"
    )
    assert after.differences(before) == [
        "scheduler.asha.grace: 1 → absent",
        "scheduler.asha.reduction: 3 → absent",
        "config.seed: 1 → 2",
        "search.steps: int [1, 8], log true → int [1, 4], log true",
        "scheduler: absent → none",
        "search.y: absent → uniform [0.0, 1.0]",
    ]


def test_differences_points_and_warm_start_must_not_change(file: Path) -> None:
    after = read(file, "enqueue.paper.x=1", "warm_start=[earlier]")
    assert after.differences(read(file).resolved()) == [
        "enqueue.paper.x: absent → 1.0",
        'warm_start: absent → ["earlier"]',
    ]


def test_differences_budget_resources_and_storage_may_change(file: Path) -> None:
    before = read(file).resolved()
    after = read(file, "budget.trials=9", "storage=/elsewhere", "resources.cpus=2", "tracking.experiment=a")
    assert after.differences(before) == []


SETS = "config.sets={mars (small): {kind: none}, other: {width: 0.5}}"


def test_differences_set_with_another_name_may_change(file: Path) -> None:
    before = read(file, SETS, "config.marker=mars (small)").resolved()
    after = read(file, SETS.replace("mars (small)", "mars"), "config.marker=mars")
    assert after.differences(before) == []


def test_differences_set_with_another_name_and_content_are_listed(file: Path) -> None:
    before = read(file, SETS).resolved()
    after = read(file, SETS.replace("mars (small): {kind: none}", "mars: {kind: uniform}"))
    assert after.differences(before)[0] == "config.sets.mars (small).kind: none → absent"
    assert "config.sets.mars.kind: absent → uniform" in after.differences(before)


def test_differences_set_named_like_other_values_may_change(file: Path) -> None:
    before = read(file, "config.sets={uniform: {kind: uniform}, x: {width: 0.3}}").resolved()
    after = read(file, "config.sets={mars: {kind: uniform}, y: {width: 0.3}}")
    assert after.differences(before) == []


def test_differences_value_elsewhere_is_not_hidden_by_a_renamed_set(file: Path) -> None:
    before = read(file, "config.sets={none: {width: 0.3}}", "config.noise.kind=none").resolved()
    after = read(file, "config.sets={uniform: {width: 0.3}}", "config.noise.kind=uniform")
    assert after.differences(before) == ["config.noise.kind: none → uniform"]


def test_differences_set_that_others_do_not_follow_is_listed(file: Path) -> None:
    before = read(file, SETS, "config.marker=mars (small)").resolved()
    after = read(file, SETS.replace("mars (small)", "mars"), "config.marker=other")
    assert after.differences(before) == ["config.marker: mars (small) → other"]


def test_differences_sampler_with_equal_arguments_is_not_a_renamed_entry(file: Path) -> None:
    before = read(file, "sampler={tpe: {seed: 1}}").resolved()
    assert read(file, "sampler={random: {seed: 1}}").differences(before)


def test_differences_recorded_old_resources_are_ignored(file: Path) -> None:
    before = read(file).resolved()
    assert read(file).differences({**before, "resources": {"silence": 3600.0}}) == []


@pytest.mark.parametrize(
    "path", ["config.noise", "config.sets", "enqueue", "warm_start", "scheduler.asha.grace"]
)
def test_differences_absent_key_equals_its_default(file: Path, path: str) -> None:
    before = read(file).resolved()
    *groups, key = path.split(".")
    section = before
    for group in groups:
        section = section[group]
    del section[key]
    assert read(file).differences(before) == []


def test_differences_absent_key_with_other_value_is_listed(file: Path) -> None:
    before = read(file).resolved()
    del before["config"]["noise"]["width"], before["scheduler"]["asha"]["grace"]
    after = read(file, "config.noise.width=0.5", "scheduler.asha.grace=2")
    assert after.differences(before) == [
        "scheduler.asha.grace: 1 → 2",
        "config.noise.width: 0.1 → 0.5",
    ]


def test_differences_unknown_recorded_key_is_listed(file: Path) -> None:
    before = read(file).resolved()
    before["config"]["gone"] = 3
    assert read(file).differences(before) == ["config.gone: 3 → absent"]


def test_nearest_close_name_is_suggested() -> None:
    assert nearest("trails", ["trials", "wall"]) == "; did you mean 'trials'?"


def test_nearest_distant_name_lists_all() -> None:
    assert nearest("x", ["wall", "trials"]) == "; valid: trials, wall"


def test_nearest_many_names_are_counted() -> None:
    assert nearest("x", [f"name{index:02}" for index in range(20)]).endswith("name11 and 8 more")


def test_brute_force_over_whole_numbers_is_read(file: Path) -> None:
    file.write_text(SWEEP.replace("  x: {uniform: [-5, 5]}\n", ""))
    assert isinstance(read(file, "sampler=brute_force").sampler.build(), optuna.samplers.BruteForceSampler)


def test_brute_force_over_fractions_is_refused(file: Path) -> None:
    with pytest.raises(
        InputError, match=r"search\.x: brute_force tries every value; search a choice or an int"
    ):
        read(file, "search.x={uniform: [0, 1]}", "sampler=brute_force")


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-journal", "artifacts"])
def test_name_of_a_file_in_the_storage_is_refused(file: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"name: '{name}' is the name of MLflow's files in the storage"):
        read(file, f"name={name}")


@pytest.mark.parametrize("address", ["u:secret@h/db", "u@h/db?password=secret"])
def test_password_in_the_address_of_the_study_is_refused(file: Path, address: str) -> None:
    with pytest.raises(InputError, match=r"study: the address must not contain a password; set PGPASSWORD"):
        read(file, f"study=postgresql+psycopg2://{address}")


def test_every_choice_is_prepared(file: Path) -> None:
    sweep = read(file, "search.fault={choice: [none, crash]}", "search.seed={int: [0, 3]}")
    prepared = [(config.fault, config.seed) for config in sweep.configs_to_prepare()]  # type: ignore[attr-defined]
    assert prepared == [("none", 1), ("crash", 1)]


def test_configs_to_prepare_with_a_fixed_condition_are_two(file: Path) -> None:
    sweep = read(
        file,
        "config.noise.kind=uniform",
        "search.noise.width={uniform: [0, 1], when: {noise.kind: uniform}}",
        "search.fault={choice: [none, data]}",
    )
    assert len(list(sweep.configs_to_prepare())) == 2
