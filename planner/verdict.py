"""The plan in one paragraph of plain text."""

from nexus.planner.table import Plan
from nexus.profiles.schema import Profile

_WORTH_SAYING = 0.02
_LIMITS = {
    "TBT": "the TBT bound is what limits it",
    "TTFT": "the TTFT bound is what limits it",
    "KV cache": "the KV cache is what limits it: it is full before a bound binds",
    "max_num_seqs": "--max-num-seqs is what limits it: more sequences would still fit the bounds",
    "compute": "the device's speed is what limits it: a looser bound would not help",
}


def describe(plan: Plan, profile: Profile) -> str:
    """The verdict: sustainable rates, what binds, where sharing pays, and what to expect."""
    return " ".join(
        [
            _rates(plan),
            _sharing(plan, profile),
            _expectation(plan),
        ]
    )


def _rates(plan: Plan) -> str:
    said = plan.prediction
    gain = said.capacity_per_s / max(said.baseline_capacity_per_s, 1e-9) - 1.0
    if said.baseline_capacity_per_s == 0.0:
        against = f"stock vLLM ({_chunk_of(said.baseline)}) cannot hold these bounds at any rate"
    elif gain > _WORTH_SAYING:
        against = (
            f"{gain:+.0%} over {said.baseline_capacity_per_s:.3g} of stock vLLM "
            f"({_chunk_of(said.baseline)})"
        )
    else:
        against = f"no more than stock vLLM ({_chunk_of(said.baseline)}) does"
    lengths = f"{plan.workload.input_tokens:.0f} + {plan.workload.output_tokens:.0f} tokens"
    return (
        f"For requests of {lengths} ({plan.workload.source}) within TTFT "
        f"{plan.bounds.ttft_ms:g} ms and TBT {plan.bounds.tbt_ms:g} ms this "
        f"{plan.machine.name} sustains at most {said.capacity_per_s:.3g} requests/s, "
        f"{against}; {_LIMITS.get(said.binding, said.binding)}."
    )


def _chunk_of(baseline: str) -> str:
    return f"--max-num-batched-tokens {baseline.removeprefix('vllm-')}"


def _sharing(plan: Plan, profile: Profile) -> str:
    shared = {name for name, mode in plan.modes.items() if mode.mode != "fused"}
    if not shared:
        why = (
            "This profile has no partitions to choose from"
            if not any(sample.mode in ("split", "overlap") for sample in profile.samples)
            else "No partition pays here"
        )
        chunks = sorted(mode.chunk for mode in plan.modes.values())
        span = f"{chunks[0]} to {chunks[-1]}" if len(chunks) > 1 else f"{chunks[0]}"
        return f"{why}: every step is one batch, with prefill chunks of {span} tokens by the load."
    rows = [row for row in plan.rows if row.decode_batch and row.prefill_backlog]
    paying = [row for row in rows if row.mode in shared]
    batches = sorted({row.decode_batch for row in paying})
    names = ", ".join(sorted(shared))
    return (
        f"Sharing ({names}) is chosen in {len(paying) / max(len(rows), 1):.0%} of the states with "
        f"both phases, at {batches[0]} to {batches[-1]} decoding sequences; one batch elsewhere."
    )


def _expectation(plan: Plan) -> str:
    said = plan.prediction
    return f"Expect a TTFT of about {said.ttft_ms:.0f} ms and a TBT of about {said.tbt_ms:.3g} ms."
