"""The plan in one paragraph of plain text."""

from nexus.core.plan import Plan, Prediction, Shares
from nexus.planner.report.reach import reach_of_bound
from nexus.planner.simulator.simulate import stock_named
from nexus.planner.workload.requests import Lengths, Requests, lengths_of
from nexus.profiles.schema import Profile

_WORTH_SAYING = 0.02
_FEW = 0.005
_LIMITS = {
    "TBT": "the TBT bound is what limits it",
    "TTFT": "the TTFT bound is what limits it",
    "KV cache": "the KV cache is what limits it: it is full before a bound binds",
    "max_num_seqs": "--max-num-seqs is what limits it: more sequences would still fit the bounds",
    "compute": "the device's speed is what limits it: a looser bound would not help",
}


def describe(plan: Plan, profile: Profile, lengths: Lengths | Requests | None = None) -> str:
    """The verdict: sustainable rates, what binds, where sharing pays, and what to expect.

    ``lengths`` are the workload's, where more than the means in the plan is known.
    """
    return " ".join(
        [
            _rates(plan),
            _sharing(plan, profile),
            _expectation(plan),
            *reach_of_bound(plan, profile, lengths_of(lengths or plan.workload)),
            *_beyond(plan, profile),
        ]
    )


def _rates(plan: Plan) -> str:
    said = plan.prediction
    cached = plan.workload.cached_tokens
    prompt = f"{plan.workload.input_tokens:.0f}" + (
        f" ({cached:.0f} of them cached)" if cached else ""
    )
    lengths = f"{prompt} + {plan.workload.output_tokens:.0f} tokens"
    served = (
        f"For requests of {lengths} ({plan.workload.source}) within TTFT {plan.bounds.ttft_name} "
        f"and TBT {plan.bounds.tbt_ms:g} ms this {plan.machine.name} sustains"
    )
    if said.capacity_per_s == 0.0:
        return (
            f"{served} no rate at which enough of the requests meet both, in simulation: "
            f"loosen the bounds or expect misses.{_not_on_time(said)}"
        )
    return (
        f"{served} {said.capacity_per_s:.3g} requests/s in simulation, {_against(plan)}; "
        f"{_LIMITS.get(said.binding, said.binding)}.{_not_on_time(said)}"
    )


def _not_on_time(said: Prediction) -> str:
    """Which requests cannot be on time, and why."""
    long = (
        f"{said.too_long_share:.1%} of the prompts, those of more than "
        f"{said.longest_prompt_tokens:,} tokens, are late alone on an idle server"
    )
    if said.attainable_share < 1.0:
        rest = 1.0 - said.attainable_share - said.too_long_share
        why = [long] * (said.too_long_share > 0)
        if rest > _WORTH_SAYING:
            why.append(f"{rest:.0%} come together with others, or decode beside their prompts")
        return (
            f" {1.0 - said.attainable_share:.0%} of the requests are not on time under the "
            f"lightest load: {' and '.join(why)}; the rates are those at which 90 % of the others "
            "are."
        )
    return f" Of the requests {long}." if said.too_long_share > _FEW else ""


def _against(plan: Plan) -> str:
    said = plan.prediction
    stock = f"the best stock vLLM ({_flags_of(said.baseline)})"
    if said.baseline_capacity_per_s == 0.0:
        return f"and {stock} cannot hold these bounds at any rate"
    gain = said.capacity_per_s / said.baseline_capacity_per_s - 1.0
    if gain > _WORTH_SAYING:
        return f"{gain:+.0%} over {said.baseline_capacity_per_s:.3g} of {stock}"
    if gain < -_WORTH_SAYING:
        return f"{gain:+.0%} against {said.baseline_capacity_per_s:.3g} of {stock}"
    return f"no more than {stock} does"


def _flags_of(baseline: str) -> str:
    stock = stock_named(baseline)
    assert stock.mode is not None
    queued = stock.max_queued_tokens
    bound = f" --max-num-queued-tokens {queued}" if queued else ""
    return f"--max-num-batched-tokens {stock.mode.chunk}{bound}"


