"""The search space: suggestions, conditions, and the values that the trainable's config takes."""

from typing import Annotated, Any, Literal

import optuna
import pytest
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.config.parameter import Parameter
from orchestrator.config.search_space import Row, Space, leaves
from orchestrator.errors import FieldError


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["small", "large"] = "small"
    size: int = Field(2, ge=1, le=64)


class Round(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shape: Literal["round"] = "round"
    radius: float = 1.0


class Square(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shape: Literal["square"] = "square"
    side: float = 1.0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = 0
    epochs: int = 1
    rate: float
    part: Part = Part()
    maybe: Part | None = None
    form: Annotated[Round | Square, Field(discriminator="shape")] = Round()
    sets: dict[str, Part] = {}
    weights: dict[str, float] = {}
    names: list[str] = []


def build(search: dict[str, Any], config: dict[str, Any] | None = None) -> Space:
    parameters = {path: Parameter.model_validate(entry) for path, entry in search.items()}
    return Space.build(parameters, Model, {"rate": 0.1} if config is None else config)


def test_leaves_go_through_optional_alternative_and_named_parts() -> None:
    found = leaves(Model, {"sets": {"walkers-b": {}}, "weights": {"motion": 1}})
    assert {
        "rate",
        "part.size",
        "maybe.size",
        "form.radius",
        "form.side",
        "sets.walkers-b.size",
        "weights.motion",
        "names",
    } <= set(found)
    assert "part" not in found


def test_suggestions_lie_in_their_ranges_and_make_valid_configs() -> None:
    space = build(
        {
            "rate": {"log_uniform": [1e-4, 1e-1]},
            "part.size": {"int": [1, 30], "step": 8},
            "maybe.size": {"int": [1, 64], "log": True},
            "part.kind": {"choice": ["small", "large"]},
            "sets.b.size": {"int": [3, 4]},
        },
        {"sets": {"b": {}}},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [space.suggest(study.ask()) for _ in range(50)]
    assert {each["part.size"] for each in seen} == {1, 9, 17, 25}
    assert {each["part.kind"] for each in seen} == {"small", "large"}
    assert all(1e-4 <= each["rate"] <= 1e-1 for each in seen)
    for each in seen:
        config = Model.model_validate(Space.overlay(space.config, each))
        assert config.maybe is not None and config.maybe.size == each["maybe.size"]
        assert config.sets["b"].size == each["sets.b.size"]


@pytest.mark.parametrize(
    ("entry", "taken", "refused"),
    [
        ({"uniform": [0, 1]}, [(1, 1.0)], [1.1, "1", True, None]),
        ({"log_uniform": [1, 8]}, [(8, 8.0)], [0]),
        ({"int": [1, 8]}, [(8.0, 8)], [2.5, 9, True]),
        ({"int": [1, 8], "step": 3}, [(4, 4), (7.0, 7)], [5, 8]),
        ({"int": [1, 8], "log": True}, [(3, 3)], [0]),
        ({"choice": ["a", 2, None]}, [("a", "a"), (2.0, 2), (None, None)], ["b", "2"]),
    ],
)
def test_a_distribution_is_what_is_suggested_from(
    entry: dict[str, Any], taken: list[tuple[Any, Any]], refused: list[Any]
) -> None:
    parameter, study = Parameter.model_validate(entry), optuna.create_study()
    suggested = parameter.suggest(trial := study.ask(), "path")
    assert trial.distributions["path"] == parameter.distribution()
    assert parameter.takes(suggested) and parameter.convert(suggested) == suggested
    for value, converted in taken:
        assert parameter.takes(value)
        assert parameter.convert(value) == converted
        assert type(parameter.convert(value)) is type(converted)
    assert not any(parameter.takes(value) for value in refused)


def test_conditional_paths_follow_their_parents_however_they_are_written() -> None:
    space = build(
        {
            "part.size": {"int": [1, 8], "when": {"part.kind": "large"}},
            "seed": {"int": [0, 9], "when": {"part.size": [1, 2, 3, 4]}},
            "part.kind": {"choice": ["small", "large"]},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [space.suggest(study.ask()) for _ in range(60)]
    for each in seen:
        assert ("part.size" in each) == (each["part.kind"] == "large")
        assert ("seed" in each) == (each.get("part.size", 99) <= 4)
    assert {len(each) for each in seen} == {1, 2, 3}


def test_conditions_on_fixed_values_are_decided_by_the_config_and_its_defaults() -> None:
    search = {"part.size": {"int": [1, 8], "when": {"part.kind": "large"}}}
    ask = optuna.create_study().ask
    assert build(search).suggest(ask()) == {}
    assert build(search).table()[0].when == "part.kind is large (never: it is fixed at 'small')"
    assert "part.size" in build(search, {"rate": 1, "part": {"kind": "large"}}).suggest(ask())


def test_conditional_values_are_checked_under_their_condition() -> None:
    space = build(
        {
            "form.shape": {"choice": ["round", "square"]},
            "form.side": {"uniform": [0, 1], "when": {"form.shape": "square"}},
        }
    )
    assert list(space.parameters) == ["form.shape", "form.side"]
    round_one = {"rate": 1, "form": {"shape": "round"}}
    with pytest.raises(FieldError, match=r"search\.form\.side: does not go with the other keys beside it"):
        build({"form.side": {"uniform": [0, 1]}}, round_one)
    with pytest.raises(FieldError, match=r"search\.form\.side: with 0\.0: form: give 'shape' as well"):
        build({"form.side": {"uniform": [0, 1]}})


def test_table_shows_distribution_range_and_condition() -> None:
    space = build(
        {
            "rate": {"log_uniform": [0.001, 1]},
            "part.size": {"int": [8, 30], "step": 8, "when": {"part.kind": ["small", "large"]}},
            "part.kind": {"choice": ["small", "large"]},
        }
    )
    assert space.table() == [
        Row("rate", "log uniform", "0.001 to 1", ""),
        Row("part.kind", "choice", "small, large", ""),
        Row("part.size", "int", "8 to 24 in steps of 8", "part.kind is small or large"),
    ]


def test_overlay_copies_and_makes_groups() -> None:
    base = {"part": {"size": 1}, "maybe": None}
    laid = Space.overlay(base, {"part.size": 2, "maybe.size": 3, "form.side": 4.0})
    assert laid == {"part": {"size": 2}, "maybe": {"size": 3}, "form": {"side": 4.0}}
    assert base == {"part": {"size": 1}, "maybe": None}


def test_a_required_field_may_be_searched_or_fixed_but_not_missing() -> None:
    assert build({"rate": {"uniform": [0, 1]}}, {}).config == {"rate": 0.0}
    with pytest.raises(FieldError, match=r"^config\.rate: missing$"):
        build({"seed": {"int": [0, 1]}}, {})


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"part.sise": {"int": [1, 2]}}, "search.part.sise: .* did you mean 'part.size'"),
        ({"part": {"int": [1, 2]}}, "search.part: is a group; .* part.kind, part.size"),
        (
            {"part.size": {"uniform": [1, 3]}},
            "search.part.size: should be a whole number, not 1.764; write int",
        ),
        ({"part.size": {"int": [1, 65]}}, "search.part.size: should be less than or equal to 64, not 65"),
        ({"part.kind": {"choice": ["small", "larg"]}}, "search.part.kind: 'larg' is none .* 'large'"),
        ({"part.kind": {"int": [1, 2]}}, "search.part.kind: 1 is none of 'small' or 'large'"),
        ({"rate": {"choice": ["fast"]}}, "search.rate: should be a number, not 'fast'"),
        ({"names": {"choice": ["a"]}}, "search.names: should be a list, not 'a'"),
        ({"seed": {"int": [0, 1], "when": {"part.knd": "x"}}}, "when.part.knd: .* did you mean 'part.kind'"),
        ({"seed": {"int": [0, 1], "when": {"part.kind": "x"}}}, "when.part.kind: 'x' is none of"),
        (
            {"seed": {"int": [0, 1], "when": {"epochs": 5}}, "epochs": {"int": [1, 3]}},
            "when.epochs: 5 is not among what is searched: 1 to 3",
        ),
        (
            {"seed": {"int": [0, 1], "when": {"epochs": 1}}, "epochs": {"int": [1, 3], "when": {"seed": 1}}},
            "the conditions go round in a circle",
        ),
    ],
)
def test_a_space_that_does_not_fit_its_config_is_refused(search: dict[str, Any], line: str) -> None:
    with pytest.raises(FieldError, match=line):
        build(search)
