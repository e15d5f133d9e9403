"""A JSON file of evidence that is whole after every part, also when a later one fails."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nexus.core.io.outputs import make_folder, write_atomically
from nexus.core.io.terminal import err
from nexus.runtime.machine import software, this_machine


class Results:
    """``folder/name``, with what it was measured on."""

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
