"""The search space: suggestions, conditions, and the values that the trainable's config accepts."""

from typing import Annotated, Any, Literal

import optuna
import pytest
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationInfo, field_validator

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


def build(
    search: dict[str, Any], config: dict[str, Any] | None = None, model: type[BaseModel] = Model
) -> Space:
    parameters = {path: Parameter.model_validate(entry) for path, entry in search.items()}
    return Space.build(parameters, model, {"rate": 0.1} if config is None else config)


def random_study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


class Options(BaseModel):
    """Base class of the options of a method."""

    model_config = ConfigDict(extra="forbid")


class Soft(Options):
    amplitude: float = Field(0.5, ge=0, le=1)
    steps: int | None = None


class Hard(Options):
    margin: float = Field(ge=0)


class Firm(Options):
    width: float = Field(1.0, ge=0)


class MethodModel(BaseModel):
    """A config whose method brings options of its class."""

    model_config = ConfigDict(extra="forbid")
    seed: int = 0
    epochs: int = 1
    method: Literal["soft", "hard", "firm"] = "soft"
    options: SerializeAsAny[Options] = Field(default_factory=dict, validate_default=True)

    @field_validator("options", mode="plain")
    @classmethod
    def _of_the_method(cls, value: Any, info: ValidationInfo) -> Options:
        return {"soft": Soft, "hard": Hard, "firm": Firm}[info.data["method"]].model_validate(value)


