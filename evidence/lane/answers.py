"""Whether the lane gives stock vLLM's answers: log-probabilities, step by step.

Two runs of stock vLLM whose batches are composed differently differ too: in bfloat16 a
sum depends on what it is computed beside. That difference is the yardstick. Past the
first token that differs two answers have nothing in common any more, so each prompt is
asked a second time with the beginning of stock vLLM's answer in it.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import fmean
from typing import Any

from nexus.core.spread import percentile
from nexus.evidence.lane.engine import TOP, Ask, steps

NUM_PROMPTS = 64
NEW_TOKENS = 24
FORCED_TOKENS = 12
STEPS_BETWEEN = 2


@dataclass(frozen=True)
class Answer:
    """The tokens, and at each step the log-probabilities of the likeliest ones."""

    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        told = [[[token, value] for token, value in step.items()] for step in self.logprobs]
        return {"tokens": list(self.tokens), "logprobs": told}

    @classmethod
    def of_plain(cls, raw: dict[str, Any]) -> "Answer":
        """What ``plain`` gave."""
        logprobs = tuple({int(t): float(v) for t, v in step} for step in raw["logprobs"])
        return cls(tuple(raw["tokens"]), logprobs)


Answers = dict[str, Answer]


def mixed_asks(vocabulary: int, longest: int, count_: int = NUM_PROMPTS) -> list[Ask]:
    """Requests of many lengths, from a few tokens to ``longest``; the same in every process."""
    generator = random.Random(7)
    asks = []
    for index in range(count_):
        length = int(min(longest, max(8, generator.lognormvariate(6.3, 1.1))))
        prompt = [generator.randrange(3, vocabulary) for _ in range(length)]
        asks.append(Ask(f"plain-{index}", prompt, NEW_TOKENS, logprobs=TOP))
    return asks


def forced(asks: Sequence[Ask], answers: Answers) -> list[Ask]:
    """The same prompts, each with the first tokens of its answer."""
    return [
        Ask(
            ask.name.replace("plain", "forced"),
            [*ask.prompt, *answers[ask.name].tokens[:FORCED_TOKENS]],
            NEW_TOKENS - FORCED_TOKENS,
            logprobs=TOP,
        )
        for ask in asks
    ]


def at_once(asks: Sequence[Ask]) -> list[Ask]:
    """All sent before the first step: prompts share batches with prompts."""
    return list(asks)


def trickling(asks: Sequence[Ask]) -> list[Ask]:
    """Shuffled, one every few engine steps: prompts arrive while others decode."""
    order = list(asks)
    random.Random(11).shuffle(order)
    return [
        Ask(ask.name, ask.prompt, ask.max_tokens, STEPS_BETWEEN * place, ask.logprobs)
        for place, ask in enumerate(order)
    ]


def ask_all(engine: Any, asks: Sequence[Ask]) -> Answers:
    """Every answer, by the request's name."""
    found: Answers = {}
    ticks = count()
    for outputs in steps(engine, asks, lambda: float(next(ticks))):
        for output in outputs:
            (best,) = output.outputs
            told = tuple(
                {int(token): entry.logprob for token, entry in step.items()}
                for step in best.logprobs or ()
            )
            found[output.request_id] = Answer(tuple(best.token_ids), told)
    return found


@dataclass(frozen=True)
class Spread:
    """Absolute differences of ``count`` log-probabilities."""

    count: int
    mean: float
    p99: float
    max: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Spread | None":
        """None where there are none."""
        if not differences:
            return None
        parts = (fmean(differences), percentile(differences, 99), max(differences))
        return cls(len(differences), *(round(part, 6) for part in parts))


def differences(ours: Answers, theirs: Answers) -> dict[str, Any]:
    """How two runs on the same requests differ.

    ``first_token`` and ``all_steps`` compare the tokens that both list among the likeliest,
    as long as both answers are the same so far. ``diverged`` counts the answers with another
    token somewhere, ``lead_at_divergence`` how much likelier the first choice was than the
    second in ``theirs`` there: small where either choice was as good.
    """
    first: list[float] = []
    every: list[float] = []
    leads: list[float] = []
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        for place, (mine, other) in enumerate(zip(a.logprobs, b.logprobs, strict=False)):
            found = [abs(mine[token] - other[token]) for token in mine.keys() & other.keys()]
            every += found
            if place == 0:
                first += found
            if a.tokens[place] != b.tokens[place]:
                best, second = sorted(other.values(), reverse=True)[:2]
                leads.append(best - second)
                break
    return {
        "answers": len(ours.keys() & theirs.keys()),
        "missing": sorted(ours.keys() ^ theirs.keys()),
        "first_token": _told(Spread.of(first)),
        "all_steps": _told(Spread.of(every)),
        "diverged": len(leads),
        "lead_at_divergence": _told(Spread.of(leads)),
    }


def _told(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else asdict(spread)
