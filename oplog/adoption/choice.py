"""Selects the types to adopt and their order.

Tables come before those that refer to them, and the order is the same in every process: two
adoptions never wait for each other in a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import UnknownTypeError


def choose_types(catalog: TypeCatalog, tables: Iterable[Any] | None) -> TypeCatalog:
    """Return a catalog of the types to adopt: names, `Table`s or mapped classes; None is all.

    Raises `UnknownTypeError` for a table that is not logged, `NotCapturableError` for one
    without a primary key.
    """
    if tables is None:
        return _check(catalog)
    given = [tables] if isinstance(tables, str | sa.Table | type) else tables
    return _check(catalog.narrow(name for one in given for name in _find_names(catalog, one)))


def sort_types(catalog: TypeCatalog) -> list[DeclaredType]:
    """Sort tables before those that refer to them, otherwise by name."""
    by_table = {declared.table: declared for declared in catalog.types.values()}
    tables = sorted(by_table, key=lambda table: by_table[table].type_name)
    # Unlike `sort_tables` this does not warn about tables that refer to each other.
    ordered = sa.schema.sort_tables_and_constraints(tables)  # type: ignore[no-untyped-call]
    return [by_table[table] for table, _ in ordered if table is not None]


def _check(catalog: TypeCatalog) -> TypeCatalog:
    catalog.check_keys()
    return catalog


def _find_names(catalog: TypeCatalog, given: Any) -> list[str]:
    if isinstance(given, str) and given not in catalog.types:
        found = [t.type_name for t in catalog.types.values() if t.table.fullname == given]
        if found:
            return found
        if given in catalog.untracked:
            raise UnknownTypeError(
                f"table {given!r} is not logged: {catalog.untracked[given]}",
                hint="remove it from untracked={...} to log it",
            )
    return [declared.type_name for declared in catalog.find_types(given)]
