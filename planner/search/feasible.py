"""Whether bounds can be met at all."""

import numpy as np

from nexus.core.errors import InfeasibleError
from nexus.core.plan import Mode
from nexus.planner.search.problem import Problem


def require_feasible(problem: Problem, modes: list[Mode]) -> None:
    """Raise InfeasibleError, with the nearest bounds that can be met, when none can.

    The least that bounds must allow is one sequence decoding alone, if any decodes, and one
    prompt of mean length on an idle device.
    """
    lengths, bounds = problem.lengths, problem.bounds
    context = round(lengths.decode_context)
    alone = problem.outcomes(modes[:1], [(1, max(context, 1), 0)])
    decode_ms = float(alone.tbt_ms[0, 0]) if lengths.decodes else 0.0
    prompt = problem.outcomes(modes, [(0, 1, max(1, round(lengths.prefill_mean)))])
    steps = lengths.prefill_mean / np.maximum(prompt.prefill_per_s[:, 0], 1e-9)
    prompt_ms = 1e3 * float(steps.min())
    reasons = []
    if decode_ms > bounds.tbt_ms:
        reasons.append(
            f"TBT of {bounds.tbt_ms:g} ms: one sequence of {context} tokens decoding alone takes "
            f"{decode_ms:.1f} ms a step"
        )
    slope_ms = bounds.ttft_ms_for(lengths.prefill_mean) - bounds.ttft_ms
    if prompt_ms > bounds.ttft_ms + slope_ms:
        reasons.append(
            f"TTFT of {bounds.ttft_name}: a mean prompt of {lengths.prefill_mean:.0f} tokens "
            f"alone takes {prompt_ms:.0f} ms"
        )
    if reasons:
        ttft, tbt = max(bounds.ttft_ms, prompt_ms - slope_ms), max(bounds.tbt_ms, decode_ms)
        raise InfeasibleError(
            f"nothing measured meets {'; nor '.join(reasons)}. "
            f"The nearest bounds that can be met: --ttft-ms {_up(ttft)} --tbt-ms {_up(tbt)}"
        )


def _up(ms: float) -> str:
    """``ms`` rounded up to what a user would type."""
    return f"{np.ceil(ms * 10) / 10:g}" if ms < 100 else f"{np.ceil(ms):g}"
