"""The report: one HTML page that stands alone."""

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nexus.core.errors import MismatchError
from nexus.core.io.outputs import write_atomically
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
from nexus.planner.report.waits import waits_table
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.search.solve import make_plan_search
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import Profile

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
       margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p.verdict { font-size: 1.05rem; border-left: 4px solid #111; padding-left: .8rem; }
.figure { overflow-x: auto; } .figure > div { min-width: 36rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; }
footer { color: #555; font-size: .8rem; margin-top: 2rem; overflow-wrap: anywhere; }
@media print { section { break-inside: avoid; } .figure { overflow: visible; }
               .figure > div { min-width: 0; } .modebar { display: none !important; } }
"""

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
    drawn = [_section(*part) for part in _parts(plan, profile, plan_search) if part[2] is not None]
    tables = [waits_table(plan, plan_search), _accuracy(profile)]
    verdict = describe(plan, profile, lengths)
    return _page(plan, profile, verdict, "".join([*drawn, *tables]))


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


def _section(title: str, words: str, figure: go.Figure) -> str:
    figure.update_layout(
        template="simple_white",
        font=_FONT,
        margin={"l": 60, "r": 15, "t": 40, "b": 50},
        hoverlabel={"font": _FONT},
    )
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return (
        f"<section><h2>{escape(title)}</h2><p>{escape(words)}</p>"
        f'<div class="figure">{drawn}</div></section>\n'
    )


def _accuracy(profile: Profile) -> str:
    rows = "".join(
        f"<tr><td>{escape(row.group)}</td>"
        f'<td class="n">{row.points}</td><td class="n">{row.median_error:.1%}</td>'
        f'<td class="n">{row.p95_error:.1%}</td></tr>'
        for row in check(profile)
        if row.held_out
    )
    if not rows:
        return ""
    return (
        "<section><h2>How well step times are predicted</h2>"
        "<p>On samples that the model was not fitted to.</p><div class='figure'><table><tr>"
        "<th>samples</th><th class='n'>points</th><th class='n'>median error</th>"
        f"<th class='n'>p95</th></tr>{rows}</table></div></section>\n"
    )


def _page(plan: Plan, profile: Profile, verdict: str, body: str) -> str:
    sizes = [f"{name.replace('_', ' ')} {n}" for name, n in plan.engine.parallel.items() if n > 1]
    title = ", ".join([f"{plan.model.name} on {plan.machine.name}", *sizes])
    provenance = (
        f"Plan {plan.hash} ({plan.policy}), made {plan.provenance.created} by "
        f"{plan.provenance.command!r}; profile {plan.profile_hash}, measured "
        f"{profile.provenance.created} by {profile.provenance.command!r}, "
        f"{len(profile.measured)} samples."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Nexus: {escape(title)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>"
        f"<h1>{escape(title)}</h1><p class='verdict'>{escape(verdict)}</p>\n"
        f"{body}<footer>{escape(provenance)}</footer></body></html>\n"
    )
