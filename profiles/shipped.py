"""The measured profiles that come with Nexus."""

from pathlib import Path

from nexus.core.machine import Machine, PartitionerName
from nexus.profiles.schema import Profile, read_profile

PROFILE_HERE = Path("profile.yaml")  # what `nexus profile` writes; looked for before those


def shipped_profiles(partitioner: PartitionerName = "green") -> list[Path]:
    """Every profile of that kind in the package, by folder (the device) and name (the model)."""
    pattern = "*/*.yaml" if partitioner == "green" else f"*/{partitioner}/*.yaml"
    return sorted(Path(__file__).parent.glob(pattern))


def profile_of(machine: Machine) -> Path | None:
    """The first shipped profile under green contexts of a machine like this one."""
    for path in shipped_profiles():
        if _are_alike(read_profile(path).machine, machine):
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
