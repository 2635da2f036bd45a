"""Segments: entries come back as they were, altered ones too; anything else is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format import segment as segments
from oplog.archive.format.body import MAX_ENTRIES, Pairs
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.container import compress, decode_container, encode_container
from oplog.archive.format.segment import MAGIC, Segment, decode_segment, extend_chain
from oplog.errors import ManifestInvalidError, SegmentCorruptError
from oplog.store.rows import StoredEntry
from tests.archived import LOG_ID, encode_entries, logs, make_entries, make_entry

pytestmark = pytest.mark.unit

Log = tuple[list[StoredEntry], dict[int, Pairs]]
BIGGEST = (1 << 64) - 1


def decodes(data: bytes) -> Segment | None:
    """Whether bytes are a segment; any other error than the two fails the test."""
    try:
        return decode_segment(data, what="LOG/x")
    except (SegmentCorruptError, ManifestInvalidError) as error:
        assert "LOG/x" in str(error)  # noqa: PT017 - either error names the object
        return None


def rewrap(data: bytes, *, body: bytes | None = None, **header: Any) -> bytes:
    """The segment with another header or body, in a form that is right by itself."""
    found = decode_container(data, MAGIC, what="it")
    packed = found.body if body is None else compress(body)
    size = {} if body is None else {"body_bytes": len(body)}
    return encode_container(MAGIC, json.loads(found.header) | size | header, body=packed)


def unpack(data: bytes) -> bytes:
    return zstandard.decompress(decode_container(data, MAGIC, what="it").body)


@given(logs(), st.integers(0, 5))
def test_entries_come_back_as_they_were(log: Log, missing: int) -> None:
    entries, metadata = log
    data, header = encode_entries(entries, metadata, first=7, missing=missing)
    found = decode_segment(data)
    assert list(found.entries) == entries
    assert found.metadata == metadata
    assert found.header == header
    assert (header.first, header.last, header.missing) == (7, 6 + len(entries), missing)
    assert header.chain == extend_chain(header.chain_before, entries, first=7)
    assert encode_entries(entries, metadata, first=7, missing=missing)[0] == data


@given(logs(), st.data())
def test_two_pieces_chain_to_what_one_does(log: Log, data: st.DataObject) -> None:
    entries, metadata = log
    cut = data.draw(st.integers(0, len(entries) - 1))
    _, whole = encode_entries(entries, metadata)
    if cut:
        one, first = encode_entries(entries[:cut], metadata)
        two, second = encode_entries(
            entries[cut:], metadata, first=cut + 1, chain_before=first.chain
        )
        assert second.chain == whole.chain
        assert [*decode_segment(one).entries, *decode_segment(two).entries] == entries


def test_hashes_that_can_be_computed_are_left_out() -> None:
    entries = make_entries(3)
    body = unpack(encode_entries(entries)[0])
    assert not [e for e in entries if e.entry_hash in body or e.metadata_hash in body]
    altered = [entries[0], entries[1]._replace(data=b"other"), entries[2]]
    body = unpack(encode_entries(altered)[0])
    assert [e.entry_hash in body for e in entries] == [False, True, False]


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("column", ["transaction_id", "transaction_size"])
def test_an_altered_row_keeps_its_own_transaction(place: int, column: str) -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    transaction = {"transaction_position": 1, "transaction_size": 3, "transaction_id": 9}
    entries = [make_entry(n, heads, pairs=[("a", "b")], **transaction) for n in (1, 2, 3)]
    altered: dict[str, Any] = {column: 77}
    entries[place - 1] = entries[place - 1]._replace(**altered)
    data, header = encode_entries(entries, {1: [("a", "b")]})
    found = decode_segment(data)
    assert list(found.entries) == entries
    assert (found.metadata, header.transactions) == ({1: [("a", "b")]}, 1)


# -- what the header claims ---------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"last": 5},
        {"last": 3},
        {"first": 2},
        {"first": 2, "last": 5},
        {"transactions": 3},
        {"transactions": 5},
        {"first_position": 2},
        {"last_position": 3},
        {"last_position": 5},
        {"first_recorded": 0},
        {"last_recorded": 0},
        {"chain": "00" * 32},
        {"chain_before": "00" * 32},
        {"body_bytes": 0},
        {"body_bytes": 1},
        {"body_bytes": segments.MAX_BODY_BYTES},
        {"body_bytes": segments.MAX_BODY_BYTES + 1},
        {"format": 2},
        {"log": "x"},
        {"log": LOG_ID.hex},
        {"log": f"{{{LOG_ID}}}"},
        {"first": 0},
        {"last": (1 << 63) - 1},
        {"generation": -1},
        {"missing": -1},
        {"adopted": 1},
        {"adopted": 2},
        {"adopted": False},
        {"new": 1},
    ],
    ids=str,
)
def test_a_header_that_claims_something_else_is_refused(header: dict[str, Any]) -> None:
    data = encode_entries(make_entries(4))[0]
    assert decodes(rewrap(data)) is not None
    assert decodes(rewrap(data, **header)) is None


@pytest.mark.parametrize("entries", [make_entries(3), make_entries(5)], ids=["less", "more"])
def test_a_body_with_other_entries_than_claimed_is_refused(entries: list[StoredEntry]) -> None:
    data = encode_entries(make_entries(4))[0]
    assert decodes(rewrap(data, body=unpack(encode_entries(entries)[0]))) is None


def test_entries_over_those_claimed_are_not_even_parsed() -> None:
    data = encode_entries(make_entries(2), first=7)[0]
    with pytest.raises(SegmentCorruptError, match="holds more than its segment claims"):
        decode_segment(rewrap(data, body=unpack(encode_entries(make_entries(3))[0])))


def test_a_header_without_a_member_is_refused() -> None:
    data = encode_entries(make_entries(1))[0]
    found = decode_container(data, MAGIC, what="it")
    whole = json.loads(found.header)
    for name in whole:
        less = {key: value for key, value in whole.items() if key != name}
        assert decodes(encode_container(MAGIC, less, body=found.body)) is None, name


@pytest.mark.parametrize("length", [0, 1, (1 << 20) + 1, (1 << 31) - 1, (1 << 32) - 1])
def test_a_length_of_the_header_that_is_not_its_own(length: int) -> None:
    data = encode_entries(make_entries(2))[0]
    assert decodes(data[:8] + struct.pack(">I", length) + data[12:]) is None


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SegmentCorruptError, match="to be written"):
        encode_container(MAGIC, {"text": "x" * (1 << 20)}, body=b"")
    monkeypatch.setattr(segments, "MAX_BODY_BYTES", 100)
    with pytest.raises(SegmentCorruptError, match="to be written"):
        encode_entries(make_entries(9))


def test_a_segment_at_a_limit_is_written_and_read_and_one_over_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    entries = [make_entry(n, heads, pairs=[], data=b"x" * 999) for n in (1, 2, 3)]
    data = encode_entries(entries)[0]
    limits = (("MAX_BODY_BYTES", len(unpack(data))), ("MAX_ENTRIES", len(entries)))
    for name, limit in limits:
        with monkeypatch.context() as patch:
            patch.setattr(segments, name, limit)
            assert encode_entries(entries)[0] == data
            assert decodes(data) is not None
            patch.setattr(segments, name, limit - 1)
            with pytest.raises(SegmentCorruptError, match="to be written"):
                encode_entries(entries)
            assert decodes(data) is None


# -- hostile bytes ------------------------------------------------------------------------


def test_every_truncation_is_refused() -> None:
    data = encode_entries(make_entries(3))[0]
    assert [n for n in range(len(data)) if decodes(data[:n]) is not None] == []
    assert decodes(data + b"\0") is None
    assert decodes(data + data) is None


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    data, header = encode_entries(make_entries(3))
    chains = set()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        found = decodes(bytes(flipped))
        chains |= {found.header.chain} if found else set()
    # What is bound by no hash inside shows by the object's own, before it is decoded.
    assert chains <= {header.chain}


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert decodes(data) is None
    assert decodes(MAGIC + data) is None
    good = encode_entries(make_entries(2))[0]
    assert decodes(rewrap(good, body=data)) is None
    framed = struct.pack(">I", len(data)) + data
    assert decodes(rewrap(good, body=framed)) is None


@given(logs(), st.data())
def test_altered_bodies_are_refused_or_read(log: Log, data: st.DataObject) -> None:
    good = encode_entries(*log)[0]
    body = bytearray(unpack(good))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    decodes(rewrap(good, body=bytes(body)))


EDGES = st.sampled_from((0, 1, (1 << 31) - 1, (1 << 63) - 1, 1 << 63, BIGGEST))
STEPS = st.sampled_from((0, 1, -1, (1 << 63) - 1, -(1 << 63), 1 << 40))


@st.composite
def transactions(draw: st.DrawFn) -> archive_pb2.ArchivedTransaction:
    """What parses, with values at the edges of their fields."""
    group = archive_pb2.ArchivedTransaction(
        transaction_id=draw(EDGES),
        transaction_position=draw(EDGES),
        transaction_size=draw(EDGES) & 0xFFFFFFFF,
    )
    for key in draw(st.lists(st.sampled_from(("", "a", "\0")), max_size=2)):
        group.metadata.add(key=key, value=key)
    if draw(st.booleans()):
        group.metadata_hash = draw(st.sampled_from((b"", bytes(32), bytes(33))))
    for _ in range(draw(st.integers(0, 3))):
        entry = group.entries.add(
            entry_id=draw(st.sampled_from((bytes(16), bytes(16), b"", bytes(17)))),
            position_step=draw(STEPS),
            recorded_step=draw(STEPS),
            aggregate=draw(st.sampled_from(("", "a", "\0"))),
            version=draw(EDGES),
            format=draw(EDGES) & 0xFFFFFFFF,
        )
        for name in ("prev_hash", "entry_hash", "metadata_hash"):
            if draw(st.booleans()):
                setattr(entry, name, draw(st.sampled_from((b"", bytes(32), bytes(32)))))
    return group


@given(st.lists(transactions(), min_size=1, max_size=3))
def test_values_at_the_edges_are_refused(groups: Sequence[archive_pb2.ArchivedTransaction]) -> None:
    body = b""
    for group in groups:
        message = group.SerializeToString()
        body += struct.pack(">I", len(message)) + message
    count = sum(len(group.entries) for group in groups)
    good = encode_entries(make_entries(max(count, 1)))[0]
    numbers = {group.transaction_position for group in groups if group.entries}
    decodes(rewrap(good, body=body, transactions=max(len(numbers), 1)))


def test_positions_that_no_column_holds_are_refused() -> None:
    # Each step fits its field, and both together do not fit the chain's eight bytes.
    group = archive_pb2.ArchivedTransaction(transaction_position=1, transaction_size=2)
    for number in (1, 2):
        group.entries.add(
            entry_id=UUID(int=number).bytes,
            position_step=(1 << 63) - 1,
            aggregate="a",
            version=1,
            format=1,
        )
    message = group.SerializeToString()
    good = encode_entries(make_entries(2))[0]
    body = struct.pack(">I", len(message)) + message
    assert decodes(rewrap(good, body=body, transactions=1)) is None


def test_metadata_of_a_transaction_begun_earlier_is_refused() -> None:
    data = encode_entries(make_entries(1))[0]
    group = archive_pb2.ArchivedTransaction.FromString(unpack(data)[4:])
    group.metadata.add(key="actor", value="eve")
    group.metadata_hash = bytes(32)
    message = group.SerializeToString()
    with pytest.raises(SegmentCorruptError, match="has metadata and was begun"):
        decode_segment(rewrap(data, body=struct.pack(">I", len(message)) + message))


def test_a_transaction_without_entries_is_refused() -> None:
    data = encode_entries(make_entries(1))[0]
    with pytest.raises(SegmentCorruptError, match="holds no entry"):
        decode_segment(rewrap(data, body=unpack(data) + bytes(4)))


BOMBS = """
import resource, sys
from pathlib import Path
from oplog.archive.format.segment import decode_segment
from oplog.errors import ManifestInvalidError, SegmentCorruptError
names = sorted(Path(sys.argv[1]).iterdir())
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
for name in names:
    try:
        decode_segment(name.read_bytes())
    except (ManifestInvalidError, SegmentCorruptError):
        print(name.name, "refused")
    except MemoryError:
        print(name.name, "took too much")
