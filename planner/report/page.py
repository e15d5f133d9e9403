"""The report: one HTML page that stands alone."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nexus.core.errors import MismatchError
from nexus.core.io.outputs import write_atomically
from nexus.core.io.templates import render_page
from nexus.core.plan import Plan
from nexus.planner.latency.model import check
from nexus.planner.report.figures import (
    attainment_figure,
    frontier_figure,
    kernel_figure,
    saturation_figure,
)
from nexus.planner.report.maps import regime_figure, table_figure
from nexus.planner.report.verdict import describe
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.search.solve import make_plan_search
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import Profile

_FONT: dict[str, Any] = {"family": "system-ui, sans-serif", "size": 13, "color": "#111"}


def write_report(
    path: Path, plan: Plan, profile: Profile, lengths: Lengths | Requests | None = None
) -> None:
    """Write the page at ``path``, whole or not at all; raises as ``report``."""
    write_atomically(path, report(plan, profile, lengths))


def report(plan: Plan, profile: Profile, lengths: Lengths | Requests | None = None) -> str:
    """The page's HTML: works offline, in grey, on a phone and in print.

    ``lengths`` are the workload's, where more than the means in the plan is known. Raises
    MismatchError when the plan was made from another profile.
    """
    if plan.profile_hash != profile.hash:
        raise MismatchError(
            f"the plan was made from profile {plan.profile_hash}, not from {profile.hash}"
        )
    plan_search = make_plan_search(profile, plan.bounds, lengths or plan.workload, plan.provenance)
    sizes = [f"{name.replace('_', ' ')} {n}" for name, n in plan.engine.parallel.items() if n > 1]
    return render_page(
        __package__,
        title=", ".join([f"{plan.model.name} on {plan.machine.name}", *sizes]),
        plotly=get_plotlyjs(),
        verdict=describe(plan, profile),
        sections=[
            {"title": title, "words": words, "figure": _drawn(figure)}
            for title, words, figure in _parts(plan, profile, plan_search)
            if figure is not None
        ],
        accuracy=[row for row in check(profile) if row.held_out],
        provenance=_provenance(plan, profile),
    )


def _parts(
    plan: Plan, profile: Profile, plan_search: PlanSearch
) -> list[tuple[str, str, go.Figure | None]]:
    """Title, explanation and figure of each section."""
    return [
        (
            "How fast each phase is on part of the device",
            "Measured, each phase alone. A ring marks the fewest SMs that give 90 % of full speed.",
            saturation_figure(profile),
        ),
        (
            "Where a step's time goes",
            "Measured, the largest step, by class of kernel.",
            kernel_figure(profile),
        ),
        (
            "What each mode gives",
            "Gap between tokens against prefill speed, by mode; the line is the frontier, "
            "the dotted one the TBT bound.",
            frontier_figure(plan_search),
        ),
        (
            "The table",
            "The mode of each state with a long backlog. A number alone is one batch with that "
            "prefill chunk; sN is prefill on N SMs beside decode on the rest; oN is prefill on N "
            "SMs beneath decode on all.",
            table_figure(plan),
        ),
        (
            "Which mode is best where",
            "By fluid estimate, one mode at a time. Darker cells with a factor: a prompt is done "
            "that much sooner than with the best chunk. A dot: nothing holds the bounds.",
            regime_figure(plan_search),
        ),
        (
            "Requests within both bounds, by rate",
            "Simulated: a trace's own arrivals, if one was given, else random ones.",
            attainment_figure(plan_search, plan),
        ),
    ]


def _drawn(figure: go.Figure) -> str:
    figure.update_layout(
        template="simple_white",
        font=_FONT,
        margin={"l": 60, "r": 15, "t": 40, "b": 50},
        hoverlabel={"font": _FONT},
    )
    shown = {"responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=shown))


def _provenance(plan: Plan, profile: Profile) -> str:
    return (
        f"Plan {plan.hash} ({plan.policy}), made {plan.provenance.created} by "
        f"{plan.provenance.command!r}; profile {plan.profile_hash}, measured "
        f"{profile.provenance.created} by {profile.provenance.command!r}, "
        f"{len(profile.measured)} samples."
    )
