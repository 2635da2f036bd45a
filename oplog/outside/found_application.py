"""What an application's source says of its models and sessions, without running any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BASES = {"DeclarativeBase", "DeclarativeBaseNoMeta"}
_BASE_CALLS = {"declarative_base", "automap_base"}
_SESSION_CALLS = {"sessionmaker", "async_sessionmaker", "scoped_session", "async_scoped_session"}
_PASSED_OVER = {"node_modules", "site-packages", "build", "dist", "tests", "test"}


@dataclass(frozen=True, slots=True)
class FoundName:
    """A name that a module binds: `expression` says what of it is meant, such as `db.metadata`."""

    module: str
    expression: str
    path: Path
    line: int


@dataclass(frozen=True, slots=True)
class FoundApplication:
    """What was found below a directory.

    `models` are bases of mapped classes, `tables` the modules that map any, `sessions` what makes
    sessions.
    """

    models: tuple[FoundName, ...]
    tables: tuple[str, ...]
    sessions: tuple[FoundName, ...]


def find_application(directory: Path) -> FoundApplication:
    """Look through the Python files below `directory`; one that cannot be read is passed over."""
    models: list[FoundName] = []
    sessions: list[FoundName] = []
    tables: list[str] = []
    for path in sorted(_list_files(directory)):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        module = name_module(path, directory)
        for node in tree.body:
            models += [FoundName(module, found, path, node.lineno) for found in _find_models(node)]
            sessions += [
                FoundName(module, found, path, node.lineno)
                for found in _find_calls(node, _SESSION_CALLS)
            ]
        if any(_maps_a_table(node) for node in ast.walk(tree)):
            tables.append(module)
    return FoundApplication(tuple(models), tuple(tables), tuple(sessions))


def name_module(path: Path, directory: Path) -> str:
    """The name by which a file below `directory` is imported; `src` is no package."""
    parts = list(path.relative_to(directory).with_suffix("").parts)
    if parts[0] == "src" and len(parts) > 1:
        del parts[0]
    if parts[-1] == "__init__" and len(parts) > 1:
        del parts[-1]
    return ".".join(parts)


def _list_files(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.is_dir():
            hidden = path.name.startswith(".") or path.name in _PASSED_OVER
            # What virtual environments and migrations have, whatever their name is.
            other = (path / "pyvenv.cfg").exists() or (path / "script.py.mako").exists()
            if not hidden and not other:
                yield from _list_files(path)
        elif path.suffix == ".py":
            yield path


def _find_models(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef) and any(_last_name(base) in _BASES for base in node.bases):
        yield node.name
    yield from _find_calls(node, _BASE_CALLS)
    # Flask-SQLAlchemy keeps the metadata on the extension.
    yield from (f"{name}.metadata" for name in _find_calls(node, {"SQLAlchemy"}))


def _find_calls(node: ast.stmt, functions: set[str]) -> Iterator[str]:
    """Names that a statement binds to what one of these functions returns."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call) and _last_name(value.func) in functions:
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _maps_a_table(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    names = {target.id for target in node.targets if isinstance(target, ast.Name)}
    return bool(names & {"__tablename__", "__table__"}) or (
        isinstance(node.value, ast.Call) and _last_name(node.value.func) == "Table"
    )


def _last_name(node: ast.expr) -> str:
    """`sessionmaker` of `orm.sessionmaker` and of `sessionmaker[Session]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
