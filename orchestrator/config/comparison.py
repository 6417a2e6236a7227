"""The comparison file: its keys, its defaults, and the checks against the trainable."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from orchestrator.config.document import Override, flatten, plain
from orchestrator.config.job import (
    Job,
    changes,
    flat_texts,
    load_job,
    read_job,
    refuse_ineffective,
    value_at,
)
from orchestrator.config.parameter import Choices
from orchestrator.config.search_space import Space
from orchestrator.config.validation import first_fault
from orchestrator.errors import Fault, FieldError, Path, dotted, nearest, quote

SEED = "seed"
"""Field of every config."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One trial of a comparison: a variant on one split with one seed."""

    variant: str
    grid_point: tuple[tuple[str, Any], ...]
    """Path and value of the split, if the comparison has splits, and of the seed."""

    @property
    def values(self) -> dict[str, Any]:
        """The cell as one mapping: ``{variant: alignment, data.split: 0, seed: 0}``."""
        return {"variant": self.variant, **dict(self.grid_point)}


class Comparison(Job):
    """A checked comparison file, with the trainable that it names."""

    kind: ClassVar[str] = "comparison"
    path_sections: ClassVar[Mapping[str, int]] = {"splits": 1, "variants": 2}

    variants: dict[str, dict[str, Any]] = Field(
        description="what to compare: {NAME: {path of the config: value}}"
    )
    splits: dict[str, Choices] = Field(
        default={}, description="one path and its values: {data.split: [0, 1]}"
    )
    seeds: Choices = Field(default=(), validate_default=False, description="values of the config's seed")
    baseline: str = Field("", description="variant that the others are compared with; default: the first one")
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
                    f"invalid name of a variant {quote(name)}; expected at most 40 letters, digits, "
                    "' ', '-', '_' and '.'"
                )
        return {name: _by_path(name, settings) for name, settings in value.items()}

    @field_validator("variants")
    @classmethod
    def _one_at_least(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not value:
            raise ValueError("no variant; expected for example {small: {rnn.hidden_size: 64}}")
        return value

    @field_validator("metrics", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        for index, metric in enumerate(value if isinstance(value, list | tuple) else ()):
            if metric in value[:index]:
                raise ValueError(f"{quote(metric)} is given twice; keep one of them")
        return value

    @property
    def grid_points(self) -> list[tuple[tuple[str, Any], ...]]:
        """Every split with every seed, in the order in which they run."""
        seeds = [((SEED, seed),) for seed in self.seeds]
        if not self.splits:
            return list(seeds)
        ((path, splits),) = self.splits.items()
        return [((path, split), *seed) for split in splits for seed in seeds]

    @property
    def cells(self) -> list[Cell]:
        """Every trial in running order: all variants on one split and seed, then on the next."""
        return [Cell(variant, grid_point) for grid_point in self.grid_points for variant in self.variants]

    def mode(self, metric: str) -> Literal["max", "min"]:
        """Return whether a higher or a lower score is better.

        A score is like the trainable's metric with the same last part: ``test/walkers/rank1`` is like
        ``val/rank1``. Without such a metric, higher is better.
        """
        metrics = self.trial_metrics
        if metric in metrics:
            return metrics[metric]
        last = metric.rpartition("/")[2]
        return next((mode for name, mode in metrics.items() if name.rpartition("/")[2] == last), "max")

    def cell_config(self, cell: Cell) -> BaseModel:
        """Return the config of a trial; raises FieldError naming the variant, split or seed at fault."""
        settings, grid_point = self.variants[cell.variant], dict(cell.grid_point)
        data = Space.overlay(Space.overlay(self.config, settings), grid_point)
        model = self.implementation.Config
        try:
            return model.model_validate(data)
        except ValidationError as error:
            fault = first_fault(error, model, data)
        path = dotted(fault.path)
        if cause := _cause(path, grid_point):
            section: Path = ("seeds",) if cause == SEED else ("splits", cause)
            values = self.seeds if cause == SEED else self.splits[cause]
            location: Path = (*section, values.index(grid_point[cause]))
        elif cause := _cause(path, settings):
            location = ("variants", cell.variant, cause)
        elif not path:  # the config as a whole is not valid, because of the variant
            raise FieldError(Fault(("variants", cell.variant), fault.reason))
        else:
            raise FieldError(Fault(("config", *fault.path), f"{fault.reason} (for {cell.variant})"))
        inner = path[len(cause) :].lstrip(".")
        raise FieldError(Fault(location, f"{inner}: {fault.reason}" if inner else fault.reason))

    def configs_to_check(self) -> Iterator[BaseModel]:
        """Yield the config of every variant on every split."""
        seen = set()
        for cell in self.cells:
            if (cell.variant, cell.grid_point[:-1]) not in seen:
                seen.add((cell.variant, cell.grid_point[:-1]))
                yield self.cell_config(cell)

    def place_of(self, path: str, config: BaseModel | None) -> str:
        """Return where the file sets a path: in splits, in a variant that gives this config, or in config."""
        if path in self.splits:
            return f"splits.{path}"
        for name, settings in self.variants.items():
            if config is not None and path in settings and value_at(config, path) == settings[path]:
                return f"variants.{name}.{path}"
        return super().place_of(path, config)

    def required_metrics(self) -> list[str]:
        """Return the metrics of the table that an epoch reports; the others are scores."""
        available = self.trial_metrics
        return [metric for metric in self.metrics if metric in available]

    def configs_to_prepare(self) -> Iterator[BaseModel]:
        """Yield the config of every variant on the first split, which suffices to prepare whole data sets."""
        return map(self.cell_config, self.first_cells)

    def resolved(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return self.model_dump(mode="json")

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the config of every variant as text by path, without split and seed.

        Variants that the folder has from earlier files are kept.
        """
        variants = {cell.variant: self._texts(self.cell_config(cell)) for cell in self.first_cells}
        return {
            "trainable": self.trainable,
            "variants": {**(before["variants"] if before else {}), **variants},
            **({"study": self.study} if self.study else {}),
        }

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return one line for each setting that differs from a ``record``, in the variants of both.

        Variants, splits and seeds may be added. A key that the record lacks has its present default.
        """
        lines = changes({"trainable": before["trainable"]}, {"trainable": self.trainable})
        changed: dict[str, list[str]] = {}
        for cell in self.first_cells:
            if cell.variant in before["variants"]:
                texts = (before["variants"][cell.variant], self._texts(self.cell_config(cell)))
                changed[cell.variant] = changes(*(self._with_defaults(recorded, cell) for recorded in texts))
        for line in dict.fromkeys(line for name in changed for line in changed[name]):
            names = [name for name in changed if line in changed[name]]
            if len(names) == len(changed):
                lines.append(f"config.{line}")
            else:
                lines += [f"variants.{name}: {line}" for name in names]
        return lines

    @property
    def first_cells(self) -> list[Cell]:
        """Every variant on its first split with the first seed."""
        cells = self.cells
        return [next(cell for cell in cells if cell.variant == variant) for variant in self.variants]

    def _texts(self, config: BaseModel) -> dict[str, str]:
        """Return a config as text by path, without split and seed."""
        texts = flat_texts(config.model_dump(mode="json", by_alias=True))
        return {path: text for path, text in texts.items() if path not in (*self.splits, SEED)}

    def _with_defaults(self, recorded: Mapping[str, str], cell: Cell) -> Mapping[str, str]:
        """Return a recorded variant with the present default of each path that it lacks, if it is valid."""
        present = flatten(self.cell_config(cell).model_dump(mode="json", by_alias=True))
        values = {
            path: text if isinstance(present.get(path), str) else plain(text)
            for path, text in recorded.items()
        }
        try:
            config = self.implementation.Config.model_validate(
                Space.overlay({}, {**values, **dict(cell.grid_point)})
            )
        except ValidationError:
            return recorded
        return self._texts(config)


def _by_path(variant: str, settings: Any) -> Any:
    """Return the settings of a variant by path: ``{rnn: {cell: gru}}`` sets ``rnn.cell`` and nothing else."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        return settings
    values: dict[str, Any] = {}
    for path, value in settings.items():
        inner = flatten({path: value}) if isinstance(value, Mapping) and value else {str(path): value}
        if twice := sorted(values.keys() & inner.keys()):
            raise ValueError(f"{variant} sets {twice[0]} twice; keep one of them")
        values |= inner
    return values


def read_comparison(
    path: FilePath | str, overrides: Sequence[Override] = (), *, environment: Mapping[str, str] | None = None
) -> Comparison:
    """Read a comparison file, apply the overrides, and check the result against its trainable.

    Args:
        path: the YAML file.
        overrides: values that replace those of the file.
        environment: fills ``${NAME}`` and gives MLFLOW_TRACKING_URI; default: that of the process.

    Raises:
        InputError: one line that begins with the file and line at fault, or with the override.
    """
    return read_job(Comparison, _checked, path, overrides, environment)


def _checked(
    tree: dict[str, Any], environment: Mapping[str, str], overrides: Sequence[Override]
) -> Comparison:
    """Return the comparison that the values of a file describe; raises FieldError."""
    comparison = load_job(Comparison, tree, environment)
    names = list(comparison.variants)
    seed = comparison.config.get(SEED, comparison.implementation.Config.model_fields[SEED].default)
    comparison = comparison.model_copy(
        update={"baseline": comparison.baseline or names[0], "seeds": comparison.seeds or (seed,)}
    )
    if comparison.baseline not in names:
        reason = f"unknown variant {quote(comparison.baseline)}{nearest(comparison.baseline, names)}"
        raise FieldError(Fault(("baseline",), reason))
    if len(paths := list(comparison.splits)) > 1:
        reason = f"expected one path and its values, not {len(paths)}: {', '.join(paths)}"
        raise FieldError(Fault(("splits", paths[-1]), reason))
    if SEED in comparison.splits:
        raise FieldError(Fault(("splits", SEED), "write seeds: [...] instead"))
    varied = {path: f"is varied by splits; write --set 'splits.{path}=[...]'" for path in comparison.splits}
    if "seeds" in comparison.model_fields_set and "seeds" in tree:
        varied[SEED] = "is varied by seeds; write --set 'seeds=[...]'"
    refuse_ineffective(overrides, varied)
    for name, settings in comparison.variants.items():
        for path in settings:
            if clash := [
                varied_path
                for varied_path in [*comparison.splits, SEED]
                if f"{varied_path}.".startswith(f"{path}.")
            ]:
                reason = f"{clash[0]} is varied for all variants; remove it here"
                raise FieldError(Fault(("variants", name, path), reason))
    configs: dict[str, BaseModel] = {}
    for cell in comparison.cells:
        config = comparison.cell_config(cell)
        if cell.grid_point == comparison.grid_points[0]:
            for name, other in configs.items():
                if other == config:
                    reason = f"has the same config as {name}; remove one of them"
                    raise FieldError(Fault(("variants", cell.variant), reason))
            configs[cell.variant] = config
    return comparison


def _cause(path: str, settings: Mapping[str, Any]) -> str:
    """Return the path of a setting that contains ``path`` or is in it, or an empty string."""
    outer = [setting for setting in settings if f"{path}.".startswith(f"{setting}.")]
    inner = [setting for setting in settings if path and setting.startswith(f"{path}.")]
    return next(iter([*outer, *inner]), "")