class Described(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = 0
    epochs: int = 1
    sequences: int = Field(ge=1, description="number of sequences of a batch")


class DescribedModel(BaseModel):
    """A config with a required field that has a description."""

    model_config = ConfigDict(extra="forbid")
    seed: int = 0
    epochs: int = 1
    data: Described


def test_leaves_optional_union_and_mapping_are_walked() -> None:
    paths = leaves(Model, {"rate": 1, "sets": {"walkers-b": {}}, "weights": {"motion": 1}})
    assert {
        "rate",
        "part.size",
        "maybe.size",
        "form.radius",
        "form.side",
        "sets.walkers-b.size",
        "weights.motion",
        "names",
    } <= set(paths)
    assert not {"part", "maybe", "sets", "weights"} & set(paths)


def test_leaves_invalid_config_gives_paths_of_the_model() -> None:
    assert "form.side" in leaves(Model, {})


def test_leaves_instance_of_subclass_gives_its_fields() -> None:
    paths = leaves(MethodModel, {"method": "soft"})
    assert paths == ["seed", "epochs", "method", "options.amplitude", "options.steps"]


def test_suggest_all_distributions_gives_valid_configs() -> None:
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
    study = random_study()
    suggestions = [space.suggest(study.ask()) for _ in range(50)]
    assert {values["part.size"] for values in suggestions} == {1, 9, 17, 25}
    assert {values["part.kind"] for values in suggestions} == {"small", "large"}
    assert all(1e-4 <= values["rate"] <= 1e-1 for values in suggestions)
    for values in suggestions:
        config = Model.model_validate(Space.overlay(space.config, values))
        assert config.maybe is not None and config.maybe.size == values["maybe.size"]
        assert config.sets["b"].size == values["sets.b.size"]


@pytest.mark.parametrize(
    ("entry", "contained", "outside"),
    [
        ({"uniform": [0, 1]}, [(1, 1.0)], [1.1, "1", True, None]),
        ({"log_uniform": [1, 8]}, [(8, 8.0)], [0]),
        ({"int": [1, 8]}, [(8.0, 8)], [2.5, 9, True]),
        ({"int": [1, 8], "step": 3}, [(4, 4), (7.0, 7)], [5, 8]),
        ({"int": [1, 8], "log": True}, [(3, 3)], [0]),
        ({"choice": ["a", 2, None]}, [("a", "a"), (2.0, 2), (None, None)], ["b", "2"]),
    ],
)
def test_parameter_contains_what_it_suggests(
    entry: dict[str, Any], contained: list[tuple[Any, Any]], outside: list[Any]
) -> None:
    parameter, study = Parameter.model_validate(entry), optuna.create_study()
    suggested = parameter.suggest(trial := study.ask(), "path")
    assert trial.distributions["path"] == parameter.distribution()
    assert parameter.contains(suggested) and parameter.convert(suggested) == suggested
    for value, converted in contained:
        assert parameter.contains(value)
        assert parameter.convert(value) == converted
        assert type(parameter.convert(value)) is type(converted)
    assert not any(parameter.contains(value) for value in outside)


def test_suggest_conditional_path_follows_its_parents() -> None:
    space = build(
        {
            "part.size": {"int": [1, 8], "when": {"part.kind": "large"}},
            "seed": {"int": [0, 9], "when": {"part.size": [1, 2, 3, 4]}},
            "part.kind": {"choice": ["small", "large"]},
        }
    )
    study = random_study()
    suggestions = [space.suggest(study.ask()) for _ in range(60)]
    for values in suggestions:
        assert ("part.size" in values) == (values["part.kind"] == "large")
        assert ("seed" in values) == (values.get("part.size", 99) <= 4)
    assert {len(values) for values in suggestions} == {1, 2, 3}


def test_suggest_condition_on_fixed_value_uses_the_config() -> None:
    search = {"part.size": {"int": [1, 8], "when": {"part.kind": "large"}}}
    ask = optuna.create_study().ask
    assert build(search).suggest(ask()) == {}
    assert build(search).table()[0].when == "part.kind is large (never: it is fixed at 'small')"
    assert "part.size" in build(search, {"rate": 1, "part": {"kind": "large"}}).suggest(ask())


def test_build_conditional_edge_is_checked_with_its_parents() -> None:
    space = build(
        {
            "form.shape": {"choice": ["round", "square"]},
            "form.side": {"uniform": [0, 1], "when": {"form.shape": "square"}},
        }
    )
    assert list(space.parameters) == ["form.shape", "form.side"]
    round_one = {"rate": 1, "form": {"shape": "round"}}
    with pytest.raises(FieldError, match=r"search\.form\.side: cannot be combined with the other keys"):
        build({"form.side": {"uniform": [0, 1]}}, round_one)
    with pytest.raises(FieldError, match=r"search\.form\.side: with 0\.0: form: give 'shape' as well"):
        build({"form.side": {"uniform": [0, 1]}})


def test_table_row_has_distribution_range_and_condition() -> None:
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


def test_overlay_missing_group_is_added_to_a_copy() -> None:
    base = {"part": {"size": 1}, "maybe": None}
    laid = Space.overlay(base, {"part.size": 2, "maybe.size": 3, "form.side": 4.0})
    assert laid == {"part": {"size": 2}, "maybe": {"size": 3}, "form": {"side": 4.0}}
    assert base == {"part": {"size": 1}, "maybe": None}


def test_build_searched_required_field_may_be_absent() -> None:
    assert build({"rate": {"uniform": [0, 1]}}, {}).config == {"rate": 0.0}


def test_build_searched_described_field_may_be_absent() -> None:
    space = build({"data.sequences": {"int": [2, 8]}}, {"data": {}}, DescribedModel)
    assert space.config == {"data": {"sequences": 2}}


def test_build_searched_group_may_be_absent() -> None:
    space = build({"data.sequences": {"int": [2, 8]}}, {}, DescribedModel)
    assert space.config == {"data": {"sequences": 2}}


def test_build_required_field_neither_set_nor_searched_fails() -> None:
    with pytest.raises(FieldError, match=r"^config\.rate: missing$"):
        build({"seed": {"int": [0, 1]}}, {})


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"part.sise": {"int": [1, 2]}}, "search.part.sise: .* did you mean 'part.size'"),
        ({"part": {"int": [1, 2]}}, "search.part: is a group; .* part.kind, part.size"),
        (
            {"part.size": {"uniform": [1, 3]}},
            "search.part.size: should be a whole number, not 1.764; use int",
        ),
        ({"part.size": {"int": [1, 65]}}, "search.part.size: should be less than or equal to 64, not 65"),
        (
            {"part.kind": {"choice": ["small", "larg"]}},
            "search.part.kind: invalid value 'larg'; expected 'small' or 'large'; did you mean 'large'",
        ),
        ({"part.kind": {"int": [1, 2]}}, "search.part.kind: invalid value 1; expected 'small' or 'large'"),
        ({"rate": {"choice": ["fast"]}}, "search.rate: should be a number, not 'fast'"),
        ({"names": {"choice": ["a"]}}, "search.names: should be a list, not 'a'"),
        ({"seed": {"int": [0, 1], "when": {"part.knd": "x"}}}, "when.part.knd: .* did you mean 'part.kind'"),
        (
            {"seed": {"int": [0, 1], "when": {"part.kind": "x"}}},
            "when.part.kind: invalid value 'x'; expected 'small'",
        ),
        (
            {"seed": {"int": [0, 1], "when": {"epochs": 5}}, "epochs": {"int": [1, 3]}},
            "when.epochs: 5 is not searched; expected 1 to 3",
        ),
        (
            {"seed": {"int": [0, 1], "when": {"epochs": 1}}, "epochs": {"int": [1, 3], "when": {"seed": 1}}},
            "the conditions form a cycle: (seed needs epochs needs seed|epochs needs seed needs epochs)",
        ),
    ],
)
def test_build_search_that_the_config_refuses_fails(search: dict[str, Any], line: str) -> None:
    with pytest.raises(FieldError, match=line):
        build(search)


