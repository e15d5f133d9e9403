"""``nexus plan`` and ``nexus simulate`` with a trace: what they say of it, and what they make of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nexus.commands.plan import Policy, _of_one_replica, plan
from nexus.commands.simulate import simulate
from nexus.core.errors import UserError
from nexus.core.plan import read_plan
from nexus.planner.workload.requests import Lengths, Requests
from nexus.profiles.schema import write_profile


@pytest.fixture
def profile(exact_cpu_profile, tmp_path) -> Path:
    """Of a model that holds 512 tokens."""
    model = replace(exact_cpu_profile.model, max_model_len=512)
    write_profile(tmp_path / "profile.yaml", replace(exact_cpu_profile, model=model))
    return tmp_path / "profile.yaml"


def test_what_a_server_would_refuse_is_said_and_not_planned_for(profile, tmp_path, capsys):
    """A quarter of the prompts is longer than the model; in the plan they are 511 + 1 tokens."""
    trace, output = tmp_path / "long.csv", tmp_path / "plan.yaml"
    trace.write_text(
        "time,input,output,cached\n"
        + "".join(f"{n},{900 if n % 4 == 0 else 100},20,{64 * (n % 2)}\n" for n in range(240))
    )
    plan(profile, ttft_ms=6000, tbt_ms=400, trace=trace, policy=Policy.fixed, output=output)
    told = capsys.readouterr()
    said = "25% of the requests (60 of 240) are longer than the 512 tokens"
    assert said in told.err
    assert "refused by a server" in told.err
    assert "CSV, 240 requests in 239.0 s, 300 + 20 tokens on average, 11% of the prompt" in told.err
    made = read_plan(output)
    assert made.workload.input_tokens == (511 + 3 * 100) / 4
    assert made.workload.output_tokens == (1 + 3 * 20) / 4
    assert made.workload.cached_tokens == 32.0
    assert "For requests of 203 (32 of them cached) + 15 tokens (long.csv)" in told.out
    simulate(output, profile=profile, trace=trace, curve=False)
    told = capsys.readouterr()
    assert said in told.err
    assert "prefix cache   15.8% of the prompt tokens" in told.out
    simulate(output, profile=profile, rate=0.5, num_requests=50, curve=False)
    told = capsys.readouterr()
    assert "of the requests" in told.err  # that are drawn from means
    assert "prefix cache" in told.out


def test_how_to_read_a_trace_needs_a_trace(profile):
    with pytest.raises(UserError, match="there is none"):
        plan(profile, columns="time=a")
    with pytest.raises(UserError, match="there is none"):
        plan(profile, tokenizer="0.25")
    with pytest.raises(UserError, match="brings its own lengths"):
        plan(profile, trace=Path("none.csv"), input_tokens=5.0, output_tokens=5.0)


def test_a_router_sends_one_of_several_replicas_every_so_manieth_request():
    lengths = Lengths("test", np.arange(1, 9), np.full(8, 5))
    requests = Requests(np.arange(8, dtype=np.float64), lengths)
    one = _of_one_replica(requests, 4)
    assert one.lengths.inputs.tolist() == [1, 5]
    assert one.arrivals_s.tolist() == [0.0, 4.0]
    assert one.per_s == requests.per_s / 4
