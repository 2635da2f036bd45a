"""The log's rows as a query: they travel as parameters, where no table can or need be made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote
from oplog.replay.table_plan import TablePlan
from oplog.value import ValueCodec, Wire

Collations: TypeAlias = Mapping[tuple[int, str], str]
"""Names of the columns' collations, as SQL, by the table's oid and the column."""

_LENGTH = re.compile(r"^(character varying|character|bit varying|bit)\(\d+\)")
_WITHOUT_LENGTH = {"character": "pg_catalog.bpchar", "bit": "bit varying"}


def make_row_query(
    plan: TablePlan,
    rows: Sequence[Mapping[str, Wire | None]],
    *,
    collations: Collations,
    mark: Callable[[int], str],
) -> tuple[str, list[list[str | None]]]:
    """A query in parentheses for these rows, with computed columns, and its parameters.

    `mark` gives the placeholder of each parameter, counted from 0; all are arrays of text.
    """

    def shape(name: str, value: str) -> str:
        return f"{cast_value(plan, name, value=value, collations=collations)} AS {quote(name)}"

    by_origin: dict[tuple[str, ...], list[Mapping[str, Wire | None]]] = {}
    for row in rows:
        by_origin.setdefault(tuple(n for n in plan.names if n in row), []).append(row)
    nothing = ", ".join(shape(name, "NULL") for name in plan.names)
    selects = [f"SELECT {nothing} WHERE false"]
    parameters: list[list[str | None]] = []
    for origin, same in by_origin.items():
        places = {name: f"u.c{number}" for number, name in enumerate(origin)}
        columns = ", ".join(
            shape(name, places.get(name) or plan.fills.get(name, "NULL")) for name in plan.names
        )
        arrays = ", ".join(
            f"pg_catalog.unnest({mark(len(parameters) + n)}::text[])" for n in range(len(origin))
        )
        names = ", ".join(f"c{number}" for number in range(len(origin)))
        selects.append(f"SELECT {columns} FROM ROWS FROM ({arrays}) u({names})")
        parameters += [print_values(plan.codecs[n], [row[n] for row in same]) for n in origin]
    computed = "".join(
        f", {shape(name, plan.formulas[name])}" for name in plan.compared if name not in plan.codecs
    )
    return f"(SELECT q.*{computed} FROM ({' UNION ALL '.join(selects)}) q)", parameters


def cast_value(plan: TablePlan, name: str, *, value: str, collations: Collations) -> str:
    """SQL of a value cast to a column's type and collation, as a comparison needs it."""
    kind = _LENGTH.sub(_drop_length, plan.name_type(name))
    collation = collations.get((plan.live.oid, name))
    return f"({value})::{kind}{f' COLLATE {collation}' if collation else ''}"


def print_values(codec: ValueCodec, values: Sequence[Wire | None]) -> list[str | None]:
    """Values of one column as PostgreSQL reads them."""
    write = codec.to_text
    return [None if value is None else write(value) for value in values]


def read_collations(connection: Connection, plans: Sequence[TablePlan]) -> Collations:
    """The collations of the columns of live tables."""
    rows = connection.exec_driver_sql(
        "SELECT a.attrelid::bigint, a.attname::text, pg_catalog.concat("
        "pg_catalog.quote_ident(n.nspname), '.', pg_catalog.quote_ident(c.collname)) "
        "FROM pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace "
        "WHERE a.attrelid = ANY(%s::bigint[]::oid[])",
        ([plan.live.oid for plan in plans],),
    )
    return {(oid, name): collation for oid, name, collation in rows}


def _drop_length(found: re.Match[str]) -> str:
    # A cast to the column's length would cut a longer value, and so hide a difference.
    return _WITHOUT_LENGTH.get(found[1], found[1])
