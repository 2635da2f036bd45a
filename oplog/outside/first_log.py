"""The first files of a log in an application: text, and where it belongs. Writes nothing."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_IMPORT = "import oplog.migration  # makes op.create_oplog and its siblings known"


@dataclass(frozen=True, slots=True)
class FirstLog:
    """What the module that makes the log is made from.

    `module` and `expression` say where the models are, `imported` names further modules that map
    tables, `untracked` tables that cannot be logged, each with its reason, and `sessions` what is
    attached: pairs of a module and a name in it.
    """

    module: str
    expression: str
    imported: Sequence[str] = ()
    untracked: Mapping[str, str] = field(default_factory=dict)
    sessions: Sequence[tuple[str, str]] = ()

    def write(self) -> str:
        """The module's source."""
        names: dict[str, set[str]] = {self.module: {self.expression.partition(".")[0]}}
        for module, name in self.sessions:
            names.setdefault(module, set()).add(name)
        others = sorted({*self.imported} - {*names})
        lines = [
            '"""The operation log: what a transaction did commits with the transaction."""',
            "",
            *(f"import {one}  # noqa: F401 - for the tables that it declares" for one in others),
            *(f"from {module} import {', '.join(sorted(of))}" for module, of in names.items()),
            "from oplog import Keyring, Oplog, TypeCatalog",
            "",
            "catalog = TypeCatalog.from_models(",
            f"    {self.expression},",
            *self._list_untracked(),
            ")",
            f"log = Oplog(catalog, keyring=Keyring.from_env(), expect={self.expression})",
            *(f"log.attach({name})" for _, name in self.sessions),
            "",
        ]
        return "\n".join(lines)

    def _list_untracked(self) -> list[str]:
        if not self.untracked:
            return []
        each = (f"        {_quote(t)}: {_quote(why)}," for t, why in sorted(self.untracked.items()))
        return ["    untracked={", *each, "    },"]


def add_import(source: str) -> str | None:
    """An `env.py` with the line that makes the operations known; None if it has it."""
    tree = ast.parse(source)
    last = 0
    for node in tree.body:
        if isinstance(node, ast.Import) and any(
            one.name == "oplog.migration" for one in node.names
        ):
            return None
        if isinstance(node, ast.Import | ast.ImportFrom):
            last = node.end_lineno or node.lineno
        elif last == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            # The docstring comes before the imports.
            last = node.end_lineno or node.lineno
    lines = source.splitlines(keepends=True)
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if last and not lines[last - 1].endswith(("\n", "\r")):
        lines[last - 1] += ending
    return "".join([*lines[:last], _IMPORT + ending, *lines[last:]])


def add_setting(source: str, app: str) -> str | None:
    """A `pyproject.toml` that names the log for the program; None if it has a table for it.

    The text is added at the end, so that nothing that is there changes.
    """
    if any(line.strip().startswith("[tool.oplog") for line in source.splitlines()):
        return None
    gap = "" if not source or source.endswith("\n\n") else "\n" if source.endswith("\n") else "\n\n"
    return f'{source}{gap}[tool.oplog]\napp = "{app}"\n'


def write_upgrade(tables: Mapping[str | None, Sequence[str]], *, version: int) -> str:
    """The body of a revision's `upgrade`: the log's tables, and guards on these, by schema."""
    return "\n    ".join([f"op.create_oplog(version={version})", *_call("track_tables", tables)])


def write_downgrade(tables: Mapping[str | None, Sequence[str]]) -> str:
    """The body of its `downgrade`."""
    more = 'reason="the revision that began the log is taken back"'
    return "\n    ".join([*_call("untrack_tables", tables, more), "op.drop_oplog()"])


def _call(operation: str, tables: Mapping[str | None, Sequence[str]], *more: str) -> list[str]:
    calls = []
    for schema, names in sorted(tables.items(), key=lambda one: one[0] or ""):
        place = () if schema is None else (f"schema={_quote(schema)}",)
        arguments = [*(_quote(name) for name in names), *place, *more]
        joined = "".join(f"        {one},\n" for one in arguments)
        calls.append(f"op.{operation}(\n{joined}    )")
    return calls


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def name_log_path(models: Path) -> Path:
    """Where the log's module belongs: beside the module with the models, or its package."""
    return models.parent / "log.py"
