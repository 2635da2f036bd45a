"""The exact bytes of an archive: segment, node of the index, types and head, format 1.

Archives hold these for ever, and are often all that is left. When a test here fails, the code
is wrong, not the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format.body import Pairs
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.head import (
    Branch,
    Head,
    HeadLink,
    Origin,
    SnapshotRef,
    TypesRef,
    decode_head,
)
from oplog.archive.format.index import Item, decode_node, encode_node, make_item
from oplog.archive.format.path import BLOB, INDEX, LOG, SNAPSHOT, name_content, name_head, name_pin
from oplog.archive.format.segment import decode_segment, start_chain
from oplog.archive.format.typefile import LoggedTypes, decode_types, encode_types
from oplog.payload.column_numbers import Numbers
from oplog.store.rows import StoredEntry
from tests.archived import ARCHIVE_ID, LOG_ID, MOMENT, encode_entries, make_entry, make_shape

pytestmark = pytest.mark.golden

PINNED = json.loads((Path(__file__).parent / "data/archive_v1.json").read_text(encoding="utf-8"))
PAIRS: Pairs = [("actor", "ada"), ("reason", "größer")]
SEGMENT = bytes.fromhex(PINNED["segment"])


def make_log() -> list[StoredEntry]:
    """Two transactions, plain and sealed, a mark, and one row that was altered."""
    heads: dict[str, tuple[int, bytes]] = {}
    two: dict[str, Any] = {"transaction_id": 801, "transaction_position": 11, "transaction_size": 2}
    first = [
        make_entry(11, heads, pairs=PAIRS, idempotency_key="request-1", **two),
        make_entry(13, heads, pairs=PAIRS, aggregate="account/2", format=2, key_id="", **two),
    ]
    alone: dict[str, Any] = {"transaction_id": 800}
    second = make_entry(12, heads, pairs=[], format=3, **alone)
    third = make_entry(14, heads, pairs=[], aggregate="account/2", **alone)
    return [*first, second, third._replace(data=b"altered")]


ENTRIES = make_log()
ITEM = Item(
    path=name_content(LOG, 1, data=SEGMENT),
    first=1,
    last=4,
    first_position=11,
    last_position=14,
    first_recorded=MOMENT + 11,
    last_recorded=MOMENT + 14,
    size_bytes=len(SEGMENT),
    chain=bytes.fromhex(PINNED["chain"]),
)
TYPES = PINNED["types"].encode()
HEAD = Head(
    number=7,
    nonce="0123456789abcdef",
    previous=HeadLink(6, sha256(b"head 6").digest()),
    archive_id=ARCHIVE_ID,
    log_id=LOG_ID,
    generation=1,
    epoch=3,
    writer="host:42",
    origin=Origin("7312345678901234567", 2, 16384),
    cursor='{"snapshot": "805:805:"}',
    sequence=4,
    chain=ITEM.chain,
    position=14,
    recorded_at=MOMENT + 14,
    first_sequence=1,
    horizon=3 << 32 | 1,
    created_at=MOMENT + 99,
    levels=((ITEM,),),
    types=TypesRef(name_content(BLOB, 3 << 32, data=TYPES), 1, 1),
    snapshots=(SnapshotRef(name_content(SNAPSHOT, 4, data=b"manifest"), 4, 14, MOMENT + 14, 1234),),
    branches=(Branch(0, 2, sha256(b"chain").digest(), 4, 5, ((ITEM,),)),),
)


def test_pinned_segment_is_read() -> None:
    found = decode_segment(SEGMENT)
    assert list(found.entries) == ENTRIES
    assert found.metadata == {11: PAIRS}
    assert make_item(found.header, SEGMENT) == ITEM


def test_a_segment_is_written_as_pinned() -> None:
    data, _ = encode_entries(ENTRIES, {11: PAIRS})
    length = struct.unpack(">I", SEGMENT[8:12])[0]
    # Another release of zstd may compress to other bytes; what is before them may not change.
    assert data[: 12 + length] == SEGMENT[: 12 + length]
    assert zstandard.decompress(data[12 + length :]).hex() == PINNED["body"]


def test_the_segment_is_what_the_documentation_says() -> None:
    # A second reader, written from the description alone.
    assert SEGMENT[:8] == b"oplogseg"
    length = int.from_bytes(SEGMENT[8:12], "big")
    header = json.loads(SEGMENT[12 : 12 + length])
    body = zstandard.decompress(SEGMENT[12 + length :])
    assert len(body) == header["body_bytes"]
    log_id = UUID(header["log"])
    chain = sha256(b"oplog/v1/archive\0" + log_id.bytes).digest()
    assert chain.hex() == header["chain_before"]
    place, position, sequence, hashes = 0, 0, header["first"], list[bytes]()
    given = [entry.entry_hash for entry in ENTRIES]
    while place < len(body):
        size = int.from_bytes(body[place : place + 4], "big")
        group = archive_pb2.ArchivedTransaction.FromString(body[place + 4 : place + 4 + size])
        place += 4 + size
        for entry in group.entries:
            position += entry.position_step
            hashes.append(given[len(hashes)])
            chain = sha256(
                b"oplog/v1/sequence\0"
                + chain
                + struct.pack(">qqq", sequence, position, group.transaction_position)
                + hashes[-1]
            ).digest()
            sequence += 1
    assert (chain.hex(), sequence - 1) == (header["chain"], header["last"])


def test_node_of_the_index() -> None:
    second = replace(ITEM, first=5, last=9, path=name_content(LOG, 5, data=b""), adopted=True)
    data, item = encode_node([ITEM, second], level=0)
    assert data.decode() == PINNED["node"]
    assert item.path == PINNED["node_path"]
    assert item.path.startswith(f"{INDEX}/0000000000000009-")
    assert decode_node(PINNED["node"].encode(), item, level=1) == [ITEM, second]


def test_types() -> None:
    found = decode_types(TYPES, what="it")
    assert found.key_checks == {"k1": bytes(range(16))}
    [shape] = found.shapes
    assert shape.to_json() == make_shape().to_json()
    assert shape.numbers == (Numbers("7312345678901234567/16384", 16402, {"id": 1, "owner": 3}),)
    assert shape.message_class(id=7, owner="ada").SerializeToString().hex() == "080e1203616461"
    # The descriptor is bytes of protobuf's own making: only these very ones are pinned.
    assert encode_types(LoggedTypes([shape], found.key_checks)) == TYPES


def test_head() -> None:
    assert HEAD.encode().decode() == PINNED["head"]
    assert decode_head(PINNED["head"].encode(), what="it") == HEAD
    document = json.loads(PINNED["head"])
    digest = document.pop("sha256")
    assert sha256(encode_document(document)).hexdigest() == digest


def test_names() -> None:
    assert name_head(7) == "HEAD/0000000000000007"
    assert name_pin("before-2.0") == "PIN/before-2.0"
    assert name_content(BLOB, 3 << 32 | 9, data=b"") == (
        "BLOB/0000000300000009-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert start_chain(LOG_ID).hex() == PINNED["chain_of_nothing"]
