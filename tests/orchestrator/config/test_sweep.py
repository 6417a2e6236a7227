"""Reading a sweep file: its defaults, overrides, variables, and what may change between two runs."""

import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from orchestrator.config.sweep import Override, Sweep, differences, read
from orchestrator.drivers.plan import plan
from orchestrator.errors import InputError, nearest
from orchestrator.execution.cluster import Cluster
from orchestrator.trainable import load

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


def given(file: Path, *overrides: str, **environment: str) -> Sweep:
    return read(file, [Override.parse(each) for each in overrides], environment=environment)


def test_defaults_are_filled_in(file: Path) -> None:
    sweep = given(file)
    assert sweep.objective[0].direction == "maximize"
    assert isinstance(sweep.sampler.build(), optuna.samplers.TPESampler)
    assert isinstance(sweep.scheduler.build(sweep.epochs), optuna.pruners.SuccessiveHalvingPruner)
    assert sweep.scheduler.rungs(sweep.epochs) == [1, 3]
    assert (sweep.resources.workers, sweep.resources.concurrent, sweep.registry) == (1, "auto", None)
    assert sweep.storage == "/tmp/sweeps"
    assert sweep.tracking.uri == "sqlite:////tmp/sweeps/mlflow.db"
    assert sweep.tracking.experiment == "parabola"


def test_environment_fills_strings_and_names_the_tracking_server(file: Path) -> None:
    sweep = given(file, ROOM="/data", MLFLOW_TRACKING_URI="http://tracking:5000")
    assert sweep.storage == "/data/sweeps"
    assert sweep.tracking.uri == "http://tracking:5000"


