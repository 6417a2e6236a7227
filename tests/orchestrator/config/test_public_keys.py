"""The keys of the files of the commands: files that users have must stay readable."""

import pytest
from pydantic import BaseModel

from orchestrator.config.comparison import Comparison
from orchestrator.config.component import Component
from orchestrator.config.samplers import Sampler
from orchestrator.config.schedulers import Scheduler
from orchestrator.config.sections import Section
from orchestrator.config.sweep import Sweep
from orchestrator.config.validation import item, members, options

SHARED = {
    "name",
    "trainable",
    "config",
    "resources.workers",
    "resources.cpus",
    "resources.gpus",
    "resources.concurrent",
    "resources.report_timeout",
    "resources.trials_per_worker",
    "storage",
    "study",
    "tracking.uri",
    "tracking.experiment",
}
SWEEP = {
    "search.*.uniform",
    "search.*.log_uniform",
    "search.*.int",
    "search.*.log",
    "search.*.step",
    "search.*.choice",
    "search.*.when",
    "objective.*.metric",
    "objective.*.mode",
    "constraints.*.metric",
    "constraints.*.at_most",
    "constraints.*.at_least",
    "sampler.tpe",
    "sampler.random",
    "sampler.cmaes",
    "sampler.gp",
    "sampler.nsgaii",
    "sampler.nsgaiii",
    "sampler.qmc",
    "sampler.brute_force",
    "scheduler.asha.grace",
    "scheduler.asha.reduction",
    "scheduler.hyperband.grace",
    "scheduler.hyperband.reduction",
    "scheduler.median.warmup",
    "scheduler.median.startup",
    "scheduler.none",
    "budget.trials",
    "budget.wall",
    "budget.gpu_hours",
    "budget.no_gain_for",
    "budget.failures",
    "enqueue",
    "warm_start",
    "finals.top",
    "finals.seeds",
    "finals.splits",
    "finals.train",
    "checkpoints",
    "registry.model",
    "registry.alias",
    "registry.gate",
    "registry.gate.metric",
    "registry.gate.aggregate",
    "registry.gate.confidence",
    "registry.gate.tolerance",
    "registry.gate.floors",
}
COMPARISON = {"variants", "splits", "seeds", "baseline", "metrics"}


def keys(option: object, path: str = "") -> set[str]:
    """Return the paths of all keys of a type; ``*`` is any key or index before a key."""
    if isinstance(option, type) and issubclass(option, Component):
        types = {name: cls if issubclass(cls, BaseModel) else str for name, cls in option.builtin.items()}
    elif (fields := members(option)) is not None:
        types = {name: field.annotation for name, field in fields.items()}
    elif item(option) is not None:
        types = {"*": item(option)}
    else:
        types = {}
    prefix = f"{path}." if path else ""
    paths = {
        leaf
        for name, annotation in types.items()
        for alternative in options(annotation)
        for leaf in keys(alternative, f"{prefix}{name}")
    }
    return {leaf.removesuffix(".*") for leaf in paths} or {path}


@pytest.mark.parametrize(("model", "frozen"), [(Sweep, SHARED | SWEEP), (Comparison, SHARED | COMPARISON)])
def test_keys_of_a_file_are_frozen(model: type[Section], frozen: set[str]) -> None:
    assert keys(model) == frozen


def test_components_are_samplers_and_schedulers() -> None:
    assert set(Component.__subclasses__()) == {Sampler, Scheduler}
