"""What the log of a process that ended says of the reason."""

from pathlib import Path


def complaint(log: Path) -> str:
    """The last error that ``log`` tells of, in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.strip() for line in lines if "Error" in line or line.startswith("nexus: ")]
    return told[-1].removeprefix("nexus: ") if told else "it did not say why"
