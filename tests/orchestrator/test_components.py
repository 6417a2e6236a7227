"""Components by short name or by package.module:Class."""

from pathlib import Path

import optuna
import pytest

from orchestrator.components import find, resolve
from orchestrator.errors import InputError
from orchestrator.trainable import contract_violation, load
from tests.support.example_trainable import ExampleTrainable

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


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence (rude.py, line 2)"),
        ("import sys; sys.exit(0)", "SystemExit: 0 (rude.py, line 2)"),
        ("1 / 0", "ZeroDivisionError: division by zero (rude.py, line 2)"),
        ("def (:", "SyntaxError: invalid syntax (rude.py, line 2)"),
    ],
)
def test_resolve_module_that_cannot_be_imported_is_one_line(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rude.py").write_text(f'"""A module."""\n{code}\n')
    with pytest.raises(InputError) as error:
        resolve("rude:Thing")
    assert str(error.value) == f"module 'rude' cannot be imported: {reason}"


@pytest.mark.parametrize("code", ["raise OSError('no device')", "exit(0)"])
def test_load_trainable_that_cannot_be_made_is_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"made_{len(code)}"
    (tmp_path / f"{name}.py").write_text(
        "from tests.support.example_trainable import ExampleTrainable\n"
        f"class Rude(ExampleTrainable):\n    def __init__(self):\n        {code}\n"
    )
    with pytest.raises(
        InputError, match=r"cannot be instantiated without arguments: (OSError: no|SystemExit)"
    ):
        load(f"{name}:Rude")


@pytest.mark.parametrize(
    "name", ["acc (%)", "", "a\0", "\udc80", "../up", "/abs", "a//b", ".", "time", "objective", "n" * 251]
)
def test_contract_metric_that_mlflow_refuses_is_a_violation(name: str) -> None:
    other = type("Other", (ExampleTrainable,), {"metrics": {name: "max"}, "throughput": None})
    assert "invalid name" in (contract_violation(other) or "")


@pytest.mark.parametrize("name", ["val/mAP", "test/prid 2011/rank1", "größe", "a.b-c:d_e"])
def test_contract_metric_that_mlflow_accepts_is_valid(name: str) -> None:
    other = type("Other", (ExampleTrainable,), {"metrics": {name: "max"}, "throughput": None})
    assert contract_violation(other) is None
