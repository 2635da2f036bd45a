"""`Effect`, a transaction's change of one row in wire values, and its conversion to `Operation`.

An operation that the application gives by hand is refused when the stored form of one of its
values is not certain: the log would differ from the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oplog.entry import Operation, OpType
from oplog.errors import DecodeError, EntryError, UnknownTypeError
from oplog.payload.shape import Shape
from oplog.value import UNSURE, Wire


@dataclass(slots=True)
class Effect:
    """A transaction's change of one row, in wire values (None is NULL).

    `key` is the primary key before the operation, in the order of `shape.key_columns`.
    `values` maps written columns to wire values; `complete` says that they are all logged
    columns. `ordinal` counts over the whole record. `adopted` marks the create of a row that
    adoption found in the table: it replaces everything that the log had under that key before; or
    the update of columns that DDL rewrote, which says nothing of a row that the log does not know.
    `place` is the number of the effect's aggregate in the record.
    """

    kind: OpType
    shape: Shape
    key: tuple[Wire | None, ...]
    values: Mapping[str, Wire | None]
    complete: bool
    ordinal: int
    adopted: bool = False
    place: int = 0


def effect_to_operation(effect: Effect) -> Operation:
    """Return the effect as an `Operation`, with Python values.

    Raises `DecodeError` for a value that no value of its column is logged as.
    """
    codecs = effect.shape.codecs
    try:
        key = {
            name: None if wire is None else codecs[name].to_python(wire)
            for name, wire in zip(effect.shape.key_names, effect.key, strict=True)
        }
        fields = {
            name: None if wire is None else codecs[name].to_python(wire)
            for name, wire in effect.values.items()
        }
    except (ValueError, ArithmeticError, TypeError, RecursionError) as cause:
        raise DecodeError(
            f"a value of type {effect.shape.type_name!r} is not what its column holds: "
            f"{str(cause) or type(cause).__name__:.200}",
            hint="the record is damaged, or was not written by this library; run verify",
        ) from cause
    return Operation(effect.kind, effect.shape.type_name, key, fields)


def operation_to_effect(operation: Operation, shape: Shape, *, ordinal: int) -> Effect:
    """Convert an operation that the application gave by hand to wire values.

    Raises `UnknownTypeError` for a column that the type does not have. Raises `EntryError` for
    a key that is not the whole primary key or that the fields change, for an update without
    columns, and for a value whose stored form is not certain.
    """
    if set(operation.key) != set(shape.key_names):
        raise EntryError(
            f"operation on {operation.type_name!r} has key {sorted(operation.key)}, "
            f"the primary key is {sorted(shape.key_names)}",
            hint="give every column of the primary key and no other",
        )
    key = tuple([_to_wire(shape, name, operation.key[name]) for name in shape.key_names])
    if None in key:
        raise EntryError(
            f"operation on {operation.type_name!r} has NULL in its key {dict(operation.key)!r}",
            hint="give every column of the primary key a value",
        )
    if operation.kind is OpType.DELETE:
        return Effect(operation.kind, shape, key, {}, complete=False, ordinal=ordinal)
    values = {name: _to_wire(shape, name, value) for name, value in operation.fields.items()}
    moved = [
        name
        for name, part in zip(shape.key_names, key, strict=True)
        if name in values and values[name] != part
    ]
    if moved:
        raise EntryError(
            f"operation on {operation.type_name!r} names one key and writes another: "
            f"{', '.join(moved)} differs",
            hint="log a change of key as a delete and a create",
        )
    if operation.kind is OpType.CREATE:
        missing = [name for name in shape.names if name not in values]
        if missing:
            raise EntryError(
                f"create of {operation.type_name!r} leaves out {missing}",
                hint="give every logged column; use None for NULL",
            )
        # Complete rows have their columns in the order of the shape, as decoding gives them.
        values = {name: values[name] for name in shape.names}
    elif not values:
        raise EntryError(
            f"update of {operation.type_name!r} writes no column",
            hint="leave the operation out, or give the columns that changed",
        )
    complete = operation.kind is OpType.CREATE
    return Effect(operation.kind, shape, key, values, complete=complete, ordinal=ordinal)


def _to_wire(shape: Shape, name: str, value: object) -> Wire | None:
    codec = shape.codecs.get(name)
    if codec is None:
        raise UnknownTypeError(
            f"type {shape.type_name!r} has no column {name!r}",
            hint=f"its columns are {', '.join(shape.names)}",
        )
    if value is None:
        return None
    wire = codec.to_wire(value)
    if wire is UNSURE:
        raise EntryError(
            f"{shape.type_name}.{name}: a {type(value).__name__} has no certain stored form "
            f"as {codec.pg_type}",
            hint="give the Python type that matches the column, such as Decimal for numeric",
        )
    return wire
