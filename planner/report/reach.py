"""Which prompts can never meet a fixed bound on TTFT, and which slope of the bound they need."""

from nexus.core.plan import Plan
from nexus.planner.latency.model import fit_model
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.idle import IdleServer
from nexus.planner.workload.requests import Lengths, longest_request
from nexus.profiles.schema import Profile

_TIMES_IDLE = 3


def reach_of_bound(plan: Plan, profile: Profile, lengths: Lengths) -> list[str]:
    """What is to be said of the bound on TTFT where it is the same for all prompts."""
    if plan.bounds.ttft_ms_per_1k_tokens:
        return []
    served = lengths.cut_to(longest_request(profile))
    tokens = (served.inputs - served.cached).astype(float)
    times = StepTimes(fit_model(profile))
    idle = IdleServer.of(times, plan.engine, int(tokens.max()))
    alone_ms = idle.ttft_of(tokens)
    never = float((alone_ms > plan.bounds.ttft_ms).mean())
    reach = (
        f"{100 * never:.2g}% of these prompts can never meet a bound of {plan.bounds.ttft_name}"
        if never
        else f"Every one of these prompts can meet a bound of {plan.bounds.ttft_name}"
    )
    slope = _TIMES_IDLE * idle.ms_per_1k_tokens()
    return [
        f"{reach}: on an idle server the longest takes {alone_ms.max():.0f} ms. "
        f"--ttft-ms-per-1k-tokens {slope:.3g} allows each {_TIMES_IDLE} times what its tokens "
        "take there."
    ]
