"""``python -m nexus.evidence.lane``: evidence that the prefill lane does what it says.

MODEL may be a folder with a config.json alone; then give --load-format dummy. What a command does
not know goes to vLLM.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.benchmarks.client import with_tokenizer
from nexus.cli import USAGE_ERROR
from nexus.core.errors import NexusError
from nexus.core.io.outputs import check_writable, make_folder, write_atomically
from nexus.core.io.terminal import err, now, quieten
from nexus.core.plan import Plan, read_plan
from nexus.demo.model import cache_folder
from nexus.evidence.lane.churn import Churn
from nexus.evidence.lane.engine import lane_modes_of
from nexus.evidence.lane.gather import Results, lane_evidence, stock_answers
from nexus.evidence.lane.handover import StepTime, co_run_times, summary
from nexus.evidence.lane.tracefile import read_trace
from nexus.runtime.vllm.options import files_of, from_file

ALIKE = ("--no-enable-prefix-caching",)
"""For both engines: every prompt is computed, however often it is asked."""
_WRITTEN = (
    *("stock-answers.json", "engine.json", "engine-trace.json", "plan.yaml"),
    *("server.json", "serve.log", "trace.json"),
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@dataclass(frozen=True)
class Asked:
    """What the command line says; ``words`` follow the command's name, ``rest`` are vLLM's."""

    words: list[str]
    rest: list[str]
    model: str
    table: Path
    output: Path
    modes: str
    prompts: int
    seconds: float
    load: Churn
    churn: Churn
    profile: Path | None
    limit_s: float
    force: bool


def main(words: Sequence[str]) -> int:
    """Run one of the commands above; its exit code."""
    try:
        status = app(list(words), standalone_mode=False, obj=list(words[1:]))
    except NexusError as error:
        err.print(f"nexus: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except USAGE_ERROR as error:
        err.print(f"nexus: {error.format_message()}", markup=False, soft_wrap=True)
        return 2
    return status if isinstance(status, int) else 0


def _gather(
    context: typer.Context,
    model: str,
    table: Annotated[Path, typer.Option()],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("lane"),
    modes: Annotated[str, typer.Option(help="As overlap-100,split-84-48.")] = "",
    prompts: Annotated[int, typer.Option(help="Prompts to compare answers of.")] = 64,
    requests: Annotated[int, typer.Option(help="Of the churn.")] = 2000,
    rate: Annotated[float, typer.Option(help="Of the churn, a second.")] = 60.0,
    seconds: Annotated[float, typer.Option(help="That CUPTI watches.")] = 3.0,
    load_rate: Annotated[float, typer.Option(help="Of the load, a second.")] = 16.0,
    load_requests: int = 420,
    profile: Annotated[Path | None, typer.Option(help="To compare steps with.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds for each engine.")] = 400.0,
    force: Annotated[
        bool, typer.Option("--force", help="Another machine than the plan's.")
    ] = False,
) -> None:
    load = Churn(load_requests, load_rate, 0.0, 200, 3000, 250, limit_s=120.0)
    asked = Asked(
        *(context.obj, context.args, model, table, output, modes, prompts, seconds, load),
        *(Churn(requests, rate), profile, limit, force),
    )
    raise typer.Exit(_RUNS[context.command.name or ""](asked))


def _engine(asked: Asked) -> int:
    """Stock vLLM's answers against the lane's; %smid and CUPTI of every partition.

    Both engines, one after the other, each in a process of its own.
    """
    lane_modes_of(read_plan(asked.table), asked.modes)  # a mistake is told at once
    codes = []
    for name in ("stock", "lane"):
        command = [sys.executable, "-m", "nexus.evidence.lane", name, *asked.words]
        try:
            codes.append(subprocess.run(command, timeout=asked.limit_s, check=False).returncode)
        except subprocess.TimeoutExpired:
            err.print(f"{name}: not done after {asked.limit_s:.0f} s", markup=False)
            codes.append(1)
    return max(codes)


def _stock(asked: Asked) -> int:
    """Stock vLLM's answers alone."""
    quieten(verbose=False)
    path = _checked_folder(asked) / "stock-answers.json"
    path.unlink(missing_ok=True)
    alike = [*from_file(asked.rest), *ALIKE]
    stock_answers(_model(asked), alike, read_plan(asked.table), path, asked.prompts)
    return 0


