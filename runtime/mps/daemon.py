"""An MPS control daemon of our own: started, asked, and ended without a trace.

It has private pipe and log directories and changes no setting of the GPU. A client gets
its share of the SMs from its environment when it makes its CUDA context; the share of a
running client cannot be changed.

    with MpsDaemon() as daemon:
        subprocess.run(command, env=os.environ | daemon.client(37))
"""

import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from nexus.core.errors import PartitionError
from nexus.runtime.mps.folder import RunFolder, default_folder
from nexus.runtime.mps.processes import (
    MARKER,
    Process,
    end,
    everyone,
    family,
    look,
    marker_of,
    wait_until,
)

CONTROL = "nvidia-cuda-mps-control"
# Where a daemon is that was told nothing else.
_SHARED_PIPE = Path("/tmp/nvidia-mps")  # noqa: S108  MPS's own default
_NOT_OURS = "an MPS daemon of someone else's runs ({}): Nexus neither uses nor ends it"
_START_S = 15.0
_ANSWER_S = 5.0
_CLIENT_GRACE_S = 5.0
_GRACE_S = 2.0


def find_control(control: str = CONTROL) -> str:
    """The path of the daemon's program; raises PartitionError when there is none to run."""
    program = shutil.which(control)
    if program is None:
        raise PartitionError(f"{control} is not on the PATH: it comes with the NVIDIA driver")
    return program


def refuse_others(control: str = CONTROL, ours: Collection[Process] = ()) -> None:
    """Raise PartitionError when an MPS daemon runs that no Nexus started.

    Processes of Nexus carry its mark, or are among ``ours``.
    """
    name = Path(control).name[:15]  # as much as the kernel keeps of it
    for seen in everyone():
        if seen.name == name and seen.process not in ours and not marker_of(seen.process.pid):
            raise PartitionError(_NOT_OURS.format(f"process {seen.process.pid}"))
    # One that cannot be seen from here, as on the other side of a container.
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _SHARED_PIPE))
    if (pipe / "control").exists() and _ask(control, "get_server_list", pipe) is not None:
        raise PartitionError(_NOT_OURS.format(f"pipe directory {pipe}"))


class MpsDaemon:
    """A context manager: the daemon answers when entered, and all of it is gone when left.

    Entering cleans up first what a killed run left behind. Raises PartitionError when
    another Nexus runs with MPS, someone else's daemon runs, or ours does not start.
    """

    def __init__(self, folder: Path | None = None, control: str = CONTROL) -> None:
        """``folder``: the run's private folder; ``control``: the daemon's program."""
        self._path = folder or default_folder()
        self._control = control
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.run = RunFolder.open(self._path)
        try:
            refuse_others(self._control)
            self._start(find_control(self._control))
        except BaseException:
            self._stop(keep_logs=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        self._stop(keep_logs=failed)

    def client(self, percent: int, memory_mib: int | None = None) -> dict[str, str]:
        """What a client's environment has to say to run on ``percent`` of the SMs.

        ``memory_mib``: at most so much memory on the first GPU, as MPS counts it.
        """
        if not 1 <= percent <= 100:
            raise PartitionError(f"{percent} % of the SMs asked for: 1 to 100 can be given")
        environment = {
            **self._directories(),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
        }
        if memory_mib is not None:
            environment["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={memory_mib}M"
        return environment

    def failure(self) -> str:
        """Why the daemon is gone, in words; empty while it runs."""
        code = None if self._daemon is None else self._daemon.poll()
        return "" if code is None else f"the MPS daemon ended (exit code {code})"

    def note(self, *, look_for_memory: bool = True) -> None:
        """Put down who runs now, with the memory they share, for the run after a kill."""
        self.run.note(self.run.members(), look_for_memory=look_for_memory)

    def clients(self) -> set[Process]:
        """Every process of this run but the daemon and its servers."""
        return self.run.members() - self._own()

    def mark(self) -> dict[str, str]:
        """What the environment of a process has to say that belongs to the run, but is no client."""
        return {MARKER: self.run.marker}

    def _directories(self) -> dict[str, str]:
        return {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.run.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.run.log),
            **self.mark(),
        }

    def _start(self, program: str) -> None:
        # All GPUs are the daemon's to offer: its clients' CUDA_VISIBLE_DEVICES count from there.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CUDA_MPS_") and name != "CUDA_VISIBLE_DEVICES"
        }
        with (self.run.log / "daemon.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [program, "-f"],
                env=inherited | self._directories(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.run.note(self._own())
        wait_until(lambda: bool(self.failure()) or self._answers(), _START_S)
        if self.failure():
            raise PartitionError(f"{self.failure()}; its logs are in {self.run.log}")
        if not self._answers():
            raise PartitionError(f"the MPS daemon does not answer; its logs are in {self.run.log}")

    def _answers(self) -> bool:
        return _ask(self._control, "get_server_list", self.run.pipe) is not None

    def _own(self) -> set[Process]:
        """The daemon and the servers that it started."""
        seen = look(self._daemon.pid) if self._daemon else None
        return family([seen.process]) if seen else set()

    def _stop(self, *, keep_logs: bool) -> None:
        self.note()
        end(self.clients(), _CLIENT_GRACE_S)
        if self._daemon and not self.failure():
            _ask(self._control, "quit", self.run.pipe)
            wait_until(lambda: bool(self.failure()), _GRACE_S)
        end(self.run.members(), _GRACE_S)
        if self._daemon:
            self._daemon.wait()
        self.run.close(keep_logs=keep_logs)


def _ask(control: str, command: str, pipe: Path) -> str | None:
    """What the daemon at ``pipe`` answers to a command; None when it does not."""
    try:
        done = subprocess.run(
            [control],
            input=f"{command}\n",
            env=os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)},
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    failed = done.returncode != 0 or "Cannot find MPS" in done.stdout + done.stderr
    return None if failed else done.stdout
