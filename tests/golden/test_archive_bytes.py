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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.head import (
    Branch,
    Endorsement,
    Head,
    HeadLink,
    Origin,
    SnapshotRef,
    TypesRef,
    decode_head,
    sign_head,
)
from oplog.archive.format.index import Item, decode_node, encode_node, make_item
from oplog.archive.format.path import BLOB, INDEX, LOG, SNAPSHOT, name_content, name_head, name_pin
from oplog.archive.format.segment import decode_segment, start_chain
from oplog.archive.format.typefile import LoggedTypes, decode_types, encode_types
from oplog.crypto.secret import Secret
from oplog.crypto.signing import derive_public_key, sign_successor
from oplog.crypto.signing import sign_head as crypto_sign_head
from oplog.payload.column_numbers import Numbers
from oplog.payload.schema_change import SchemaChange
from oplog.store.rows import Part, StoredRecord
from tests.archived import ARCHIVE_ID, LOG_ID, MOMENT, encode_records, make_record, make_shape

pytestmark = pytest.mark.golden

SECONDS_TO_2000 = 946_684_800

PINNED = json.loads((Path(__file__).parent / "data/archive_v1.json").read_text(encoding="utf-8"))
PAIRS = (("actor", "ada"), ("reason", "größer"))
SEGMENT = bytes.fromhex(PINNED["segment"])


def make_log() -> list[StoredRecord]:
    """Records sealed and plain, of one and several aggregates and parts; two rows were altered."""
    heads: dict[str, tuple[int, bytes]] = {}
    first = make_record(
        11,
        heads,
        aggregates=("account/1", "account/2", "account/3"),
        parts=(Part(0, b"part 0"), Part(2, b"part 1")),
        metadata=PAIRS,
        idempotency_key="request-1",
    )
    # A lower position, and a transaction id that another record has too.
    second = make_record(
        10, heads, aggregates=("account/2", "account/4"), format=2, key_id="", transaction_id=711
    )
    third = make_record(14, heads, format=3)
    altered = make_record(15, heads, aggregates=("account/1", "account/4"))
    last = make_record(16, heads, aggregates=("account/4",))
    return [
        first,
        second,
        third,
        altered._replace(
            parts=(Part(0, b"altered"),), prev_hashes=(altered.prev_hashes[0], bytes(32))
        ),
        last,
    ]


RECORDS = make_log()
ITEM = Item(
    path=name_content(LOG, 1, data=SEGMENT),
    first=1,
    last=5,
    first_position=10,
    last_position=16,
    first_recorded=MOMENT + 10,
    last_recorded=MOMENT + 16,
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
    sequence=5,
    chain=ITEM.chain,
    position=16,
    recorded_at=MOMENT + 16,
    first_sequence=1,
    horizon=3 << 32 | 1,
    created_at=MOMENT + 99,
    levels=((ITEM,),),
    types=TypesRef(name_content(BLOB, 3 << 32, data=TYPES), 1, 1),
    snapshots=(SnapshotRef(name_content(SNAPSHOT, 5, data=b"manifest"), 5, 16, MOMENT + 16, 1234),),
    branches=(Branch(0, 2, sha256(b"chain").digest(), 5, 5, ((ITEM,),)),),
)


def test_pinned_segment_is_read() -> None:
    found = decode_segment(SEGMENT)
    assert list(found.records) == RECORDS
    assert make_item(found.header, SEGMENT) == ITEM


def test_a_segment_is_written_as_pinned() -> None:
    data, _ = encode_records(RECORDS)
    length = struct.unpack(">I", SEGMENT[8:12])[0]
    # Another release of zstd may compress to other bytes; what is before them may not change.
    assert data[: 12 + length] == SEGMENT[: 12 + length]
    assert zstandard.decompress(data[12 + length :]).hex() == PINNED["body"]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def sized(text: str) -> bytes:
    return number(len(text.encode())) + text.encode()


