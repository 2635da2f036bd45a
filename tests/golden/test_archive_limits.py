"""The limits of the archive's format; most are on its page (docs/reference/archive-format.md).

A reader that takes less refuses archives that exist. A writer that makes more makes archives
that other readers refuse.
"""

from __future__ import annotations

import pytest

from oplog.archive.format import (
    body,
    canonical_json,
    container,
    head,
    index,
    manifest,
    segment,
    snapshot_chunk,
)
from oplog.entry import MAX_RECORD_BYTES

pytestmark = pytest.mark.golden

KIB, MIB = 1 << 10, 1 << 20


def test_documents() -> None:
    assert canonical_json.MAX_DOCUMENT_BYTES == 64 * MIB
    assert canonical_json.MAX_DEPTH == 16
    assert canonical_json.MAX_INTEGER == (1 << 63) - 1


def test_containers() -> None:
    assert container.MAX_HEADER_BYTES == MIB
    assert container.MAX_OBJECT_BYTES == 260 * MIB


def test_segments() -> None:
    assert segment.MAX_BODY_BYTES == 256 * MIB
    assert body.MAX_RECORDS == 1_000_000
    assert body.MAX_ITEMS == 4_000_000
    assert body.MAX_PARTS == 65_536
    assert body.MAX_PAIRS == 100_000


def test_the_largest_record_fits_beside_a_full_segment() -> None:
    # Parts of one record: plaintext, and what sealing adds to each.
    sealed = MAX_RECORD_BYTES + body.MAX_PARTS * 128
    # Names, metadata, versions and hashes of one record.
    clear = 96 * MIB
    # 16 MiB are what publishing puts into a segment.
    assert 16 * MIB + sealed + clear <= segment.MAX_BODY_BYTES
    # What does not compress becomes larger by a 256th at most.
    most = segment.MAX_BODY_BYTES * 257 // 256
    assert most + container.MAX_HEADER_BYTES < container.MAX_OBJECT_BYTES


def test_the_tree_of_segments() -> None:
    assert index.FANOUT == 16
    assert index.MAX_LEVELS == 12
    assert index.MAX_NODE_BYTES == 64 * KIB


def test_heads() -> None:
    assert head.MAX_HEAD_BYTES == MIB
    assert (head.MAX_SNAPSHOTS, head.MAX_BRANCHES) == (1000, 100)


def test_snapshots() -> None:
    assert manifest.MAX_MANIFEST_BYTES == 64 * MIB
    assert manifest.MAX_CHUNKS == 1_000_000
    assert manifest.MAX_LAYERS == 64
    assert (snapshot_chunk.PART_BYTES, snapshot_chunk.MAX_PARTS) == (15 * MIB, 128)
    assert (snapshot_chunk.MAX_COLUMNS, snapshot_chunk.MAX_KEY_COLUMNS) == (1600, 32)
