"""The commands that need no GPU: ``nexus plan``, ``nexus simulate``, ``nexus report``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nexus.errors import UserError
from nexus.planner.table import Bounds, Plan, Workload, read_plan, write_plan
from nexus.planner.trace_columns import parse_columns
from nexus.planner.traces import read_trace
from nexus.planner.workload import Lengths, Requests, lengths_of, longest_request
from nexus.profiles.outputs import check_writable, write_atomically
from nexus.profiles.schema import Profile, read_profile
from nexus.profiles.shipped import PROFILE_HERE, green_twin, shipped_profiles
from nexus.runtime.line import DEFAULT_AGING_TOKENS_PER_S, DEFAULT_ORDER, PrefillOrder
from nexus.terminal import assume, command_line, err, now, profile_here

MOST = 1e9  # of anything that a user states in tokens, milliseconds or requests a second
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Requests: Azure's, BurstGPT's, Mooncake's, ShareGPT's, or a table of yours."
    ),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        help="The trace's, as time=…,input=…,output=…,cached=…; time_ms=… for milliseconds.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(help="For a trace of texts: a model, or tokens per character, as 0.25."),
]
InputTokens = Annotated[
    float | None, typer.Option(help="Mean prompt, if no trace.", min=1, max=1e6)
]
OutputTokens = Annotated[
    float | None, typer.Option(help="Mean output, if no trace.", min=1, max=1e6)
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="What the plan was made from; else as `nexus plan`."),
]
PlanArgument = Annotated[Path, typer.Argument(help="A plan.")]


class Policy(StrEnum):
    """Who decides the table."""

    nexus = "nexus"
    paper = "nexus-paper"
    fixed = "fixed"


class PartitionerOption(StrEnum):
    """Who confines the phases to their SMs."""

    green = "green"
    mps = "mps"


class Export(StrEnum):
    """Which other server's configuration to write."""

    pdmux = "sglang-pdmux"


class PrefillOrderOption(StrEnum):
    """How waiting prompts are ordered."""

    deadline = "deadline"
    spf = "spf"
    fcfs = "fcfs"


DEFAULT_PREFILL_ORDER = PrefillOrderOption(DEFAULT_ORDER)
AgingOption = Annotated[
    float, typer.Option(help="Tokens that a second of waiting is worth; not for fcfs.", min=0.0)
]


def plan(
    profile: Annotated[
        Path | None, typer.Argument(help="A profile; else ./profile.yaml, else this GPU's own.")
    ] = None,
    ttft_ms: Annotated[
        float, typer.Option(help="Bound on time to first token.", min=0.001, max=MOST)
    ] = 2000,
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
) -> None:
    """Turn a profile into the table that serves best under the bounds. Needs no GPU.

    Exit code 3 when nothing meets the bounds.

    Example: nexus plan profile.yaml --ttft-ms 1000 --tbt-ms 25 --trace azure_conv.csv
    """
    from nexus.planner.export import export_pdmux
    from nexus.planner.latency import check as errors_of
    from nexus.planner.solve import ASSUMED, make_plan
    from nexus.planner.verdict import describe

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
    workload = _trace(trace, columns, tokenizer, rate) or means
    _say_what_is_cut(measured, workload)
    bounds = Bounds(ttft_ms=ttft_ms, tbt_ms=tbt_ms)
    if partitioner is PartitionerOption.mps:
        if export is not None or policy is not Policy.nexus:
            raise UserError("--partitioner mps has one static share: no --export, no --policy")
        _plan_static(measured, bounds, workload, rate, output)
        return
    with err.status("planning"):
        made = make_plan(
            measured,
            bounds,
            workload,
            policy=policy.value,
            max_partitions=max_partitions,
            rate=rate,
            command=command_line(),
            created=now(),
        )
    if export is not None:
        write_atomically(target, export_pdmux(made))
        typer.echo(f"wrote {target}")
        return
    write_plan(output, made)
    typer.echo(describe(made, measured))
    modes = f"{len(made.modes)} mode{'' if len(made.modes) == 1 else 's'}"
    typer.echo(f"wrote {output}: {len(made.rows)} states, {modes}")


def _plan_static(
    measured: Profile,
    bounds: Bounds,
    workload: Workload | Lengths | Requests,
    rate: float | None,
    output: Path,
) -> None:
    from nexus.planner.static import make_static_plan
    from nexus.planner.verdict import describe

    with err.status("planning"):
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
    typer.echo(describe(made.plan, measured))
    typer.echo(made.comparison())
    typer.echo(f"wrote {output}: one share for all states, {next(iter(made.plan.modes))}")


