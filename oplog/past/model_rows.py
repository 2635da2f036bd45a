"""All rows of one model as they were, with the values that `as_of` gives of a single row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from oplog.past.past_relation import Relation
from oplog.past.past_rows import PastTable
from oplog.postgres.quoting import double_percent, quote
from oplog.replay.effect_route import Key
from oplog.replay.table_plan import TablePlan
from oplog.value import ValueCodec, Wire

_NATIVE = re.compile(r"smallint|integer|bigint|boolean|text|character varying(\(\d+\))?")
"""Types whose values the driver gives as the log does."""


def read_rows(
    connection: Connection,
    tables: Sequence[tuple[TablePlan, Relation]],
    *,
    limit: int | None = None,
    stream: bool,
    stored: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rows by key; several tables are those of joined inheritance. Text must be pinned.

    With `stored` values are as the log stores them.
    """
    columns = list[str]()
    readers, places = dict[str, Callable[[Any], Any]](), dict[str, int]()
    for number, (plan, _) in enumerate(tables):
        for name in plan.names:
            native = _NATIVE.fullmatch(plan.live_columns[name].pg_type) is not None
            places[name] = len(columns)
            columns.append(f"q{number}.{quote(name)}{'' if native else '::text'}")
            if not native:
                codec = plan.codecs[name]
                readers[name] = codec.from_text if stored else _make_reader(codec)
    sources = [f"({relation.sql}) q{number}" for number, (_, relation) in enumerate(tables)]
    first = tables[0][0]
    joined = [
        f" JOIN {sources[number]} ON "
        + " AND ".join(
            double_percent(f"q0.{quote(one)} = q{number}.{quote(other)}")
            for one, other in zip(first.key_names, plan.key_names, strict=True)
        )
        for number, (plan, _) in enumerate(tables)
        if number
    ]
    order = ", ".join(f"q0.{quote(name)}" for name in first.key_names)
    sql = (
        f"SELECT {double_percent(', '.join(columns))} FROM {sources[0]}{''.join(joined)} "
        f"ORDER BY {double_percent(order)}{'' if limit is None else f' LIMIT {int(limit)}'}"
    )
    parameters = {k: v for _, relation in tables for k, v in relation.parameters.items()}
    result = connection.exec_driver_sql(
        sql, parameters, execution_options={"stream_results": stream}
    )
    shown = [(name, place, readers.get(name)) for name, place in places.items()]
    with result:
        for row in result:
            yield {
                name: row[place] if read is None or row[place] is None else read(row[place])
                for name, place, read in shown
            }


def list_rows(
    tables: Sequence[PastTable], *, limit: int | None = None, stored: bool = False
) -> list[dict[str, Any]]:
    """The same from memory alone: of tables whose rows are all in `rows`."""
    describe = _store_row if stored else describe_row
    joined: dict[Key, dict[str, Any]] = {}
    for number, table in enumerate(tables):
        found = {
            tuple(row[name] for name in table.plan.key_names): describe(table.plan, row)
            for row in table.rows
        }
        joined = (
            {key: joined[key] | row for key, row in found.items() if key in joined}
            if number
            else found
        )
    return [joined[key] for key in sorted(joined)[:limit]]


def describe_row(plan: TablePlan, row: Mapping[str, Wire | None]) -> dict[str, Any]:
    """A logged row with Python values; columns that it lacks have what rows of then got."""
    return {name: describe_value(plan, name, row=row) for name in plan.names}


def _store_row(plan: TablePlan, row: Mapping[str, Wire | None]) -> dict[str, Any]:
    return {name: read_wire(plan, name, row=row) for name in plan.names}


def describe_value(plan: TablePlan, name: str, *, row: Mapping[str, Wire | None]) -> Any:
    """One value of a logged row."""
    value = read_wire(plan, name, row=row)
    return None if value is None else plan.codecs[name].to_python(value)


def read_wire(plan: TablePlan, name: str, *, row: Mapping[str, Wire | None]) -> Wire | None:
    """One logged value; of a column that was added later, what rows of then got."""
    if name in row:
        return row[name]
    for target in plan.targets.values():
        text = target.find_fills().get(name)
        if text is not None:
            return plan.codecs[name].from_text(text)
    return None


def _make_reader(codec: ValueCodec) -> Callable[[str], Any]:
    to_python, from_text = codec.to_python, codec.from_text
    return lambda text: to_python(from_text(text))
