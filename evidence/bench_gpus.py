"""Several ``nexus bench`` at once, one on each GPU, each with its part of the results.

``python evidence/bench_gpus.py COMMON ... -- WORDS OF GPU 0 ... -- WORDS OF GPU 1 ...``: every
group of words after a ``--`` runs on the next GPU, after the common ones. Each process sees its
own GPU, cores and cache of compiled kernels. The exit code is the highest of theirs.
"""

import os
import signal
import subprocess
import sys
import threading
from itertools import groupby
from pathlib import Path
from typing import IO

from nexus.core.io.terminal import quieten


def groups_of(words: list[str]) -> tuple[list[str], list[list[str]]]:
    """The common words, and those of each GPU."""
    parts: list[list[str]] = [[]]
    for is_mark, part in groupby(words, lambda word: word == "--"):
        if is_mark:
            parts += [[] for _ in part]
        else:
            parts[-1] = list(part)
    return parts[0], parts[1:]


def start(common: list[str], words: list[str], gpu: int, of: int) -> subprocess.Popen[str]:
    """One process, on its GPU and its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    own = cores[gpu * len(cores) // of : (gpu + 1) * len(cores) // of] or cores
    cache = Path(os.environ.get("VLLM_CACHE_ROOT", Path.home() / ".cache" / "vllm"))
    environment = {
        "CUDA_VISIBLE_DEVICES": str(gpu),
        "VLLM_CACHE_ROOT": f"{cache}-gpu{gpu}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
    }
    command = [sys.executable, "-m", "nexus.cli", "bench", *common, *words, "--part", f"gpu{gpu}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    os.sched_setaffinity(process.pid, own)
    return process


def tell(lines: IO[str], gpu: int) -> None:
    """Print what a process says, with its GPU before each line."""
    for line in lines:
        sys.stdout.write(f"gpu{gpu} {line}")
        sys.stdout.flush()


def main(words: list[str]) -> int:
    """Run them all; a signal to this process is one to each of them."""
    quieten(verbose=False)
    common, groups = groups_of(words)
    if not groups:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    running = [start(common, own, gpu, len(groups)) for gpu, own in enumerate(groups)]

    def pass_on(number: int, _: object) -> None:
        for each in running:
            each.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    tellers = [
        threading.Thread(target=tell, args=(each.stdout, gpu)) for gpu, each in enumerate(running)
    ]
    for teller in tellers:
        teller.start()
    codes = [each.wait() for each in running]
    for teller in tellers:
        teller.join()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
