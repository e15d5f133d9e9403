"""The report's figures of what was measured and what was predicted."""

from collections import defaultdict

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nexus.core.plan import Mode, Plan
from nexus.core.slo import GOOD_REQUESTS
from nexus.planner.latency.frontier import pareto
from nexus.planner.report.replay import plan_system
from nexus.planner.search.plan_search import PlanSearch
from nexus.planner.simulator.simulate import stock_named
from nexus.profiles.schema import Profile, Sample

INK = ("#111111", "#0072B2", "#D55E00", "#7A7A7A", "#009E73", "#B45CA0")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKS = {"fused": "circle", "split": "square", "overlap": "triangle-up"}
COLOURS = {"fused": INK[3], "split": INK[1], "overlap": INK[2]}
FILLS = ("", "/", "\\", "x", ".", "+")

_SATURATED = 0.9  # of the speed on all SMs
_MOST_LINES = 4
_FRONTIER_BATCHES = (8, 32, 64, 128)
_ATTAINMENT_LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3)


def saturation_figure(profile: Profile) -> go.Figure:
    """Speed of each phase alone against its share of the SMs, as measured.

    A ring marks the fewest SMs that give 90 % of the speed on all of them.
    """
    figure = make_subplots(cols=2, subplot_titles=("Prefill alone", "Decode alone"))
    figure.update_layout(height=420)
    for column, phase in enumerate(("prefill", "decode"), start=1):
        lines = _lines_by_shape(profile, phase)
        for index, (name, points) in enumerate(lines.items()):
            sms, speed = _relative_speed(points)
            share = 100 * sms / profile.machine.sms
            ink = INK[index % len(INK)]
            dash = DASHES[index % len(DASHES)]
            text = [f"{count} SMs" for count in sms.astype(int)]
            figure.add_scatter(
                x=share, y=speed, name=name, text=text, mode="lines+markers", row=1, col=column,
                line={"color": ink, "dash": dash}, marker={"size": 5},
                legend="legend" if column == 1 else "legend2",
            )  # fmt: skip
            knee = int(np.argmax(speed >= _SATURATED))
            figure.add_scatter(
                x=[share[knee]], y=[speed[knee]], mode="markers", row=1, col=column,
                marker={"symbol": "circle-open", "size": 15, "color": ink, "line": {"width": 3}},
                hovertext=f"saturates at {sms[knee]:.0f} SMs", showlegend=False,
            )  # fmt: skip
        figure.update_xaxes(title_text="SMs, % of all", range=[0, 103], row=1, col=column)
    figure.update_yaxes(title_text="speed, 1 = all SMs", rangemode="tozero")
    figure.update_layout(
        legend={"x": 0.44, "y": 0.04, "xanchor": "right", "yanchor": "bottom"},
        legend2={"x": 0.99, "y": 0.04, "xanchor": "right", "yanchor": "bottom"},
    )
    return figure


