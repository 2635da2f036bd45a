"""What an INSERT returns of its row: the key that the database made, and values as stored.

Read from the compiled statement, once for its plan. At each execution one thing is left to be
asked: whether the connection reads the values with the driver's own loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from oplog.postgres.sent_value import name_loaded
from oplog.type_binding import BoundType
from oplog.value import Unsure, Wire


@dataclass(frozen=True, slots=True)
class ReturnedColumn:
    """A column of the row that comes back; of a key, `source` is its place in the key."""

    name: str
    source: Any
    to_wire: Callable[[Any], Wire | Unsure]
    loaded: str
    """The type's name, by which the driver finds what reads it."""
    exact: bool = True
    """What the driver gives is the stored form, and no other that is equal to it."""


def find_returned_key(bound: BoundType) -> tuple[ReturnedColumn, ...]:
    """The columns of a key that the database returns, in the order of the shape."""
    codecs = bound.shape.codecs
    found = {}
    for place, column in enumerate(bound.declared.written.primary_key):
        codec = codecs[column.name]
        # Decimals come back as stored. Other types with several equal forms the driver normalises.
        exact = not is_loose(bound, column.name) or codec.pg_type.startswith("numeric")
        to_wire = _undo_text(codec.to_wire) if isinstance(column.type, sa.Uuid) else codec.to_wire
        found[column.name] = ReturnedColumn(
            column.name, place, to_wire, name_loaded(codec.pg_type), exact=exact
        )
    return tuple(found[name] for name in bound.shape.key_names)


def find_natural(
    compiled: SQLCompiler, bound: BoundType, wanted: Collection[str]
) -> tuple[ReturnedColumn, ...]:
    """Returned columns whose Python value is what the driver read, unprocessed."""
    natural = []
    columns: Iterable[Any] = () if bound.live.rewrites_rows else compiled.effective_returning or ()
    table = bound.declared.written
    for column in columns:
        if getattr(column, "table", None) is not table or column.name not in wanted:
            continue
        name, codec = column.name, bound.shape.codecs[column.name]
        # Not where several forms are equal (1 mon and 30 days, 1.00 and 1.0) or a setting
        # rounds: the driver's value may be another form. Nor for numbers, because SQLAlchemy
        # chooses their result processor only when it sees the first value.
        if is_loose(bound, name) or isinstance(column.type, (sa.Numeric, sa.Float)):
            continue
        implementation = column.type.dialect_impl(compiled.dialect)
        if implementation.result_processor(compiled.dialect, None) is None:
            natural.append(ReturnedColumn(name, column, codec.to_wire, name_loaded(codec.pg_type)))
    return tuple(natural)


def is_loose(bound: BoundType, name: str) -> bool:
    """Stored values of this column may differ and still compare as equal in SQL."""
    codec = bound.shape.codecs[name]
    # Strings are compared as text because of some collations, but are equal only if identical.
    return codec.compare_as_text and not codec.pg_type.startswith(("text", "character"))


def _undo_text(to_wire: Callable[[Any], Wire | Unsure]) -> Callable[[Any], Wire | Unsure]:
    # Uuid(as_uuid=False) turns what came back into text.
    def read(value: Any) -> Wire | Unsure:
        return to_wire(UUID(value) if isinstance(value, str) else value)

    return read