def test_overrides_reach_every_part(file: Path) -> None:
    sweep = given(
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


def test_an_override_may_hold_any_text(file: Path) -> None:
    sweep = read(file, [Override("storage", "/tmp/a: b # c", "--storage")], environment={})
    assert sweep.storage == "/tmp/a: b # c"


def test_plain_scalars_follow_yaml_1_2(file: Path) -> None:
    sweep = given(file, "search.fault={choice: [none]}", "search.seconds={choice: [1e-3, 0.5]}")
    assert sweep.search["seconds"].choice == (1e-3, 0.5)
    with pytest.raises(InputError, match="mode: 'on' is none of 'max' or 'min'"):
        given(file, "objective.mode=on")


@pytest.mark.parametrize(
    "written",
    [
        "tpe",
        "random",
        "gp",
        "nsgaii",
        "nsgaiii",
        "qmc",
        "brute_force",
        "{tpe: {seed: 3, multivariate: true}}",
    ],
)
def test_samplers_are_built_by_name(file: Path, written: str) -> None:
    assert isinstance(given(file, f"sampler={written}").sampler.build(), optuna.samplers.BaseSampler)


def test_a_seeded_sampler_moves_on_with_its_offset(file: Path) -> None:
    sweep = given(file, "sampler={random: {seed: 3}}")

    def first(offset: int) -> dict[str, object]:
        return sweep.space.suggest(optuna.create_study(sampler=sweep.sampler.build(offset)).ask())

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_schedulers_give_pruners(file: Path) -> None:
    assert isinstance(given(file, "scheduler=none").scheduler.build(9), optuna.pruners.NopPruner)
    assert given(file, "scheduler=none").scheduler.rungs(9) == []
    assert isinstance(given(file, "scheduler=hyperband").scheduler.build(9), optuna.pruners.HyperbandPruner)
    median = given(file, "scheduler={median: {startup: 2}}").scheduler
    assert (median.name, type(median.build(9))) == ("median", optuna.pruners.MedianPruner)


def test_several_objectives_are_not_stopped_early(file: Path) -> None:
    both = "objective=[{metric: val/score}, {metric: train/loss}]"
    assert [each.direction for each in given(file, both).objective] == ["maximize", "minimize"]
    with pytest.raises(InputError, match="write scheduler: none"):
        given(file, both, "scheduler=asha")


def test_epochs_are_the_most_that_a_trial_reports(file: Path) -> None:
    assert given(file).epochs == 9
    assert given(file, "search.epochs={int: [2, 12]}").epochs == 12


def test_points_to_try_first_are_read_as_they_are_suggested(file: Path) -> None:
    sweep = given(
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


def test_an_override_reaches_a_point_whose_name_holds_dots(file: Path) -> None:
    file.write_text(SWEEP + "enqueue: {v1.2: {x: 1}, v1: {x: 2}}\n")
    sweep = given(file, "enqueue.v1.2.x=3", "enqueue.v1.steps=2", "enqueue.v1.2.steps=8")
    assert sweep.enqueue == {"v1.2": {"x": 3.0, "steps": 8}, "v1": {"x": 2.0, "steps": 2}}
    assert given(file, "enqueue.v1.2={steps: 8}").enqueue["v1.2"] == {"steps": 8}


def test_a_point_is_tried_before_what_the_sampler_suggests(file: Path) -> None:
    sweep = given(file, "enqueue.paper.x=1", "sampler={random: {seed: 0}}")
    study = optuna.create_study(sampler=sweep.sampler.build())
    study.enqueue_trial(sweep.enqueue["paper"], user_attrs={"point": "paper"})
    trial = study.ask()
    values = sweep.space.suggest(trial)
    assert values["x"] == 1.0 and 1 <= values["steps"] <= 8
    assert trial.user_attrs == {"point": "paper"}


def test_a_warm_start_names_sweeps_and_experiments(file: Path) -> None:
    assert given(file).warm_start == ()
    assert given(file, "warm_start=earlier").warm_start == ("earlier",)
    sweep = given(file, "warm_start=[earlier, mlflow:a/b 2025, mlflow:parabola]")
    assert sweep.warm_start == ("earlier", "mlflow:a/b 2025", "mlflow:parabola")
    assert sweep.resolved()["warm_start"] == list(sweep.warm_start)


def test_points_and_earlier_sweeps_may_not_change(file: Path) -> None:
    old = given(file).resolved()
    new = given(file, "enqueue.paper.x=1", "warm_start=[earlier]").resolved()
    assert differences(old, new) == ["enqueue.paper.x: absent → 1.0", 'warm_start: absent → ["earlier"]']
    before = {key: value for key, value in old.items() if key not in ("enqueue", "warm_start")}
    assert differences(before, old) == []


def test_the_plan_shows_what_is_tried_first(file: Path) -> None:
    cluster = Cluster("here", None, None, ({"CPU": 2.0},))

    def lines(sweep: Sweep) -> str:
        console = Console(width=120)
        with console.capture() as capture:
            console.print(plan(sweep, cluster))
        return capture.get()

    shown = lines(
        given(file, "enqueue={paper: {x: 1}, larger: {steps: 8}}", "warm_start=[earlier, mlflow:b]")
    )
    assert re.search(r"tried first +paper, larger", shown)
    assert re.search(r"warm start +earlier, mlflow:b", shown)
    assert "tried first" not in lines(given(file))


def test_a_cluster_that_may_grow_runs_as_many_trials_as_the_file_says(file: Path) -> None:
    small = ({"CPU": 1.0, "trial_slot": 8.0},)
    here, there = Cluster("", None, None, small), Cluster("", None, None, small, joined=True)
    three = given(file, "resources.concurrent=3").resources
    assert (here.concurrency(three), there.concurrency(three)) == (1, 3)
    large = given(file, "resources.workers=2", "resources.concurrent=3").resources
    assert there.concurrency(large) == 3
    with pytest.raises(InputError, match=r"2 workers of 1 CPUs do not fit .*; at most 1 fit$"):
        here.concurrency(large)
    with pytest.raises(InputError, match=r"if it adds nodes, resources[.]concurrent says how many"):
        there.concurrency(given(file, "resources.workers=2").resources)


def test_an_invalid_trial_is_one_line(file: Path) -> None:
    with pytest.raises(InputError, match=r"^config\.x: should be less than or equal to 10, not 11$"):
        given(file).trial_config({"x": 11})


def test_workers_cannot_share_a_gpu(file: Path) -> None:
    assert given(file, "resources.gpus=0.5").resources.gpus == 0.5
    with pytest.raises(InputError, match="2 workers cannot train together on shares of a GPU"):
        given(file, "resources.gpus=0.5", "resources.workers=2")


def test_differences_are_readable(file: Path) -> None:
    old = given(file).resolved()
    assert differences(old, given(file, "budget.trials=9", "storage=/elsewhere").resolved()) == []
    new = given(
        file, "search.steps.int=[1, 4]", "config.seed=2", "search.y={uniform: [0, 1]}", "scheduler=none"
    )
    assert differences(old, new.resolved()) == [
        "scheduler.asha.grace: 1 → absent",
        "scheduler.asha.reduction: 3 → absent",
        "config.seed: 1 → 2",
        "search.steps: int [1, 8], log true → int [1, 4], log true",
        "scheduler: absent → none",
        "search.y: absent → uniform [0.0, 1.0]",
    ]


def test_the_example_trainable_keeps_the_contract(tmp_path: Path) -> None:
    class Recorder:
        rank, world_size, device = 0, 1, "cpu"
        reports: list[dict[str, float]]

        def __init__(self) -> None:
            self.reports = []

        def report(self, metrics: dict[str, float], save) -> None:  # type: ignore[no-untyped-def]
            self.reports.append(metrics)
            save(tmp_path)

        def restore(self) -> Path | None:
            return tmp_path if (tmp_path / "state.json").exists() else None

    example, context = load("tests.support.example_trainable:ExampleTrainable"), Recorder()
    example.fit(example.Config.model_validate({"epochs": 2}), context)
    example.fit(example.Config.model_validate({"epochs": 4}), context)
    assert [each["epoch"] for each in context.reports] == [1, 2, 3, 4]
    assert all(set(each) == {"epoch", *example.metrics} for each in context.reports)
    scores = [each["val/score"] for each in context.reports]
    assert scores == sorted(scores)
    assert example.evaluate(example.Config(), tmp_path) == {"test/parabola/score": scores[-1]}
    with pytest.raises(FloatingPointError):
        example.fit(example.Config.model_validate({"epochs": 5, "fault": "diverge"}), context)


def test_reading_does_not_import_torch_or_ray() -> None:
    code = "import sys, orchestrator.config; print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nearest_names_the_closest_or_lists_all() -> None:
    assert nearest("trails", ["trials", "wall"]) == "; did you mean 'trials'?"
    assert nearest("x", ["wall", "trials"]) == "; valid: trials, wall"
    assert nearest("x", [f"name{index:02}" for index in range(20)]).endswith("name11 and 8 more")
