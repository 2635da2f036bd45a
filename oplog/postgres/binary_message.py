"""Statements with parameters in the binary form of PostgreSQL's protocol, and arrays back.

Parameters of known types need no adaptation, which costs the driver more than the statement
itself. Text stays text here: it travels in the connection's encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

BOOL, BYTEA, INT8, INT2, TEXT, UUID_OID = 16, 17, 20, 21, 25, 2950
BYTEA_ARRAY, INT4_ARRAY, TEXT_ARRAY, INT8_ARRAY, OID_ARRAY = 1001, 1007, 1009, 1016, 1028
"""Oids of types, which are the same in every database."""

_INT4_OID, _OID_OID = 23, 26
_INT2, _INT4, _INT8 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")
_OID = struct.Struct(">I")
_HEADER = struct.Struct(">iiI")
"""Of an array: dimensions, whether there are NULLs, the element's oid."""
_DIMENSION = struct.Struct(">ii")
"""Of each dimension: length and lower bound."""
_FIELD = struct.Struct(">Ii")
"""Of each field of a composite value: oid of its type, and length, -1 for NULL."""
_NULL = _INT4.pack(-1)


class Parameter(NamedTuple):
    """A value and the oid of the type that it has; None is NULL."""

    oid: int
    value: Any


@dataclass(frozen=True, slots=True)
class Message:
    """A statement, with `$1`, `$2`, … for its parameters."""

    statement: str
    parameters: tuple[Parameter, ...] = ()


def encode_parameter(parameter: Parameter, *, encoding: str) -> bytes | None:
    """The bytes of a parameter; `encoding` is the Python name of the client's.

    Raises `UnicodeEncodeError` for text that the client's encoding does not have.
    """
    oid, value = parameter
    if value is None:
        return None
    if oid == TEXT:
        return str(value).encode(encoding)
    return _ENCODERS[oid](value, encoding)


def _encode_array(
    element: int, write: Callable[[Any, str], bytes]
) -> Callable[[Sequence[Any], str], bytes]:
    def encode(values: Sequence[Any], encoding: str) -> bytes:
        if not values:
            return _HEADER.pack(0, 0, element)
        parts = [_HEADER.pack(1, None in values, element), _DIMENSION.pack(len(values), 1)]
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                data = write(value, encoding)
                parts += (_INT4.pack(len(data)), data)
        return b"".join(parts)

    return encode


def _write_text(value: str, encoding: str) -> bytes:
    return value.encode(encoding)


def _write_bytes(value: bytes, _encoding: str) -> bytes:
    return value


def _write_uuid(value: UUID, _encoding: str) -> bytes:
    return value.bytes


def _write_int4(value: int, _encoding: str) -> bytes:
    return _INT4.pack(value)


def _write_oid(value: int, _encoding: str) -> bytes:
    return _OID.pack(value)


def _write_int8(value: int, _encoding: str) -> bytes:
    return _INT8.pack(value)


_ENCODERS: Mapping[int, Callable[[Any, str], bytes]] = MappingProxyType(
    {
        BOOL: lambda value, _: b"\x01" if value else b"\x00",
        BYTEA: _write_bytes,
        INT2: lambda value, _: _INT2.pack(value),
        INT8: _write_int8,
        UUID_OID: _write_uuid,
        BYTEA_ARRAY: _encode_array(BYTEA, _write_bytes),
        INT4_ARRAY: _encode_array(_INT4_OID, _write_int4),
        INT8_ARRAY: _encode_array(INT8, _write_int8),
        OID_ARRAY: _encode_array(_OID_OID, _write_oid),
        TEXT_ARRAY: _encode_array(TEXT, _write_text),
    }
)


def read_numbers(data: bytes) -> list[int]:
    """The elements of a `bigint[]` without NULLs."""
    return [_INT8.unpack(element)[0] for element in read_array(data)]


def read_array(data: bytes) -> list[bytes]:
    """The elements of a one-dimensional array without NULLs, as their bytes."""
    dimensions = _INT4.unpack_from(data)[0]
    if dimensions == 0:
        return []
    count = _INT4.unpack_from(data, _HEADER.size)[0]
    place, found = _HEADER.size + _DIMENSION.size, []
    for _ in range(count):
        start = place + _INT4.size
        place = start + _INT4.unpack_from(data, place)[0]
        found.append(data[start:place])
    return found


def read_fields(data: bytes) -> list[bytes | None]:
    """The fields of a composite value, as their bytes; None is NULL."""
    place, found = _INT4.size, list[bytes | None]()
    for _ in range(_INT4.unpack_from(data)[0]):
        # The oid of the type is left out: who asked knows it.
        start = place + _FIELD.size
        length = _FIELD.unpack_from(data, place)[1]
        place = start + max(length, 0)
        found.append(None if length < 0 else data[start:place])
    return found
