"""The finals of a sweep as a job: its best trials, trained again from scratch over seeds and splits."""

from collections.abc import Mapping
from typing import Any

from orchestrator.config.comparison import SEED, Comparison
from orchestrator.config.job import Job
from orchestrator.config.sections import MAX_NAME, Finals
from orchestrator.errors import Fault, FieldError, quote

SUFFIX = ".finals"
"""The job of the finals has the name of the sweep and this suffix."""


class FinalRuns(Comparison):
    """A comparison of trials of a sweep on validation data. Only the runs of the winner see the targets."""

    objective: str
    """The metric by which the winner is chosen."""

    sweep_id: str
    """Id of the sweep. With ``--fresh`` it is a new one, and the earlier finals are set aside."""

    @classmethod
    def of(
        cls,
        sweep: Job,
        finals: Finals,
        config: dict[str, Any],
        objective: str,
        trials: Mapping[str, Any],
        sweep_id: str,
    ) -> "FinalRuns":
        """Return the finals of a sweep.

        Args:
            sweep: the sweep.
            finals: its section ``finals``.
            config: what the parameters of a trial are added to.
            objective: the metric by which the winner is chosen.
            trials: the parameters of each finalist by its name, the best one first.
            sweep_id: id of the sweep.
        """
        shared = {name: getattr(sweep, name) for name in Job.model_fields if name not in ("name", "config")}
        runs = cls.model_construct(
            **shared,
            name=f"{sweep.name}{SUFFIX}",
            config=config,
            variants=dict(trials),
            splits=finals.splits,
            seeds=finals.seeds,
            baseline=next(iter(trials)),
            metrics=(objective,),
            objective=objective,
            sweep_id=sweep_id,
        )
        runs._implementation = sweep._implementation
        return runs

    def record(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the record of a comparison, with the id of the sweep."""
        return {**super().record(before), "sweep": self.sweep_id}


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
    if len(runs.name) > MAX_NAME:
        reason = f"with finals, the name may have {MAX_NAME - len(SUFFIX)} characters, because of {runs.name}"
        raise FieldError(Fault(("name",), reason))
    if finals.top > trials:
        reason = f"{finals.top} of {trials} trials; write at most budget.trials"
        raise FieldError(Fault(("finals", "top"), reason))
    if len(paths := list(finals.splits)) > 1:
        reason = f"expected one path and its values, not {len(paths)}: {', '.join(paths)}"
        raise FieldError(Fault(("finals", "splits", paths[-1]), reason))
    if SEED in finals.splits:
        raise FieldError(Fault(("finals", "splits", SEED), "write finals.seeds: [...] instead"))
    for path in (*finals.splits, SEED):
        if path in searched:
            location = ("finals", "seeds") if path == SEED else ("finals", "splits", path)
            raise FieldError(Fault(location, f"{quote(path)} is searched; remove it here or in search"))
    for cell in runs.cells:
        try:
            runs.cell_config(cell)
        except FieldError as error:
            fault = error.fault
            raise FieldError(fault._replace(path=("finals", *fault.path))) from error
