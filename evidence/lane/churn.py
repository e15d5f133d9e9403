"""Many short requests to one server, a fifth of them given up at random moments.

Nothing may be lost: every request that is not given up is answered to its end, and when
all is quiet no KV block, no running and no waiting request is left.
"""

import asyncio
import json
import random
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUIET = ("vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting")
SHOWN = re.compile(r"nexus_\w+(?<!_created)|vllm:kv_cache_usage_perc|vllm:num_requests_\w+")


@dataclass(frozen=True)
class Churn:
    """``requests`` in all, ``per_s`` of them, a share ``given_up`` of which hang up early.

    Prompts of ``shortest`` to ``longest`` tokens; up to ``output`` tokens each. Who hangs up
    within ``patience_s`` has asked for ``unheard`` tokens, far more than come in that time.
    """

    requests: int = 2000
    per_s: float = 60.0
    given_up: float = 0.2
    shortest: int = 32
    longest: int = 512
    output: int = 16
    patience_s: float = 0.5
    unheard: int = 400
    vocabulary: int = 500
    limit_s: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """How one request ended: ``whole``, ``given up``, or what went wrong."""

    how: str
    chunks: int


def metrics(port: int) -> dict[str, float]:
    """Nexus's metrics and vLLM's of its queues, from ``/metrics``; labels but for mode's left out."""
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if line.startswith("#") or not rest or not SHOWN.fullmatch(name):
            continue
        labels, _, value = rest.rpartition("} ")
        kept = re.search(r'(?:mode|phase)="([^"]+)"', labels)
        key = f"{name}:{kept[1]}" if kept else name
        found[key] = found.get(key, 0.0) + float(value)
    return found


def run(port: int, model: str, churn: Churn) -> dict[str, Any]:
    """Send the requests and wait until the server is quiet; what came of it."""
    begun = time.monotonic()
    outcomes = asyncio.run(_send_all(port, model, churn))
    sent_s = time.monotonic() - begun
    quiet_s = _until_quiet(port)
    after = metrics(port)
    ends = Counter(outcome.how for outcome in outcomes)
    wrong = {how: count for how, count in ends.items() if how not in ("whole", "given up")}
    left = {name: value for name, value in after.items() if name in QUIET}
    return {
        "requests": len(outcomes),
        "whole": ends["whole"],
        "given_up": ends["given up"],
        "wrong": wrong,
        "chunks_streamed": sum(outcome.chunks for outcome in outcomes),
        "seconds": round(sent_s, 2),
        "seconds_until_quiet": quiet_s,
        "left_when_quiet": left,
        "nothing_lost": not wrong and bool(left) and not any(left.values()),
        "metrics": after,
    }


def _until_quiet(port: int, limit_s: float = 20.0) -> float | None:
    """Seconds until nothing was left; None if that did not come."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        found = metrics(port)
        if all(name in found for name in QUIET) and not any(found[name] for name in QUIET):
            return round(time.monotonic() - begun, 2)
        time.sleep(0.25)
    return None


async def _send_all(port: int, model: str, churn: Churn) -> list[Outcome]:
    import aiohttp

    generator = random.Random(3)
    tasks = []
    timeout = aiohttp.ClientTimeout(total=churn.limit_s)
    # A connection for each request: on one that is kept, the server may just have hung up.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    url = f"http://127.0.0.1:{port}/v1/completions"
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        begun, at = time.monotonic(), 0.0
        for _ in range(churn.requests):
            patience = _patience(churn, generator)
            body = _body(model, churn, generator, patience)
            await asyncio.sleep(max(0.0, at - (time.monotonic() - begun)))
            tasks.append(asyncio.create_task(_send(session, url, body, patience)))
            at += generator.expovariate(churn.per_s)
        return list(await asyncio.gather(*tasks))


def _body(
    model: str, churn: Churn, generator: random.Random, patience: float | None
) -> dict[str, Any]:
    length = generator.randint(churn.shortest, churn.longest)
    return {
        "model": model,
        "prompt": [generator.randrange(3, churn.vocabulary) for _ in range(length)],
        "max_tokens": generator.randint(1, churn.output) if patience is None else churn.unheard,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }


def _patience(churn: Churn, generator: random.Random) -> float | None:
    """Seconds after which the client hangs up: none at all, soon (the prompt may be on the
    lane), or while tokens come; None for one who listens to the end.
    """
    if generator.random() >= churn.given_up:
        return None
    most = churn.patience_s
    return generator.choice((0.0, generator.uniform(0.0, most / 5), generator.uniform(0.0, most)))


async def _send(session: Any, url: str, body: Mapping[str, Any], patience: float | None) -> Outcome:
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(patience):
            return await _read(session, url, body, chunks)
    except TimeoutError:
        how = "given up" if patience is not None else "timed out"
        return Outcome(how, len(chunks))
    except Exception as error:  # noqa: BLE001  counted by its kind, whatever it is
        return Outcome(f"{type(error).__name__}: {error}"[:120], len(chunks))


async def _read(session: Any, url: str, body: Mapping[str, Any], chunks: list[bytes]) -> Outcome:
    async with session.post(url, json=body) as answer:
        if answer.status != 200:
            return Outcome(f"HTTP {answer.status}", 0)
        async for line in answer.content:
            if line.startswith(b"data: {"):
                chunks.append(line)  # noqa: PERF401  the caller counts what came before an end
    finish = _finish(chunks)
    return Outcome("whole" if finish == "length" else f"finished by {finish}", len(chunks))


def _finish(chunks: Sequence[bytes]) -> str | None:
    """Why the answer ended, by its last words."""
    reasons = (json.loads(line[6:])["choices"] for line in reversed(chunks))
    return next((c[0]["finish_reason"] for c in reasons if c and c[0]["finish_reason"]), None)
