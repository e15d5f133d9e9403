"""The words of ``nexus bench``, turned into one job."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nexus.benchmarks.agenda import Grid, Job, planned
from nexus.benchmarks.client import with_tokenizer
from nexus.benchmarks.machine import Here, here, where_measured
from nexus.benchmarks.metrics import OBJECTIVES, Objective
from nexus.benchmarks.systems import System, number_in, systems_called
from nexus.benchmarks.workloads import has_prefixes, workload
from nexus.core.errors import UserError
from nexus.core.machine import Engine, Model
from nexus.core.plan import Plan, read_plan
from nexus.profiles.schema import read_profile
from nexus.runtime.vllm.options import given

MAX_MODEL_LEN = 16384  # the longest request of any workload, and then some
QUICK_PROFILE = ("--minutes", "0.25", "--max-num-batched-tokens", "256")
QUICK_SECONDS = 6.0  # of each run
QUICK_OPTIONS = {"--max-model-len": "1024", "--max-num-seqs": "8"}
_CACHES, _CACHES_NOT = "--enable-prefix-caching", "--no-enable-prefix-caching"
_SET_BY_SYSTEMS = ("--max-num-batched-tokens", "--table", "--prefill-order", "--port", "--host")


@dataclass(frozen=True)
class Words:
    """What the user gave; text is parsed here, empty text and None mean the default."""

    model: str
    options: tuple[str, ...] = ()
    profile: Path | None = None
    table: Path | None = None
    plans: Path | None = None
    systems: str = ""
    workloads: str = ""
    rates: str = ""
    bounds: str = ""
    duration_s: float = 60.0
    repeats: int = 2
    search: bool = True
    minutes: float | None = None
    output: Path = Path("bench")
    keep_raw: bool = False
    plan_for: str = ""
    plan_on: str = ""
    part: str = ""


def job_of(words: Words, folder: Path, where: Here | None = None) -> Job:
    """Everything checked that can be before a server starts; raises UserError.

    ``folder`` is for what the job needs while it runs; ``where`` is looked up if not known.
    """
    if words.profile and words.table:
        raise UserError("--profile and --table exclude each other: plans, or the plan")
    if not re.fullmatch(r"[\w.-]*", words.part):
        raise UserError(f"--part {words.part!r}: a file's name is made of it")
    profile = read_profile(words.profile) if words.profile else None
    plan = read_plan(words.table) if words.table else None
    source = plan or profile
    chosen = systems_called(words.systems or ("decisive" if source else "stock"))
    if source is None and any(system.sharing for system in chosen):
        raise UserError("Nexus systems need --profile or --table")
    grid = _grid(words, chosen, plan)
    where = where or here(words.model)
    model, engine = (source.model, source.engine) if source else (None, None)
    own = words.options
    if any(map(has_prefixes, grid.workloads)) and not given(own, _CACHES, _CACHES_NOT):
        own = (*own, _CACHES)
    options = shared_options(own, where, model, engine)
    return Job(
        model=with_tokenizer(words.model, folder),
        here=where,
        options=options,
        grid=grid,
        output=words.output,
        max_model_len=number_in(options, "--max-model-len"),
        max_num_seqs=number_in(options, "--max-num-seqs") if profile else 0,
        profile=profile,
        source=str(words.profile or ""),
        plans=words.plans,
        plan=plan,
        duration_s=words.duration_s,
        minutes=words.minutes,
        keep_raw=words.keep_raw,
        part=words.part,
    )


def _grid(words: Words, systems: tuple[System, ...], plan: Plan | None) -> Grid:
    """What is asked for; raises UserError, also for bounds that no plan would serve."""
    loads = _loads(words.workloads or "azure_conv,long-documents")
    grid = Grid(
        systems=systems,
        workloads=tuple(load.name for load in loads),
        objectives=_objectives(words.bounds, plan),
        rates=_rates(words.rates),
        repeats=words.repeats,
        search=words.search,
        plan_for=_objectives(words.plan_for, None) if words.plan_for else (),
        plan_on=_loads(words.plan_on)[0].name if words.plan_on else None,
        own_rates={load.name: load.rates for load in loads},
        fixed=frozenset(load.name for load in loads if load.fixed),
    )
    unserved = set(grid.objectives) - {one for served in planned(grid).values() for one in served}
    if unserved and any(system.sharing for system in systems) and plan is None:
        names = ", ".join(sorted(one.name for one in unserved))
        raise UserError(f"no plan of --plan-for implies the bounds {names}")
    return grid


def quick_job(words: Words, folder: Path) -> Job:
    """Stock vLLM against Nexus on a small random workload, for any machine and model.

    Without a profile or plan, one is measured first, into ``folder``.
    """
    model, options = with_tokenizer(words.model, folder), words.options
    for name, value in QUICK_OPTIONS.items():
        if not given(options, name):
            options = (*options, name, value)
    if not given(options, "--enforce-eager"):
        options = (*options, "--enforce-eager")
    profile, where = words.profile, None
    if profile is None and words.table is None:
        profile = folder / "profile.yaml"
        _measure_profile(model, options, profile)
        where = where_measured(read_profile(profile))
    job = job_of(
        replace(
            words,
            model=model,
            options=options,
            profile=profile,
            systems=words.systems or "vllm-default,nexus-deadline-plan",
            workloads=words.workloads or "random:64:8",
            rates=words.rates or "1",
            bounds=words.bounds or "10000/2000",
            duration_s=QUICK_SECONDS,
            repeats=1,
            search=False,
        ),
        folder,
        where,
    )
    return replace(job, warm_up=2)


def shared_options(
    options: tuple[str, ...], where: Here, model: Model | None, engine: Engine | None
) -> tuple[str, ...]:
    """What every server gets: ``options``, and what a profile was measured with.

    The systems then differ in nothing but what they are named for. Prefix caching is off unless
    ``options`` have it on: random prompts have no prefix in common. Raises UserError for options
    that are the systems'.
    """
    for name in _SET_BY_SYSTEMS:
        if given(options, name):
            raise UserError(f"{name} is set by the systems that are compared")
    longest = model.max_model_len if model else (where.max_positions or MAX_MODEL_LEN)
    wanted: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        ((_CACHES, _CACHES_NOT), (_CACHES_NOT,))
    ]
    wanted += [(("--max-model-len",), ("--max-model-len", str(min(longest, MAX_MODEL_LEN))))]
    if model is not None:
        wanted += [(("--dtype",), ("--dtype", model.dtype))]
    if engine is not None:
        wanted += [(("--max-num-seqs",), ("--max-num-seqs", str(engine.max_num_seqs)))]
    if engine is not None and engine.enforce_eager:
        wanted += [(("--enforce-eager", "--no-enforce-eager"), ("--enforce-eager",))]
    added = [word for names, words in wanted if not given(options, *names) for word in words]
    return (*options, *added)


def _measure_profile(model: str, options: tuple[str, ...], to: Path) -> None:
    words = [sys.executable, "-m", "nexus.cli", "profile", model, *options, *QUICK_PROFILE]
    done = subprocess.run([*words, "-o", str(to)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"profiling failed: {lines[-1].removeprefix('nexus: ')}")


@dataclass(frozen=True)
class _Load:
    """A workload with rates of its own; ``fixed``: with no others, and no search."""

    name: str
    rates: tuple[float, ...] = ()
    fixed: bool = False


def _loads(names: str) -> tuple[_Load, ...]:
    """From ``azure_conv+4/16,long-documents,mixed@14``; raises UserError."""
    loads = []
    for text in filter(None, (name.strip() for name in names.split(","))):
        name, mark, own = (*re.split(r"([+@])", text, maxsplit=1), "", "")[:3]
        workload(name)
        rates = _rates(own.replace("/", ","))
        if mark and not rates:
            raise UserError(f"workload {text!r}: no rate follows {mark}")
        loads.append(_Load(name, rates, mark == "@"))
    return tuple(loads)


def _objectives(bounds: str, plan: Plan | None) -> tuple[Objective, ...]:
    if bounds:
        return tuple(Objective.parse(pair.strip()) for pair in bounds.split(","))
    if plan is not None:
        return (Objective.of(plan.bounds),)
    return OBJECTIVES


def _rates(rates: str) -> tuple[float, ...]:
    try:
        chosen = tuple(float(rate) for rate in rates.split(",") if rate.strip())
    except ValueError:
        raise UserError(f"rates {rates!r} are not like 8,16,24") from None
    if any(not 0 < rate < float("inf") for rate in chosen):
        raise UserError(f"rates {rates!r} are not all above 0")
    return chosen
