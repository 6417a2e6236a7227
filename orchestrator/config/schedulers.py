"""Schedulers, which stop trials early: Optuna's pruners, by name and arguments."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, cast

import optuna
from pydantic import Field, model_serializer, model_validator

from orchestrator.config.component import Component
from orchestrator.config.sections import Integer, Section


class _BuiltIn(Section):
    """A scheduler that knows after which epochs it may stop a trial."""

    @abstractmethod
    def pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        """Return a new pruner for trials of at most ``epochs`` epochs."""

    @abstractmethod
    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs after which it may stop a trial of ``epochs`` epochs."""


class _Never(_BuiltIn):
    """No early stopping."""

    def pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.NopPruner()

    def rungs(self, epochs: int) -> list[int]:
        return []


class _Halving(_BuiltIn):
    """Successive halving: only the best ``1 / reduction`` of the trials continue after each rung."""

    grace: Annotated[Integer, Field(ge=1)] = Field(1, description="epochs before which no trial is stopped")
    reduction: Annotated[Integer, Field(ge=2)] = Field(3, description="factor between rungs")

    def pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self.grace, reduction_factor=self.reduction
        )

    def rungs(self, epochs: int) -> list[int]:
        rungs = []
        rung = self.grace
        while rung < epochs:
            rungs.append(rung)
            rung *= self.reduction
        return rungs


class _Hyperband(_Halving):
    """Several brackets of successive halving with different rungs."""

    def pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.HyperbandPruner(
            min_resource=self.grace,
            max_resource=max(epochs, self.grace),
            reduction_factor=self.reduction,
        )


class _Median(_BuiltIn):
    """Stop a trial whose best value is worse than the median of the others at the same epoch."""

    warmup: Annotated[Integer, Field(ge=0)] = Field(1, description="epochs before which no trial is stopped")
    startup: Annotated[Integer, Field(ge=1)] = Field(
        5, description="finished trials before the first trial is stopped"
    )

    def pruner(self, epochs: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)

    def rungs(self, epochs: int) -> list[int]:
        return list(range(max(1, self.warmup), epochs))


class Scheduler(Component):
    """Early stopping by a pruner: ``asha``, ``{asha: {grace: 2}}``, ``package.module:Class``, or ``none``."""

    kind: ClassVar[str] = "scheduler"
    example: ClassVar[str] = "asha: {grace: 2}"
    base: ClassVar[type[Any]] = optuna.pruners.BasePruner
    builtin: ClassVar[dict[str, type[Any]]] = {
        "asha": _Halving,
        "hyperband": _Hyperband,
        "median": _Median,
        "none": _Never,
    }

    @model_validator(mode="before")
    @classmethod
    def _null_is_none(cls, data: Any) -> Any:
        return "none" if data is None or data == {} else data

    @model_serializer
    def _as_written(self) -> Any:
        return self.name if self.name == "none" else {self.name: self.arguments}

    def build(self, epochs: int) -> optuna.pruners.BasePruner:
        """Return a new pruner for trials of at most ``epochs`` epochs; raises InputError."""
        scheduler = self._construct()
        if isinstance(scheduler, _BuiltIn):
            return scheduler.pruner(epochs)
        return cast(optuna.pruners.BasePruner, scheduler)

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs after which a trial of ``epochs`` epochs may be stopped.

        A pruner that is not built in may stop a trial after every epoch.
        """
        scheduler = self._construct()
        return scheduler.rungs(epochs) if isinstance(scheduler, _BuiltIn) else list(range(1, epochs))
