"""`Shape`, one revision of a logged type: its columns, field numbers and protobuf message.

Field numbers are permanent. A column keeps its number through every revision, the number of a
removed column is never used again, and a column whose values changed kind gets a new number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from oplog.errors import DecodeError
from oplog.payload.column_numbers import Numbers, is_same_table
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
        name, derived = _describe(self.type_name, self.columns, ())
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise DecodeError(
                f"the stored shape of type {type_name!r} revision {revision} cannot be read",
                hint="compare the row in oplog_type with a backup or the archive",
            ) from cause

    def same_as(self, other: Shape) -> bool:
        """Whether both stand for the same bytes; their revision numbers are not compared."""
        return replace(self, revision=0) == replace(other, revision=0)


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
    deploy, and must not add revisions in turns. Otherwise a new revision is made, in which a
    column keeps the field number that its name and kind had in any earlier revision.
    """
    numbered, retired = _number_columns(columns, stored)
    message_name, files = _describe(type_name, numbered, retired)
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


def _number_columns(
    columns: Sequence[DeclaredColumn], stored: Sequence[Shape]
) -> tuple[list[Column], list[int]]:
    """Return the columns with their numbers, and the numbers of removed columns."""
    numbers: dict[tuple[str, Kind], int] = {}
    fields: dict[int, str] = {}
    for known in stored:
        for column in known.columns:
            numbers.setdefault((column.name, column.kind), column.number)
            fields.setdefault(column.number, column.field)
    highest = max(numbers.values(), default=0)
    taken = {
        _json_name(fields[numbers[c.name, c.kind]]) for c in columns if (c.name, c.kind) in numbers
    }
    numbered: list[Column] = []
    for declared in columns:
        number = numbers.get((declared.name, declared.kind))
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
    return numbered, sorted(set(numbers.values()) - {column.number for column in numbered})


def match_stored(shape: Shape, stored: Sequence[Shape]) -> Shape | None:
    """Return the newest stored revision that stands for the same bytes of the same table.

    Descriptors are not compared: a derived descriptor also reserves numbers of removed
    columns, so it changes although the columns are the same.
    """
    for known in reversed(stored):
        # A column that was dropped and added again has the old name but none of the old values.
        if replace(known, revision=0, descriptor=b"") == replace(
            shape, revision=0, descriptor=b""
        ) and is_same_table(known.numbers, shape.numbers, shape.names):
            return known
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


def _describe(
    type_name: str, columns: Sequence[Column], retired: Sequence[int]
) -> tuple[str, descriptor_pb2.FileDescriptorSet]:
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