def _lines_by_shape(profile: Profile, phase: str) -> dict[str, list[Sample]]:
    groups: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in profile.measured:
        if sample.mode == phase:
            key = (
                sample.chunk or sample.decode_batch,
                sample.prefill_context or sample.decode_context,
            )
            groups[key].append(sample)
    most = max((len(group) for group in groups.values()), default=0)
    whole = sorted(key for key, group in groups.items() if len(group) >= max(2, most // 2))
    picked = (
        [whole[i] for i in np.unique(np.linspace(0, len(whole) - 1, _MOST_LINES).astype(int))]
        if whole
        else []
    )
    unit = "tokens" if phase == "prefill" else "sequences"
    return {
        f"{size} {unit}, context {context}": groups[(size, context)] for size, context in picked
    }


def _relative_speed(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    rows = sorted(
        (max(s.prefill_sms, s.decode_sms), s.prefill_ms or s.decode_ms or 1.0) for s in samples
    )
    sms, ms = np.array(rows, dtype=np.float64).T
    return sms, ms[-1] / ms


def kernel_figure(profile: Profile) -> go.Figure | None:
    """Where the time of a step goes, by class of kernel; None when it was not measured."""
    if not profile.kernels:
        return None
    phases = sorted({kernel.phase for kernel in profile.kernels}, reverse=True)
    titles = [f"{phase.capitalize()} step" for phase in phases]
    figure = make_subplots(cols=len(phases), subplot_titles=titles)
    classes = sorted({kernel.kernel_class for kernel in profile.kernels})
    for column, phase in enumerate(phases, start=1):
        mine = [kernel for kernel in profile.kernels if kernel.phase == phase]
        largest = max(kernel.chunk + kernel.batch for kernel in mine)
        mine = [kernel for kernel in mine if kernel.chunk + kernel.batch == largest]
        context = max(kernel.context for kernel in mine)
        counts = sorted({kernel.sms for kernel in mine})
        for index, kind in enumerate(classes):
            ms = [
                sum(k.ms for k in mine if (k.sms, k.kernel_class, k.context) == (n, kind, context))
                for n in counts
            ]
            figure.add_bar(
                x=[str(count) for count in counts], y=ms, name=kind.replace("_", " "), row=1, col=column,
                showlegend=column == 1,
                marker={"color": INK[index % 6], "pattern": {"shape": FILLS[index % 6]}},
            )  # fmt: skip
        figure.update_xaxes(title_text="SMs", row=1, col=column)
    figure.update_yaxes(title_text="ms a step")
    figure.update_layout(barmode="stack", height=420)
    return figure


def frontier_figure(plan_search: PlanSearch) -> go.Figure:
    """Each mode's gap between tokens against its prefill speed, at four decode batches."""
    problem = plan_search.problem
    most = plan_search.draft.axes.decode_batch[-1]
    batches = sorted({min(batch, most) for batch in _FRONTIER_BATCHES})
    titles = [f"{batch} sequences decode" for batch in batches]
    figure = make_subplots(
        rows=-(-len(batches) // 2), cols=2, subplot_titles=titles, vertical_spacing=0.16
    )
    context = problem.lengths.decode_context
    for index, batch in enumerate(batches):
        row, col = index // 2 + 1, index % 2 + 1
        seen = problem.outcomes(plan_search.modes, [(batch, round(batch * context), 10**9)])
        tbt, speed = seen.tbt_ms[:, 0], seen.prefill_per_s[:, 0]
        best = pareto(tbt, speed)
        figure.add_scatter(
            x=tbt[best], y=speed[best], mode="lines", line={"color": INK[0], "shape": "hv"},
            name="frontier", showlegend=index == 0, row=row, col=col,
        )  # fmt: skip
        for kind, mark in MARKS.items():
            members = [i for i, mode in enumerate(plan_search.modes) if mode.mode == kind]
            if members:
                figure.add_scatter(
                    x=tbt[members], y=speed[members], mode="markers", name=kind,
                    text=[plan_search.modes[i].name for i in members], showlegend=index == 0,
                    marker={"symbol": mark, "size": 10, "color": COLOURS[kind], "line": {"width": 1}},
                    row=row, col=col,
                )  # fmt: skip
        figure.add_scatter(
            x=[problem.bounds.tbt_ms] * 2, y=[0, float(speed.max())], mode="lines", name="TBT bound",
            line={"color": INK[0], "dash": "dot"}, showlegend=index == 0, row=row, col=col,
        )  # fmt: skip
    figure.update_xaxes(title_text="TBT, ms", type="log")
    figure.update_yaxes(title_text="prompt tokens/s", rangemode="tozero")
    figure.update_layout(height=720)
    return figure


def attainment_figure(plan_search: PlanSearch, plan: Plan) -> go.Figure:
    """The share of requests within both bounds against the rate, in simulation."""
    said = plan.prediction
    around = max(said.capacity_per_s, said.baseline_capacity_per_s) or said.limit_per_s
    rates = [load * around for load in _ATTAINMENT_LOADS]
    systems = [("the plan", plan_system(plan))]
    if said.best_fixed.startswith(("fused", "split", "overlap")):
        mode = next(mode for mode in plan_search.modes if mode.name == said.best_fixed)
        systems.append((f"{mode.name} always", plan_search.always(mode)))
    systems.append(
        (f"stock vLLM, {said.baseline.removeprefix('vllm-')}", stock_named(said.baseline))
    )
    figure = go.Figure()
    for index, (name, system) in enumerate(systems):
        shares = [100 * plan_search.evaluator.attainment(system, rate) for rate in rates]
        figure.add_scatter(
            x=rates, y=shares, name=name, mode="lines+markers",
            line={"color": INK[index], "dash": DASHES[index]},
            marker={"symbol": list(MARKS.values())[index], "size": 8},
        )  # fmt: skip
    figure.add_hline(
        y=100 * GOOD_REQUESTS,
        opacity=1,
        annotation_text="90 %",
        line={"color": INK[3], "dash": "dot", "width": 1.5},
    )
    figure.update_xaxes(title_text="requests/s", rangemode="tozero")
    figure.update_yaxes(title_text="% of requests within both bounds", range=[0, 103])
    figure.update_layout(height=420)
    return figure


def mode_label(mode: Mode) -> str:
    """A mode in a few characters, for the cell of a map."""
    if mode.mode == "fused":
        return f"{mode.chunk}"
    if mode.mode == "overlap":
        return f"o{mode.prefill_sms}"
    return f"s{mode.prefill_sms}"
