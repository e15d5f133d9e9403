"""The measured profiles that come with Nexus."""

from pathlib import Path

from nexus.profiles.schema import Machine, Profile, read_profile
from nexus.runtime.machine import this_machine


def shipped_profiles() -> list[Path]:
    """Every profile in the package, by folder (the device) and name (the model)."""
    return sorted(Path(__file__).parent.glob("*/*.yaml"))


def profile_of_this_machine() -> Path | None:
    """The first shipped profile under green contexts of a machine like this one."""
    here = this_machine()
    for path in shipped_profiles():
        profile = read_profile(path)
        machine = profile.machine
        if profile.partitioner == "green" and _are_alike(machine, here):
            return path
    return None


def green_twin(profile: Profile) -> Profile | None:
    """The same model on the same machine under green contexts: here, or shipped."""
    here = Path("profile.yaml")
    for path in (*([here] if here.exists() else []), *shipped_profiles()):
        twin = read_profile(path)
        if (
            twin.partitioner == "green"
            and _are_alike(twin.machine, profile.machine)
            and twin.model.config_hash == profile.model.config_hash
        ):
            return twin
    return None


def _are_alike(one: Machine, other: Machine) -> bool:
    return (one.name, one.sms) == (other.name, other.sms)
