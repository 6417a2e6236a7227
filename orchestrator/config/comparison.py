"""The comparison file: what it may say, and its reading with every fault in one line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from orchestrator.config.document import Override
from orchestrator.config.parameter import Choices
from orchestrator.config.search_space import Space
from orchestrator.config.sweep import Job, changes, flat, load_job, read_job, refuse_idle
from orchestrator.errors import Fault, FieldError, dotted, first_fault, nearest, show

SEED = "seed"
"""Field that every config has."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One trial of a comparison: a variant on one split with one seed."""

    variant: str
    place: tuple[tuple[str, Any], ...]
    """Path and value of the split, where there are splits, and of the seed."""

    @property
    def values(self) -> dict[str, Any]:
        """The cell as one mapping: ``{variant: alignment, data.split: 0, seed: 0}``."""
        return {"variant": self.variant, **dict(self.place)}


class Comparison(Job):
    """A comparison file that was read and checked, with the trainable that it names."""

    kind: ClassVar[str] = "comparison"

    variants: dict[str, dict[str, Any]] = Field(
        description="what is compared: {NAME: {path of the config: value}}"
    )
    splits: dict[str, Choices] = Field(
        default={}, description="one path and its values: {data.split: [0, 1]}"
    )
    seeds: Choices = Field(default=(), validate_default=False, description="values of the config's seed")
    baseline: str = Field(
        "", description="variant that the others are measured against; default: the first one"
    )
    metrics: tuple[str, ...] = Field(
        (), description="scores, or metrics of the last epoch, in the table; default: all scores"
    )

    @field_validator("variants", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,39}", str(name)):
                raise ValueError(
                    f"{show(name)} is no name of a variant; use at most 40 letters, digits, "
                    "' ', '-', '_' and '.'"
                )
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @field_validator("variants")
    @classmethod
    def _two_at_least(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(value) < 2:
            raise ValueError("give at least two variants to compare, each {path of the config: value}")
        return value

    @field_validator("metrics", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        for index, each in enumerate(value if isinstance(value, list | tuple) else ()):
            if each in value[:index]:
                raise ValueError(f"{show(each)} is given twice; keep one of them")
        return value

    @property
    def places(self) -> list[tuple[tuple[str, Any], ...]]:
        """Every split with every seed, in the order in which they are run."""
        seeds = [((SEED, seed),) for seed in self.seeds]
        if not self.splits:
            return list(seeds)
        ((path, splits),) = self.splits.items()
        return [((path, split), *seed) for split in splits for seed in seeds]

    @property
    def cells(self) -> list[Cell]:
        """Every trial, in the order of running: all variants on one split and seed, then on the next."""
        return [Cell(variant, place) for place in self.places for variant in self.variants]

    def mode(self, metric: str) -> Literal["max", "min"]:
        """Which way a score is better: as the trainable's metric with the same last part, else higher.

        ``test/walkers/rank1`` is better the way ``val/rank1`` is.
        """
        known = self.implementation.metrics
        alike = (name for name in known if name.rpartition("/")[2] == metric.rpartition("/")[2])
        found = metric if metric in known else next(alike, None)
        return "max" if found is None else known[found]

    def cell_config(self, cell: Cell) -> BaseModel:
        """Validate the config of a trial; raises FieldError naming the variant, split or seed at fault."""
        settings, place = self.variants[cell.variant], dict(cell.place)
        data = Space.overlay(Space.overlay(self.config, settings), place)
        model = self.implementation.Config
        try:
            return model.model_validate(data)
        except ValidationError as error:
            fault = first_fault(error, model, data)
        path = dotted(fault.path)
        if cause := _cause(path, place):
            where: tuple[str | int, ...] = (SEED + "s",) if cause == SEED else ("splits", cause)
            values = self.seeds if cause == SEED else self.splits[cause]
            where = (*where, values.index(place[cause]))
        elif cause := _cause(path, settings):
            where = ("variants", cell.variant, cause)
        elif not path:  # of the config as a whole: the variant is what makes it so
            raise FieldError(Fault(("variants", cell.variant), fault.reason))
        else:
            raise FieldError(Fault(("config", *fault.path), f"{fault.reason} (for {cell.variant})"))
        inside = path[len(cause) :].lstrip(".")
        raise FieldError(Fault(where, f"{inside}: {fault.reason}" if inside else fault.reason))

    def to_check(self) -> Iterator[BaseModel]:
        """Every variant on every split."""
        seen = set()
        for cell in self.cells:
            if (cell.variant, cell.place[:-1]) not in seen:
                seen.add((cell.variant, cell.place[:-1]))
                yield self.cell_config(cell)

    def needed_metrics(self) -> list[str]:
        """Those of the table that an epoch reports; the others are scores."""
        return [metric for metric in self.metrics if metric in self.implementation.metrics]

    def to_prepare(self) -> Iterator[BaseModel]:
        """Every variant on the first split: what is prepared are whole data sets."""
        return map(self.cell_config, self.cells[: len(self.variants)])

    def resolved(self) -> dict[str, Any]:
        """Give everything that was decided, as plain JSON values."""
        return self.model_dump(mode="json")

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """The whole config of every variant, without split and seed; variants of earlier files stay."""
        varied = [*self.splits, SEED]
        variants = {}
        for cell in self.cells[: len(self.variants)]:
            whole = flat("", self.cell_config(cell).model_dump(mode="json", by_alias=True))
            settings = {path.removeprefix("."): text for path, text in whole.items()}
            variants[cell.variant] = {path: text for path, text in settings.items() if path not in varied}
        known = before["variants"] if before else {}
        return {"trainable": self.trainable, "variants": {**known, **variants}}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """List what differs in the variants that the folder knows; variants, splits, seeds may be added."""
        now = self.record(None)
        found = changes({"trainable": before["trainable"]}, {"trainable": now["trainable"]})
        both = [name for name in self.variants if name in before["variants"]]
        changed = {name: changes(before["variants"][name], now["variants"][name]) for name in both}
        lines = list(dict.fromkeys(line for name in both for line in changed[name]))
        for line in lines:
            names = [name for name in both if line in changed[name]]
            of_all = len(names) == len(both)
            found += [f"config.{line}"] if of_all else [f"variants.{name}: {line}" for name in names]
        return found


def read(
    path: Path | str, overrides: Sequence[Override] = (), *, environment: Mapping[str, str] | None = None
) -> Comparison:
    """Read a comparison file, lay ``overrides`` over it, and check it against its trainable.

    As ``orchestrator.config.sweep.read``; raises InputError.
    """
    return read_job(path, overrides, environment, _checked, Comparison.kind)


def _checked(
    tree: dict[str, Any], environment: Mapping[str, str], overrides: Sequence[Override]
) -> Comparison:
    """Build the comparison from the values of its file; raises FieldError."""
    comparison = load_job(Comparison, tree, environment)
    names = list(comparison.variants)
    seed = comparison.config.get(SEED, comparison.implementation.Config.model_fields[SEED].default)
    comparison = comparison.model_copy(
        update={"baseline": comparison.baseline or names[0], "seeds": comparison.seeds or (seed,)}
    )
    if comparison.baseline not in names:
        reason = f"there is no variant {show(comparison.baseline)}{nearest(comparison.baseline, names)}"
        raise FieldError(Fault(("baseline",), reason))
    if len(paths := list(comparison.splits)) > 1:
        reason = f"give one path and its values, not {len(paths)}: {', '.join(paths)}"
        raise FieldError(Fault(("splits", paths[-1]), reason))
    if SEED in comparison.splits:
        raise FieldError(Fault(("splits", SEED), "write seeds: [...] beside splits"))
    varied = {path: f"is varied by splits; write --set 'splits.{path}=[...]'" for path in comparison.splits}
    if "seeds" in comparison.model_fields_set and "seeds" in tree:
        varied[SEED] = "is varied by seeds; write --set 'seeds=[...]'"
    refuse_idle(overrides, varied)
    for name, settings in comparison.variants.items():
        for path in settings:
            if clash := [each for each in [*comparison.splits, SEED] if f"{each}.".startswith(f"{path}.")]:
                reason = f"{clash[0]} is varied for every variant alike; take it out here"
                raise FieldError(Fault(("variants", name, path), reason))
    known: dict[str, BaseModel] = {}
    for cell in comparison.cells:
        config = comparison.cell_config(cell)
        if cell.place == comparison.places[0]:
            for name, other in known.items():
                if other == config:
                    reason = f"is the same as {name}; take one of them out"
                    raise FieldError(Fault(("variants", cell.variant), reason))
            known[cell.variant] = config
    return comparison


def _cause(path: str, settings: Mapping[str, Any]) -> str:
    """The path of a setting in which ``path`` lies, or that lies in it; else nothing."""
    around = [each for each in settings if f"{path}.".startswith(f"{each}.")]
    inside = [each for each in settings if path and each.startswith(f"{path}.")]
    return next(iter([*around, *inside]), "")
