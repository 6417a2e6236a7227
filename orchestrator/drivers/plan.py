"""The plan of a job, as tables for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator.config.job import Job
from orchestrator.config.sweep import Sweep
from orchestrator.console.tables import format_count, format_duration, pairs
from orchestrator.execution.cluster import Cluster


def sweep_plan(sweep: Sweep, cluster: Cluster) -> RenderableType:
    """Return the search space, the budget, what runs where, and the addresses to look at."""
    space = Table(title="Search space", title_justify="left", title_style="bold")
    for column in ("path", "distribution", "range", "only when"):
        space.add_column(column, overflow="fold")
    for row in sweep.space.table():
        space.add_row(*row)
    return Group(space, "", pairs(f"Sweep {sweep.name}", _settings(sweep, cluster)), "")


def _settings(sweep: Sweep, cluster: Cluster) -> dict[str, str]:
    budget = sweep.budget
    epochs = format_count(sweep.epochs, "epoch")
    limits = [f"{format_count(budget.trials, 'trial')} of at most {epochs}"]
    if budget.wall is not None:
        limits.append(f"{format_duration(budget.wall)} of wall time")
    if budget.no_gain_for is not None:
        limits.append(f"stop after {budget.no_gain_for} ended trials without gain")
    first = {"enqueued": ", ".join(sweep.enqueue), "warm start": ", ".join(sweep.warm_start)}
    return {
        **_objective_rows(sweep),
        "sampler": sweep.sampler.name,
        **{name: text for name, text in first.items() if text},
        "scheduler": _scheduler(sweep),
        "budget": "; ".join(limits),
        "finals": _finals(sweep),
        "registry": f"{sweep.registry.model}@{sweep.registry.alias}" if sweep.registry else "none",
        **resource_rows(sweep, budget.trials, cluster),
    }


def _scheduler(sweep: Sweep) -> str:
    name, rungs = sweep.scheduler.name, sweep.scheduler.rungs(sweep.epochs)
    if rungs:
        name += f", trials may stop after epoch {', '.join(map(str, rungs))}"
    elif name != "none":
        name += f", stops no trial, because a trial has only {format_count(sweep.epochs, 'epoch')}"
    return name


def _finals(sweep: Sweep) -> str:
    if sweep.finals is None:
        return "none: the best trial is the candidate"
    best = format_count(sweep.finals.top, "trial")
    runs = format_count(len(sweep.final_runs({"": {}}).cells), "time")
    epochs = format_count(sweep.epochs, "epoch")
    return f"the best {best} again, {runs} each, of at most {epochs}; the winner is scored"


def _objective_rows(sweep: Sweep) -> dict[str, str]:
    """Return what is optimized, and within which bounds."""
    text = ", ".join(f"{objective.metric} ({objective.mode})" for objective in sweep.objective)
    rows = {"objective": text}
    if len(sweep.objective) > 1:
        chosen = "is the candidate" if sweep.finals is None else "leads the finals"
        rows["objective"] += f": a Pareto set; the model with the best {sweep.objective[0].metric} {chosen}"
    if sweep.constraints:
        rows["constraints"] = ", ".join(bound for each in sweep.constraints for bound in each.violations(0.0))
        if sweep.sampler.ignores_constraints:
            rows["constraints"] += (
                f"; {sweep.sampler.name} ignores them, the choice of the best trial does not"
            )
    return rows


def resource_rows(job: Job, trials: int, cluster: Cluster) -> dict[str, str]:
    """Return what each of ``trials`` trials takes, what runs where, and the addresses to look at."""
    resources = job.resources
    at_once, now = min(cluster.concurrency(resources), trials), cluster.fitting(resources)
    worker = f"{resources.cpus:g} CPU" + (f" + {resources.gpus:g} GPU" if resources.gpus else "")
    rows = {
        "each trial": f"{format_count(resources.workers, 'Ray Train worker')} of {worker}",
        "at once": f"{format_count(at_once, 'trial')} on {format_count(len(cluster.nodes), 'node')} with "
        f"{cluster.total('CPU'):g} CPUs and {cluster.total('GPU'):g} GPUs"
        + (f"; {now} fit now, the others wait for new nodes" if now < at_once else ""),
        "storage": f"{job.storage}/{job.name}",
        "tracking": f"{job.tracking.uri}, experiment {job.tracking.experiment}",
        "Ray dashboard": cluster.dashboard or "not running",
    }
    if cluster.dashboard and cluster.token_file:
        rows["sign in with"] = f"the token in {cluster.token_file}"
    return rows
