"""Writes the JSON Schemas of a profile and a plan beside the code that defines them.

Run ``python scripts/schemas.py`` after changing either; a test compares them.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nexus.core.io.outputs import write_atomically
from nexus.core.plan import PLAN_SCHEMA, Plan
from nexus.profiles.schema import PROFILE_SCHEMA, Profile

ROOT = Path(__file__).resolve().parent.parent


def json_schema(kind: type[Any], tag: str) -> str:
    """The JSON Schema of a document of ``kind``, its ``schema`` field included."""
    schema = TypeAdapter(kind).json_schema()
    schema["title"] = tag
    schema["properties"] = {"schema": {"const": tag}, **schema["properties"]}
    schema["required"] = ["schema", *schema["required"]]
    return json.dumps(schema, indent=1) + "\n"


def schemas() -> dict[Path, str]:
    """What belongs in each file."""
    return {
        ROOT / "profiles" / "profile.schema.json": json_schema(Profile, PROFILE_SCHEMA),
        ROOT / "core" / "plan.schema.json": json_schema(Plan, PLAN_SCHEMA),
    }


if __name__ == "__main__":
    for path, text in schemas().items():
        write_atomically(path, text)