def simulate(
    plan: PlanArgument = Path("plan.yaml"),
    profile: ProfileOption = None,
    trace: Trace = None,
    columns: ColumnsOption = "",
    tokenizer: TokenizerOption = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests/s; else the trace's own, or 80 % of capacity.", min=0.001, max=MOST
        ),
    ] = None,
    num_requests: Annotated[int, typer.Option(help="How many.", min=1)] = 10_000,
    prefill_order: Annotated[
        PrefillOrderOption, typer.Option(help="As in `nexus serve`.")
    ] = DEFAULT_PREFILL_ORDER,
    prefill_aging_tokens_per_s: AgingOption = DEFAULT_AGING_TOKENS_PER_S,
    stock: Annotated[
        list[int] | None, typer.Option(help="Also stock vLLM with this chunk; repeatable.", min=1)
    ] = None,
    curve: Annotated[bool, typer.Option(help="Attainment at rates around capacity.")] = True,
    chrome_trace: Annotated[
        Path | None, typer.Option(help="Write the plan's run as a Chrome trace.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Use another profile.")] = False,
) -> None:
    """Serve requests with a plan in virtual time, by the policy that serves for real.

    Example: nexus simulate plan.yaml --trace azure_conv.csv --rate 16 --stock 8192
    """
    from nexus.planner.chrome import chrome_trace as trace_of
    from nexus.planner.replay import plan_system, replay
    from nexus.planner.simulate import stock_system

    order: PrefillOrder = prefill_order.value
    table = read_plan(plan)
    source = profile or _profile_of(table)
    if chrome_trace is not None:
        check_writable(chrome_trace, plan, source, trace, PROFILE_HERE)
    system = plan_system(table, order, prefill_aging_tokens_per_s)
    measured = read_profile(source)
    traced = _trace(trace, columns, tokenizer, rate)
    workload = traced.window(0, num_requests) if traced else lengths_of(table.workload)
    _say_what_is_cut(measured, workload)
    with err.status("simulating"):
        runs = replay(
            measured,
            table,
            workload,
            rate,
            systems=(system, *map(stock_system, stock or ())),
            num_requests=num_requests,
            curve=curve,
            record=chrome_trace is not None,
            force=force,
        )
    for run in runs:
        for line in run.lines():
            typer.echo(line)
    if chrome_trace is not None:
        write_atomically(chrome_trace, trace_of(runs[0].run, runs[0].system))
        typer.echo(f"wrote {chrome_trace}")


def report(
    plan: PlanArgument = Path("plan.yaml"),
    profile: ProfileOption = None,
    trace: Trace = None,
    columns: ColumnsOption = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Draw a plan and its profile as one page that stands alone.

    Example: nexus report plan.yaml -o report.html
    """
    from nexus.planner.report import write_report

    table = read_plan(plan)
    source = profile or _profile_of(table)
    check_writable(output, plan, source, trace, PROFILE_HERE)
    measured = read_profile(source)
    with err.status("drawing"):
        write_report(output, table, measured, _trace(trace, columns, None, None))
    typer.echo(f"wrote {output}")


def _profile_of(plan: Plan) -> Path:
    """The profile that ``plan`` was made from: here, or shipped; else as `nexus plan`."""
    shipped = (*shipped_profiles(), *shipped_profiles("mps"))
    for path in (*([PROFILE_HERE] if PROFILE_HERE.exists() else []), *shipped):
        if read_profile(path).hash == plan.profile_hash:
            assume(f"profile {path}")
            return path
    return profile_here()


def _trace(
    path: Path | None, columns: str, tokenizer: str | None, rate: float | None
) -> Requests | None:
    """What ``path`` holds, told in a line."""
    wanted = parse_columns(columns)
    if path is None:
        if wanted or tokenizer:
            raise UserError("--columns and --tokenizer say how to read a --trace: there is none")
        return None
    return read_trace(path, columns=wanted, rate=rate, tokenizer=tokenizer, say=_say)


def _say(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def _means(input_tokens: float | None, output_tokens: float | None) -> Lengths | None:
    if (input_tokens is None) != (output_tokens is None):
        raise UserError("--input-tokens and --output-tokens go together")
    if input_tokens is None or output_tokens is None:
        return None
    return lengths_of(Workload("given means", input_tokens, output_tokens))


def _say_what_is_cut(measured: Profile, workload: Lengths | Requests) -> None:
    told = lengths_of(workload).told_of_cut(longest_request(measured))
    if told:
        _say(told)
