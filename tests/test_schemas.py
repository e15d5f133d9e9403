"""The shipped JSON Schemas are those of the code, and accept what the code writes."""

import json
import runpy
from pathlib import Path

import jsonschema
import pytest
import yaml

from nexus.profiles.shipped import shipped_profiles

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS: dict[Path, str] = runpy.run_path(str(ROOT / "scripts" / "schemas.py"))["schemas"]()


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_schema_is_current(path: Path) -> None:
    assert path.read_text() == SCHEMAS[path], "run: python scripts/schemas.py"


@pytest.mark.parametrize(
    "path", [*shipped_profiles(), *shipped_profiles("mps")], ids=lambda path: path.stem
)
def test_shipped_profiles_fit_the_schema(path: Path) -> None:
    schema = json.loads((ROOT / "profiles" / "profile.schema.json").read_text())
    jsonschema.validate(yaml.load(path.read_text(), Loader=yaml.CSafeLoader), schema)
