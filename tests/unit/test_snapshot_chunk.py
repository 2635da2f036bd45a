"""Chunks of a snapshot: round trips, and every kind of bytes that are none."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oplog import Keyring
from oplog.archive.format import snapshot_chunk as chunk_module
from oplog.archive.format.container import decode_container, encode_container
from oplog.archive.format.snapshot_chunk import (
    MAX_PARTS,
    PART_BYTES,
    ChunkContent,
    PartSeal,
    StoredChunk,
    decode_chunk,
    encode_chunk,
)
from oplog.crypto.seal import FORMAT_PLAIN, Sealer
from oplog.errors import (
    EntryTooLargeError,
    ManifestInvalidError,
    SealError,
    SegmentCorruptError,
)

pytestmark = pytest.mark.unit

LOG_ID = UUID(int=1)
CHUNK_ID = UUID(int=2)
REFUSED = (SegmentCorruptError, ManifestInvalidError)
CONTENT = ChunkContent(
    "public",
    "account",
    ("id", "name", "balance"),
    ("id",),
    b"1\tann\t0.10\n2\t\\N\t-5\n",
    b"3\n4\n5\n",
)
PLAIN = Sealer(None)
SEALED = Sealer(Keyring.generate())


def seal_with(sealer: Sealer) -> PartSeal:
    return PartSeal(sealer.format, sealer.key_id, sealer.seal)


def encode(content: ChunkContent = CONTENT, sealer: Sealer = PLAIN) -> bytes:
    return encode_chunk(content, log_id=LOG_ID, chunk_id=CHUNK_ID, seal=seal_with(sealer))


def read_all(found: StoredChunk, sealer: Sealer = PLAIN) -> tuple[bytes, bytes]:
    return (
        b"".join(found.iterate_tombstones(sealer.open)),
        b"".join(found.iterate_rows(sealer.open)),
    )


@pytest.mark.parametrize("sealer", [PLAIN, SEALED], ids=["plain", "sealed"])
def test_round_trip(sealer: Sealer) -> None:
    found = decode_chunk(encode(sealer=sealer), what="a chunk")
    header = found.header
    assert (header.rows, header.tombstones) == (2, 3)
    assert (header.schema, header.table) == ("public", "account")
    assert (header.columns, header.key) == (CONTENT.columns, CONTENT.key)
    assert header.raw_bytes == len(CONTENT.rows) + len(CONTENT.tombstones)
    assert read_all(found, sealer) == (CONTENT.tombstones, CONTENT.rows)


def test_nothing_of_the_rows_is_readable_without_the_key() -> None:
    assert b"ann" not in encode(sealer=SEALED)
    assert b"ann" in encode(sealer=PLAIN)


def test_long_texts_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_module, "PART_BYTES", 4)
    found = decode_chunk(encode(), what="a chunk")
    assert [part.raw_bytes for part in found.header.tombstone_parts] == [4, 2]
    assert read_all(found) == (CONTENT.tombstones, CONTENT.rows)


def test_a_row_wider_than_a_part_round_trips() -> None:
    rows = b"1\t" + b"x" * PART_BYTES + b"\t1\n"
    found = decode_chunk(encode(replace(CONTENT, rows=rows), SEALED), what="a chunk")
    assert len(found.header.row_parts) == 2
    assert read_all(found, SEALED) == (CONTENT.tombstones, rows)


def test_the_widest_table_there_can_be_round_trips() -> None:
    columns = tuple(f"{n:04}{chr(34) * 59}" for n in range(1600))
    content = ChunkContent("s", "t", columns, columns[:32], b"\t".join([b"1"] * 1600) + b"\n")
    found = decode_chunk(encode(content), what="a chunk")
    assert (found.header.columns, read_all(found)[1]) == (columns, content.rows)


def test_a_row_too_wide_for_an_object_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_module, "PART_BYTES", 1)
    with pytest.raises(EntryTooLargeError, match=r"public\.account"):
        encode(replace(CONTENT, rows=b"1\t" + b"x" * MAX_PARTS + b"\t1\n"))


@pytest.mark.parametrize("sealer", [PLAIN, SEALED], ids=["plain", "sealed"])
def test_every_flipped_byte_and_truncation_is_refused(sealer: Sealer) -> None:
    data = encode(sealer=sealer)
    for place in range(len(data)):
        with pytest.raises((*REFUSED, SealError)):
            read_all(decode_chunk(data[:place], what="a chunk"), sealer)
        flipped = bytearray(data)
        flipped[place] ^= 0x01
        if sealer is PLAIN:
            # Without a key, the object's name alone covers what names and rows say.
            read_any(bytes(flipped), sealer)
            continue
        with pytest.raises((*REFUSED, SealError)):
            read_all(decode_chunk(bytes(flipped), what="a chunk"), sealer)


def read_any(data: bytes, sealer: Sealer) -> None:
    """No other error than those for altered bytes, and never more bytes than were claimed."""
    try:
        found = decode_chunk(data, what="a chunk")
        total = sum(map(len, read_all(found, sealer)))
    except (*REFUSED, SealError):
        return
    assert total == found.header.raw_bytes


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_garbage_gives_the_right_error(data: st.DataObject) -> None:
    sealer = data.draw(st.sampled_from([PLAIN, SEALED]))
    raw = bytearray(encode(sealer=sealer))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 40)))
        raw[start:end] = data.draw(st.binary(max_size=40))
    read_any(bytes(raw), sealer)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(REFUSED):
        decode_chunk(data, what="a chunk")
    with pytest.raises(REFUSED):
        decode_chunk(b"oplogsnp" + struct.pack(">I", len(data)) + data, what="a chunk")


def alter(change: Callable[[dict[str, Any]], object], sealer: Sealer = PLAIN) -> bytes:
    """The chunk with another header, spelled as canonically as the true one."""
    found = decode_container(encode(sealer=sealer), b"oplogsnp", what="a chunk")
    header = json.loads(found.header)
    change(header)
    return encode_container(b"oplogsnp", header, body=found.body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), "format number is 2"),
        (lambda h: h.update(rows=3), "has 2 rows and claims 3"),
        (lambda h: h.update(rows=0), "claims 0 lines"),
        (lambda h: h.update(rows=10**6), "claims 1000000 lines"),
        (lambda h: h.update(tombstones=2), "has 3 tombstones and claims 2"),
        (lambda h: h.update(columns=["id", "name"]), "do not have 2 fields"),
        (lambda h: h.update(columns=["id", "id", "x"]), "a name twice"),
        (
            lambda h: h.update(columns=["id", "a\x00b", "x"]),
            r"without a NUL - at `\$\.columns\[1\]`",
        ),
        (lambda h: h.update(key=["other"]), "not among its columns"),
        (lambda h: h.update(key=[]), r"length >= 1 - at `\$\.key`"),
        (lambda h: h.update(raw_rows=[20]), "header says 20"),
        (lambda h: h.update(raw_rows=[PART_BYTES + 1]), r"at `\$\.raw_rows\[0\]`"),
        (lambda h: h.update(raw_rows=[1] * (MAX_PARTS + 1)), r"at `\$\.raw_rows`"),
        (lambda h: h.update(raw_rows=[]), "contradict"),
        (lambda h: h.update(stored=[h["stored"][0], 1]), r"parts claim \d+ bytes"),
        (lambda h: h.update(stored=[-1, sum(h["stored"]) + 1]), r"at `\$\.stored\[0\]`"),
        (lambda h: h.update(chunk_id=str(CHUNK_ID).replace("-", "")), "canonical form"),
        (lambda h: h.update(log_id="x"), r"Invalid UUID - at `\$\.log_id`"),
        (lambda h: h.update(schema=""), r"length >= 1 - at `\$\.schema`"),
        (lambda h: h.update(extra=1), "unknown field `extra`"),
        (lambda h: h.pop("key_id"), "missing required field `key_id`"),
        (lambda h: h.update(seal_format=9), "cannot be opened"),
    ],
)
def test_headers_that_lie_are_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(REFUSED, match=message):
        read_all(decode_chunk(alter(change), what="a chunk"))


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(columns=["id", "balance", "name"]),
        lambda h: h.update(schema="other"),
        lambda h: h.update(table="other"),
        lambda h: h.update(log_id=str(UUID(int=9))),
        lambda h: h.update(chunk_id=str(UUID(int=9))),
    ],
)
def test_a_sealed_chunk_opens_under_its_own_header_only(
    change: Callable[[dict[str, Any]], object],
) -> None:
    with pytest.raises(SealError):
        read_all(decode_chunk(alter(change, SEALED), what="a chunk"), SEALED)


def test_parts_of_a_sealed_chunk_cannot_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_module, "PART_BYTES", 3)
    data = encode(replace(CONTENT, rows=b"", tombstones=b"31\n42\n"), SEALED)
    found = decode_container(data, b"oplogsnp", what="a chunk")
    header = json.loads(found.header)
    first, second = header["stored"]
    assert first == second
    swapped = encode_container(b"oplogsnp", header, body=found.body[first:] + found.body[:first])
    with pytest.raises(SealError) as caught:
        read_all(decode_chunk(swapped, what="chunk seven"), SEALED)
    assert "in chunk seven, rows of public.account" in caught.value.__notes__


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    huge = ChunkContent("s", "t", ("id",), ("id",), rows=b"0" * (8 << 20) + b"\n")
    data = encode(huge)
    assert len(data) < 4096
    found = decode_container(data, b"oplogsnp", what="a chunk")
    header = json.loads(found.header) | {"raw_rows": [1]}
    small = encode_container(b"oplogsnp", header, body=found.body)
    with pytest.raises(SegmentCorruptError, match=re.escape("header says 1")):
        read_all(decode_chunk(small, what="a chunk"))


def test_plain_chunks_say_so() -> None:
    header = decode_chunk(encode(), what="a chunk").header
    assert (header.seal_format, header.key_id) == (FORMAT_PLAIN, "")
