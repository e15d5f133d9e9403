"""The evidence that needs an engine in this process: stock vLLM's answers, then the lane's."""

import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nexus.core.io.outputs import make_folder, write_atomically
from nexus.core.io.terminal import err
from nexus.core.plan import Mode, Plan
from nexus.evidence.lane.answers import (
    Answer,
    Answers,
    ask_all,
    at_once,
    differences,
    forced,
    mixed_asks,
    trickling,
)
from nexus.evidence.lane.engine import (
    Ask,
    context_for,
    follow,
    idle,
    open_engine,
    with_modes,
    write,
)
from nexus.evidence.lane.tracefile import read_trace
from nexus.evidence.lane.window import Load
from nexus.runtime.machine import software, this_machine
from nexus.runtime.vllm.options import with_defaults

LONGEST = 6000
RUNS = ("at_once", "trickling")


class Results:
    """A JSON file, ``folder/name``, that is whole after every part, also when a later one fails.

    With what it was measured on.
    """

    def __init__(self, folder: Path, name: str, told: dict[str, Any]) -> None:
        """``told`` comes first: the command, the model, the plan."""
        self.folder = make_folder(folder)
        self.path = folder / name
        self.body: dict[str, Any] = {
            **told,
            "machine": asdict(this_machine()),
            "software": software(),
            "failed": {},
        }

    @property
    def whole(self) -> bool:
        """Whether no part failed."""
        return not self.body["failed"]

    def keep(self, name: str, value: Any) -> None:
        """Set a part."""
        self.body[name] = value
        write_atomically(self.path, json.dumps(self.body, indent=1) + "\n")

    def add(self, name: str, key: str, value: Any) -> None:
        """Add to a part that is a dictionary."""
        self.keep(name, {**self.body.get(name, {}), key: value})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail on its own: the reason is kept, and the next one runs."""
        err.print(f"{name} …", markup=False)
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, the rest is worth having
            traceback.print_exc()
            self.add("failed", name, f"{type(error).__name__}: {error}"[:500])


def stock_answers(model: str, options: Sequence[str], plan: Plan, path: Path, count: int) -> None:
    """Ask stock vLLM everything in two ways of composing batches; write the answers to ``path``.

    Its limits are those of ``plan``.
    """
    on_cpu = plan.machine.device == "cpu"
    alike = with_defaults(options, on_cpu, plan.model, plan.engine)
    with open_engine(model, alike, None) as engine:
        plain = mixed_asks(*_sizes(engine), count)
        first = ask_all(engine, at_once(plain))
        again = forced(plain, first)
        found = {
            "at_once": {**first, **ask_all(engine, at_once(again))},
            "trickling": {
                **ask_all(engine, trickling(plain)),
                **ask_all(engine, trickling(again)),
            },
        }
    raw = {run: {name: a.plain() for name, a in found[run].items()} for run in RUNS}
    write_atomically(path, json.dumps(raw))


def read_answers(path: Path) -> dict[str, Answers]:
    """What ``stock_answers`` wrote, by run."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {
        run: {name: Answer.of_plain(answer) for name, answer in answers.items()}
        for run, answers in raw.items()
    }


def lane_evidence(
    model: str,
    options: Sequence[str],
    plan: Plan,
    lanes: list[Mode],
    stock: Path | None,
    results: Results,
    count: int,
    load: Load,
    force: bool,
) -> None:
    """Everything that one engine with the lane can tell, written as it comes."""
    table = write(with_modes(plan, lanes), results.folder / "plan.yaml")
    context = context_for(table, results.folder / "engine-trace.json")
    with open_engine(model, options, context, force) as engine:
        if stock is not None:
            with results.part("answers"):
                _answers(engine, plan, lanes, read_answers(stock), results, count)
        with results.part("partitions"):
            _partitions(engine, plan, lanes, results, load)
        results.keep("kv_blocks_all_free", idle(engine))


def _answers(
    engine: Any,
    plan: Plan,
    lanes: list[Mode],
    stock: dict[str, Answers],
    results: Results,
    count: int,
) -> None:
    plain = mixed_asks(*_sizes(engine), count)
    asks = [*plain, *forced(plain, stock["at_once"])]
    results.keep("answers", {"asked": len(asks), "stock_and_stock": _by_kind(*stock.values())})
    trace = results.folder / "engine-trace.json"
    for mode in lanes:
        follow(engine, with_modes(plan, lanes, mode))
        begun = time.monotonic()
        found = {name: a for part in _halves(asks) for name, a in ask_all(engine, part).items()}
        passes = read_trace(trace).between(1e3 * begun, 1e3 * time.monotonic()).passes
        told = {
            "prompt_tokens": sum(len(ask.prompt) for ask in asks),
            "tokens_on_the_lane": sum(each.tokens for each in passes),
            "passes": len(passes),
            "modes_of_passes": sorted({each.mode for each in passes}),
            "kv_blocks_all_free": idle(engine),
            **{f"and_stock_{run}": _by_kind(found, stock[run]) for run in RUNS},
        }
        results.add("answers", mode.name, told)


def _halves(asks: Sequence[Ask]) -> list[list[Ask]]:
    """As stock vLLM was asked: the plain ones, then those with a beginning of the answer."""
    kinds = ("plain", "forced")
    return [trickling([ask for ask in asks if ask.name.startswith(kind)]) for kind in kinds]


def _by_kind(ours: Answers, theirs: Answers) -> dict[str, Any]:
    def only(kind: str, answers: Answers) -> Answers:
        return {name: answer for name, answer in answers.items() if name.startswith(kind)}

    return {kind: differences(only(kind, ours), only(kind, theirs)) for kind in ("plain", "forced")}


def _partitions(engine: Any, plan: Plan, lanes: list[Mode], results: Results, load: Load) -> None:
    (name,) = engine.collective_rpc(_device)
    if name == "cpu":
        results.keep("smid", "no partitions on a CPU")
        return
    from nexus.evidence.lane import confinement, window
    from nexus.evidence.lane.activity import ActivityRecorder

    (mine,) = engine.collective_rpc(confinement.lanes_of)
    (stock_stream,) = engine.collective_rpc(_main_stream)
    with results.part("smid"):
        results.keep("smid", confinement.smids(mine, stock_stream))
    recorder = ActivityRecorder()
    numbers = confinement.numbers_of(recorder, mine)
    results.keep("cupti", {"lanes": numbers, "load": vars(load)})
    for place, mode in enumerate(lanes):
        with results.part(f"cupti {mode.name}"):
            follow(engine, with_modes(plan, lanes, mode))
            records, times = window.watched(
                engine, load, _sizes(engine)[0], place, window.recording(recorder, mine)
            )
            trace = results.folder / f"kernels-{mode.name}.json"
            told = window.evidence(records, recorder, numbers, trace)
            results.add("cupti", mode.name, {**told, **times})


def _device(worker: Any) -> str:
    return str(worker.device.type)


def _main_stream(worker: Any) -> Any:
    return worker.model_runner.main_stream


def _sizes(engine: Any) -> tuple[int, int]:
    """The vocabulary, and the longest prompt to ask."""
    config = engine.vllm_config.model_config
    return int(config.get_vocab_size()), min(LONGEST, int(config.max_model_len) - 128)