def hash_message(
    message: Any, position: int, recorded: int, links: list[tuple[int, bytes]]
) -> bytes:
    """The record's hash, from the description alone."""
    key = message.idempotency_key if message.HasField("idempotency_key") else None
    body = sha256(
        b"oplog/v1/record-body\0"
        + number(message.format)
        + message.record_id
        + sized(message.key_id)
        + number(len(message.metadata))
        + b"".join(sized(pair.key) + sized(pair.value) for pair in message.metadata)
        + (b"\0" if key is None else b"\1" + sized(key))
        + number(len(message.aggregates))
        + b"".join(map(sized, message.aggregates))
        + number(len(message.parts))
        + b"".join(number(part.first) + sha256(part.data).digest() for part in message.parts)
    ).digest()
    moment = recorded - SECONDS_TO_2000 * 1_000_000
    hashed = b"oplog/v1/record\0" + body + struct.pack(">qq", position, moment)
    if any(version != 1 for version, _ in links):
        hashed += b"".join(struct.pack(">q", version) for version, _ in links)
        hashed += b"".join(prev_hash for version, prev_hash in links if version != 1)
    return sha256(hashed).digest()


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
    place = position = recorded = 0
    sequence = header["first"]
    hashes: dict[str, bytes] = {}
    altered = []
    while place < len(body):
        size = int.from_bytes(body[place : place + 4], "big")
        message = archive_pb2.ArchivedRecord.FromString(body[place + 4 : place + 4 + size])
        place += 4 + size
        position += message.position_step
        recorded += message.recorded_step
        given = {one.aggregate: one.hash for one in message.prev_hashes}
        versions = list(message.versions) or [1] * len(message.aggregates)
        links = []
        for at, (name, version) in enumerate(zip(message.aggregates, versions, strict=True)):
            if at not in given:
                given[at] = bytes(32) if version == 1 else hashes[name]
            links.append((version, given[at]))
        record_hash = message.record_hash
        if message.HasField("record_hash"):
            altered.append(sequence)
        else:
            record_hash = hash_message(message, position, recorded, links)
        hashes |= dict.fromkeys(message.aggregates, record_hash)
        chain = sha256(
            b"oplog/v1/sequence\0" + chain + struct.pack(">qq", sequence, position) + record_hash
        ).digest()
        sequence += 1
    assert (chain.hex(), sequence - 1) == (header["chain"], header["last"])
    assert altered == [4]


def test_node_of_the_index() -> None:
    second = replace(ITEM, first=6, last=9, path=name_content(LOG, 6, data=b""), adopted=True)
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
    assert shape.change == SchemaChange(
        previous=3, fills={2: None}, rewritten=frozenset({1}), labels={2: {"ada": "bo"}}
    )
    # The descriptor is bytes of protobuf's own making: only these very ones are pinned.
    assert encode_types(LoggedTypes([shape], found.key_checks)) == TYPES


def test_head() -> None:
    assert HEAD.encode().decode() == PINNED["head"]
    assert decode_head(PINNED["head"].encode(), what="it") == HEAD
    document = json.loads(PINNED["head"])
    digest = document.pop("sha256")
    assert sha256(encode_document(document)).hexdigest() == digest


SEEDS = (Secret(bytes(range(32))), Secret(bytes(range(32, 64))))
OLD, NEW = (derive_public_key(seed) for seed in SEEDS)
ROTATED = replace(HEAD, endorsements=(Endorsement(OLD, NEW, sign_successor(SEEDS[0], NEW)),))
SIGNED = sign_head(ROTATED, NEW, lambda document: crypto_sign_head(SEEDS[1], document))


def test_signed_head() -> None:
    assert SIGNED.encode().decode() == PINNED["signed_head"]
    assert decode_head(PINNED["signed_head"].encode(), what="it") == SIGNED


def test_the_signatures_by_the_description_alone() -> None:
    document = json.loads(PINNED["signed_head"])
    digest = document.pop("sha256")
    assert sha256(encode_document(document)).hexdigest() == digest
    signature = bytes.fromhex(document.pop("signature"))
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    verify(document["publisher"], signature, b"oplog/v1/head\0" + text.encode())
    (link,) = document["endorsements"]
    assert link["publisher"] == document["publisher"]
    keys = bytes.fromhex(link["by"]) + bytes.fromhex(link["publisher"])
    verify(link["by"], bytes.fromhex(link["signature"]), b"oplog/v1/publisher\0" + keys)


def verify(public_key: str, signature: bytes, message: bytes) -> None:
    """Raises unless it is signed."""
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, message)


def test_names() -> None:
    assert name_head(7) == "HEAD/0000000000000007"
    assert name_pin("before-2.0") == "PIN/before-2.0"
    assert name_content(BLOB, 3 << 32 | 9, data=b"") == (
        "BLOB/0000000300000009-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert start_chain(LOG_ID).hex() == PINNED["chain_of_nothing"]
