"""One entry under ``search:`` of a sweep file: a distribution, and the condition for searching it."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import optuna
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from orchestrator.errors import quote

_MAX_INTEGER = 2**53  # Optuna stores integers as floats


def parse_number(value: Any) -> float:
    """Return a finite number, also from text, as ``${ENV}`` gives; raises ValueError."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.lstrip("+-").isdecimal() else int(value)
        except ValueError:
            raise ValueError(f"{quote(value)} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{quote(value)} is not a number")
    if abs(value) > _MAX_INTEGER if isinstance(value, int) else not math.isfinite(value):
        raise ValueError(f"{quote(value)} is out of range; expected a finite number")
    return value


def _range(value: Any) -> tuple[float, float]:
    """Return ``[low, high]``, where low is below high; raises ValueError."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"invalid range {quote(value)}; expected [low, high]")
    low, high = (parse_number(edge) for edge in value)
    if low == high:
        raise ValueError(f"the range {quote(value)} is empty; set a fixed value under config instead")
    if low > high:
        raise ValueError(f"the range {quote(value)} is inverted; expected [{high}, {low}]")
    if not math.isfinite(high - low):
        raise ValueError(f"the range {quote(value)} is too wide")
    return low, high


def _whole(value: tuple[float, float]) -> tuple[int, int]:
    low, high = value
    if int(low) != low or int(high) != high:
        raise ValueError(f"{quote(list(value))} are not whole numbers; use uniform for fractional numbers")
    return int(low), int(high)


def _scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{quote(value)} is not finite")
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(f"{quote(value)} is not a plain value (text, number, true, false or null)")
    return value


def is_same(value: Any, other: Any) -> bool:
    """Return whether two values are equal in YAML, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _choices(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"invalid list {quote(value)}; expected [first, second, ...]")
    for index, choice in enumerate(value):
        if _scalar(choice) in value[:index]:  # 1, 1.0 and true are one choice to Optuna
            raise ValueError(f"{quote(choice)} is given twice; keep one of them")
    return tuple(value)


def _conditions(value: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"invalid condition {quote(value)}; expected {{path: value}} or {{path: [values]}}")
    return {
        str(path): _choices(values) if isinstance(values, list | tuple) else (_scalar(values),)
        for path, values in value.items()
    }


Choices = Annotated[tuple[Any, ...], BeforeValidator(_choices)]
"""Distinct plain values, at least one."""

_Floats = Annotated[tuple[float, float], BeforeValidator(_range)]
_Ints = Annotated[tuple[int, int], BeforeValidator(_whole), BeforeValidator(_range)]
_KINDS = ("uniform", "log_uniform", "int", "choice")


class Parameter(BaseModel):
    """A distribution, and the condition under which its path is searched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uniform: _Floats | None = Field(None, description="between low and high")
    log_uniform: _Floats | None = Field(None, description="between low and high, uniform in the logarithm")
    integer: _Ints | None = Field(
        None, alias="int", description="whole numbers from low to high, both included"
    )
    log: bool = Field(False, description="with int: uniform in the logarithm")
    step: Annotated[int, Field(ge=1)] | None = Field(
        None, description="with int: distance between values, from low"
    )
    choice: Choices | None = Field(None, description="one of these values")
    when: Annotated[
        dict[str, tuple[Any, ...]], BeforeValidator(_conditions), WithJsonSchema({"type": "object"})
    ] = Field(default={}, description="searched only while every path has one of its values")

    @model_validator(mode="before")
    @classmethod
    def _one_distribution(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(f"invalid distribution {quote(data)}; expected for example {{uniform: [0, 1]}}")
        kinds = [kind for kind in _KINDS if data.get(kind) is not None]
        unknown = [key for key in data if key not in (*_KINDS, "log", "step", "when")]
        if len(kinds) != 1 and not unknown:
            raise ValueError(
                f"expected one distribution of {', '.join(_KINDS)}; found {', '.join(kinds) or 'none'}"
            )
        if kinds and kinds != ["int"] and (data.get("log") or data.get("step") is not None):
            raise ValueError(
                "log and step belong to int; for fractional numbers use log_uniform, or list them in choice"
            )
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be combined; keep one of them")
        if self.integer and self.step is not None and self.step > self.integer[1] - self.integer[0]:
            raise ValueError(f"step {self.step} is larger than the range {list(self.integer)}")
        logarithmic = self.log_uniform or (self.integer if self.log else None)
        if logarithmic and logarithmic[0] <= 0:
            raise ValueError(f"a logarithmic range must start above 0, not at {logarithmic[0]:g}")
        return self

    @property
    def edges(self) -> list[Any]:
        """Values to test a config with: all choices, or both ends of the range and a value between."""
        if self.choice is not None:
            return list(self.choice)
        if self.integer is not None:
            return [self.integer[0], self._last]
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return [low, high, low + (high - low) * 0.382]  # not a whole number, unless the range is tiny

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Return a value of the study's sampler; the Optuna parameter is named like the path."""
        if self.choice is not None:
            return trial.suggest_categorical(path, self.choice)
        if self.integer is not None:
            return trial.suggest_int(path, self.integer[0], self._last, step=self.step or 1, log=self.log)
        if self.log_uniform is not None:
            return trial.suggest_float(path, *self.log_uniform, log=True)
        assert self.uniform is not None
        return trial.suggest_float(path, *self.uniform)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the distribution that ``suggest`` records in the study."""
        if self.choice is not None:
            return optuna.distributions.CategoricalDistribution(self.choice)
        if self.integer is not None:
            return optuna.distributions.IntDistribution(
                self.integer[0], self._last, log=self.log, step=self.step or 1
            )
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return optuna.distributions.FloatDistribution(low, high, log=self.log_uniform is not None)

    def contains(self, value: Any) -> bool:
        """Return whether the value can be suggested; 128.0 counts as a whole number."""
        if self.choice is not None:
            return any(is_same(value, choice) for choice in self.choice)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if self.integer is not None:
            first = self.integer[0]
            return first <= value <= self._last and (value - first) % (self.step or 1) == 0
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return low <= value <= high

    def convert(self, value: Any) -> Any:
        """Return a value that the distribution contains in the type in which it is suggested."""
        if self.choice is not None:
            return next(choice for choice in self.choice if is_same(value, choice))
        return float(value) if self.integer is None else int(value)

    def describe(self) -> tuple[str, str]:
        """Return the name of the distribution and its range, for a table."""
        if self.choice is not None:
            return "choice", ", ".join(
                choice if isinstance(choice, str) else quote(choice) for choice in self.choice
            )
        if self.integer is not None:
            step = f" in steps of {self.step}" if self.step else ""
            return ("log int" if self.log else "int"), f"{self.integer[0]} to {self._last}{step}"
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return ("uniform" if self.uniform else "log uniform"), f"{low:g} to {high:g}"

    @property
    def _last(self) -> int:
        """The highest whole number on the steps."""
        assert self.integer is not None
        low, high = self.integer
        return low + (high - low) // (self.step or 1) * (self.step or 1)
