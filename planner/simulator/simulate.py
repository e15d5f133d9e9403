"""Requests served in virtual time, and what came of them.

Step times come from the profile's model, decisions from the policy that serves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from nexus.core.arrays import Bools, Floats, Ints
from nexus.core.machine import Engine
from nexus.core.plan import Mode, Plan, Shares
from nexus.core.policy import Policy, State, rate_in_steps
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.prefill.ranking import DEFAULT_ORDER, PrefillOrder, PrefillRanker
from nexus.core.slo import GOOD_GAPS, Bounds
from nexus.core.tbt import TbtController
from nexus.planner.latency.steptimes import StepTimes
from nexus.planner.simulator.pair import SimPair
from nexus.planner.simulator.prefix_cache import PrefixCache
from nexus.planner.simulator.sequence import EarlyStop, Event, Prefix, Sequence
from nexus.planner.simulator.server import Chooser, SimServer
from nexus.planner.workload.requests import Requests


@dataclass(frozen=True)
class System:
    """A server to be imagined: who chooses modes, and in which order prompts run.

    ``mode`` is a fixed one, whose prompts are late by ``bounds``; without it, ``plan`` decides. ``stock``: the chunk is vLLM's token budget, decodes included. ``shares``: two stock engines under MPS, capped to the
    ``mode``'s SMs. ``max_num_seqs``: a limit below the engine's own, in sequences.
    ``max_queued_tokens``: of prompts without a first token, from which on requests are refused.
    """

    name: str
    mode: Mode | None = None
    plan: Plan | None = None
    bounds: Bounds | None = None
    order: PrefillOrder = DEFAULT_ORDER
    late_share: float = DEFAULT_LATE_SHARE
    stock: bool = False
    shares: Shares | None = None
    max_num_seqs: int | None = None
    max_queued_tokens: int | None = None

    def ranker(self) -> PrefillRanker:
        """Where its prompts stand in ranker."""
        if self.plan is not None:
            return PrefillRanker.of(self.plan, self.order, self.late_share)
        return PrefillRanker(self.order, self.bounds, late_share=self.late_share)

    def chooser(self, times: StepTimes, longest: int) -> tuple[Chooser, TbtController | None]:
        """A fresh decision-maker, and what it learns of gaps by; no batch is above ``longest``."""
        if self.mode is not None:
            fixed = self.mode

            def keep(state: State, _: Callable[[], bool]) -> tuple[Mode, float]:
                if fixed.mode != "fused" or not state.prefill_backlog:
                    return fixed, 0.0
                tokens = fixed.prompt_tokens(state.decode_batch)
                ms = times.step_ms(tokens, 0.0, state.decode_batch, state.kv_tokens)
                return fixed, 1e3 * tokens / ms

            return keep, None
        assert self.plan is not None
        policy = Policy.of(self.plan, longest)

        def choose(state: State, all_afford: Callable[[], bool]) -> tuple[Mode, float]:
            mode, row = policy.decide(state, all_afford)
            return mode, rate_in_steps(mode, row)

        return choose, policy.controller


def stock_system(chunk: int, max_queued_tokens: int | None = None) -> System:
    """Stock vLLM with ``--max-num-batched-tokens chunk``, and ``--max-num-queued-tokens`` if given.

    It refuses a budget that does not hold a token of every sequence, so it runs no more of them.
    """
    mode = Mode(mode="fused", chunk=chunk)
    name = f"vllm-{chunk}" + (f"-queue-{max_queued_tokens}" if max_queued_tokens else "")
    return System(
        name,
        mode,
        order="fcfs",
        stock=True,
        max_num_seqs=chunk,
        max_queued_tokens=max_queued_tokens,
    )


def stock_named(name: str) -> System:
    """The stock system of that name, as a plan's ``baseline`` has it."""
    chunk, _, queued = name.removeprefix("vllm-").partition("-queue-")
    return stock_system(int(chunk), int(queued) if queued else None)


@dataclass(frozen=True)
class Run:
    """One simulated run; arrays of shape (n,) are by request, in seconds.

    ``uncached`` are the prompt tokens that had to be computed. What was refused has its first
    token at infinity. ``gaps_s`` holds every gap between two tokens of a request, ``owner`` whose
    it is;
    ``cached_share`` is what the prefix cache had of all prompt tokens.
    """

    arrivals_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    outputs: Floats
    uncached: Floats
    gaps_s: Floats
    owner: Floats
    preemptions: int
    end_s: float
    cached_share: float = 0.0
    events: tuple[Event, ...] = ()
    states: tuple[tuple[float, State], ...] = ()

    @property
    def ttft_ms(self) -> Floats:
        """Time to first token by request."""
        return 1e3 * (self.first_token_s - self.arrivals_s)

    @property
    def tpot_ms(self) -> Floats:
        """Mean gap by request, of those that have one."""
        many = self.outputs > 1
        span = self.last_token_s[many] - self.first_token_s[many]
        return np.asarray(1e3 * span / (self.outputs[many] - 1))

    def in_time(self, bounds: Bounds) -> Bools:
        """Which requests meet the bound on TTFT for their prompts."""
        return np.asarray(self.ttft_ms <= bounds.ttft_ms_of(self.uncached))

    def good(self, bounds: Bounds) -> Bools:
        """Which requests meet both bounds, TBT at their own 95th percentile."""
        late = np.bincount(
            self.owner.astype(np.int64),
            self.gaps_s > bounds.tbt_ms / 1e3,
            len(self.arrivals_s),
        )
        allowed = (1.0 - GOOD_GAPS) * np.maximum(self.outputs - 1, 0)
        return np.asarray(self.in_time(bounds) & (late <= allowed))

    def attainment(self, bounds: Bounds) -> float:
        """The share of requests that meet both bounds."""
        return float(self.good(bounds).mean())


