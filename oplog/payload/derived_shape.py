"""Makes the shape of a type whose message is derived from the columns of its table.

A column keeps its field number as long as the database shows that it is the same column: by its
number in the catalog, whatever it is called. Where no stored revision has numbers of this table,
as in a database that came from a dump, the name has to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from google.protobuf import message

from oplog.payload.column_numbers import Numbers, is_same_table
from oplog.payload.shape import (
    FIRST_RESERVED,
    LAST_RESERVED,
    Column,
    Shape,
    describe_message,
)
from oplog.value import Kind


@dataclass(frozen=True, slots=True)
class DeclaredColumn:
    """A column that both the application's models and the database have."""

    name: str
    pg_type: str
    kind: Kind
    primary_key: bool
    category: str = ""


def derive_shape(
    type_name: str,
    columns: Sequence[DeclaredColumn],
    *,
    schema: str,
    table: str,
    aggregate: str,
    excluded: Mapping[str, str],
    stored: Sequence[Shape],
    numbers: Numbers | None = None,
) -> Shape:
    """Return the shape for a table whose message is derived from its columns.

    `stored` are all revisions in the log. An equal revision of the same table and columns (by
    their `numbers`) is returned unchanged: old and new processes run side by side during a
    deploy, and must not add revisions in turns. Otherwise a new revision is made.
    """
    numbered, retired = _number_columns(columns, stored, numbers)
    message_name, files = describe_message(type_name, numbered, retired)
    shape = Shape(
        type_name=type_name,
        revision=max((known.revision for known in stored), default=0) + 1,
        schema=schema,
        table=table,
        columns=tuple(numbered),
        aggregate=aggregate,
        message_name=message_name,
        descriptor=files.SerializeToString(deterministic=True),
        excluded=dict(excluded),
        numbers=() if numbers is None else (numbers,),
    )
    return match_stored(shape, stored) or shape


def match_stored(shape: Shape, stored: Sequence[Shape]) -> Shape | None:
    """Return the newest stored revision that stands for the same bytes of the same table.

    One that is not the newest only while the table is what the newest describes: processes with
    other models take turns then. A table that was changed back gets a new revision, because rows
    of the one between have to be read as rows of the table that is there now.
    Descriptors are not compared: a derived descriptor also reserves numbers of removed
    columns, so it changes although the columns are the same.
    """
    for known in reversed(stored):
        if is_same_revision(shape, known):
            return known
        if known is stored[-1] and not _is_unchanged(shape, known):
            return None
        if known.change.logs_rows or known.change.labels or not known.change.previous:
            # Values that rows of an earlier revision hold would not count any more.
            return None
    return None


def is_same_revision(shape: Shape, known: Shape) -> bool:
    """Whether both stand for the same bytes of the same columns."""
    # A column that was dropped and added again has the old name but none of the old values.
    return replace(known, revision=0, descriptor=b"") == replace(
        shape, revision=0, descriptor=b""
    ) and is_same_table(known.numbers, shape.numbers, shape.names)


def _is_unchanged(shape: Shape, newest: Shape) -> bool:
    """Whether the table is what the newest revision describes, as far as both log its columns."""
    both = {column.name: column for column in newest.columns}
    return (
        (shape.schema, shape.table) == (newest.schema, newest.table)
        and is_same_table(newest.numbers, shape.numbers, {*newest.names, *shape.names})
        and all(
            column.pg_type == both[column.name].pg_type
            and column.primary_key == both[column.name].primary_key
            for column in shape.columns
            if column.name in both
        )
        and {*newest.names, *newest.excluded} == {*shape.names, *shape.excluded}
    )


# -- field numbers ----------------------------------------------------------------------------


def _number_columns(
    columns: Sequence[DeclaredColumn], stored: Sequence[Shape], numbers: Numbers | None
) -> tuple[list[Column], list[int]]:
    """Return the columns with their field numbers, and the numbers of removed columns."""
    find = _KnownNumbers(stored, numbers)
    fields = {column.number: column.field for known in stored for column in known.columns}
    highest = max(fields, default=0)
    kept = {column.name: find(column) for column in columns}
    taken = {_json_name(fields[number]) for number in kept.values() if number is not None}
    numbered: list[Column] = []
    for declared in columns:
        number = kept[declared.name]
        if number is None:
            highest += 1
            if highest == FIRST_RESERVED:
                highest = LAST_RESERVED + 1
            number = highest
            fields[number] = _name_field(declared.name, number, taken)
            taken.add(_json_name(fields[number]))
        numbered.append(
            Column(
                name=declared.name,
                pg_type=declared.pg_type,
                kind=declared.kind,
                field=fields[number],
                number=number,
                primary_key=declared.primary_key,
                category=declared.category,
            )
        )
    used = {column.number for known in stored for column in known.columns}
    return numbered, sorted(used - {column.number for column in numbered})


class _KnownNumbers:
    """Finds the field number that a column of a table has had, if it is still the same column."""

    def __init__(self, stored: Sequence[Shape], numbers: Numbers | None) -> None:
        self._places = {} if numbers is None else dict(numbers.columns)
        self._by_place: dict[tuple[int, Kind], int] = {}
        self._by_name: dict[tuple[str, Kind], int] = {}
        same_table = False
        for known in stored:
            here = numbers and _find_numbers(known, numbers)
            same_table = same_table or here is not None
            for column in known.columns:
                self._by_name[column.name, column.kind] = column.number
                if here is not None and column.name in here.columns:
                    self._by_place[here.columns[column.name], column.kind] = column.number
        self._same_table = same_table

    def __call__(self, column: DeclaredColumn) -> int | None:
        """The number; None for a column that needs a new one."""
        if self._same_table and column.name in self._places:
            return self._by_place.get((self._places[column.name], column.kind))
        return self._by_name.get((column.name, column.kind))


def _find_numbers(known: Shape, numbers: Numbers) -> Numbers | None:
    """The revision's numbers of this very table."""
    for one in known.numbers:
        if (one.database, one.table) == (numbers.database, numbers.table):
            return one
    return None


def _name_field(column: str, number: int, taken: Collection[str]) -> str:
    """Return a protobuf name for a new column: its own if it is valid and free.

    `taken` are JSON names: protobuf compilers refuse `address1` beside `address_1`.
    """
    if (
        re.fullmatch(r"[a-z][a-z0-9_]*", column)
        # A field of this name would hide a method of the message.
        and not hasattr(message.Message, column)
        and not re.fullmatch(r"column_[0-9]+", column)
        and _json_name(column) not in taken
    ):
        return column
    return f"column_{number}"


def _json_name(name: str) -> str:
    return re.sub(r"_+([a-z0-9]?)", lambda found: found[1].upper(), name)
