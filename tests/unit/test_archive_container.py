"""Containers: a header and a body in one object, and the limits of both."""

from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format import container
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.container import (
    compress,
    decode_container,
    decompress,
    encode_container,
)
from oplog.errors import SegmentCorruptError

pytestmark = pytest.mark.unit

MAGIC = b"oplogabc"
HEADER = {"a": 1}
TEXT = b'{"a":1}'
WHOLE = MAGIC + struct.pack(">I", len(TEXT)) + TEXT + b"body"
PREFIX = 12


def decode(data: bytes) -> tuple[bytes, bytes]:
    return decode_container(data, MAGIC, what="LOG/x")


def refused(data: bytes) -> str:
    with pytest.raises(SegmentCorruptError, match=r"LOG/x is not") as caught:
        decode(data)
    return str(caught.value)


def test_an_object_is_its_magic_number_its_header_and_its_body() -> None:
    assert encode_container(MAGIC, HEADER, body=b"body") == WHOLE
    assert decode(WHOLE) == (TEXT, b"body")


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 9)), st.binary())
def test_an_object_is_read_as_it_was_written(header: dict[str, int], body: bytes) -> None:
    data = encode_container(MAGIC, header, body=body)
    assert decode(data) == (encode_document(header), body)


def test_an_object_of_another_kind_is_refused() -> None:
    assert "begins with b'oplogabd'" in refused(b"oplogabd" + WHOLE[8:])
    with pytest.raises(SegmentCorruptError, match="begins with b'oplogabc'"):
        decode_container(WHOLE, b"oplogseg", what="it")


def test_the_prefix_must_be_there() -> None:
    for length in range(PREFIX):
        assert f"it has {length} bytes only" in refused(WHOLE[:length])
    # Nothing after it is nothing: the header is read as a document by whoever asked for it.
    assert decode(MAGIC + bytes(4)) == (b"", b"")


def test_the_header_must_be_there() -> None:
    for length in range(PREFIX, PREFIX + len(TEXT)):
        assert "its header claims 7 bytes" in refused(WHOLE[:length])
    assert decode(WHOLE[: PREFIX + len(TEXT)]) == (TEXT, b"")
    for claimed in (len(TEXT) + 5, (1 << 31) - 1, (1 << 32) - 1):
        told = refused(MAGIC + struct.pack(">I", claimed) + TEXT + b"body")
        assert f"its header claims {claimed} bytes" in told


def test_a_header_over_the_limit_is_neither_written_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", len(TEXT))
    assert encode_container(MAGIC, HEADER, body=b"body") == WHOLE
    assert decode(WHOLE) == (TEXT, b"body")
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", len(TEXT) - 1)
    with pytest.raises(SegmentCorruptError, match="an object to be written"):
        encode_container(MAGIC, HEADER, body=b"body")
    assert "its header claims 7 bytes" in refused(WHOLE)


def test_an_object_over_the_limit_is_neither_written_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "MAX_OBJECT_BYTES", len(WHOLE))
    assert encode_container(MAGIC, HEADER, body=b"body") == WHOLE
    assert decode(WHOLE) == (TEXT, b"body")
    monkeypatch.setattr(container, "MAX_OBJECT_BYTES", len(WHOLE) - 1)
    with pytest.raises(SegmentCorruptError, match="an object to be written"):
        encode_container(MAGIC, HEADER, body=b"body")
    assert "over the limit of 22" in refused(WHOLE)


LEAST = 1024
"""The smallest window, and so the smallest limit, that zstd takes."""


@given(st.binary(max_size=99) | st.integers(1, 3000).map(bytes))
def test_a_body_comes_back(body: bytes) -> None:
    packed = compress(body)
    assert packed == compress(body)
    assert decompress(packed, size=len(body), most=max(len(body), LEAST), what="it") == body
    assert zstandard.decompress(packed) == body


def test_a_body_of_another_size_is_refused() -> None:
    packed = compress(bytes(9))
    for size in (0, 8, 10):
        with pytest.raises(SegmentCorruptError, match=f"LOG/x is not .* claims {size} bytes"):
            decompress(packed, size=size, most=LEAST, what="LOG/x")


@pytest.mark.parametrize("packed", [compress(bytes(9)), b""], ids=["a body", "nothing"])
def test_a_body_over_the_limit_is_refused_before_it_is_looked_at(packed: bytes) -> None:
    with pytest.raises(SegmentCorruptError, match="claims 9 bytes, over the limit of 8"):
        decompress(packed, size=9, most=8, what="LOG/x")
