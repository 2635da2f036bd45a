"""Columns of domains, which a rebuilt table has with the types below them until its rows are there.

A domain is shared, and may have been narrowed since a row was logged, or without a look at the rows
(`NOT VALID`). So its checks are no reason to refuse a row while rows come and go. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from oplog.postgres.quoting import quote


@dataclass(frozen=True, slots=True)
class DomainColumn:
    """A column of a domain, or one that is computed from such columns."""

    name: str
    base: str
    """The type below its domain, as SQL with the column's collation."""
    own: str
    """The column's own type in the same way."""
    formula: str = ""
    """SQL of a computed column; empty for any other."""
    uses: frozenset[str] = frozenset()
    """Columns that the formula uses."""

    def state(self, type_name: str) -> str:
        """The definition of a computed column."""
        return f"{quote(self.name)} {type_name} GENERATED ALWAYS AS ({self.formula}) STORED"


DomainColumns = Mapping[str, DomainColumn]
"""By name."""


def choose_columns(columns: Iterable[DomainColumn]) -> DomainColumns:
    """Those of domains, and those computed from them."""
    known = {column.name: column for column in columns}
    domains = {name for name, column in known.items() if column.base != column.own}
    return {
        name: column
        for name, column in known.items()
        if name in domains or (column.formula and column.uses & domains)
    }


def set_base_types(columns: DomainColumns) -> list[str]:
    """Clauses of ALTER TABLE by which a table like the live one gets the types below."""
    return _set_types(columns, {name: column.base for name, column in columns.items()})


def set_own_types(columns: DomainColumns, names: Collection[str]) -> list[str]:
    """Clauses of ALTER TABLE that give these columns their own types again.

    A computed column that has to be made anew becomes the last one.
    """
    chosen = {name: columns[name].own for name in names}
    touched = {
        name: chosen.get(name, column.base)
        for name, column in columns.items()
        if name in chosen or column.uses & chosen.keys()
    }
    return _set_types(columns, touched)


def _set_types(columns: DomainColumns, types: Mapping[str, str]) -> list[str]:
    # The type of a column that a formula uses cannot be altered.
    computed = [columns[name] for name in types if columns[name].formula]
    return [
        *(f"DROP {quote(column.name)}" for column in computed),
        *(
            f"ALTER {quote(name)} TYPE {type_name}"
            for name, type_name in types.items()
            if not columns[name].formula
        ),
        *(f"ADD {column.state(types[column.name])}" for column in computed),
    ]
