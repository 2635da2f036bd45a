"""Finds what the models alone show that a restore from the log will refuse. Pure.

The database itself is judged in `evolution`. A column with a server default is no risk: it is
filled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy.exc import NoReferenceError

from oplog.catalog import DeclaredType, TypeCatalog


@dataclass(frozen=True, slots=True)
class RestoreRisk:
    """A column that a restored row cannot do without; `parent` is the table it refers to."""

    declared: DeclaredType
    column: str
    text: str
    parent: str = ""


def find_restore_risks(catalog: TypeCatalog) -> list[RestoreRisk]:
    """Columns and foreign keys for which a restore of logged tables may refuse rows."""
    # By name: what a table in several schemas refers to is a copy.
    logged = {declared.table.fullname for declared in catalog.types.values()}
    return [risk for one in catalog.types.values() for risk in _list_risks(one, logged)]


def _list_risks(declared: DeclaredType, logged: Collection[str]) -> Iterator[RestoreRisk]:
    table = declared.table
    for name in declared.excluded:
        column = table.columns[name]
        if not (column.nullable or column.server_default is not None or column.identity):
            yield RestoreRisk(
                declared,
                name,
                f"column {table.fullname}.{name} is excluded from the log, may not be NULL and has "
                "no server default",
            )
    for key in table.foreign_keys:
        try:
            parent = key.column.table
        except NoReferenceError:
            # The table is in no model here; `judge_evolution` reads it from the database.
            continue
        if parent.fullname not in logged:
            yield RestoreRisk(
                declared,
                key.parent.name,
                f"table {table.fullname} refers to {parent.fullname}, which is not logged",
                parent.fullname,
            )
