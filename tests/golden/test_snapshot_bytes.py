"""The exact bytes of a snapshot's chunk and manifest, format 1.

Archives hold these for ever. When a test here fails, the code is wrong, not the data.
"""

from __future__ import annotations

import json
import struct
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest

from oplog.archive.format.manifest import (
    ChunkRef,
    ColumnType,
    Dataset,
    NumberedColumn,
    SequenceState,
    SnapshotManifest,
    decode_manifest,
    encode_manifest,
)
from oplog.archive.format.path import BLOB, name_content
from oplog.archive.format.snapshot_chunk import ChunkContent, PartSeal, decode_chunk, encode_chunk
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import SealContext, Sealer

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data"
PINNED = json.loads((DATA / "snapshot_v1.json").read_text(encoding="utf-8"))
LOG_ID = UUID("11111111-2222-4333-8444-555555555555")
CHUNK_ID = UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
CONTENT = ChunkContent(
    "public",
    "Größe",
    ("id", "value"),
    ("id",),
    rows="1\tä\\tb\n2\t\\N\n".encode(),
    tombstones=b"7\n-8\n",
)
RAW_BYTES = len(CONTENT.rows) + len(CONTENT.tombstones)
CHUNK = bytes.fromhex(PINNED["chunk"])
MANIFEST = SnapshotManifest(
    log_id=LOG_ID,
    generation=2,
    sequence=300,
    chain=sha256(b"chain").digest(),
    position=311,
    recorded_at=1_700_000_000_123_456,
    mint=(5 << 32) | 9,
    revisions=("ae1027a6acf", "b0"),
    sequences=(
        SequenceState(
            "public", "size_id_seq", NumberedColumn("public", "Größe", "id"), 8, is_called=True
        ),
        SequenceState("public", "free", None, -1, is_called=False),
    ),
    tables=(
        Dataset(
            "public",
            "Größe",
            ("size",),
            (3,),
            (ColumnType("id", "integer"), ColumnType("value", "text")),
            ("id",),
            rows=4,
            base=(ChunkRef(f"BLOB/{1:016x}-{'0' * 64}", 4, 0, 40, 30),),
            layers=(
                (
                    ChunkRef(
                        name_content(BLOB, (5 << 32) | 8, data=CHUNK), 2, 2, len(CHUNK), RAW_BYTES
                    ),
                ),
            ),
        ),
    ),
    heads=Dataset(
        "oplog",
        "oplog_head",
        (),
        (),
        (ColumnType("aggregate_name", "text"), ColumnType("version", "bigint")),
        ("aggregate_name",),
        rows=0,
    ),
)


def seal_plain(sealer: Sealer) -> PartSeal:
    return PartSeal(sealer.format, sealer.key_id, sealer.seal)


def test_chunk_bytes() -> None:
    sealer = Sealer(None)
    data = encode_chunk(CONTENT, log_id=LOG_ID, chunk_id=CHUNK_ID, seal=seal_plain(sealer))
    assert data.hex() == PINNED["chunk"]
    found = decode_chunk(CHUNK, what="the pinned chunk")
    assert b"".join(found.iterate_rows(sealer.open)) == CONTENT.rows
    assert b"".join(found.iterate_tombstones(sealer.open)) == CONTENT.tombstones


def test_chunk_layout_is_the_documented_one() -> None:
    magic, length = struct.unpack(">8sI", CHUNK[:12])
    assert magic == b"oplogsnp"
    header = json.loads(CHUNK[12 : 12 + length])
    assert list(header) == sorted(header)
    body = CHUNK[12 + length :]
    assert len(body) == sum(header["stored"])
    # Plain: a frame is 0 for uncompressed, the length in 4 bytes, and the text.
    assert body == b"".join(
        b"\0" + struct.pack(">I", len(text)) + text for text in (CONTENT.tombstones, CONTENT.rows)
    )


def test_parts_are_sealed_for_the_documented_context() -> None:
    seen: list[SealContext] = []

    def seal(payload: bytes, context: SealContext) -> bytes:
        seen.append(context)
        return payload

    encode_chunk(CONTENT, log_id=LOG_ID, chunk_id=CHUNK_ID, seal=PartSeal(1, "k1", seal))
    header = json.loads(CHUNK[12 : 12 + struct.unpack(">I", CHUNK[8:12])[0]])
    del header["stored"], header["seal_format"]
    header["key_id"] = "k1"
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    for place, context in enumerate(seen):
        whole = b"oplog/v1/snapshot\0" + struct.pack(">I", len(text)) + text
        digest = sha256(whole + struct.pack(">I", place)).digest()
        assert context == SealContext(LOG_ID, "chunk of public.Größe", UUID(bytes=digest[:16]))


def test_the_pinned_sealed_chunk_opens(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    path.write_text(PINNED["keyring"])
    path.chmod(0o600)
    sealer = Sealer(Keyring.from_file(path))
    found = decode_chunk(bytes.fromhex(PINNED["sealed_chunk"]), what="the pinned chunk")
    assert b"".join(found.iterate_rows(sealer.open)) == CONTENT.rows
    assert b"".join(found.iterate_tombstones(sealer.open)) == CONTENT.tombstones


def test_manifest_bytes() -> None:
    pinned = PINNED["manifest"].encode()
    assert encode_manifest(MANIFEST) == pinned
    assert decode_manifest(pinned, what="the pinned manifest") == MANIFEST
