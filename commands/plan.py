"""``nexus plan``: from a profile to a plan, without a GPU."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nexus.commands.common import profile_here
from nexus.commands.options import (
    MOST,
    ColumnsOption,
    PartitionerOption,
    TokenizerOption,
    Trace,
    requests_of,
    say_what_is_cut,
)
from nexus.core.errors import UserError
from nexus.core.io.outputs import check_writable, write_atomically
from nexus.core.io.terminal import command_line, now, progress
from nexus.core.plan import Plan, Workload, write_plan
from nexus.core.prefill.admission import LateRefusal
from nexus.core.slo import Bounds
from nexus.planner.workload.requests import Lengths, Requests, lengths_of
from nexus.profiles.schema import Profile, read_profile
from nexus.profiles.shipped import PROFILE_HERE, green_twin

InputTokens = Annotated[
    float | None, typer.Option(help="Mean prompt, if no trace.", min=1, max=1e6)
]
OutputTokens = Annotated[
    float | None, typer.Option(help="Mean output, if no trace.", min=1, max=1e6)
]


class Policy(StrEnum):
    """Who decides the table."""

    nexus = "nexus"
    paper = "nexus-paper"
    fixed = "fixed"


class Export(StrEnum):
    """Which other server's configuration to write."""

    pdmux = "sglang-pdmux"


def plan(
    profile: Annotated[
        Path | None, typer.Argument(help="A profile; else ./profile.yaml, else this GPU's own.")
    ] = None,
    ttft_ms: Annotated[
        float, typer.Option(help="Bound on time to first token.", min=0.001, max=MOST)
    ] = 2000,
    ttft_ms_per_1k_tokens: Annotated[
        float,
        typer.Option(
            help="How much later it is for each 1,000 prompt tokens to compute.", min=0.0, max=MOST
        ),
    ] = 0.0,
    tbt_ms: Annotated[
        float, typer.Option(help="Bound on time between tokens.", min=0.001, max=MOST)
    ] = 200,
    trace: Trace = None,
    columns: ColumnsOption = "",
    tokenizer: TokenizerOption = None,
    input_tokens: InputTokens = None,
    output_tokens: OutputTokens = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests/s at which to predict TTFT and TBT.", min=0.001, max=MOST),
    ] = None,
    replicas: Annotated[
        int, typer.Option(help="Servers that the trace, or --rate, is spread over evenly.", min=1)
    ] = 1,
    policy: Annotated[
        Policy, typer.Option(help="Nexus's, the paper's, or the best single mode.")
    ] = Policy.nexus,
    max_partitions: Annotated[
        int, typer.Option(help="SM partitions to keep; each costs memory.", min=0, max=16)
    ] = 4,
    partitioner: Annotated[
        PartitionerOption,
        typer.Option(help="Green contexts, or MPS: two stock engines with one static share."),
    ] = PartitionerOption.green,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "plan.yaml"
    ),
    export: Annotated[
        Export | None, typer.Option(help="Write this server's configuration instead.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Print the model's errors, no plan.")] = (
        False
    ),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Turn a profile into the table that serves best under the bounds. Needs no GPU.

    Exit code 3 when nothing meets the bounds.

    Example: nexus plan profile.yaml --ttft-ms 1000 --tbt-ms 25 --trace mine.csv
    """
    from nexus.planner.latency.model import check as errors_of
    from nexus.planner.report.export import export_pdmux
    from nexus.planner.report.verdict import describe
    from nexus.planner.search.solve import ASSUMED, make_plan

    source = profile or profile_here()
    measured = read_profile(source)
    if check:
        for line in errors_of(measured):
            typer.echo(line)
        return
    target = Path("pdmux.yaml") if export and output == Path("plan.yaml") else output
    check_writable(target, source, trace, PROFILE_HERE)
    if trace is not None and (input_tokens or output_tokens):
        raise UserError("--trace brings its own lengths: leave out the mean ones")
    means = _means(input_tokens, output_tokens) or lengths_of(ASSUMED)
    traced = requests_of(trace, columns, tokenizer, rate)
    workload = means if traced is None else _of_one_replica(traced, replicas)
    rate = rate and rate / replicas
    if replicas > 1:
        typer.echo(f"for one of {replicas} servers, which is sent one request in {replicas}")
    say_what_is_cut(measured, workload)
    bounds = Bounds(ttft_ms, tbt_ms, ttft_ms_per_1k_tokens)
    if partitioner is PartitionerOption.mps:
        if export is not None or policy is not Policy.nexus:
            raise UserError("--partitioner mps has one static share: no --export, no --policy")
        _plan_static(measured, bounds, workload, rate, output, quiet=quiet)
        return
    with progress(quiet=quiet) as tell:
        made = make_plan(
            measured,
            bounds,
            workload,
            policy=policy.value,
            max_partitions=max_partitions,
            rate=rate,
            command=command_line(),
            created=now(),
            tell=tell,
        )
    if export is not None:
        write_atomically(target, export_pdmux(made))
        typer.echo(f"wrote {target}")
        return
    write_plan(output, made)
    typer.echo(describe(made, measured, workload))
    typer.echo(_how_to_refuse(made))
    modes = f"{len(made.modes)} mode{'' if len(made.modes) == 1 else 's'}"
    typer.echo(f"wrote {output}: {len(made.rows)} states, {modes}")


def _plan_static(
    measured: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests,
    rate: float | None,
    output: Path,
    *,
    quiet: bool,
) -> None:
    from nexus.planner.report.verdict import describe
    from nexus.planner.search.static import make_static_plan

    with progress(quiet=quiet) as tell:
        tell("static shares", 0.0)
        made = make_static_plan(
            measured,
            bounds,
            workload,
            green=measured if measured.partitioner == "green" else green_twin(measured),
            rate=rate,
            command=command_line(),
            created=now(),
        )
    write_plan(output, made.plan)
    typer.echo(describe(made.plan, measured, lengths_of(workload)))
    typer.echo(made.comparison())
    typer.echo(f"wrote {output}: one share for all states, {next(iter(made.plan.modes))}")


def _how_to_refuse(made: Plan) -> str:
    """What to give a server that is to refuse who would come too late."""
    tokens = made.workload.input_tokens - made.workload.cached_tokens
    limit = LateRefusal.of(made, 1.0).backlog_limit(made.bounds.ttft_ms_for(tokens) / 1e3)
    return (
        "To refuse rather than to let wait: nexus serve --refuse-late 1, or on stock vLLM"
        f" --max-num-queued-tokens {limit}."
    )


def _of_one_replica(requests: Requests, replicas: int) -> Requests:
    """What one of so many servers is sent by a router that takes them in turn."""
    return requests.take(slice(None, None, replicas), requests.arrivals_s[::replicas])


def _means(input_tokens: float | None, output_tokens: float | None) -> Lengths | None:
    if (input_tokens is None) != (output_tokens is None):
        raise UserError("--input-tokens and --output-tokens go together")
    if input_tokens is None or output_tokens is None:
        return None
    return lengths_of(Workload("given means", input_tokens, output_tokens))
