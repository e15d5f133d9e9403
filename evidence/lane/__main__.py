"""``python -m nexus.evidence.lane``: evidence that the prefill lane does what it says.

::

    python -m nexus.evidence.lane engine MODEL --table plan.yaml -o DIR [vLLM OPTION ...]
        stock vLLM's answers against the lane's; %smid and CUPTI of every partition
    python -m nexus.evidence.lane server MODEL --table plan.yaml -o DIR [vLLM OPTION ...]
        nexus serve: hand-over, time between tokens, 2,000 requests with a fifth given up
    python -m nexus.evidence.lane trace trace.json [--table plan.yaml --profile profile.yaml]
        hand-over and time between tokens, of any trace of nexus serve

MODEL may be a folder with a config.json alone; then give --load-format dummy.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexus.benchmarks.shapes import with_tokenizer
from nexus.core.errors import NexusError
from nexus.core.io.outputs import check_writable, make_folder, write_atomically
from nexus.core.io.terminal import err, now, quieten
from nexus.core.plan import Plan, read_plan
from nexus.demo.model import cache_folder
from nexus.evidence.lane.churn import Churn
from nexus.evidence.lane.handover import StepTime, co_run_times, summary
from nexus.evidence.lane.results import Results
from nexus.evidence.lane.tables import lane_modes_of
from nexus.evidence.lane.tracefile import read_trace
from nexus.runtime.vllm.options import files_of, from_file

ALIKE = ("--no-enable-prefix-caching",)
"""For both engines: every prompt is computed, however often it is asked."""
_WRITTEN = (
    *("stock-answers.json", "engine.json", "engine-trace.json", "plan.yaml"),
    *("server.json", "serve.log", "trace.json"),
)


def main(words: Sequence[str]) -> int:
    """Run one of the commands above; its exit code."""
    arguments, options = _parser().parse_known_args(words)
    arguments.rest = list(words[1:])
    try:
        return int(arguments.run(arguments, options))
    except NexusError as error:
        err.print(f"nexus: {error}", markup=False, soft_wrap=True)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nexus.evidence.lane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, run in (("engine", _engine), ("server", _server), ("stock", _stock), ("lane", _lane)):
        command = commands.add_parser(name, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("model")
        command.add_argument("--table", type=Path, required=True)
        command.add_argument("-o", "--output", type=Path, default=Path("lane"))
        command.add_argument("--modes", default="", help="as overlap-100,split-84-48")
        command.add_argument(
            "--prompts", type=int, default=64, help="prompts to compare answers of"
        )
        command.add_argument("--requests", type=int, default=2000, help="of the churn")
        command.add_argument("--rate", type=float, default=60.0, help="of the churn, a second")
        command.add_argument("--seconds", type=float, default=3.0, help="that CUPTI watches")
        command.add_argument("--load-rate", type=float, default=16.0, help="of the load, a second")
        command.add_argument("--load-requests", type=int, default=420)
        command.add_argument("--profile", type=Path, help="to compare steps with")
        command.add_argument("--limit", type=float, default=400.0, help="seconds for each engine")
        command.add_argument("--force", action="store_true", help="another machine than the plan's")
    command = commands.add_parser("trace")
    command.set_defaults(run=_trace)
    command.add_argument("trace", type=Path)
    command.add_argument("--table", type=Path)
    command.add_argument("--profile", type=Path)
    command.add_argument("-o", "--output", type=Path, help="a JSON file; else it is printed")
    return parser


def _engine(arguments: argparse.Namespace, _options: list[str]) -> int:
    """Both engines, one after the other, each in a process of its own."""
    lane_modes_of(read_plan(arguments.table), arguments.modes)  # a mistake is told at once
    codes = []
    for name in ("stock", "lane"):
        command = [sys.executable, "-m", "nexus.evidence.lane", name, *arguments.rest]
        try:
            codes.append(subprocess.run(command, timeout=arguments.limit, check=False).returncode)
        except subprocess.TimeoutExpired:
            err.print(f"{name}: not done after {arguments.limit:.0f} s", markup=False)
            codes.append(1)
    return max(codes)


def _stock(arguments: argparse.Namespace, options: list[str]) -> int:
    from nexus.evidence.lane.gather import stock_answers

    quieten(verbose=False)
    path = _checked_folder(arguments, options) / "stock-answers.json"
    path.unlink(missing_ok=True)
    plan = read_plan(arguments.table)
    alike = [*from_file(options), *ALIKE]
    stock_answers(_model(arguments), alike, plan, path, arguments.prompts)
    return 0


def _lane(arguments: argparse.Namespace, options: list[str]) -> int:
    from nexus.evidence.lane.gather import lane_evidence
    from nexus.evidence.lane.window import Load

    quieten(verbose=False)
    plan = read_plan(arguments.table)
    lanes = lane_modes_of(plan, arguments.modes)
    results = Results(
        _checked_folder(arguments, options), "engine.json", _told("engine", arguments, plan)
    )
    stock = arguments.output / "stock-answers.json"
    if not stock.exists():
        err.print("no answers of stock vLLM to compare with", markup=False)
    with results.part("engine"):
        lane_evidence(
            _model(arguments),
            [*from_file(options), *ALIKE],
            plan,
            lanes,
            stock if stock.exists() else None,
            results,
            arguments.prompts,
            Load(seconds=arguments.seconds),
            arguments.force,
        )
    err.print(f"wrote {results.path}", markup=False)
    return 0 if results.whole else 1


def _server(arguments: argparse.Namespace, options: list[str]) -> int:
    from nexus.evidence.lane.served import Wanted, observe

    quieten(verbose=False)
    plan = read_plan(arguments.table)
    results = Results(
        _checked_folder(arguments, options), "server.json", _told("server", arguments, plan)
    )
    load = Churn(arguments.load_requests, arguments.load_rate, 0.0, 200, 3000, 250, limit_s=120.0)
    churn = Churn(arguments.requests, arguments.rate)
    words = ["--table", str(arguments.table), *(["--force"] if arguments.force else []), *options]
    with results.part("server"):
        wanted = Wanted(load, churn, arguments.limit)
        co_run = _co_run(arguments, plan)
        seen = observe(_model(arguments), words, arguments.output, wanted, co_run)
        results.keep("seen", seen)
        if not seen["churn"]["nothing_lost"]:
            results.add("failed", "churn", "something was lost")
    err.print(f"wrote {results.path}", markup=False)
    return 0 if results.whole else 1


def _trace(arguments: argparse.Namespace, options: list[str]) -> int:
    if options:
        _parser().error(f"unknown: {' '.join(options)}")
    if arguments.output is not None:
        check_writable(arguments.output, arguments.trace, arguments.table, arguments.profile)
    plan = None if arguments.table is None else read_plan(arguments.table)
    found = summary(read_trace(arguments.trace), _co_run(arguments, plan))
    text = json.dumps(found, indent=1) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        write_atomically(arguments.output, text)
    return 0


def _checked_folder(arguments: argparse.Namespace, options: list[str]) -> Path:
    """The folder of results, which holds nothing that is read under a name that is written."""
    folder = make_folder(arguments.output)
    read = (arguments.table, arguments.profile, *files_of(arguments.model, options))
    for name in _WRITTEN:
        check_writable(folder / name, *read)
    return folder


def _model(arguments: argparse.Namespace) -> str:
    """With a tokenizer; in one place, as vLLM keys what it has compiled by a model's path."""
    return with_tokenizer(arguments.model, cache_folder() / "shapes")


def _co_run(arguments: argparse.Namespace, plan: Plan | None) -> StepTime | None:
    if plan is None or arguments.profile is None:
        return None
    return co_run_times(arguments.profile, plan)


def _told(name: str, arguments: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    words = ["python", "-m", "nexus.evidence.lane", name, *_without_output(arguments.rest)]
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
