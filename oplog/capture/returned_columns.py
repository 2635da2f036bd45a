"""What an INSERT returns of its row: the key that the database made, and values as stored.

Read from the compiled statement, once for its plan. At each execution one thing is left to be
asked: whether the connection reads the values with the driver's own loaders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from oplog.postgres.sent_value import name_loaded, unwrap
from oplog.type_binding import BoundType
from oplog.value import UNSURE, Unsure, Wire

_CERTAIN = re.compile(
    r"(smallint|integer|bigint|numeric|text|character varying|uuid|boolean|date|bytea"
    r"|timestamp with(out)? time zone)"
)
"""Types of which every value that the driver gives says how it is stored."""


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
    processed: bool = False
    """The type makes a value of its own of it. `to_wire` takes that back, as far as it can."""
    certain: bool = True
    """Whatever comes back, it tells the stored form."""


def find_returned_key(compiled: SQLCompiler, bound: BoundType) -> tuple[ReturnedColumn, ...]:
    """The columns of a key that the database returns, in the order of the shape."""
    codecs = bound.shape.codecs
    found = {}
    for place, column in enumerate(bound.declared.written.primary_key):
        codec = codecs[column.name]
        loaded = name_loaded(codec.pg_type)
        # Decimals come back as stored. Other types with several equal forms the driver normalises.
        exact = not is_loose(bound, column.name) or codec.pg_type.startswith("numeric")
        restore = _find_restore(compiled, column)
        to_wire = codec.to_wire
        if isinstance(column.type, sa.Uuid):
            to_wire = _undo_text(to_wire)
        elif restore is not None:
            to_wire = _undo_processing(to_wire, restore)
        found[column.name] = ReturnedColumn(
            column.name,
            place,
            to_wire,
            loaded,
            exact=exact,
            processed=restore is not None,
            certain=exact and restore is None and _CERTAIN.fullmatch(loaded) is not None,
        )
    return tuple(found[name] for name in bound.shape.key_names)


def _find_load(compiled: SQLCompiler, column: Any) -> Callable[[Any], Any] | None:
    """What the column's type makes of a value that the driver read; None if it leaves it."""
    dialect = compiled.dialect
    kind = inner = column.type.dialect_impl(dialect)
    while isinstance(inner, (sa.TypeDecorator, sa.ARRAY)):
        inner = inner.item_type if isinstance(inner, sa.ARRAY) else inner.impl_instance
        inner = inner.dialect_impl(dialect)
    if isinstance(inner, (sa.Numeric, sa.Float)):
        # SQLAlchemy chooses their processor only when it sees the first value.
        return _load_unknown
    found: Callable[[Any], Any] | None = kind.result_processor(dialect, None)
    return found


def _load_unknown(value: Any) -> Any:
    raise ValueError(value)


def _find_restore(compiled: SQLCompiler, column: Any) -> Callable[[Any], Any] | None:
    """What turns a value of the column's type into a parameter; None if it is one.

    The function raises `ValueError` unless that parameter comes back as the same value.
    """
    dialect = compiled.dialect
    if not isinstance(column.type, (sa.TypeDecorator, sa.types.UserDefinedType)):
        return None
    kind = column.type.dialect_impl(dialect)
    load, send = kind.result_processor(dialect, None), kind.bind_processor(dialect)
    if load is None:
        return None

    def restore(value: Any) -> Any:
        sent = value if send is None else send(value)
        if load(sent) != value:
            raise ValueError(value)
        return sent

    return restore


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
        # rounds: the driver's value may be another form.
        if is_loose(bound, name):
            continue
        if _find_load(compiled, column) is None:
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


def _undo_processing(
    to_wire: Callable[[Any], Wire | Unsure], restore: Callable[[Any], Any]
) -> Callable[[Any], Wire | Unsure]:
    def read(value: Any) -> Wire | Unsure:
        try:
            sent = restore(value)
        except Exception:  # noqa: BLE001 - of the application's type; it is not certain then
            return UNSURE
        return to_wire(unwrap(sent))

    return read
