"""The measured profiles that come with Nexus."""

from pathlib import Path

from nexus.profiles.schema import read_profile
from nexus.runtime.machine import this_machine


def shipped_profiles() -> list[Path]:
    """Every profile in the package, by folder (the device) and name (the model)."""
    return sorted(Path(__file__).parent.glob("*/*.yaml"))


def profile_of_this_machine() -> Path | None:
    """The first shipped profile measured on a machine like this one."""
    here = this_machine()
    for path in shipped_profiles():
        machine = read_profile(path).machine
        if (machine.name, machine.sms) == (here.name, here.sms):
            return path
    return None
