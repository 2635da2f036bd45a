"""Snapshot manifests: round trips, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oplog.archive.format.canonical_json import encode_document
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
from oplog.errors import ManifestInvalidError

pytestmark = pytest.mark.unit


def make_ref(number: int, *, rows: int, tombstones: int = 0) -> ChunkRef:
    return ChunkRef(f"BLOB/{number:016x}-{number:064x}", rows, tombstones, 100, 1000)


ACCOUNTS = Dataset(
    "public",
    "account",
    ("account", "konto"),
    (2, 1),
    (ColumnType("id", "integer"), ColumnType("née", "character varying(20)")),
    ("id",),
    rows=14,
    base=(make_ref(1, rows=10), make_ref(2, rows=5)),
    layers=((make_ref(3, rows=3, tombstones=2), make_ref(4, rows=0, tombstones=1)),),
)
HEADS = Dataset(
    "oplog",
    "oplog_head",
    (),
    (),
    (ColumnType("aggregate_name", "text"),),
    ("aggregate_name",),
    rows=0,
)
MANIFEST = SnapshotManifest(
    log_id=UUID(int=7),
    generation=1,
    sequence=1234,
    chain=bytes(range(32)),
    position=2345,
    recorded_at=1_700_000_000_000_000,
    mint=(3 << 32) | 5,
    revisions=("ae1027a6acf",),
    sequences=(
        SequenceState(
            "public",
            "account_id_seq",
            NumberedColumn("public", "account", "id"),
            15,
            is_called=True,
        ),
        SequenceState("public", "free", None, -1, is_called=False),
    ),
    tables=(ACCOUNTS,),
    heads=HEADS,
)
DATA = encode_manifest(MANIFEST)


def decode(data: bytes) -> SnapshotManifest:
    return decode_manifest(data, what="the manifest")


def test_round_trip() -> None:
    assert decode(DATA) == MANIFEST
    assert [int(ref.path[5:21], 16) for ref in MANIFEST.iterate_chunks()] == [1, 2, 3, 4]
    assert (ACCOUNTS.base_bytes, ACCOUNTS.layer_bytes) == (200, 200)


def test_every_flipped_bit_and_truncation_is_refused_or_means_something_else() -> None:
    for place in range(len(DATA)):
        with pytest.raises(ManifestInvalidError):
            decode(DATA[:place])
        flipped = bytearray(DATA)
        flipped[place] ^= 0x01
        try:
            found = decode(bytes(flipped))
        except ManifestInvalidError:
            continue
        assert encode_manifest(found) == bytes(flipped) != DATA


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_garbage_gives_the_right_error(data: st.DataObject) -> None:
    raw = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(start, min(len(raw), start + 30)))
        raw[start:end] = data.draw(st.binary(max_size=30) | st.sampled_from([b"{", b"[]", b"null"]))
    try:
        found = decode(bytes(raw))
    except ManifestInvalidError:
        return
    assert encode_manifest(found) == bytes(raw)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_members_of_any_kind_are_refused_or_read(data: st.DataObject) -> None:
    document: Any = json.loads(DATA)
    spot: Any = document
    while True:
        names = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        name = data.draw(st.sampled_from(names))
        inner = spot[name]
        if not inner or not isinstance(inner, dict | list) or data.draw(st.booleans()):
            break
        spot = inner
    spot[name] = data.draw(JUNK)
    try:
        raw = encode_document(document)
    except UnicodeEncodeError:
        return
    try:
        found = decode(raw)
    except ManifestInvalidError:
        return
    assert encode_manifest(found) == raw


def set_ref(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["tables"][0]["base"][0].update(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "format number is 2"),
        (lambda d: d.update(more=1), "unknown field `more`"),
        (lambda d: d.pop("mint"), "missing required field `mint`"),
        (lambda d: d.update(chain="00"), r"a SHA-256 .* at `\$\.chain`"),
        (lambda d: d.update(sequence=-1), r">= 0 - at `\$\.sequence`"),
        (lambda d: d.update(revisions=["a", "a"]), "a name twice"),
        (lambda d: d["tables"].append(dict(d["tables"][0], base=[], layers=[], rows=0)), "a table"),
        (lambda d: d["sequences"].append(d["sequences"][0]), "a sequence twice"),
        (lambda d: d["sequences"][0].update(is_called=1), "is_called"),
        (lambda d: d["tables"][0].update(rows=11), r"claims 11 rows, its chunks make 12 to 18"),
        (lambda d: d["tables"][0].update(rows=19), "claims 19 rows"),
        (
            lambda d: d["tables"][0].update(layers=[[]]),
            r"1 - at .*\.layers\[0\]`",
        ),
        (lambda d: d["tables"][0].update(key=["no"]), "not among its columns"),
        (
            lambda d: d["tables"][0].update(columns=[]),
            r"1 - at `\$\.tables\[0\]\.columns`",
        ),
        (set_ref(path="BLOB/../../etc/passwd"), "cannot name BLOB"),
        (set_ref(path=f"LOG/{1:016x}-{1:064x}"), "cannot name BLOB"),
        (set_ref(path=f"BLOB/{2:016x}-{2:064x}"), "a chunk twice"),
        (set_ref(rows=1001), "claims 1001 rows in 1000 bytes"),
        (set_ref(rows=0), "claims 0 rows"),
        (set_ref(rows=True), "got `bool`"),
        (set_ref(tombstones=1), "has tombstones"),
        (set_ref(bytes=1 << 40), r"base\[0\]\.bytes`"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = json.loads(DATA)
    change(document)
    with pytest.raises(ManifestInvalidError, match=message):
        decode(encode_document(document))


def test_what_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(ManifestInvalidError, match="claims 99 rows"):
        encode_manifest(replace(MANIFEST, tables=(replace(ACCOUNTS, rows=99),)))
