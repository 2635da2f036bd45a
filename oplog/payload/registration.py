"""Makes the shape of a type whose protobuf message the application compiled itself.

The application numbers its revisions. A revision that is in the log already must still stand
for the same bytes and the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, message

from oplog.errors import ConfigurationError
from oplog.payload.column_numbers import Numbers, is_same_table, match_numbers
from oplog.payload.derived_shape import DeclaredColumn
from oplog.payload.shape import Column, Shape


def register_shape(
    type_name: str,
    columns: Sequence[DeclaredColumn],
    *,
    revision: int,
    schema: str,
    table: str,
    aggregate: str,
    excluded: Mapping[str, str],
    message_class: type[message.Message],
    stored: Sequence[Shape],
    numbers: Numbers | None = None,
) -> Shape:
    """Return the shape for a table whose message the application compiled itself.

    Raises `ConfigurationError` when the log already has another shape under this revision, or
    the same shape for other columns: old entries would be decoded wrongly.
    """
    descriptor = message_class.DESCRIPTOR
    fields = {f.name: f.number for f in descriptor.fields}
    numbered = tuple(
        Column(
            name=c.name,
            pg_type=c.pg_type,
            kind=c.kind,
            field=c.name,
            number=fields[c.name],
            primary_key=c.primary_key,
            category=c.category,
        )
        for c in columns
    )
    shape = Shape(
        type_name=type_name,
        revision=revision,
        schema=schema,
        table=table,
        columns=numbered,
        aggregate=aggregate,
        message_name=descriptor.full_name,
        descriptor=_descriptor_set(descriptor.file).SerializeToString(deterministic=True),
        excluded=dict(excluded),
        numbers=() if numbers is None else (numbers,),
    )
    return _match_registered(shape, stored)


def _match_registered(shape: Shape, stored: Sequence[Shape]) -> Shape:
    """The stored revision that the shape is; the shape itself if it is a new one."""
    for known in stored:
        if known.revision == shape.revision:
            _check_registered(shape, known)
            return _find_raised(known, stored)
    if stored:
        _check_numbers(shape, stored[-1])
    return shape


def _check_numbers(shape: Shape, newest: Shape) -> None:
    """Raise `ConfigurationError` for a column whose field number is another one than it was."""
    here = match_numbers(newest.numbers, shape.numbers)
    places = {} if here is None else {place: name for name, place in here[1].columns.items()}
    for column in newest.columns:
        name = column.name if here is None else places.get(here[0].columns.get(column.name, 0), "")
        now = shape.by_name.get(name)
        if now is not None and now.kind is column.kind and now.number != column.number:
            raise ConfigurationError(
                f"message {shape.message_name} has column {name} of type {shape.type_name!r} as "
                f"field {now.number}, and the log has it as field {column.number}: rows of earlier "
                "revisions would be read as another column's",
                hint=f"give the field the number {column.number} again: numbers are for ever",
            )


def _find_raised(known: Shape, stored: Sequence[Shape]) -> Shape:
    """The last revision of the same shape: one more is stored when the database rewrites rows."""
    later = [one for one in stored if one.revision > known.revision]
    for one in later:
        if not one.same_as(known):
            break
        known = one
    return known


def _check_registered(shape: Shape, known: Shape) -> None:
    """Raise `ConfigurationError` unless the stored revision matches the registered one."""
    name, revision = shape.type_name, shape.revision
    if not is_same_table(known.numbers, shape.numbers, shape.names):
        raise ConfigurationError(
            f"type {name!r} revision {revision} was stored for a table or a column that has "
            "been replaced since by another one of the same name",
            hint=f"register it with revision={revision + 1}, and log its rows again: "
            "oplog adopt --again",
        )
    if not known.same_as(shape):
        raise ConfigurationError(
            f"type {name!r} revision {revision} is already in the log with another shape",
            hint=f"register it with revision={revision + 1} and an upcast step",
        )


def _descriptor_set(file: Any) -> descriptor_pb2.FileDescriptorSet:
    """Return `file` with everything it imports, dependencies first."""
    ordered: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def visit(current: Any) -> None:
        if current.name in ordered:
            return
        for dependency in current.dependencies:
            visit(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        current.CopyToProto(proto)
        ordered[current.name] = proto

    visit(file)
    return descriptor_pb2.FileDescriptorSet(file=list(ordered.values()))
