"""Samplers, by name and arguments: those of Optuna, and subclasses of its ``BaseSampler``."""

from importlib.util import find_spec
from typing import Any, ClassVar, cast

import optuna
from pydantic import model_validator

from orchestrator.config.component import Component
from orchestrator.errors import InputError

_NEEDS = {"cmaes": ["cmaes"], "gp": ["scipy", "torch"], "qmc": ["scipy"]}


class Sampler(Component):
    """A sampler by name: ``tpe``, ``{tpe: {seed: 0}}`` or ``{package.module:Class: {seed: 0}}``."""

    kind: ClassVar[str] = "sampler"
    example: ClassVar[str] = "tpe: {seed: 0}"
    base: ClassVar[type[Any]] = optuna.samplers.BaseSampler
    builtin: ClassVar[dict[str, type[Any]]] = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "gp": optuna.samplers.GPSampler,
        "nsgaii": optuna.samplers.NSGAIISampler,
        "nsgaiii": optuna.samplers.NSGAIIISampler,
        "qmc": optuna.samplers.QMCSampler,
        "brute_force": optuna.samplers.BruteForceSampler,
    }

    @model_validator(mode="before")
    @classmethod
    def _refuse_grid(cls, data: Any) -> Any:
        if data == "grid" or (isinstance(data, dict) and "grid" in data):
            raise ValueError(
                "grid needs every value listed twice; brute_force tries every combination instead"
            )
        return data

    @property
    def ignores_constraints(self) -> bool:
        """Whether the sampler is one of those of Optuna that do not use constraints."""
        return self.name in ("random", "cmaes", "qmc", "brute_force")

    def build(self, offset: int = 0) -> optuna.samplers.BaseSampler:
        """Return a new sampler with ``offset`` added to its ``seed``, if it has one.

        Raises:
            InputError: the sampler refuses its arguments, or needs a package that is not installed.
        """
        sampler = self._construct(0 if self.name == "qmc" else offset)  # qmc counts its points in the study
        return cast(optuna.samplers.BaseSampler, sampler)

    def _construct(self, seed_offset: int = 0) -> Any:
        for package in _NEEDS.get(self.name, ()):
            if find_spec(package) is None:
                raise InputError(f"{self.name} needs the package {package!r}: pip install {package}")
        return super()._construct(seed_offset)
