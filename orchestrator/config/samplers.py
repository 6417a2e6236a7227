"""Samplers and schedulers, by the names and arguments that a sweep file gives them."""

import inspect
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Self

import optuna
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from orchestrator.errors import InputError, nearest, show

_SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "nsgaiii": optuna.samplers.NSGAIIISampler,
    "qmc": optuna.samplers.QMCSampler,
    "brute_force": optuna.samplers.BruteForceSampler,
}
_NEEDS = {"cmaes": ["cmaes"], "gp": ["scipy", "torch"], "qmc": ["scipy"]}
_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {show(value)}")
    return value


Integer = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]


class Section(BaseModel):
    """A part of the sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampler(Section):
    """An Optuna sampler by name, with its plain arguments: ``tpe`` or ``{tpe: {seed: 0}}``."""

    name: str
    arguments: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        name, arguments = _named(data, "tpe: {seed: 0}")
        if name == "grid":
            raise ValueError(
                "grid needs every value listed twice; brute_force tries every combination instead"
            )
        if name not in _SAMPLERS:
            raise ValueError(f"unknown sampler {show(name)}{nearest(name, _SAMPLERS)}")
        types = _plain_arguments(_SAMPLERS[name])
        for key, value in arguments.items():
            if key not in types:
                raise ValueError(f"{name} has no argument {show(key)}{nearest(key, types)}")
            try:
                types[key].validate_python(value, strict=True)
            except ValidationError as error:
                problem = error.errors()[0]["msg"].removeprefix("Input ")
                raise ValueError(f"{name}'s {key} {problem}, not {show(value)}") from error
        return {"name": name, "arguments": arguments}

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self.build()
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {self.name: self.arguments}

    def build(self, offset: int = 0) -> optuna.samplers.BaseSampler:
        """Make the sampler, its seed (where given) moved on by ``offset``.

        Raises InputError for what Optuna refuses or needs a package for that is not installed.
        """
        for package in _NEEDS.get(self.name, ()):
            if find_spec(package) is None:
                raise InputError(f"{self.name} needs the package {package!r}: pip install {package}")
        arguments = dict(self.arguments)
        if arguments.get("seed") is not None and self.name != "qmc":  # qmc counts its points in the study
            arguments["seed"] += offset
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # deprecated arguments
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return _SAMPLERS[self.name](**arguments)
            except (ValueError, TypeError, FutureWarning) as error:
                raise InputError(f"{self.name}: {error}") from error


class _Halving(Section):
    """Successive halving: at each rung only the best ``1 / reduction`` of the trials go on."""

    grace: Annotated[Integer, Field(ge=1)] = Field(1, description="epochs that every trial gets")
    reduction: Annotated[Integer, Field(ge=2)] = Field(3, description="factor between rungs")


class _Median(Section):
    """Stop a trial whose best is worse than the median of the others at the same epoch."""

    warmup: Annotated[Integer, Field(ge=0)] = Field(1, description="epochs that every trial gets")
    startup: Annotated[Integer, Field(ge=1)] = Field(5, description="finished trials before any is stopped")


class Scheduler(Section):
    """Early stopping by one of Optuna's pruners: ``asha``, ``{asha: {grace: 2}}``, ..., or ``none``."""

    asha: _Halving | None = None
    hyperband: _Halving | None = None
    median: _Median | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        if data is None or data == "none" or data == {}:
            return {}
        name, arguments = _named(data, "asha: {grace: 2}")
        if name not in cls.model_fields:
            raise ValueError(f"unknown scheduler {show(name)}{nearest(name, [*cls.model_fields, 'none'])}")
        return {name: arguments}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Any) -> Any:
        return {name: given for name, given in handler(self).items() if given is not None} or "none"

    @property
    def name(self) -> str:
        """Which one it is: ``asha``, ``hyperband``, ``median`` or ``none``."""
        return next((name for name in type(self).model_fields if getattr(self, name) is not None), "none")

    def build(self, epochs: int) -> optuna.pruners.BasePruner:
        """Make the pruner for trials that report ``epochs`` times at most."""
        if self.asha:
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.asha.grace, reduction_factor=self.asha.reduction
            )
        if self.hyperband:
            return optuna.pruners.HyperbandPruner(
                min_resource=self.hyperband.grace,
                max_resource=max(epochs, self.hyperband.grace),
                reduction_factor=self.hyperband.reduction,
            )
        if self.median:
            return optuna.pruners.MedianPruner(
                n_startup_trials=self.median.startup, n_warmup_steps=self.median.warmup
            )
        return optuna.pruners.NopPruner()

    def rungs(self, epochs: int) -> list[int]:
        """List the epochs after which a trial that would report ``epochs`` times may be stopped."""
        if self.median:
            return list(range(max(1, self.median.warmup), epochs))
        halving = self.asha or self.hyperband
        rungs = []
        rung = halving.grace if halving else epochs
        while halving and rung < epochs:
            rungs.append(rung)
            rung *= halving.reduction
        return rungs


def _named(data: Any, example: str) -> tuple[str, dict[str, Any]]:
    """Read ``name`` or ``{name: {argument: value}}``."""
    if isinstance(data, str):
        return data, {}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ValueError(f"{show(data)} is not one name with its arguments; write for example {{{example}}}")
    ((name, arguments),) = data.items()
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"{show(arguments)} are no arguments of {name}; write for example {{{example}}}")
    return str(name), dict(arguments or {})


def _plain_arguments(sampler: type[optuna.samplers.BaseSampler]) -> dict[str, TypeAdapter[Any]]:
    """List the arguments of a sampler that a file can hold (numbers, text, booleans) with their types."""
    types: dict[str, TypeAdapter[Any]] = {}
    for name, parameter in inspect.signature(sampler).parameters.items():
        words = str(parameter.annotation).replace(" | None", "")
        if words in _PLAIN:
            types[name] = TypeAdapter(_PLAIN[words])
    return types
