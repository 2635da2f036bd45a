"""Checks that an application's own protobuf message can hold every value of its table.

The check runs when the type is registered. It compares types, not values: an int32 for a bigint
column is refused even if every value in the table today would fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor
from google.protobuf.message import Message

from oplog.errors import ConfigurationError, NotCapturableError
from oplog.value import Kind

_FIELD = descriptor.FieldDescriptor
_WHOLE_NUMBERS = (_FIELD.CPPTYPE_INT32, _FIELD.CPPTYPE_INT64)
_FIELD_TYPES: Mapping[Kind, tuple[int, ...]] = {
    Kind.BOOL: (_FIELD.TYPE_BOOL,),
    Kind.FLOAT4: (_FIELD.TYPE_FLOAT, _FIELD.TYPE_DOUBLE),
    Kind.FLOAT8: (_FIELD.TYPE_DOUBLE,),
    Kind.BYTES: (_FIELD.TYPE_BYTES,),
    Kind.TEXT: (_FIELD.TYPE_STRING,),
}
_ADVICE: Mapping[Kind, str] = {
    Kind.BOOL: "bool",
    Kind.INT: "sint64",
    Kind.FLOAT4: "float",
    Kind.FLOAT8: "double",
    Kind.BYTES: "bytes",
    Kind.TEXT: "string (Postgres' text form)",
}


@dataclass(frozen=True, slots=True)
class ExpectedField:
    """A logged column for which the message needs a field."""

    name: str
    kind: Kind
    wide: bool
    """The column is a bigint, whose values do not fit into an int32."""


def check_message(
    table: str,
    message_class: type[Message],
    *,
    columns: Iterable[ExpectedField],
) -> None:
    """Raise unless the message has a field for every column that holds all its values.

    `ConfigurationError` names a column without a field, `NotCapturableError` a column whose
    field is too narrow or of another kind.
    """
    name = message_class.DESCRIPTOR.full_name
    fields = {field.name: field for field in message_class.DESCRIPTOR.fields}
    for column in columns:
        path = f"{table}.{column.name}"
        found = fields.get(column.name)
        if found is None:
            raise ConfigurationError(
                f"message {name} has no field for column {path}",
                hint="add the field, or list the column in exclude={...} with the reason",
            )
        if not _fits(found, column):
            raise NotCapturableError(
                f"field {name}.{found.name} cannot hold every value of column {path}",
                hint=f"declare it as {_ADVICE[column.kind]}",
            )


def _fits(found: Any, column: ExpectedField) -> bool:
    if found.is_repeated:
        return False
    if column.kind is Kind.INT:
        return found.cpp_type in (_WHOLE_NUMBERS[1:] if column.wide else _WHOLE_NUMBERS)
    return found.type in _FIELD_TYPES[column.kind]
