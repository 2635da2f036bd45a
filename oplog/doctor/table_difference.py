"""Compares two revisions of a type, column by column. Pure.

Columns are compared by field number, which a rename leaves as it is. A column whose values are of
another kind has a new number: the column's number in the catalog says that it is the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.column_numbers import match_numbers
from oplog.payload.schema_change import FIRST, SchemaChange
from oplog.payload.shape import Column, Shape


class ChangeKind(StrEnum):
    """What becomes of a type or a column; part of the reports in JSON."""

    ADDED = "added"
    DROPPED = "dropped"
    EXCLUDED = "excluded"
    RENAMED = "renamed"
    CONVERTED = "converted"
    RELABELLED = "relabelled"
    MOVED = "moved"
    REGROUPED = "regrouped"
    KEY = "key"
    MESSAGE = "message"
    REFILL = "refill"
    RETIRED = "retired"
    UNDECLARED = "undeclared"
    BEHIND = "behind"
    MISSING = "missing"
    REPLACED = "replaced"
    REFUSED = "refused"
    WAITING = "waiting"
    RESTORE = "restore"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a later revision differs; `column` is empty if it is about the table.

    `lost`: readers that ask for the earlier revision do not find the column, or cannot read it.
    """

    kind: ChangeKind
    message: str
    column: str = ""
    lost: bool = False


def compare_revisions(old: Shape, new: Shape, change: SchemaChange = FIRST) -> Iterator[Difference]:
    """What is different in `new`; `change` is what became of rows between the two."""
    if (old.schema, old.table) != (new.schema, new.table):
        yield Difference(
            ChangeKind.MOVED,
            f"the table {old.schema}.{old.table} is {new.schema}.{new.table} now",
        )
    converted = pair_converted(old, new)
    for column in new.columns:
        known = old.by_number.get(column.number) or converted.get(column.number)
        yield from _compare_column(column, known, change)
    followed = {column.number for column in converted.values()}
    for column in old.columns:
        if column.number not in new.by_number and column.number not in followed:
            yield _lose(column, new)
    if not is_same_key(old, new):
        yield Difference(
            ChangeKind.KEY,
            f"the primary key is ({', '.join(new.key_names)}), was ({', '.join(old.key_names)})",
        )
    elif _follow_aggregate(old, new) != new.aggregate:
        yield Difference(
            ChangeKind.REGROUPED, f"the aggregate is {new.aggregate!r}, was {old.aggregate!r}"
        )
    if old.message_name != new.message_name:
        yield Difference(
            ChangeKind.MESSAGE, f"the message is {new.message_name}, was {old.message_name}"
        )


def is_same_key(old: Shape, new: Shape) -> bool:
    """Whether rows are told apart by the same columns, whatever these are called."""
    converted = pair_converted(old, new)
    keys = {
        converted[column.number].number if column.number in converted else column.number
        for column in new.key_columns
    }
    return keys == {column.number for column in old.key_columns}


def pair_converted(old: Shape, new: Shape) -> dict[int, Column]:
    """By new field number, the column of `old` whose values are of another kind since."""
    pair = match_numbers(old.numbers, new.numbers)
    earlier = {column.name: column for column in old.columns}
    places: Mapping[str, int] = {}
    if pair is not None and pair[0].table == pair[1].table:
        places = pair[1].columns
        earlier = {
            name: old.by_name[known]
            for name, place in places.items()
            for known, at in pair[0].columns.items()
            if at == place and known in old.by_name
        }
    return {
        column.number: known
        for column in new.columns
        if column.number not in old.by_number
        for known in [earlier.get(column.name)]
        if known is not None and known.number not in new.by_number and known.kind != column.kind
    }


def is_widened(old: str, new: str) -> bool:
    """Whether every value of the first type reads by the other one and back."""
    bare = re.sub(r"[(][0-9, -]*[)]", "", old), re.sub(r"[(][0-9, -]*[)]", "", new)
    alike = [{"smallint", "integer", "bigint"}, {"text", "character varying"}]
    return bare[0] == bare[1] or any(set(bare) <= family for family in alike)


def _compare_column(
    column: Column, known: Column | None, change: SchemaChange
) -> Iterator[Difference]:
    name = column.name
    if known is None:
        given = change.fills.get(column.number)
        more = f", and rows from before have {given!r}" if given is not None else ""
        yield Difference(ChangeKind.ADDED, f"column {name} is new{more}", name)
        return
    if known.name != name:
        yield Difference(ChangeKind.RENAMED, f"column {known.name} is called {name} now", name)
    if known.number != column.number or known.pg_type != column.pg_type:
        same = known.number == column.number and is_widened(known.pg_type, column.pg_type)
        text = f"column {name} is {column.pg_type}, was {known.pg_type}"
        yield Difference(ChangeKind.CONVERTED, text, name, lost=not same)
    labels = change.labels.get(column.number, {})
    if labels:
        said = ", ".join(f"{old!r} is {new!r}" for old, new in sorted(labels.items()))
        yield Difference(
            ChangeKind.RELABELLED, f"labels of column {name} were renamed: {said}", name
        )


def _follow_aggregate(old: Shape, new: Shape) -> str:
    """How rows were grouped, under the names that columns have in `new`."""
    names = {
        column.name: new.by_number[column.number].name
        for column in old.columns
        if column.number in new.by_number
    }
    return AggregateTemplate(old.aggregate).rename(names).text


def _lose(column: Column, new: Shape) -> Difference:
    if column.name in new.excluded:
        text = f"column {column.name} is excluded"
        return Difference(ChangeKind.EXCLUDED, text, column.name, lost=True)
    again = ", and another one has its name" if column.name in new.by_name else ""
    text = f"column {column.name} is gone{again}"
    return Difference(ChangeKind.DROPPED, text, column.name, lost=True)
