"""What a package's source declares, by its syntax tree: nothing of it is imported or run."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_MOST_HOPS = 12  # from a name that is imported to where it is declared
_WANTED = re.compile(r"(?P<name>\w+)(?P<set>=?)(?:\((?P<parameters>[^)]*)\))?")


@dataclass(frozen=True)
class Wanted:
    """A name, whether it is assigned to, and parameters that are passed to it by name."""

    name: str
    is_set: bool = False
    parameters: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "tuple[Wanted, ...]":
        """Names with blanks between: ``name``, ``name=`` and ``name(parameter, ...)``."""
        return tuple(
            cls(
                match["name"],
                bool(match["set"]),
                tuple(re.findall(r"\w+", match["parameters"] or "")),
            )
            for match in _WANTED.finditer(text)
        )


@dataclass(frozen=True)
class Found:
    """Where a name is declared: its module, and the node that does it."""

    module: str
    node: ast.AST


@dataclass(eq=False)
class Source:
    """The source below ``root``, a folder or a folder in a zip file, that holds ``package``."""

    root: Traversable
    package: str
    _names: dict[str, dict[str, ast.AST] | None] = field(default_factory=dict)
    _members: dict[Found, dict[str, ast.AST]] = field(default_factory=dict)

    def has_module(self, module: str) -> bool:
        """Whether there is such a module or package."""
        return self._declared(module) is not None

    def missing(self, module: str, owner: str, wanted: Iterable[Wanted]) -> Iterator[str]:
        """What of ``wanted`` is not there, of the module's class ``owner`` if that is not empty.

        Each as ``module.owner.name``, with the parameter in brackets where only that is missing.
        """
        place = f"{module}.{owner}" if owner else module
        holder = self.find(module, owner) if owner else None
        if owner and holder is None:
            yield place
            return
        for each in wanted:
            found = (
                self.find(module, each.name) if holder is None else self.member(holder, each.name)
            )
            if found is None or (each.is_set and not is_settable(found.node)):
                yield f"{place}.{each.name}"
            elif each.parameters:
                known = self.parameters(found)
                lacks = [name for name in each.parameters if name not in known]
                yield from (f"{place}.{each.name}({name})" for name in lacks)

    def find(self, module: str, name: str) -> Found | None:
        """Where ``name`` of ``module`` is declared, through imports within the package.

        The import itself where it is of something else; None where there is no such name.
        """
        for _ in range(_MOST_HOPS):
            node = (self._declared(module) or {}).get(name)
            if not isinstance(node, ast.ImportFrom):
                return None if node is None else Found(module, node)
            target = _imported_from(node, module, self._is_package(module))
            if target.partition(".")[0] != self.package:
                return Found(module, node)
            original = _original(node, name)
            if self.has_module(f"{target}.{original}"):
                return Found(module, node)
            module, name = target, original
        return None

    def members(self, owner: Found) -> dict[str, ast.AST]:
        """What instances of a class have, by name: from its body, its methods and its bases."""
        if not isinstance(owner.node, ast.ClassDef):
            return {}
        if owner not in self._members:
            found: dict[str, ast.AST] = {}
            for base in reversed(owner.node.bases):
                parent = self._base(base, owner.module)
                found |= {} if parent is None else self.members(parent)
            found |= dict(_instance_names(owner.node)) | dict(_declarations(owner.node.body))
            self._members[owner] = found
        return self._members[owner]

    def member(self, owner: Found, name: str) -> Found | None:
        """What instances of a class have under this name, None where they do not."""
        node = self.members(owner).get(name)
        return None if node is None else Found(owner.module, node)

    def parameters(self, found: Found) -> set[str]:
        """What a function takes, or a class when it is called: of dataclasses, their fields."""
        node = found.node
        if isinstance(node, ast.ClassDef):
            members = self.members(found)
            made = members.get("__init__")
            if made is None:
                return {name for name, each in members.items() if isinstance(each, ast.AnnAssign)}
            node = made
        if not isinstance(node, _FUNCTIONS):
            return set()
        arguments = node.args
        return {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}

    def text(self, path: str) -> str | None:
        """A file's text, None where there is none."""
        file = self.root.joinpath(*path.split("/"))
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _base(self, base: ast.expr, module: str) -> Found | None:
        if isinstance(base, ast.Subscript):  # Base[T]
            base = base.value
        if isinstance(base, ast.Name):
            found = self.find(module, base.id)
            if found is not None and isinstance(found.node, ast.ClassDef):
                return found
        return None

    def _is_package(self, module: str) -> bool:
        return self.root.joinpath(*module.split("."), "__init__.py").is_file()

    def _declared(self, module: str) -> dict[str, ast.AST] | None:
        """What a module declares or imports, by name; None where there is no such module."""
        if module not in self._names:
            path = module.replace(".", "/")
            text = self.text(f"{path}.py")
            if text is None:
                text = self.text(f"{path}/__init__.py")
            tree = None if text is None else ast.parse(text)
            self._names[module] = None if tree is None else dict(_declarations(tree.body))
        return self._names[module]


def is_settable(node: ast.AST) -> bool:
    """Whether an attribute that ``node`` declares can be assigned to: a property cannot."""
    decorators = getattr(node, "decorator_list", [])
    return not any(isinstance(each, ast.Name) and each.id == "property" for each in decorators)


def _declarations(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names that a module's or a class's body gives, those under conditions included."""
    for node in _statements(body):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names = (target.id for target in _targets(node) if isinstance(target, ast.Name))
            yield from ((name, node) for name in names)


def _instance_names(owner: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """Attributes that a class's methods assign to their first parameter."""
    for method in owner.body:
        if not isinstance(method, _FUNCTIONS) or not method.args.args:
            continue
        this = method.args.args[0].arg
        for node in _statements(method.body):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                yield from ((name, node) for name in _attributes(node, this))


def _attributes(node: ast.Assign | ast.AnnAssign, this: str) -> Iterator[str]:
    for target in _targets(node):
        if (
            isinstance(target, ast.Attribute)
            and isinstance(target.value, ast.Name)
            and target.value.id == this
        ):
            yield target.attr


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of ``body`` and within them, but not within functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            continue
        for handler in getattr(node, "handlers", ()):
            yield from _statements(handler.body)
        for part in ("orelse", "finalbody", "body"):  # the last to declare a name is the first
            yield from _statements(getattr(node, part, ()))


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [
        each
        for target in targets
        for each in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]


def _original(node: ast.ImportFrom, name: str) -> str:
    return next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def _imported_from(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that ``node``, in ``module``, imports from, relative imports resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])
