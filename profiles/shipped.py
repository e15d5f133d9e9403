"""The measured profiles that come with Nexus."""

from pathlib import Path

from nexus.profiles.schema import Machine, PartitionerName, Profile, read_profile
from nexus.runtime.machine import this_machine

PROFILE_HERE = Path("profile.yaml")  # what `nexus profile` writes; looked for before those


def shipped_profiles(partitioner: PartitionerName = "green") -> list[Path]:
    """Every profile of that kind in the package, by folder (the device) and name (the model)."""
    pattern = "*/*.yaml" if partitioner == "green" else f"*/{partitioner}/*.yaml"
    return sorted(Path(__file__).parent.glob(pattern))


def profile_of_this_machine() -> Path | None:
    """The first shipped profile under green contexts of a machine like this one."""
    here = this_machine()
    for path in shipped_profiles():
        if _are_alike(read_profile(path).machine, here):
            return path
    return None


def green_twin(profile: Profile) -> Profile | None:
    """The same model on the same machine under green contexts: here, or shipped."""
    for path in (*([PROFILE_HERE] if PROFILE_HERE.exists() else []), *shipped_profiles()):
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
