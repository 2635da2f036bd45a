"""Payload bytes that this library did not write: refused, or read as far as they are known.

What keeps altered bytes from coming this far is the frame around a payload, its seal and the
chain of hashes, which have tests of their own: a parser alone finds little.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, OplogError, UnknownTypeError
from oplog.payload.codec import Effect, PayloadCodec
from tests.unit.test_block import ITEM, Types, make_shape

pytestmark = pytest.mark.unit

CODEC = PayloadCodec()
EFFECTS = [
    Effect(
        OpType.CREATE,
        ITEM,
        (7,),
        {"name": "ada", "id": 7, "ok": None, "data": b"\xff"},
        complete=True,
        ordinal=0,
    ),
    Effect(OpType.UPDATE, ITEM, (7,), {"name": None}, complete=False, ordinal=1),
    Effect(OpType.DELETE, ITEM, (7,), {}, complete=False, ordinal=2),
]
UNKNOWN_FIELD = b"\xfa\x3e\x03new"
"""Field 1007 with three bytes: what a newer writer might add."""


def nest(depth: int) -> bytes:
    """A field within a field, `depth` times, under a number that no message here has."""
    return b"\xfb\x3e" * depth + b"\xfc\x3e" * depth


def change_rows(change: Callable[[bytes], bytes]) -> bytes:
    """The payload with the row of each operation changed."""
    payload = record_pb2.Payload.FromString(CODEC.encode(EFFECTS))
    for operation in payload.operations:
        operation.row = change(operation.row)
    return payload.SerializeToString()


def decode(payload: bytes) -> list[Effect] | OplogError:
    try:
        return CODEC.decode(payload, Types())
    except (DecodeError, UnknownTypeError) as error:
        return error


def test_what_was_written_is_read() -> None:
    assert decode(CODEC.encode(EFFECTS)) == EFFECTS


@pytest.mark.parametrize("depth", [101, 10_000, 100_000])
def test_nesting_that_is_too_deep_is_refused(depth: int) -> None:
    payload = CODEC.encode(EFFECTS)
    for altered in (payload + nest(depth), change_rows(lambda row: row + nest(depth))):
        assert isinstance(decode(altered), DecodeError)


def test_bytes_that_are_no_message_are_refused() -> None:
    payload = CODEC.encode(EFFECTS)
    for junk in (b"\x00", b"\x07", b"\x0a\xff", b"\xff" * 11, b"\x0a\x02\xff\xfe"):
        assert isinstance(decode(payload + junk), DecodeError)
    assert isinstance(decode(change_rows(lambda row: row + b"\x0a\x02\xff\xfe")), DecodeError)


def test_fields_of_a_newer_writer_disturb_nothing() -> None:
    """A change of meaning has to raise the format's number, which older readers refuse."""
    payload = CODEC.encode(EFFECTS)
    assert decode(payload + UNKNOWN_FIELD) == EFFECTS
    assert decode(change_rows(lambda row: row + UNKNOWN_FIELD)) == EFFECTS


def test_a_type_or_a_kind_that_is_not_known_is_refused() -> None:
    for altered in (
        record_pb2.Payload(types=[record_pb2.TypeUse(name="other", revision=1)]),
        record_pb2.Payload(types=[record_pb2.TypeUse(name="item", revision=9)]),
    ):
        assert isinstance(decode(altered.SerializeToString()), UnknownTypeError)
    for kind, use in ((0, 0), (1, 1), (2, 7), (99, 0)):
        payload = record_pb2.Payload.FromString(CODEC.encode(EFFECTS))
        del payload.operations[1:]
        payload.operations[0].kind = kind  # type: ignore[assignment]
        payload.operations[0].type = use
        assert isinstance(decode(payload.SerializeToString()), DecodeError)


def test_an_empty_payload_and_rows_of_defaults() -> None:
    assert decode(b"") == []
    only_key = make_shape(("id", "bigint"))
    effects = [
        Effect(OpType.CREATE, only_key, (0,), {"id": 0}, complete=True, ordinal=0),
        Effect(OpType.DELETE, only_key, (0,), {}, complete=False, ordinal=1),
    ]
    payload = CODEC.encode(effects)
    assert CODEC.decode(payload, Types(only_key)) == effects
    blank = Effect(
        OpType.CREATE,
        ITEM,
        (0,),
        {"name": "", "id": 0, "ok": False, "data": b""},
        complete=True,
        ordinal=0,
    )
    assert decode(CODEC.encode([blank])) == [blank]