def _sharing(plan: Plan, profile: Profile) -> str:
    said = plan.prediction
    if plan.shares is not None:
        return _static(plan, plan.shares, profile)
    if plan.policy == "fixed":
        (mode,) = plan.modes
        return f"No table beats one mode for all loads here, so the plan is {mode} everywhere."
    single = _single(said)
    shared = {name for name, mode in plan.modes.items() if mode.mode != "fused"}
    if not shared:
        return _unshared(plan, profile) + single
    rows = [row for row in plan.rows if row.decode_batch and row.prefill_backlog]
    paying = [row for row in rows if row.mode in shared]
    if not paying:
        return _unshared(plan, profile) + single
    batches = sorted({row.decode_batch for row in paying})
    return (
        f"Sharing ({', '.join(sorted(shared))}) pays in {len(paying) / len(rows):.0%} of the "
        f"states with both phases, at {batches[0]} to {batches[-1]} decoding sequences; "
        f"elsewhere one batch is better.{single}"
    )


def _static(plan: Plan, shares: Shares, profile: Profile) -> str:
    """What one share for all loads is, and what it costs."""
    (mode,), said = plan.modes.values(), plan.prediction
    unit = "SMs" if plan.machine.device == "cuda" else "cores"
    words = [
        f"Under MPS two engines keep one share for all loads: prefill {shares.prefill_percent} % "
        f"({mode.prefill_sms} {unit}) in steps of {mode.chunk} tokens, decode "
        f"{shares.decode_percent} % ({mode.decode_sms or plan.machine.sms} {unit})."
    ]
    dynamic = said.dynamic_capacity_per_s
    if dynamic:
        change = said.capacity_per_s / dynamic - 1.0
        words.append(
            f"That is {change:+.0%} against the {dynamic:.3g} requests/s of the dynamic plan "
            "under green contexts."
        )
    if profile.partitioner != "mps":
        words.append("Its step times were measured under green contexts, not under MPS.")
    words.append("The hand-over from engine to engine is fitted to one run on an H200.")
    return " ".join(words)


def _single(said: Prediction) -> str:
    if not said.best_fixed_capacity_per_s:
        return ""
    if said.best_fixed_capacity_per_s > said.capacity_per_s:
        return f" The best single mode, {said.best_fixed}, does as well, within the scatter."
    return (
        f" The best single mode, {said.best_fixed}, sustains {said.best_fixed_capacity_per_s:.3g}."
    )


def _unshared(plan: Plan, profile: Profile) -> str:
    measured = any(sample.mode in ("split", "overlap") for sample in profile.samples)
    why = "No partition pays here" if measured else "This profile has no partitions to choose from"
    chunks = sorted(mode.chunk for mode in plan.modes.values())
    span = f"{chunks[0]} to {chunks[-1]}" if len(chunks) > 1 else f"{chunks[0]}"
    return f"{why}: every step is one batch, of at most {span} tokens by the load."


def _expectation(plan: Plan) -> str:
    said = plan.prediction
    ttft = (
        f"At {said.rate_per_s:.3g} requests/s expect a TTFT of {said.ttft_ms:.0f} ms on average "
        f"(p95 {said.ttft_p95_ms:.0f})"
    )
    if not said.tbt_ms:
        return f"{ttft}; with outputs of one token there is no TBT."
    return (
        f"{ttft} and a TBT of {said.tbt_ms:.3g} ms (p95 "
        f"{said.tbt_p95_ms:.3g}, p99 {said.tbt_p99_ms:.3g})."
    )


def _beyond(plan: Plan, profile: Profile) -> list[str]:
    """What the table covers and nobody measured."""
    decodes = [sample for sample in profile.measured if sample.decode_batch]
    batch = max(sample.decode_batch for sample in decodes)
    kv = max(sample.decode_batch * sample.decode_context for sample in decodes)
    beyond = [
        f"{batch} sequences" if plan.axes.decode_batch[-1] > batch else "",
        f"{kv:,} KV tokens" if plan.axes.kv_tokens[-1] > kv else "",
    ]
    named = " or ".join(part for part in beyond if part)
    if not named:
        return []
    return [f"Beyond {named} nothing was measured, and steps are timed from that edge."]
