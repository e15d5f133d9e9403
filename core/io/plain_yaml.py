"""The YAML that documents are written in: plain data, each value where it stands.

Anchors, tags and deep nesting, by which a small text grows without end, are refused where they
are met. Values are made straight from libyaml's events; ``yaml.load``, which makes a tree of
nodes first, takes three times as long.
"""

from typing import Any, Protocol

import yaml

MOST_DEPTH = 16  # of lists and mappings in each other
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_MAKE = {
    f"tag:yaml.org,2002:{name}": getattr(_CONSTRUCTOR, f"construct_yaml_{name}")
    for name in ("int", "float", "bool", "null")
}
_LONGEST_NUMBER = 80  # room for 64 binary digits
_INT64 = range(-(1 << 63), 1 << 63)


class PlainYamlError(ValueError):
    """What is wrong with a text, and in which line."""


class _RefusedError(ValueError):
    """What is wrong with a value."""


class _Holder(Protocol):
    held: Any

    def add(self, value: Any) -> None: ...


def load(text: str) -> Any:
    """Mappings as dicts with text for keys, lists, and scalars as YAML 1.1 has them.

    Dates stay text; a text with nothing in it is None. Raises PlainYamlError.
    """
    stack: list[_Holder] = [_Document()]
    words: dict[str, Any] = {}
    mark: Any = None
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            mark = event.start_mark
            if getattr(event, "anchor", None) is not None:
                raise _RefusedError("anchors and aliases are not supported")
            if getattr(event, "tag", None) is not None:
                raise _RefusedError("tags are not supported")
            if isinstance(event, yaml.ScalarEvent):
                word = event.value
                if not event.implicit[0]:  # in quotes
                    stack[-1].add(word)
                    continue
                if word not in words:
                    words[word] = _scalar(word)
                stack[-1].add(words[word])
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(stack) > MOST_DEPTH:
                    raise _RefusedError(f"more than {MOST_DEPTH} levels")
                mapping = isinstance(event, yaml.MappingStartEvent)
                stack.append(_Mapping() if mapping else _List())
            elif isinstance(event, yaml.CollectionEndEvent):
                done = stack.pop()
                stack[-1].add(done.held)
        return stack[-1].held
    except _RefusedError as error:
        raise PlainYamlError(f"{error}{_where(mark)}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        where = _where(getattr(error, "problem_mark", None))
        raise PlainYamlError(f"not YAML{where}") from error


def _where(mark: Any) -> str:
    return f" (line {mark.line + 1})" if mark else ""


def _scalar(word: str) -> Any:
    """What a word without quotes stands for."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, word, (True, False))
    make = _MAKE.get(tag)
    if make is None:
        return word
    if len(word) > _LONGEST_NUMBER:
        raise _RefusedError("a number too long")
    try:
        value = make(yaml.ScalarNode(tag, word))
    except ValueError:
        raise _RefusedError(f"{word} is no number") from None
    if type(value) is int and value not in _INT64:
        raise _RefusedError(f"{word} is beyond 64 bits")
    return value


class _Document:
    """Holds one value at most."""

    def __init__(self) -> None:
        self.held: Any = None
        self._whole = False

    def add(self, value: Any) -> None:
        if self._whole:
            raise _RefusedError("a second document")
        self.held, self._whole = value, True


class _List:
    def __init__(self) -> None:
        self.held: list[Any] = []
        self.add = self.held.append


class _Mapping:
    """Is given keys and values in turn."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self._key: str | None = None

    def add(self, value: Any) -> None:
        if self._key is not None:
            self.held[self._key], self._key = value, None
        elif not isinstance(value, str):
            raise _RefusedError("a key that is not text")
        elif value in self.held:
            raise _RefusedError(f"{value[:40]!r} is there twice")
        else:
            self._key = value
