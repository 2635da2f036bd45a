"""A table as it was, as a query: to be read, or to stand in a statement under the table's name.

Nothing is written for it where the live table serves: its rows, without those that were touched
since, and these as they were, which travel as parameters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from oplog.past.past_rows import PastTable
from oplog.postgres.quoting import double_percent, quote
from oplog.replay.effect_route import Key
from oplog.replay.row_query import Collations, cast_value, make_row_query, print_values
from oplog.replay.table_plan import TablePlan

_MARK = re.compile("\x00([0-9]+)\x00")


@dataclass(frozen=True, slots=True)
class Relation:
    """A query without parentheses, with the driver's placeholders, and its parameters."""

    sql: str
    parameters: Mapping[str, list[str | None]]


def make_relation(past: PastTable, *, collations: Collations, prefix: str) -> Relation:
    """The query of all columns of a table; `prefix` begins the names of its parameters.

    Columns that are not logged, or computed from such, are NULL.
    """
    plan = past.plan
    if past.scratch:
        columns = _list_columns(plan, "t", collations, cast=False)
        return Relation(double_percent(f"SELECT {columns} FROM {past.scratch} t"), {})
    parameters: list[list[str | None]] = []
    selects = []
    if past.replaced is not None:
        selects.append(_select_live(plan, past.replaced, parameters, collations=collations))
    first = len(parameters)
    rows, values = make_row_query(
        plan, past.rows, collations=collations, mark=lambda number: _mark(first + number)
    )
    parameters += values
    selects.append(f"SELECT {_list_columns(plan, 'r', collations, cast=False)} FROM {rows} r")
    sql = _MARK.sub(
        lambda found: f"%({prefix}{found[1]})s", double_percent(" UNION ALL ".join(selects))
    )
    return Relation(sql, {f"{prefix}{n}": value for n, value in enumerate(parameters)})


def _select_live(
    plan: TablePlan,
    replaced: Collection[Key],
    parameters: list[list[str | None]],
    *,
    collations: Collations,
) -> str:
    """The live rows, without those under the keys; their parameters are added."""
    only = "ONLY " if plan.live.kind == "r" else ""
    live = (
        f"SELECT {_list_columns(plan, 't', collations, cast=True)} "
        f"FROM {only}{plan.live.qualified} t"
    )
    if not replaced:
        return live
    names = plan.key_names
    arrays = ", ".join(
        f"pg_catalog.unnest({_mark(len(parameters) + n)}::text[])" for n in range(len(names))
    )
    columns = ", ".join(f"c{n}" for n in range(len(names)))
    equal = " AND ".join(
        f"{cast_value(plan, name, value=f'k.c{n}', collations=collations)} = "
        f"{_cast_live(plan, name, collations)}"
        for n, name in enumerate(names)
    )
    by_column = list(zip(*replaced, strict=True))
    parameters += [print_values(plan.codecs[name], by_column[n]) for n, name in enumerate(names)]
    return f"{live} WHERE NOT EXISTS (SELECT FROM ROWS FROM ({arrays}) k({columns}) WHERE {equal})"


def _list_columns(plan: TablePlan, side: str, collations: Collations, *, cast: bool) -> str:
    """All columns of the table; those that the log cannot tell are NULL."""
    known = set(plan.compared)
    columns = []
    for column in plan.live.columns:
        name = quote(column.name)
        if column.name not in known:
            value = f"NULL::{column.pg_type}"
        elif cast:
            value = _cast_live(plan, column.name, collations)
        else:
            value = f"{side}.{name}"
        columns.append(f"{value} AS {name}")
    return ", ".join(columns)


def _cast_live(plan: TablePlan, name: str, collations: Collations) -> str:
    """A live column in the type of the log's rows: of a domain, that is what is below it."""
    value = f"t.{quote(name)}"
    if name in plan.domains or name in plan.arrays:
        return cast_value(plan, name, value=value, collations=collations)
    return value


def _mark(number: int) -> str:
    return f"\x00{number}\x00"
