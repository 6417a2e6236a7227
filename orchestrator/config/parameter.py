"""One entry under ``search:`` of a sweep file: a distribution, and when it is searched at all."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import optuna
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from orchestrator.errors import show

_LARGEST = 2**53  # Optuna keeps integers as floats


def number(value: Any) -> float:
    """Accept finite numbers, also as text (``${ENV}`` gives text)."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.lstrip("+-").isdecimal() else int(value)
        except ValueError:
            raise ValueError(f"{show(value)} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{show(value)} is not a number")
    if abs(value) > _LARGEST if isinstance(value, int) else not math.isfinite(value):
        raise ValueError(f"{show(value)} is out of range; write a finite number")
    return value


def _range(value: Any) -> tuple[float, float]:
    """Accept ``[low, high]``, low below high."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{show(value)} is no range; write [low, high]")
    low, high = (number(each) for each in value)
    if low == high:
        raise ValueError(f"the range {show(value)} is empty; write the value under config to fix it")
    if low > high:
        raise ValueError(f"the range {show(value)} is inverted; write [{high}, {low}]")
    if not math.isfinite(high - low):
        raise ValueError(f"the range {show(value)} is too wide")
    return low, high


def _whole(value: tuple[float, float]) -> tuple[int, int]:
    low, high = value
    if int(low) != low or int(high) != high:
        raise ValueError(f"{show(list(value))} are not whole numbers; use uniform for numbers between")
    return int(low), int(high)


def _scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{show(value)} is not finite")
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(f"{show(value)} is not a plain value (text, number, true, false or null)")
    return value


def same(one: Any, other: Any) -> bool:
    """Compare values as YAML does: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _choices(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{show(value)} is no choice; write [first, second, ...]")
    for index, each in enumerate(value):
        if _scalar(each) in value[:index]:  # Optuna takes 1, 1.0 and true for the same choice
            raise ValueError(f"{show(each)} is given twice")
    return tuple(value)


def _conditions(value: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{show(value)} is no condition; write {{path: value}} or {{path: [values]}}")
    return {
        str(path): _choices(wanted) if isinstance(wanted, list | tuple) else (_scalar(wanted),)
        for path, wanted in value.items()
    }


Choices = Annotated[tuple[Any, ...], BeforeValidator(_choices)]
"""Distinct plain values, at least one."""

_Floats = Annotated[tuple[float, float], BeforeValidator(_range)]
_Ints = Annotated[tuple[int, int], BeforeValidator(_whole), BeforeValidator(_range)]
_KINDS = ("uniform", "log_uniform", "int", "choice")


class Parameter(BaseModel):
    """One entry under ``search:``: a distribution, and the condition under which it is searched at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uniform: _Floats | None = Field(None, description="between low and high")
    log_uniform: _Floats | None = Field(None, description="between low and high, even in the logarithm")
    integer: _Ints | None = Field(
        None, alias="int", description="whole numbers from low to high, both included"
    )
    log: bool = Field(False, description="with int: even in the logarithm")
    step: Annotated[int, Field(ge=1)] | None = Field(
        None, description="with int: from low in steps of this size"
    )
    choice: Choices | None = Field(None, description="one of these")
    when: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_conditions)] = Field(
        default={}, description="searched only while every path has one of its values"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_distribution(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(f"{show(data)} is no distribution; write for example {{uniform: [0, 1]}}")
        given = [kind for kind in _KINDS if data.get(kind) is not None]
        unknown = [key for key in data if key not in (*_KINDS, "log", "step", "when")]
        if len(given) != 1 and not unknown:
            raise ValueError(
                f"give one distribution of {', '.join(_KINDS)}; found {', '.join(given) or 'none'}"
            )
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.integer is None and (self.log or self.step is not None):
            raise ValueError("log and step belong to int; a logarithmic range of numbers is log_uniform")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be combined; drop one of them")
        if self.integer and self.step is not None and self.step > self.integer[1] - self.integer[0]:
            raise ValueError(f"step {self.step} is larger than the range {list(self.integer)}")
        logarithmic = self.log_uniform or (self.integer if self.log else None)
        if logarithmic and logarithmic[0] <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {logarithmic[0]:g}")
        return self

    @property
    def edges(self) -> list[Any]:
        """Values that show whether a config takes what is suggested: every choice, or ends and between."""
        if self.choice is not None:
            return list(self.choice)
        if self.integer is not None:
            return [self.integer[0], self._last]
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return [low, high, low + (high - low) * 0.382]  # not a whole number, unless the range is tiny

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Ask the study's sampler for a value; the Optuna parameter has the name of the path."""
        if self.choice is not None:
            return trial.suggest_categorical(path, self.choice)
        if self.integer is not None:
            return trial.suggest_int(path, self.integer[0], self._last, step=self.step or 1, log=self.log)
        if self.log_uniform is not None:
            return trial.suggest_float(path, *self.log_uniform, log=True)
        assert self.uniform is not None
        return trial.suggest_float(path, *self.uniform)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """What ``suggest`` tells the study of the value."""
        if self.choice is not None:
            return optuna.distributions.CategoricalDistribution(self.choice)
        if self.integer is not None:
            return optuna.distributions.IntDistribution(
                self.integer[0], self._last, log=self.log, step=self.step or 1
            )
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return optuna.distributions.FloatDistribution(low, high, log=self.log_uniform is not None)

    def takes(self, value: Any) -> bool:
        """Whether the value can be suggested; 128.0 is a whole number."""
        if self.choice is not None:
            return any(same(value, each) for each in self.choice)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if self.integer is not None:
            first = self.integer[0]
            return first <= value <= self._last and (value - first) % (self.step or 1) == 0
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return low <= value <= high

    def convert(self, value: Any) -> Any:
        """A value that it ``takes``, in the type in which it is suggested."""
        if self.choice is not None:
            return next(each for each in self.choice if same(value, each))
        return float(value) if self.integer is None else int(value)

    def describe(self) -> tuple[str, str]:
        """Name the distribution and its range for a table."""
        if self.choice is not None:
            return "choice", ", ".join(each if isinstance(each, str) else show(each) for each in self.choice)
        if self.integer is not None:
            step = f" in steps of {self.step}" if self.step else ""
            return ("log int" if self.log else "int"), f"{self.integer[0]} to {self._last}{step}"
        low, high = self.uniform or self.log_uniform or (0.0, 0.0)
        return ("uniform" if self.uniform else "log uniform"), f"{low:g} to {high:g}"

    @property
    def _last(self) -> int:
        """The highest whole number that lies on the steps."""
        assert self.integer is not None
        low, high = self.integer
        return low + (high - low) // (self.step or 1) * (self.step or 1)