def _lane(asked: Asked) -> int:
    """The lane's answers against those of stock vLLM that are there, and its partitions."""
    from nexus.evidence.lane.window import Load

    quieten(verbose=False)
    plan = read_plan(asked.table)
    lanes = lane_modes_of(plan, asked.modes)
    results = Results(_checked_folder(asked), "engine.json", _told("engine", asked, plan))
    stock = asked.output / "stock-answers.json"
    if not stock.exists():
        err.print("no answers of stock vLLM to compare with", markup=False)
    with results.part("engine"):
        lane_evidence(
            _model(asked),
            [*from_file(asked.rest), *ALIKE],
            plan,
            lanes,
            stock if stock.exists() else None,
            results,
            asked.prompts,
            Load(seconds=asked.seconds),
            asked.force,
        )
    err.print(f"wrote {results.path}", markup=False)
    return 0 if results.whole else 1


def _server(asked: Asked) -> int:
    """A server's hand-over, time between tokens, and 2,000 requests with a fifth given up."""
    from nexus.evidence.lane.served import Wanted, observe

    quieten(verbose=False)
    plan = read_plan(asked.table)
    results = Results(_checked_folder(asked), "server.json", _told("server", asked, plan))
    force = ["--force"] if asked.force else []
    words = ["--table", str(asked.table), *force, *asked.rest]
    with results.part("server"):
        wanted = Wanted(asked.load, asked.churn, asked.limit_s)
        co_run = _co_run(asked.profile, plan)
        seen = observe(_model(asked), words, asked.output, wanted, co_run)
        results.keep("seen", seen)
        if not seen["churn"]["nothing_lost"]:
            results.add("failed", "churn", "something was lost")
    err.print(f"wrote {results.path}", markup=False)
    return 0 if results.whole else 1


_RUNS: dict[str, Callable[[Asked], int]] = {
    "engine": _engine,
    "server": _server,
    "stock": _stock,
    "lane": _lane,
}
for _name, _run in _RUNS.items():
    app.command(_name, help=_run.__doc__, context_settings=_PASS_ON)(_gather)


@app.command("trace")
def _trace(
    trace: Path,
    table: Annotated[Path | None, typer.Option()] = None,
    profile: Annotated[Path | None, typer.Option()] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file; else it is printed.")
    ] = None,
) -> None:
    """Hand-over and time between tokens, of any trace of nexus serve."""
    if output is not None:
        check_writable(output, trace, table, profile)
    plan = None if table is None else read_plan(table)
    text = json.dumps(summary(read_trace(trace), _co_run(profile, plan)), indent=1) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)


def _checked_folder(asked: Asked) -> Path:
    """The folder of results, which holds nothing that is read under a name that is written."""
    folder = make_folder(asked.output)
    read = (asked.table, asked.profile, *files_of(asked.model, asked.rest))
    for name in _WRITTEN:
        check_writable(folder / name, *read)
    return folder


def _model(asked: Asked) -> str:
    """With a tokenizer; in one place, as vLLM keys what it has compiled by a model's path."""
    return with_tokenizer(asked.model, cache_folder() / "shapes")


def _co_run(profile: Path | None, plan: Plan | None) -> StepTime | None:
    return None if plan is None or profile is None else co_run_times(profile, plan)


def _told(name: str, asked: Asked, plan: Plan) -> dict[str, Any]:
    words = ["python", "-m", "nexus.evidence.lane", name, *_without_output(asked.words)]
    return {
        "created": now(),
        "command": shlex.join(words),
        "plan": {"hash": plan.hash, "modes": list(plan.modes)},
    }


def _without_output(words: Sequence[str]) -> list[str]:
    """As they were given, but for where the results go, which says nothing about them."""
    kept: list[str] = []
    following = iter(words)
    for word in following:
        if word in ("-o", "--output"):
            next(following)
        elif not word.startswith(("-o", "--output=")):
            kept.append(word)
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