"""


def test_a_small_object_cannot_take_much_memory(tmp_path: Path) -> None:
    good = encode_entries(make_entries(1))[0]
    most = segments.MAX_BODY_BYTES
    found = decode_container(good, MAGIC, what="it")

    def wrap(body: bytes, **header: Any) -> bytes:
        return encode_container(MAGIC, json.loads(found.header) | header, body=body)

    zeros = bytes(1 << 20)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    endless = b"".join(unsized.compress(zeros) for _ in range(2048)) + unsized.flush()
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=True)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=most)
    window = b"".join(wide.compress(zeros) for _ in range(48)) + wide.flush()
    # A frame that declares 4 GiB: magic, descriptor with an 8-byte size, an empty last block.
    declared = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 32) + b"\x01\x00\x00"
    half = (most - 4) // 2

    def crowd(pair: bytes, count: int) -> bytes:
        return compress(struct.pack(">I", 2 * count) + pair * count)

    bombs = {
        "declared": wrap(declared, body_bytes=most),
        "declared_both": wrap(declared, body_bytes=1 << 32),
        "endless": wrap(endless, body_bytes=most),
        "window": wrap(window, body_bytes=most),
        "entries": wrap(crowd(b"\x2a\x00", half), body_bytes=2 * half + 4),
        "entries_claimed": wrap(
            crowd(b"\x2a\x00", half), body_bytes=2 * half + 4, last=MAX_ENTRIES
        ),
        "empty": wrap(compress(bytes(most)), body_bytes=most),
        "metadata": wrap(crowd(b"\x22\x00", half), body_bytes=2 * half + 4),
    }
    for name, data in bombs.items():
        assert len(data) < 300_000
        (tmp_path / name).write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[:-1] == [f"{name} refused" for name in sorted(bombs)]


def test_the_header_is_a_document_in_front_of_the_body() -> None:
    data, _ = encode_entries(make_entries(2))
    end = 12 + struct.unpack(">I", data[8:12])[0]
    assert json.loads(data[12:end])["last"] == 2
    assert encode_document(json.loads(data[12:end])) == data[12:end]


def test_a_segment_of_an_unknown_format_is_refused_by_its_number() -> None:
    data = encode_entries(make_entries(2))[0]
    with pytest.raises(ManifestInvalidError, match="number is 2, this library knows 1"):
        decode_segment(rewrap(data, format=2))


def test_a_segment_says_whether_rows_were_adopted() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    adopted = make_entry(3, heads, pairs=[], aggregate="adopted/account")
    data, header = encode_entries([*make_entries(2), adopted])
    assert (header.adopted, decode_segment(data).header.adopted) == (True, True)
    assert decodes(rewrap(data, adopted=0)) is None
