"""Arrow's type for a logged column, and its values as that type takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from oplog.errors import ConfigurationError
from oplog.payload.shape import Shape
from oplog.value import Kind, Wire

_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")
_DECIMAL128, _DECIMAL256 = 38, 76
"""Most digits of Arrow's decimals."""


@dataclass(frozen=True)
class ColumnType:
    """A type, and the conversion of a wire value that is not NULL."""

    type: pa.DataType
    convert: Callable[[Wire], Any]


def choose_type(shape: Shape, name: str, *, as_text: bool = False) -> ColumnType:
    """Arrow's type for a column of a shape; text where no other type holds all of its values.

    Numbers, booleans, bytes, dates and times have types of their own, `numeric` of up to 76 digits
    is a decimal. All else is the text that PostgreSQL prints.
    """
    codec = shape.codecs[name]
    pg_type, kind = codec.pg_type, codec.kind
    if as_text:
        return ColumnType(pa.string(), codec.to_text)
    if kind is not Kind.TEXT:
        return ColumnType(_choose_number(pg_type, kind), _keep)
    decimal = _choose_decimal(pg_type)
    if decimal is not None:
        return ColumnType(decimal, codec.to_python)
    moments = {
        "date": pa.date32(),
        "timestamp without time zone": pa.timestamp("us"),
        "timestamp with time zone": pa.timestamp("us", tz="UTC"),
        "time without time zone": pa.time64("us"),
    }
    # As in timestamp(3) with time zone.
    found = moments.get(re.sub(r"\(\d\)", "", pg_type))
    if found is None:
        return ColumnType(pa.string(), codec.to_text)
    return ColumnType(found, lambda wire: _take_moment(codec.to_python(wire)))


def choose_types(shape: Shape, *, as_text: Collection[str] = ()) -> dict[str, ColumnType]:
    """Arrow's types for all columns of a shape; `ConfigurationError` for `as_text` without one."""
    unknown = sorted(set(as_text) - set(shape.names))
    if unknown:
        raise ConfigurationError(
            f"as_text names {unknown[0]!r}, which is no logged column of {shape.table}",
            hint=f"its logged columns are {', '.join(shape.names)}",
        )
    return {name: choose_type(shape, name, as_text=name in as_text) for name in shape.names}


def _choose_number(pg_type: str, kind: Kind) -> pa.DataType:
    if kind is Kind.INT:
        return {"smallint": pa.int16(), "integer": pa.int32()}.get(pg_type, pa.int64())
    return {
        Kind.BOOL: pa.bool_(),
        Kind.FLOAT4: pa.float32(),
        Kind.FLOAT8: pa.float64(),
        Kind.BYTES: pa.binary(),
    }[kind]


def _choose_decimal(pg_type: str) -> pa.DataType | None:
    matched = _NUMERIC.fullmatch(pg_type)
    if matched is None:
        return None
    precision, scale = int(matched[1]), int(matched[2])
    if not 0 <= scale <= precision <= _DECIMAL256:
        return None
    if precision <= _DECIMAL128:
        return pa.decimal128(precision, scale)
    return pa.decimal256(precision, scale)


def _take_moment(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


def _keep(wire: Wire) -> Wire:
    return wire
