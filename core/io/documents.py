"""Reading and writing of versioned YAML documents (profiles and plans).

One file is one mapping. Lists of rows are written one row a line, so that a
document stays readable and diffs stay small. A document is validated on reading
and written whole or not at all.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nexus.core.errors import DocumentError
from nexus.core.io.outputs import write_atomically
from nexus.core.io.plain_yaml import PlainYamlError, load

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

MOST = 1 << 53  # whole numbers that a float holds exactly
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Ms = Annotated[float, Field(gt=0)]
Quantity = Annotated[float, Field(ge=0)]

_MOST_BYTES = 32 << 20  # eighty times the largest plan
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LINE_WIDTH = 1_000_000  # a row never wraps


@dataclass(frozen=True, config=STRICT)
class Provenance:
    """Where, when, with what and by which command a document was made."""

    created: str
    command: str
    software: dict[str, str]


def read_document(path: Path, kind: type[T], schema: str) -> T:
    """Read and validate the document at ``path``.

    ``schema`` is the tag that its ``schema`` field must carry, such as
    ``nexus.profile/1``. Raises DocumentError, in one line, for anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise DocumentError(f"{path}: more than {_MOST_BYTES >> 20} MiB")
        return parse_document(text.decode(), kind, schema, source=str(path))
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not a text file") from error


def parse_document(text: str, kind: type[T], schema: str, source: str) -> T:
    """As ``read_document``, from ``text``; ``source`` names it in errors."""
    try:
        raw = load(text)
    except PlainYamlError as error:
        raise DocumentError(f"{source}: {error}") from error
    if not isinstance(raw, dict):
        raise DocumentError(f"{source}: not a {schema} document, but a {type(raw).__name__}")
    tag = raw.pop("schema", None)
    if tag != schema:
        raise DocumentError(f"{source}: schema is {repr(tag)[:80]}, expected {schema!r}")
    try:
        # JSON is where pydantic's strict mode takes a list for a tuple, a mapping for a class.
        return TypeAdapter(kind).validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DocumentError(f"{source}: {first_problem(error)}") from error


def first_problem(error: ValidationError, whole: str = "document") -> str:
    """The first of pydantic's complaints, as ``field: what is wrong``.

    ``whole`` stands for the field where it is about all of them.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part)[:80] for part in first["loc"]) or whole
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    told = first["msg"].removeprefix("Value error, ") + more
    return f"{where}: {told}" if where else told


def write_document(path: Path, document: Any, schema: str) -> None:
    """Write ``document`` to ``path`` atomically."""
    write_atomically(path, dump_document(document, schema))


def dump_document(document: Any, schema: str) -> str:
    """The YAML text of a pydantic dataclass instance; fields that are None are left out."""
    data = TypeAdapter(type(document)).dump_python(document, mode="json", exclude_none=True)
    parts = [f"schema: {schema}\n"]
    for name, value in data.items():
        if _is_table(value):
            rows = "".join(f"- {_flow(row)}\n" for row in value)
            parts.append(f"{name}:\n{rows}")
        elif _is_map_of_rows(value):
            rows = "".join(f"  {key}: {_flow(row)}\n" for key, row in value.items())
            parts.append(f"{name}:\n{rows}")
        else:
            parts.append(
                yaml.dump({name: value}, Dumper=_DUMPER, sort_keys=False, width=_LINE_WIDTH)
            )
    return "".join(parts)


def document_hash(document: Any, schema: str) -> str:
    """A short SHA-256 of what ``dump_document`` writes: equal content, equal hash."""
    return hashlib.sha256(dump_document(document, schema).encode()).hexdigest()[:16]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _is_map_of_rows(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(row, (dict, list)) for row in value.values())
    )


def _flow(row: Any) -> str:
    text = yaml.dump(
        row, Dumper=_DUMPER, default_flow_style=True, sort_keys=False, width=_LINE_WIDTH
    )
    return str(text).strip()
