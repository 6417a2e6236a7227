"""The decision of the gate in the report of a sweep: what was compared, and the resampled gains."""

import matplotlib
from matplotlib.figure import Figure

from orchestrator.report.finals import Table
from orchestrator.report.style import BLUE, INK, PALE, SETTINGS, Picture, figure_uri
from orchestrator.tracking.gate import Decision, comparison_rows


def gate_table(decision: Decision) -> Table:
    """Return what was compared on each target and over all of them."""
    how = decision.aggregate if isinstance(decision.aggregate, str) else "weighted mean"
    together = f"{how} of {len(decision.targets)} targets"
    rows = comparison_rows(decision.targets, decision.overall, together)
    interval = "interval" if decision.confidence is None else f"{100 * decision.confidence:.10g}% interval"
    columns = ("target", f"{decision.metric}, candidate", "champion", "difference", interval)
    return Table("Gate", columns, 1, rows)


def gate_lines(decision: Decision) -> list[str]:
    """Return verdict and reason, and what was not compared."""
    left_out = [f"not compared on {target}: {reason}" for target, reason in decision.not_compared.items()]
    return [f"{decision.verdict}: {decision.reason}", *left_out, *decision.notes]


def draw_gains(decision: Decision) -> Picture | None:
    """Draw the gains over the champion that resampled identities give; None where nothing was resampled."""
    if decision.overall is None or not decision.histogram:
        return None
    edges, counts = decision.histogram["edges"], decision.histogram["counts"]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4, 3.0))
        axes = figure.subplots()
        axes.stairs(counts, edges, fill=True, color=PALE)
        if decision.overall.interval is not None:
            axes.axvspan(*decision.overall.interval, color=BLUE, alpha=0.15, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(decision.overall.difference, color=BLUE, linewidth=2)
        axes.set(xlabel=f"{decision.metric} of the candidate minus that of the champion", yticks=[])
        image = figure_uri(figure)
    caption = "Gains of resampled identities; the line is the measured gain, the band its interval."
    return Picture("Bootstrap of the gate", caption, image)
