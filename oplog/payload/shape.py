"""`Shape`, one revision of a logged type: its columns, field numbers and protobuf message.

Field numbers are permanent. A column keeps its number through every revision, the number of a
removed column is never used again, and a column whose values changed kind gets a new number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from oplog.errors import DecodeError
from oplog.payload.column_numbers import Numbers
from oplog.payload.schema_change import FIRST, SchemaChange
from oplog.value import Kind, ValueCodec, codec_for

FIELD_TYPES = MappingProxyType(
    {
        Kind.BOOL: descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
        Kind.INT: descriptor_pb2.FieldDescriptorProto.TYPE_SINT64,
        Kind.FLOAT4: descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
        Kind.FLOAT8: descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
        Kind.BYTES: descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
        Kind.TEXT: descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    }
)
"""Protobuf types of derived messages, by kind of value."""
DERIVED = "oplog.derived"
"""Package of messages that were derived from a table's columns."""
FIRST_RESERVED, LAST_RESERVED = 19000, 19999
"""Field numbers that protobuf reserves for its own use."""


@dataclass(frozen=True, slots=True)
class Column:
    """One logged column: its name, Postgres type, kind of wire value and field number."""

    name: str
    pg_type: str
    kind: Kind
    field: str
    number: int
    primary_key: bool
    category: str = ""
    """`pg_type.typcategory`, for `codec_for`: 'E' for an enum."""


@dataclass(frozen=True)
class Shape:
    """One revision of a type, as kept in the log's type table.

    `descriptor` is a serialised `FileDescriptorSet` whose last file defines `message_name`.
    `excluded` are the table's columns that are never logged, each with the reason.
    """

    type_name: str
    revision: int
    schema: str
    table: str
    columns: tuple[Column, ...]
    aggregate: str
    message_name: str
    descriptor: bytes
    excluded: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[Numbers, ...] = field(default=(), compare=False)
    """Column numbers in each database that has used this revision, oldest first."""
    change: SchemaChange = field(default=FIRST, compare=False)
    """What became of rows of the revision before."""

    @cached_property
    def by_name(self) -> Mapping[str, Column]:
        """Columns by name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def by_number(self) -> Mapping[int, Column]:
        """Columns by field number."""
        return {column.number: column for column in self.columns}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names, in the table's order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def key_columns(self) -> tuple[Column, ...]:
        """The primary key's columns."""
        return tuple(column for column in self.columns if column.primary_key)

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """Names of the primary key's columns."""
        return tuple(column.name for column in self.key_columns)

    @cached_property
    def codecs(self) -> Mapping[str, ValueCodec]:
        """The value codec of each column."""
        return {c.name: codec_for(c.pg_type, category=c.category) for c in self.columns}

    @cached_property
    def message_class(self) -> Callable[..., message.Message]:
        """The protobuf message of this revision, built from the stored descriptor alone.

        That of a derived message has to say what its columns say: a role that registers types
        gives both, and what does not fit them is not used.
        """
        pool = descriptor_pool.DescriptorPool()
        try:
            name, files = self._read_descriptor()
            for file in files.file:
                pool.Add(file)
            found = pool.FindMessageTypeByName(name)
        except (message.DecodeError, TypeError, KeyError) as cause:
            raise DecodeError(
                f"the stored descriptor of type {self.type_name!r} revision {self.revision} "
                "cannot be read",
                hint="compare the row in oplog_type with a backup or the archive",
            ) from cause
        return message_factory.GetMessageClass(found)

    def _read_descriptor(self) -> tuple[str, descriptor_pb2.FileDescriptorSet]:
        if not self.message_name.startswith(f"{DERIVED}."):
            return self.message_name, descriptor_pb2.FileDescriptorSet.FromString(self.descriptor)
        name, derived = describe_message(self.type_name, self.columns, ())
        try:
            stored = descriptor_pb2.FileDescriptorSet.FromString(self.descriptor)
        except message.DecodeError:
            return name, derived
        plain = descriptor_pb2.FileDescriptorSet()
        plain.CopyFrom(stored)
        for file in plain.file:
            for described in file.message_type:
                # Numbers of removed columns, which no column says.
                del described.reserved_range[:]
        return name, stored if plain == derived else derived

    def to_json(self) -> dict[str, Any]:
        """Return what the type table stores beside the descriptor."""
        return {
            "schema": self.schema,
            "table": self.table,
            "aggregate": self.aggregate,
            "message": self.message_name,
            "excluded": dict(self.excluded),
            "columns": [
                {
                    "name": c.name,
                    "pg_type": c.pg_type,
                    "kind": c.kind.name.lower(),
                    "field": c.field,
                    "number": c.number,
                    "primary_key": c.primary_key,
                    "category": c.category,
                }
                for c in self.columns
            ],
        }

    @classmethod
    def from_json(
        cls,
        type_name: str,
        revision: int,
        *,
        shape: Mapping[str, Any],
        descriptor: bytes,
        numbers: Iterable[Numbers] = (),
        change: SchemaChange = FIRST,
    ) -> Shape:
        """The inverse of `to_json`; `DecodeError` if the stored row is not a shape."""
        try:
            columns = tuple(
                Column(
                    name=c["name"],
                    pg_type=c["pg_type"],
                    kind=Kind[c["kind"].upper()],
                    field=c["field"],
                    number=int(c["number"]),
                    primary_key=bool(c["primary_key"]),
                    category=c["category"],
                )
                for c in shape["columns"]
            )
            return cls(
                type_name=type_name,
                revision=revision,
                schema=shape["schema"],
                table=shape["table"],
                columns=columns,
                aggregate=shape["aggregate"],
                message_name=shape["message"],
                descriptor=descriptor,
                excluded=shape["excluded"],
                numbers=tuple(numbers),
                change=change,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise DecodeError(
                f"the stored shape of type {type_name!r} revision {revision} cannot be read",
                hint="compare the row in oplog_type with a backup or the archive",
            ) from cause

    def same_as(self, other: Shape) -> bool:
        """Whether both stand for the same bytes; their revision numbers are not compared."""
        return replace(self, revision=0) == replace(other, revision=0)


def describe_message(
    type_name: str, columns: Sequence[Column], retired: Sequence[int]
) -> tuple[str, descriptor_pb2.FileDescriptorSet]:
    """The name and the descriptor of a derived message; `retired` are numbers it must not use."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{type_name}.proto", package=DERIVED, syntax="proto3"
    )
    words = re.findall(r"[A-Za-z0-9]+", type_name)
    name = "".join(word[:1].upper() + word[1:] for word in words)
    if not re.match("[A-Z]", name):
        name = "Type" + name
    described = file.message_type.add(name=name)
    for column in sorted(columns, key=lambda c: c.number):
        # proto3 spells presence as a one-field oneof.
        described.oneof_decl.add(name=f"_{column.field}")
        described.field.add(
            name=column.field,
            number=column.number,
            type=FIELD_TYPES[column.kind],
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            proto3_optional=True,
            oneof_index=len(described.oneof_decl) - 1,
        )
    for number in retired:
        described.reserved_range.add(start=number, end=number + 1)
    return f"{DERIVED}.{name}", descriptor_pb2.FileDescriptorSet(file=[file])
