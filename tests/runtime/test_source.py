"""What a package declares, read from a small one that has each way to declare a name."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.runtime.source import Source, Wanted

BASE = """
from typing import Generic, TypeVar
from outside import Thing
T = TypeVar("T")

class Base(Generic[T]):
    limit: int = 3

    def __init__(self, first):
        self.first, self.second = first, None
        if first:
            with open("x") as other:
                self.third: int = 1

    @property
    def fixed(self): ...

    def method(self, one, /, two, *, three=0): ...
"""
DERIVED = """
from .base import Base as _Base
from pack import base
from . import helpers

class Derived(_Base[int]):
    def other(this):
        this.fourth = 4

def plain(argument): ...
"""
DATA = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    late: int
else:
    from pack.sub.derived import Derived

class Row:
    width: int
    height: int = 0

_state = None
"""


@pytest.fixture(params=["folder", "wheel"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """The same package as a folder and in a zip file."""
    files = {
        "pack/__init__.py": "from pack.sub import Derived, helpers",
        "pack/base.py": BASE,
        "pack/data.py": DATA,
        "pack/sub/__init__.py": "from pack.sub.derived import Derived, plain",
        "pack/sub/derived.py": DERIVED.replace("from .base", "from ..base"),
        "pack/sub/helpers.py": "",
    }
    if request.param == "wheel":
        path = tmp_path / "pack-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return Source(zipfile.Path(path), "pack")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Source(tmp_path, "pack")


def missing(source: Source, module: str, owner: str, names: str) -> list[str]:
    return list(source.missing(module, owner, Wanted.parse(names)))


def test_finds_what_classes_their_bases_and_their_methods_declare(source: Source) -> None:
    names = "limit first= second third fourth= fixed method(one, two, three) other"
    assert missing(source, "pack", "Derived", names) == []
    assert missing(source, "pack.data", "Row", "width height=") == []


def test_finds_what_modules_declare_or_import(source: Source) -> None:
    assert missing(source, "pack.data", "", "late Derived Row(width, height) _state=") == []
    assert missing(source, "pack", "", "Derived(first) helpers") == []
    assert missing(source, "pack.sub", "", "plain(argument)") == []
    assert missing(source, "pack.base", "", "Thing") == []  # of another package: as imported


def test_says_what_is_not_there(source: Source) -> None:
    assert missing(source, "pack", "Derived", "fifth method(four)") == [
        "pack.Derived.fifth",
        "pack.Derived.method(four)",
    ]
    assert missing(source, "pack.data", "Row", "self") == ["pack.data.Row.self"]
    assert missing(source, "pack.data", "", "Row(depth) early") == [
        "pack.data.Row(depth)",
        "pack.data.early",
    ]
    assert missing(source, "pack", "Gone", "limit") == ["pack.Gone"]
    assert missing(source, "pack.gone", "", "limit") == ["pack.gone.limit"]


def test_a_property_cannot_be_assigned_to(source: Source) -> None:
    assert missing(source, "pack.base", "Base", "fixed") == []
    assert missing(source, "pack.base", "Base", "fixed=") == ["pack.base.Base.fixed"]


NAME = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)


@given(st.lists(st.builds(Wanted, NAME, st.booleans(), st.lists(NAME).map(tuple))), st.text(" \n"))
def test_reads_what_was_written(names: list[Wanted], more: str) -> None:
    text = f" {more}".join(
        each.name + "=" * each.is_set + f"({f',{more}'.join(each.parameters)})" for each in names
    )
    assert Wanted.parse(text) == tuple(names)


def test_reads_a_list_of_names() -> None:
    assert Wanted.parse("a b= c(d,\n e) f=(g)") == (
        Wanted("a"),
        Wanted("b", is_set=True),
        Wanted("c", parameters=("d", "e")),
        Wanted("f", is_set=True, parameters=("g",)),
    )