def test_build_path_of_an_instance_is_searched() -> None:
    space = build({"options.amplitude": {"uniform": [0, 1]}}, {}, MethodModel)
    values = space.suggest(random_study().ask())
    config = MethodModel.model_validate(Space.overlay(space.config, values))
    assert config.options == Soft(amplitude=values["options.amplitude"])


def test_corners_conditional_edge_has_its_parents() -> None:
    search = {
        "form.shape": {"choice": ["round", "square"]},
        "form.side": {"choice": [1.0, 2.0], "when": {"form.shape": "square"}},
    }
    assert list(build(search).corners()) == [
        {},
        {"form.shape": "round"},
        {"form.shape": "square"},
        {"form.shape": "square", "form.side": 1.0},
        {"form.shape": "square", "form.side": 2.0},
    ]


def test_build_required_path_of_an_instance_is_searched() -> None:
    space = build({"options.margin": {"uniform": [0, 1]}}, {"method": "hard"}, MethodModel)
    assert space.config["options"] == {"margin": 0.0}


def test_build_path_of_an_instance_may_depend_on_its_class() -> None:
    search = {
        "method": {"choice": ["soft", "firm"]},
        "options.amplitude": {"uniform": [0, 1], "when": {"method": "soft"}},
        "options.width": {"uniform": [0, 9], "when": {"method": "firm"}},
    }
    space = build(search, {}, MethodModel)
    study = random_study()
    keys = {tuple(space.suggest(study.ask())) for _ in range(20)}
    assert keys == {("method", "options.amplitude"), ("method", "options.width")}


@pytest.mark.parametrize(
    ("search", "config", "line"),
    [
        (
            {"options.amplitud": {"uniform": [0, 1]}},
            {},
            "options.amplitud: the trainable's config has no such path; did you mean 'options.amplitude'?",
        ),
        (
            {"options.margin": {"uniform": [0, 1]}},
            {},
            "search.options.margin: the trainable's config has no such path; did you mean",
        ),
        (
            {"options.amplitude": {"uniform": [0, 2]}},
            {},
            "search.options.amplitude: should be less than or equal to 1, not 2.0",
        ),
        ({"options.steps": {"uniform": [1, 3]}}, {}, "search.options.steps: .* not 1.764; use int"),
        (
            {"seed": {"int": [0, 1]}},
            {"options": {"amplitud": 1}},
            "config.options.amplitud: unknown key; did you mean 'amplitude'?",
        ),
        ({"seed": {"int": [0, 1]}}, {"method": "hard"}, "config.options.margin: missing"),
        ({"seed": {"int": [0, 1]}}, {"options": {"margin": 1}}, "config.options.margin: cannot be combined"),
    ],
)
def test_build_faulty_option_of_an_instance_fails(
    search: dict[str, Any], config: dict[str, Any], line: str
) -> None:
    with pytest.raises(FieldError, match=line.replace("?", r"\?")):
        build(search, config, MethodModel)