def simulate(
    times: StepTimes, limits: Engine, requests: Requests, system: System, record: bool = False
) -> Run:
    """Serve ``requests`` to the end; ``record`` keeps the events and states."""
    run = simulate_while(times, limits, requests, system, None, record)
    assert run is not None
    return run


def simulate_while(
    times: StepTimes,
    limits: Engine,
    requests: Requests,
    system: System,
    early_stop: EarlyStop | None,
    record: bool = False,
) -> Run | None:
    """As ``simulate``; None when ``early_stop`` ended it."""
    prefixes = requests.prefixes
    cache = None if prefixes is None else PrefixCache(prefixes, limits.block_size)
    engine = _engine(times, limits, system, early_stop, record, cache)
    sequences = sequences_of(requests)
    if not engine.run(sequences):
        return None
    return _outcome(engine, sequences, requests)


def _engine(
    times: StepTimes,
    limits: Engine,
    system: System,
    early_stop: EarlyStop | None,
    record: bool,
    cache: PrefixCache | None,
) -> SimServer | SimPair:
    if system.max_num_seqs is not None:
        most = min(limits.max_num_seqs, system.max_num_seqs)
        limits = replace(limits, max_num_seqs=most)
    if system.shares is not None:
        assert system.mode is not None
        mode, shares = system.mode, system.shares
        return SimPair(
            times, limits, mode, shares, record=record, early_stop=early_stop, cache=cache
        )
    choose, controller = system.chooser(times, min(limits.max_num_batched_tokens, times.max_chunk))
    return SimServer(
        times,
        limits,
        choose,
        ranker=system.ranker(),
        controller=controller,
        stock=system.stock,
        plan=system.plan,
        record=record,
        early_stop=early_stop,
        cache=cache,
        max_queued_tokens=system.max_queued_tokens,
    )


def sequences_of(requests: Requests) -> list[Sequence]:
    """The requests before any is served; what each finds cached is known or to be looked up."""
    lengths, prefixes = requests.lengths, requests.prefixes
    known = lengths if prefixes is None else replace(lengths, hits=None)
    rows = zip(
        requests.arrivals_s.tolist(),
        lengths.inputs.tolist(),
        lengths.outputs.tolist(),
        known.cached.tolist(),
        strict=True,
    )
    sequences = [
        Sequence(index, arrival, prompt, output, remaining=prompt - cached, cached=cached)
        for index, (arrival, prompt, output, cached) in enumerate(rows)
    ]
    if prefixes is not None:
        for sequence, keys in zip(sequences, prefixes.keys(lengths.inputs), strict=True):
            sequence.prefix = Prefix(keys)
    return sequences


def usual_hits(requests: Requests, limits: Engine) -> Ints:
    """What a prefix cache of all KV tokens has of each prompt, if each ends before the next."""
    assert requests.prefixes is not None
    cache = PrefixCache(requests.prefixes, limits.block_size)
    sequences = sequences_of(requests)
    for sequence in sequences:
        sequence.cached = cache.hit(sequence)
        cache.take(sequence)
        sequence.computed = sequence.prompt
        cache.add(sequence)
        cache.release(sequence)
        cache.keep(limits.kv_tokens)
    return np.array([sequence.cached for sequence in sequences], dtype=np.int64)


def _outcome(engine: SimServer | SimPair, sequences: list[Sequence], requests: Requests) -> Run:
    ends = np.array(engine.step_ends)
    first = np.array([each.spans[0][0] if each.spans else 0 for each in sequences])
    last = np.array([each.spans[-1][1] if each.spans else 0 for each in sequences])
    reply_s = np.array([inf if each.refused else each.reply_s for each in sequences])
    pieces, owners = [], []
    for sequence in sequences:
        spans = sequence.spans
        if not spans:
            tokens = ends[:1]
        elif len(spans) == 1:
            tokens = ends[spans[0][0] : spans[0][1] + 1]
        else:
            tokens = np.concatenate([ends[start : stop + 1] for start, stop in spans])
        pieces.append(np.diff(tokens))
        owners.append(len(tokens) - 1)
    return Run(
        arrivals_s=requests.arrivals_s,
        first_token_s=ends[first] + reply_s,
        last_token_s=ends[last] + reply_s,
        outputs=requests.lengths.outputs.astype(np.float64),
        uncached=np.array([each.prompt - each.cached for each in sequences], dtype=np.float64),
        gaps_s=np.concatenate(pieces),
        owner=np.repeat(np.arange(len(sequences)), owners).astype(np.float64),
        preemptions=engine.preemptions,
        end_s=engine.now,
        cached_share=sum(each.cached for each in sequences) / int(requests.lengths.inputs.sum()),
        events=tuple(engine.events or ()),
        states=tuple(engine.states or ()),
    )
