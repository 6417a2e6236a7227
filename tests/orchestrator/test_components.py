"""Components by short name or by package.module:Class."""

import optuna
import pytest

from orchestrator.components import find, resolve
from orchestrator.errors import InputError

KNOWN = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


def test_find_short_name_gives_the_built_in_class() -> None:
    assert find("sampler", "tpe", KNOWN, optuna.samplers.BaseSampler) is optuna.samplers.TPESampler


def test_find_dotted_name_gives_the_class() -> None:
    name = "optuna.samplers:QMCSampler"
    assert find("sampler", name, KNOWN, optuna.samplers.BaseSampler) is optuna.samplers.QMCSampler


def test_find_unknown_short_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^unknown sampler 'tep'; did you mean 'tpe'\?$"):
        find("sampler", "tep", KNOWN, optuna.samplers.BaseSampler)


@pytest.mark.parametrize("name", ["optuna.pruners:NopPruner", "json:dumps"])
def test_find_other_class_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^'{name}' is not a subclass of optuna's BaseSampler$"):
        find("sampler", name, KNOWN, optuna.samplers.BaseSampler)


@pytest.mark.parametrize(
    ("dotted", "line"),
    [
        ("no-module:X", "invalid name 'no-module:X'; expected package.module:Class"),
        ("a:b:c", "invalid name 'a:b:c'; expected package.module:Class"),
        ("optuna.sampler:X", "there is no module 'optuna.sampler'; did you mean 'optuna.samplers'?"),
        ("fractoins:Fraction", "there is no module 'fractoins'; did you mean 'fractions'?"),
        ("fractions:Fractoin", "module 'fractions' has no 'Fractoin'; did you mean 'Fraction'?"),
    ],
)
def test_resolve_faulty_name_is_one_line(dotted: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        resolve(dotted)
    assert str(error.value) == line
