"""What the late's share costs and gives: ``python evidence/fairness.py [CURVE.png]``.

Ten simulated minutes on an H200 under more than it can serve: the plan with each late share, and
stock vLLM, as the Markdown tables in docs/fairness.md; with CURVE.png as its curve.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nexus.benchmarks.workloads import requests_at
from nexus.core.plan import Plan, read_plan
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.evidence.curves import table
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.simulator.metrics import Waits
from nexus.planner.simulator.simulate import Run, System, simulate, stock_system
from nexus.planner.workload.requests import Requests, longest_request
from nexus.profiles.schema import read_profile

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "evidence" / "results" / "h200" / "vllm-0.26" / "llama-3.1-8b.yaml"
PLANS = Path("plans")  # made as evidence/results/README.md says
SECONDS = 600.0
SHARES = (0.02, 0.05, 0.08, 0.1, 0.15, 0.3, 0.5)
STOCK = (512, 1024, 2048, 8192)  # the last is vLLM's default
CASES = {"azure_conv": 20.0, "mixed": None}  # requests/s; None: 1.2 times what the plan sustains
OVERLOAD = 1.2

HEAD = ("system", "on time", "TTFT p50, s", "p99", "slowdown p50", "p99", "longest tenth: TTFT p99, s",
        "slowdown p99", "all done after, s")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One system's run: its name, the share of requests on time, and how long requests wait."""

    name: str
    on_time: float
    waits: Waits
    end_s: float

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        waits, most = self.waits, self.waits.slowdown_longest.p99
        return (
            self.name,
            f"{self.on_time:.1%}",
            *(f"{ms / 1e3:.2f}" for ms in (waits.ttft_ms.p50, waits.ttft_ms.p99)),
            *(f"{times:.1f}" for times in (waits.slowdown.p50, waits.slowdown.p99)),
            f"{waits.ttft_longest_ms.p99 / 1e3:.1f}",
            f"{most:.0f}",
            f"{self.end_s:.0f}",
        )


class Case:
    """One workload at one rate, served by any system."""

    def __init__(self, workload: str) -> None:
        """``workload`` is a key of CASES."""
        profile = read_profile(PROFILE)
        self.plan: Plan = read_plan(PLANS / f"plan_1000-25_{workload}.yaml")
        self.rate = CASES[workload] or OVERLOAD * self.plan.prediction.capacity_per_s
        most = longest_request(profile)
        self.requests: Requests = requests_at(workload, self.rate, SECONDS, 0, most)
        self.times = StepTimes(fit_model(profile))
        longest = int(self.requests.lengths.inputs.max())
        self.idle = IdleServer.of(self.times, self.plan.engine, longest)

    def outcome(self, system: System) -> Outcome:
        """Serve all requests."""
        run: Run = simulate(self.times, self.plan.engine, self.requests, system)
        on_time = run.attainment(self.plan.bounds)
        return Outcome(system.name, on_time, Waits.of(run, self.idle), run.end_s)

    def outcomes(self) -> tuple[list[Outcome], list[Outcome]]:
        """Those of each late share, and those of stock vLLM."""
        plan = System("plan", plan=self.plan)
        shared = [
            self.outcome(replace(plan, name=f"late share {share:g}", late_share=share))
            for share in SHARES
        ]
        first_come = self.outcome(replace(plan, name="plan, fcfs", order="fcfs"))
        return shared, [first_come, *(self.outcome(stock_system(chunk)) for chunk in STOCK)]


def lines(workload: str, case: Case, outcomes: list[Outcome]) -> Iterator[str]:
    """The Markdown of one workload."""
    bounds = case.plan.bounds
    yield (
        f"{workload} at {case.rate:.3g} requests/s for {SECONDS:.0f} s, within "
        f"{bounds.ttft_name} and {bounds.tbt_ms:g} ms:"
    )
    yield ""
    yield from table(HEAD, [outcome.cells() for outcome in outcomes])


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 300, 60, 34, 16, 48


def draw(path: Path, curves: dict[str, list[Outcome]]) -> None:
    """On time against the longest tenth's slowdown p99, a panel for each workload."""
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    for number, (name, outcomes) in enumerate(curves.items()):
        _panel(ImageDraw.Draw(image), number * WIDTH // len(curves), name, outcomes, len(curves))
    image.save(path)


def _panel(
    canvas: ImageDraw.ImageDraw, left: int, name: str, outcomes: list[Outcome], panels: int
) -> None:
    font = ImageFont.load_default(13)
    width, height = WIDTH // panels - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    most = 1.08 * max(outcome.waits.slowdown_longest.p99 for outcome in outcomes)

    def at(slowdown: float, share: float) -> tuple[float, float]:
        return left + LEFT + width * slowdown / most, TOP + height * (1.0 - share)

    canvas.line([at(0, 1), at(0, 0), at(most, 0)], fill=0)
    for share in (0.0, 0.5, 1.0):
        canvas.text(at(0, share), f"{share:.0%} ", fill=0, font=font, anchor="rm")
    for part in (0.5, 0.92):
        slowdown, (x, y) = round(part * most, -1), at(round(part * most, -1), 0)
        canvas.text((x, y + 4), f"{slowdown:.0f}", fill=0, font=font, anchor="mt")
    middle = left + LEFT + width / 2
    canvas.text((middle, 8), f"{name}: on time", fill=0, font=font, anchor="mt")
    canvas.text((middle, HEIGHT - 20), "slowdown p99, longest tenth", 0, font, anchor="mt")
    points = [at(each.waits.slowdown_longest.p99, each.on_time) for each in outcomes]
    canvas.line(points[: len(SHARES)], fill=0, width=2)
    for index, ((x, y), outcome) in enumerate(zip(points, outcomes, strict=True)):
        shared, default = outcome.name.startswith("late"), f"late share {DEFAULT_LATE_SHARE:g}"
        radius = 6 if outcome.name == default else 3
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0 if shared else 170)
        if not shared:
            canvas.text(
                (x, y - 4 - 14 * ((index - len(SHARES)) % 3)), outcome.name, 90, font, anchor="mb"
            )


def main() -> None:
    """Print the tables; draw the curve where a path is given."""
    curves = {}
    for workload in CASES:
        case = Case(workload)
        shared, stock = case.outcomes()
        curves[workload] = [*shared, *stock]
        print("\n".join(lines(workload, case, curves[workload])))  # noqa: T201  the output
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]), curves)


if __name__ == "__main__":
    main()
