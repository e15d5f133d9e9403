"""The engines of a round, as processes: started, told what to run, and ended."""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nexus.core.errors import EngineError
from nexus.profiler.pairs.points import EngineSpec
from nexus.profiler.pairs.wire import CoRun, Failed, Looping, Ready, Setup, Solo, Stopped, Times
from nexus.profiler.points import Point
from nexus.runtime.process import LoggedProcess

_START_S = 900.0
_POINT_S = 120.0
_QUIT_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Confined:
    """What gives a process its share: its environment, or the cores that it may use."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


class PointError(Exception):
    """An engine could not run its part of a point."""


class EngineProcess:
    """One engine; ``sms`` is what its share gives, once it is ready."""

    def __init__(self, spec: EngineSpec, confined: Confined, log: Path, slot: int) -> None:
        """Start the process, which waits for its setup; ``slot`` tells it from others alive."""
        self.spec, self.slot, self.sms = spec, slot, 0
        self.facts: dict[str, Any] = {}
        self._wire, theirs = Pipe()
        descriptor, cores = str(theirs.fileno()), ",".join(map(str, confined.cores))
        self._process = LoggedProcess(
            [sys.executable, "-m", "nexus.profiler.pairs.engine", descriptor, cores],
            log,
            confined.environment,
            pass_fds=[theirs.fileno()],
            append=True,  # several engines of one kind may come after each other
        )
        theirs.close()

    def set_up(self, setup: Setup) -> None:
        """Let it start its engine."""
        self._send(setup)

    def wait_until_ready(self) -> None:
        """Until the engine runs; raises EngineError when it does not."""
        answer = self._receive(_START_S)
        if isinstance(answer, Failed):
            raise EngineError(answer.why)
        assert isinstance(answer, Ready)
        self.facts, self.sms = answer.facts, answer.sms

    def alone(self, point: Point) -> Times:
        """Time ``point`` with nothing beside it; raises PointError."""
        self._send(Solo(point))
        return self._times()

    def loop(self, point: Point) -> None:
        """Run ``point`` over and over, and return when it does; raises PointError."""
        self._send(CoRun(point))
        answer = self._receive(_POINT_S)
        if isinstance(answer, Failed):
            raise PointError(answer.why)
        assert isinstance(answer, Looping)

    def mark(self) -> None:
        """What it runs from now on counts."""
        self._send("mark")

    def times(self) -> Times:
        """What counted, when it is enough; it goes on looping. Raises PointError."""
        return self._times()

    def stop(self) -> None:
        """Return when it runs nothing any more, whatever it was doing."""
        self._send("stop")
        while not isinstance(self._receive(_POINT_S), Stopped):
            pass

    def quit(self) -> None:
        """Ask it to end: the sudden death of a client can upset MPS."""
        with suppress(OSError):
            self._wire.send("quit")
        self._wire.close()

    def wait(self) -> None:
        """Until it has ended, by force if need be."""
        self._process.stop(None, _QUIT_S)

    def _times(self) -> Times:
        answer = self._receive(_POINT_S)
        if isinstance(answer, Failed):
            raise PointError(answer.why)
        assert isinstance(answer, Times)
        return answer

    def _send(self, message: Any) -> None:
        try:
            self._wire.send(message)
        except OSError as error:
            raise EngineError(self._ended()) from error

    def _receive(self, most_s: float) -> Any:
        end = time.monotonic() + most_s
        while not self._wire.poll(_POLL_S):
            if self._process.exit_code() is not None and not self._wire.poll():
                raise EngineError(self._ended())
            if time.monotonic() > end:
                raise EngineError(f"{self._name} said nothing for {most_s:.0f} s")
        try:
            return self._wire.recv()
        except (EOFError, OSError) as error:
            raise EngineError(self._ended()) from error

    @property
    def _name(self) -> str:
        return f"the {self.spec.role} engine on {self.spec.sms} SMs"

    def _ended(self) -> str:
        return f"{self._name} ended: {self._process.complaint()[:300]}"


class EnginePool:
    """A context manager: the engines that are alive; those of a new round replace them."""

    def __init__(
        self,
        confine: Callable[[EngineSpec], Confined],
        setup: Callable[[EngineSpec, int], Setup],
        folder: Path,
    ) -> None:
        """``setup`` gets the engine's slot too; logs go to ``folder``."""
        self._confine, self._setup, self._folder = confine, setup, folder
        self._alive: dict[EngineSpec, EngineProcess] = {}
        self._early: dict[EngineSpec, EngineProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _end([*self._early.values(), *self._alive.values()])

    def assemble(self, specs: Iterable[EngineSpec]) -> dict[EngineSpec, EngineProcess]:
        """Have these engines run and no others; all that are missing start at once.

        Raises EngineError when one does not.
        """
        wanted = tuple(specs)
        _end([self._alive.pop(spec) for spec in set(self._alive) - set(wanted)])
        fresh = [spec for spec in wanted if spec not in self._alive]
        for spec in fresh:
            engine = self._early.pop(spec, None) or self._spawn(spec)
            engine.slot = self._free_slot()
            self._alive[spec] = engine
            engine.set_up(self._setup(spec, engine.slot))
        for spec in fresh:
            self._alive[spec].wait_until_ready()
        return {spec: self._alive[spec] for spec in wanted}

    def expect(self, specs: Iterable[EngineSpec]) -> None:
        """Let the processes of these engines load their code, and then wait."""
        for spec in specs:
            if spec not in self._alive and spec not in self._early:
                self._early[spec] = self._spawn(spec)

    def _spawn(self, spec: EngineSpec) -> EngineProcess:
        log = self._folder / f"{spec.role}-{spec.sms}.log"
        return EngineProcess(spec, self._confine(spec), log, slot=-1)

    def _free_slot(self) -> int:
        taken = {engine.slot for engine in self._alive.values()}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _end(engines: list[EngineProcess]) -> None:
    """End them all at once."""
    for engine in engines:
        engine.quit()
    for engine in engines:
        engine.wait()
