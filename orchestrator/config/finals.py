"""The finals of a sweep as a job: its best trials, trained again from scratch over seeds and splits."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from orchestrator.config.comparison import SEED, Cell, Comparison
from orchestrator.config.job import Job
from orchestrator.config.sections import MAX_NAME, Finals
from orchestrator.errors import Fault, FieldError, Path, quote

FINALS, CROSSED = ".finals", ".crossed"
"""The jobs of the finals have the name of the sweep and one of these suffixes."""


class FollowUp(Comparison):
    """A comparison that follows from the trials of a sweep."""

    sweep_id: str
    """Id of the sweep. With ``--fresh`` it is a new one, and the earlier comparison is set aside."""

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the record of a comparison, with the id of the sweep."""
        return {**super().record(before), "sweep": self.sweep_id}


class FinalRuns(FollowUp):
    """The runs of the finalists, on validation data. Only those of the winner see the targets."""

    objective: str
    """The metric by which the winner is chosen."""


class CrossedRuns(FollowUp):
    """The runs of the winner on other training sets, each of which is a variant."""

    left_out: tuple[Cell, ...]
    """Splits that a training set does not have."""

    @property
    def cells(self) -> list[Cell]:
        """Every training set on each of its splits with every seed."""
        return [cell for cell in super().cells if cell not in self.left_out]


_FollowUp = TypeVar("_FollowUp", bound=FollowUp)


def follow_up(
    model: type[_FollowUp],
    suffix: str,
    sweep: Job,
    finals: Finals,
    config: dict[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    **values: Any,
) -> _FollowUp:
    """Return a job that follows from the trials of a sweep.

    Args:
        model: the kind of job.
        suffix: what its name has after that of the sweep.
        sweep: the sweep, of which it has everything else.
        finals: the section ``finals`` of the sweep.
        config: what the settings of a variant are added to.
        variants: the settings of each variant by its name.
        values: the other fields of ``model``.
    """
    shared = {name: getattr(sweep, name) for name in Job.model_fields if name not in ("name", "config")}
    runs = model.model_construct(
        **shared,
        name=f"{sweep.name}{suffix}",
        config=config,
        variants={name: dict(settings) for name, settings in variants.items()},
        splits=finals.splits,
        seeds=finals.seeds,
        baseline=next(iter(variants)),
        **values,
    )
    runs._implementation = sweep._implementation
    return cast(_FollowUp, runs)


def check_finals(finals: Finals, runs: FinalRuns, trials: int, searched: Mapping[str, Any]) -> None:
    """Check the section ``finals`` of a sweep.

    Args:
        finals: the section.
        runs: the finals of a trial without parameters.
        trials: the budget of the search.
        searched: the searched paths.

    Raises:
        FieldError: a value is not valid.
    """
    longest = max((FINALS, CROSSED), key=len)
    if len(runs.name) - len(FINALS) + len(longest) > MAX_NAME:
        most = MAX_NAME - len(longest)
        reason = f"with finals, the name may have {most} characters, so that NAME{longest} is a valid name"
        raise FieldError(Fault(("name",), reason))
    if finals.top > trials:
        reason = f"{finals.top} is more than budget.trials, {trials}; lower it, or write finals: null"
        raise FieldError(Fault(("finals", "top"), reason))
    for key, axis in (("splits", finals.splits), ("train", finals.train)):
        if len(paths := list(axis)) > 1:
            reason = f"expected one path and its values, not {len(paths)}: {', '.join(paths)}"
            raise FieldError(Fault(("finals", key, paths[-1]), reason))
    for key, axis in (("splits", finals.splits), ("train", finals.train)):
        if SEED in axis:
            raise FieldError(Fault(("finals", key, SEED), "write finals.seeds: [...] instead"))
    for path in finals.train.keys() & finals.splits.keys():
        reason = f"{quote(path)} is the path of finals.splits; name the path of a training set"
        raise FieldError(Fault(("finals", "train", path), reason))
    places: dict[str, Path] = {SEED: ("finals", "seeds")}
    places |= {path: ("finals", "splits", path) for path in finals.splits}
    places |= {path: ("finals", "train", path) for path in finals.train}
    for path, location in places.items():
        if path in searched:
            raise FieldError(Fault(location, f"{quote(path)} is searched; remove it here or in search"))
    for cell in runs.cells:
        try:
            runs.cell_config(cell)
        except FieldError as error:
            fault = error.fault
            raise FieldError(fault._replace(path=("finals", *fault.path))) from error


def check_crossed(finals: Finals, runs: CrossedRuns) -> None:
    """Check the training sets of the finals; raises FieldError.

    Args:
        finals: the section ``finals`` of a sweep.
        runs: the runs of a winner without parameters on these sets.
    """
    ((path, values),) = finals.train.items()
    for cell in runs.first_cells:
        try:
            runs.cell_config(cell)
        except FieldError as error:
            index = [str(value) for value in values].index(cell.variant)
            location = ("finals", "train", path, index)
            raise FieldError(error.fault._replace(path=location)) from error
