"""Parameters as the protocol's binary form has them; the server reads them in test_exchange."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.postgres.binary_message import (
    BOOL,
    BYTEA,
    BYTEA_ARRAY,
    INT2,
    INT4_ARRAY,
    INT8,
    INT8_ARRAY,
    TEXT,
    TEXT_ARRAY,
    UUID_OID,
    Parameter,
    encode_parameter,
    read_array,
    read_fields,
    read_numbers,
)

pytestmark = pytest.mark.unit


def encode(oid: int, value: object, encoding: str = "utf-8") -> bytes:
    found = encode_parameter(Parameter(oid, value), encoding=encoding)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("oid", "value", "expected"),
    [
        (TEXT, "é", "c3a9"),
        (TEXT, "", ""),
        (INT8, -2, "fffffffffffffffe"),
        (INT2, 258, "0102"),
        (BOOL, True, "01"),
        (BOOL, False, "00"),
        (BYTEA, b"\x00\xff", "00ff"),
        (TEXT_ARRAY, [], "000000000000000000000019"),
        (INT4_ARRAY, [7], "00000001000000000000001700000001000000010000000400000007"),
        (
            TEXT_ARRAY,
            ["a", None],
            "00000001000000010000001900000002000000010000000161ffffffff",
        ),
    ],
)
def test_the_bytes_of_a_parameter(oid: int, value: object, expected: str) -> None:
    assert encode(oid, value).hex() == expected


def test_oids_are_those_of_the_catalog() -> None:
    """`pg_type.dat`: the same in every server and release."""
    assert (BOOL, BYTEA, INT8, INT2, TEXT, UUID_OID) == (16, 17, 20, 21, 25, 2950)
    assert (BYTEA_ARRAY, INT4_ARRAY, TEXT_ARRAY, INT8_ARRAY) == (1001, 1007, 1009, 1016)


def test_null_has_no_bytes() -> None:
    assert encode_parameter(Parameter(BYTEA_ARRAY, None), encoding="utf-8") is None


def test_text_has_the_encoding_of_the_client() -> None:
    assert encode(TEXT, "é", "latin-1") == b"\xe9"
    assert encode(TEXT_ARRAY, ["é"], "latin-1").endswith(b"\x01\xe9")
    with pytest.raises(UnicodeEncodeError):
        encode(TEXT, "€", "latin-1")


@given(st.lists(st.binary()))
def test_arrays_of_bytes_are_read_back(values: list[bytes]) -> None:
    assert read_array(encode(BYTEA_ARRAY, values)) == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_arrays_of_numbers_are_read_back(values: list[int]) -> None:
    assert read_numbers(encode(INT8_ARRAY, values)) == values


@given(st.lists(st.binary() | st.none()))
def test_fields_of_a_composite_value_are_read_back(values: list[bytes | None]) -> None:
    sent = struct.pack(">i", len(values))
    for value in values:
        sent += struct.pack(">Ii", BYTEA, -1 if value is None else len(value)) + (value or b"")
    assert read_fields(sent) == values


@given(st.uuids())
def test_an_uuid_is_its_bytes(value: UUID) -> None:
    assert encode(2950, value) == value.bytes
