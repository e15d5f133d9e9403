"""`python -m nexus.demo`: profile, plan, serve and chat, each with the real command."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nexus.core.errors import InfeasibleError, NexusError
from nexus.core.plan import Plan, Table, read_plan
from nexus.demo.model import ensure_demo_model
from nexus.runtime.process import Stopped
from nexus.runtime.server_process import Server

FOLDER = Path("build/demo")
START_S = 300.0
QUESTION = "What is the capital of France?"
MINUTES = 0.75
# What to ask for: on a slow machine nothing may meet the first pair.
BOUNDS_MS = ((4000, 400), (16000, 1600), (64000, 6400))
LENGTHS = ("--input-tokens", "256", "--output-tokens", "64")
console = Console(highlight=False)


class DemoError(NexusError):
    """A step of the demo failed; the message says which, and what it printed last."""


@dataclass(frozen=True)
class Answer:
    """A reply as it came: its text, token counts, and times in milliseconds."""

    text: str
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    tpot_ms: float


def main() -> None:
    """Run the demo and exit: 0 when every step worked."""
    began = time.monotonic()
    try:
        _demo()
    except NexusError as error:
        console.print(f"\n[red]demo failed:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    console.print(f"\nThe whole demo took {time.monotonic() - began:.0f} s; files in {FOLDER}/.")


def _demo() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    profile, table = FOLDER / "profile.yaml", FOLDER / "plan.yaml"
    model = str(ensure_demo_model())
    _heading("1/4", "measure how long this machine's steps take")
    options = ("--minutes", str(MINUTES), "--force", "-o", str(profile))
    _nexus("profile", model, *options)
    _heading("2/4", "plan: how large a batch to run at which load")
    _plan(profile, table)
    _heading("3/4", "serve with that plan, and ask")
    plan = read_plan(table)
    server = Server(
        [model, "--table", str(table), "--host", "127.0.0.1"], FOLDER / "server.log", START_S
    )
    _shown("serve", *server.words)
    try:
        with _running(server):
            _show(_ask(f"{server.url}/v1", model), plan)
            _heading("4/4", "stop the server")
            _report(server.stop())
    except Exception:
        console.print(escape(server.last_lines()), style="dim")
        raise


def _plan(profile: Path, table: Path) -> None:
    for ttft_ms, tbt_ms in BOUNDS_MS:
        bounds = ("--ttft-ms", str(ttft_ms), "--tbt-ms", str(tbt_ms))
        try:
            _nexus("plan", str(profile), *bounds, *LENGTHS, "-o", str(table))
        except InfeasibleError:
            continue
        return
    raise DemoError("no plan meets even the widest bounds on this machine")


@contextmanager
def _running(server: Server) -> Iterator[None]:
    """``server`` from when it is ready, under a clock that turns meanwhile."""
    columns = (SpinnerColumn(), TextColumn("starting vLLM"), TimeElapsedColumn())
    with ExitStack() as stack:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=1)
            server.tick = lambda: bar.update(task)
            stack.enter_context(server)
            bar.update(task, completed=1)
        yield


def _ask(url: str, model: str) -> Answer:
    """Ask the question and time the stream of the answer."""
    console.print(f"[dim]openai.OpenAI(base_url={url!r}).chat.completions.create(...)[/]")
    client = OpenAI(base_url=url, api_key="none")
    # What a server does once, on its first request, is no part of the times shown.
    client.completions.create(model=model, prompt="Hello", max_tokens=2)
    began = time.monotonic()
    first = last = 0.0
    parts: list[str] = []
    counts = (0, 0)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    for event in stream:
        if event.usage is not None:
            counts = (event.usage.prompt_tokens, event.usage.completion_tokens)
        if event.choices and event.choices[0].delta.content:
            last = time.monotonic()
            first = first or last
            parts.append(event.choices[0].delta.content)
    if not parts:
        raise DemoError("the server answered with no text")
    tpot_ms = (last - first) * 1000 / max(len(parts) - 1, 1)
    return Answer("".join(parts).strip(), *counts, (first - began) * 1000, tpot_ms)


def _show(answer: Answer, plan: Plan) -> None:
    table = Table(plan)
    prefill = table.row(0, answer.prompt_tokens, answer.prompt_tokens)
    decode = table.row(1, answer.prompt_tokens + answer.output_tokens, 0)
    console.print(f"\n  [bold]{QUESTION}[/]\n  [green]{escape(answer.text)}[/]\n")
    console.print(
        f"  The plan ran the prompt ({answer.prompt_tokens} tokens) as {prefill.mode}:"
        f" first token after {answer.ttft_ms:.0f} ms,",
        soft_wrap=True,
    )
    console.print(
        f"  and the answer ({answer.output_tokens} tokens) as {decode.mode}:"
        f" a token every {answer.tpot_ms:.0f} ms; it predicted {decode.tbt_ms:.0f} ms.",
        soft_wrap=True,
    )


def _report(stopped: Stopped) -> None:
    if stopped.left_behind:
        raise DemoError(f"processes {stopped.left_behind} outlived the server")
    if stopped.exit_code:
        raise DemoError(f"the server ended with code {stopped.exit_code}")
    console.print(f"Stopped in {stopped.seconds:.1f} s; no process left behind.")


def _heading(step: str, what: str) -> None:
    console.print(f"\n[bold cyan]{step}[/] [bold]{what}[/]")


def _shown(*words: str) -> list[str]:
    """The command line of these words, as shown."""
    console.print(f"[dim]$ {escape(shlex.join(['nexus', *words]))}[/]", soft_wrap=True)
    return [str(Path(sys.executable).with_name("nexus")), *words]


def _nexus(*words: str) -> None:
    """Run one command, its output shown as it comes; its failure is ours."""
    command = _shown(*words)
    exit_code = subprocess.run(command).returncode
    if exit_code == InfeasibleError.exit_code:
        raise InfeasibleError(f"nexus {words[0]}: nothing meets the bounds")
    if exit_code:
        raise DemoError(f"nexus {words[0]} ended with code {exit_code}")
