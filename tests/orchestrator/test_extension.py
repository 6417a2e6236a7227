"""Components of a user: the examples of the documentation, and the conformance suites."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import BaseModel

from orchestrator.config.document import Override
from orchestrator.config.samplers import Sampler
from orchestrator.config.schedulers import Scheduler
from orchestrator.config.sweep import Sweep, read_sweep
from orchestrator.errors import InputError
from orchestrator.testing import check_sampler, check_scheduler, check_trainable
from orchestrator.trainable import Illustrating
from tests.support.example_trainable import ComparableTrainable, ExampleConfig, ExampleTrainable
from tests.support.examples.my_sampler import MySampler
from tests.support.examples.my_scheduler import MyPruner
from tests.support.examples.my_trainable import MyTrainable
from tests.support.paths import ROOT
from tests.support.sweep_files import write_sweep

EXAMPLES = "tests.support.examples"
MY_SAMPLER = f"{EXAMPLES}.my_sampler:MySampler"
MY_PRUNER = f"{EXAMPLES}.my_scheduler:MyPruner"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_sweep(
        tmp_path,
        "mine",
        trainable=f"{EXAMPLES}.my_trainable:MyTrainable",
        config={"epochs": 6},
        search={"rate": {"uniform": [0.1, 0.9]}},
        objective={"metric": "val/loss"},
        sampler={MY_SAMPLER: {"seed": 3}},
        scheduler={MY_PRUNER: {"patience": 2}},
    )


def read(file: Path, *overrides: str) -> Sweep:
    return read_sweep(file, [Override.parse(text) for text in overrides], environment={})


@pytest.mark.parametrize("kind", ["trainable", "sampler", "scheduler"])
def test_example_in_the_documentation_is_the_file(kind: str) -> None:
    text = (ROOT / "orchestrator" / "README.md").read_text()
    (quoted,) = re.findall(rf"<!-- example: {kind} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert quoted == (ROOT / "tests" / "support" / "examples" / f"my_{kind}.py").read_text()


def test_yaml_in_the_documentation_is_read(file: Path) -> None:
    text = (ROOT / "orchestrator" / "README.md").read_text()
    (quoted,) = re.findall(r"<!-- example: sweep -->\n```yaml\n(.*?)```", text, re.DOTALL)
    file.write_text(quoted.replace("my_package", EXAMPLES))
    sweep = read(file)
    assert isinstance(sweep.sampler.build(), MySampler)
    assert isinstance(sweep.scheduler.build(sweep.epochs), MyPruner)
    assert isinstance(sweep.implementation, MyTrainable)


@pytest.mark.parametrize(("kind", "lines"), [("sampler", 30), ("scheduler", 30), ("trainable", 40)])
def test_example_is_short(kind: str, lines: int) -> None:
    example = ROOT / "tests" / "support" / "examples" / f"my_{kind}.py"
    assert len(example.read_text().splitlines()) <= lines


def test_read_sweep_own_sampler_is_recorded_with_defaults(file: Path) -> None:
    assert read(file).resolved()["sampler"] == {MY_SAMPLER: {"seed": 3, "keep": 0.7}}


def test_read_sweep_override_reaches_an_own_sampler(file: Path) -> None:
    assert read(file, f"sampler.{MY_SAMPLER}.keep=0.5").sampler.arguments == {"seed": 3, "keep": 0.5}


def test_sampler_own_class_drives_a_study(file: Path) -> None:
    sweep = read(file)
    study = optuna.create_study(sampler=sweep.sampler.build())
    for _ in range(20):
        trial = study.ask()
        study.tell(trial, sweep.space.suggest(trial)["rate"])
    rates = [trial.params["rate"] for trial in study.trials]
    assert len(set(rates)) < len(rates)  # the best one was taken again


def test_sampler_offset_moves_the_seed_of_an_own_class(file: Path) -> None:
    sweep = read(file)

    def first(offset: int) -> dict[str, Any]:
        return sweep.space.suggest(optuna.create_study(sampler=sweep.sampler.build(offset)).ask())

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_scheduler_own_class_prunes(file: Path) -> None:
    study = optuna.create_study(pruner=read(file).scheduler.build(6))
    trial = study.ask()
    decisions = []
    for epoch, loss in enumerate([0.5, 0.4, 0.4, 0.6], start=1):
        trial.report(loss, epoch)
        decisions.append(trial.should_prune())
    assert decisions == [False, False, False, True]


def test_scheduler_own_class_has_a_rung_at_every_epoch(file: Path) -> None:
    assert read(file).scheduler.rungs(6) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            f"sampler={{{MY_SAMPLER}: {{keep: 2}}}}",
            f"sampler.{MY_SAMPLER}.keep: should be less than or equal",
        ),
        (
            f"sampler={{{MY_SAMPLER}: {{sed: 1}}}}",
            f"sampler.{MY_SAMPLER}.sed: unknown key; did you mean 'seed'?",
        ),
        (f"scheduler={{{MY_PRUNER}: {{patience: 0}}}}", f"scheduler.{MY_PRUNER}.patience: should be greater"),
        (f"scheduler={MY_PRUNER}s", "has no 'MyPruners'; did you mean 'MyPruner'?"),
    ],
)
def test_read_sweep_faulty_own_component_is_one_line(file: Path, override: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        read(file, override)
    assert str(error.value).startswith(f"--set {override}: ")
    assert expected in str(error.value)


class Typed(optuna.samplers.RandomSampler):
    """A sampler without a config model: its constructor says which arguments it takes."""

    def __init__(self, depth: int, share: float = 0.5, callback: Callable[[], None] | None = None) -> None:
        super().__init__()
        if share > 1:
            raise ValueError("share is above 1")
        self.arguments = (depth, share)


TYPED = f"{__name__}:Typed"


def test_sampler_typed_constructor_gets_the_arguments() -> None:
    sampler = Sampler.model_validate({TYPED: {"depth": 3}}).build()
    assert isinstance(sampler, Typed) and sampler.arguments == (3, 0.5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "depth: missing"),
        ({"depth": "x"}, "depth: should be a whole number, not 'x'"),
        ({"depth": 1, "callback": 1}, "callback: unknown key; valid: depth, share"),
        ({"depth": 1, "share": 2.0}, "share is above 1"),
    ],
)
def test_sampler_typed_constructor_refuses_arguments(
    file: Path, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as error:
        read_sweep(file, [Override("sampler", {TYPED: arguments}, "--sampler")], environment={})
    assert str(error.value).startswith("--sampler: sampler")
    assert expected in str(error.value)


class Loose(MySampler):
    class Config(BaseModel):
        seed: int = 0


def test_sampler_config_that_accepts_unknown_keys_fails(file: Path) -> None:
    with pytest.raises(InputError, match="the 'Config' of Loose accepts unknown keys; set extra='forbid'"):
        read(file, f"sampler={__name__}:Loose")


@pytest.mark.parametrize("name", ["ExampleTrainable", "ComparableTrainable", "MyTrainable", "ByConfig"])
def test_check_trainable_valid_one_passes(name: str) -> None:
    check_trainable(globals()[name](), {"epochs": 3})


def test_metric_that_depends_on_the_config_can_be_the_objective(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective": {"metric": "val/steps"}}
    sweep = read(write_sweep(tmp_path, trainable=f"{__name__}:ByConfig", **changes))
    assert sweep.objective[0].mode == "max" and sweep.required_metrics() == ["val/steps"]
    with pytest.raises(InputError, match="no metric 'val/steps'"):
        read(write_sweep(tmp_path, **changes))


def test_example_trainable_improves_and_is_scored(tmp_path: Path) -> None:
    example, context = ExampleTrainable(), FolderContext(tmp_path)
    for epochs in (2, 4):
        example.fit(ExampleConfig(epochs=epochs), context)
    scores = [report["val/score"] for report in context.reports]
    assert len(scores) == 4 and scores == sorted(scores)
    assert example.evaluate(ExampleConfig(), tmp_path) == {"test/parabola/score": scores[-1]}


def test_example_trainable_is_illustrating() -> None:
    assert isinstance(ExampleTrainable(), Illustrating)


def test_example_trainable_diverging_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        ExampleTrainable().fit(ExampleConfig(fault="diverge"), FolderContext(tmp_path))


class FolderContext:
    """The context of a trial with one worker, whose checkpoint is a folder."""

    rank, world_size, device = 0, 1, "cpu"

    def __init__(self, folder: Path) -> None:
        self.reports: list[dict[str, float]] = []
        self.folder = folder

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        self.reports.append(metrics)
        save(self.folder)

    def restore(self) -> Path | None:
        return self.folder if (self.folder / "state.json").exists() else None


class Forgetful(ExampleTrainable):
    def fit(self, config: ExampleConfig, context: Any) -> None:
        context.restore = lambda: None
        super().fit(config, context)


class Undeclared(ExampleTrainable):
    metrics = {"val/score": "max"}  # noqa: RUF012
    throughput = None


class ByConfig(ExampleTrainable):
    """Reports a metric that depends on the config, and a standard error, only where the job needs it."""

    offered: tuple[str, ...] = ("val/steps",)
    error = 0.1

    def metrics_for(self, config: ExampleConfig) -> Mapping[str, Any]:
        return {**self.metrics, **dict.fromkeys(self.offered, "max")}

    def fit(self, config: ExampleConfig, context: Any) -> None:
        report = context.report
        own = {"val/steps": 1.0} if "val/steps" in context.metrics else {}
        context.report = lambda metrics, save: report({**metrics, **own, "val/score/error": self.error}, save)
        super().fit(config, context)


class Misnamed(ByConfig):
    offered = ("val/%",)


class Unannounced(ByConfig):
    error = -0.1


class Unscored(ExampleTrainable):
    def evaluate(self, config: ExampleConfig, checkpoint: Path) -> dict[str, float]:
        return {}


class Unsigned(ExampleTrainable):
    def export(self, config: ExampleConfig, checkpoint: Path, directory: Path) -> dict[str, Any]:
        return {"python_model": "model.py"}


class Untold(ComparableTrainable):
    def target_metrics(self, config: ExampleConfig) -> dict[str, list[str]]:
        return {"parabola": ["loss"]}


class Contaminated(ComparableTrainable):
    def trained_on(self, config: ExampleConfig) -> dict[str, list[str]]:
        return {"points": ["1", "2"]}

    def tested_on(self, config: ExampleConfig) -> dict[str, dict[str, list[str]]]:
        return {"parabola": {"points": ["2", "3"]}}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (Untold, "target_metrics tells {'parabola': {'loss'}}, and the results have"),
        (Contaminated, "the config trains on '2' of its target 'parabola'"),
        (Forgetful, r"fit reports the epochs \[1, 2, 3\]; expected \[2, 3\]"),
        (Undeclared, r"metrics that are not in metrics: \['rate', 'train/loss'\]"),
        (Misnamed, "its 'metrics_for' have the invalid name 'val/%'"),
        (Unannounced, "fit gives the standard error val/score/error the value -0.1"),
        (Unscored, "evaluate returns no scores"),
        (Unsigned, "export returns no signature"),
        (dict, "it has no 'prepare'"),
    ],
)
def test_check_trainable_invalid_one_fails(trainable: Any, expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_trainable(trainable(), {"epochs": 3})


@pytest.mark.parametrize("name", [*Sampler.builtin, MY_SAMPLER])
def test_check_sampler_every_sampler_passes(name: str) -> None:
    check_sampler(lambda: Sampler.model_validate(name).build(), continuous=name != "brute_force")


class Constant(optuna.samplers.RandomSampler):
    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return 100


def test_check_sampler_value_outside_the_range_fails() -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_sampler(Constant)


@pytest.mark.parametrize("name", [*Scheduler.builtin, MY_PRUNER])
def test_check_scheduler_every_scheduler_passes(name: str) -> None:
    check_scheduler(lambda: Scheduler.model_validate(name).build(9))


class Eager(optuna.pruners.BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return True


def test_check_scheduler_stop_before_a_report_fails() -> None:
    with pytest.raises(AssertionError, match="stopped before its first report"):
        check_scheduler(Eager)
