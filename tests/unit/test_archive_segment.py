"""Segments: records come back as they were, altered ones too; anything else is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format import segment as segments
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.container import compress, decode_container, encode_container
from oplog.archive.format.segment import MAGIC, Segment, decode_segment, extend_chain
from oplog.errors import ManifestInvalidError, SegmentCorruptError
from oplog.store.rows import Part, StoredRecord
from tests.archived import LOG_ID, encode_records, logs, make_record, make_records

pytestmark = pytest.mark.unit

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


@given(logs(), st.integers(1, 1 << 62))
def test_records_come_back_as_they_were(log: list[StoredRecord], first: int) -> None:
    data, header = encode_records(log, first=first)
    found = decode_segment(data)
    assert list(found.records) == log
    assert found.header == header
    assert (header.first, header.last) == (first, first + len(log) - 1)
    positions = [record.position for record in log]
    assert (header.first_position, header.last_position) == (min(positions), max(positions))
    assert header.chain == extend_chain(header.chain_before, log, first=first)
    assert encode_records(log, first=first)[0] == data


@given(logs(), st.data())
def test_two_pieces_chain_to_what_one_does(log: list[StoredRecord], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log) - 1))
    _, whole = encode_records(log)
    if cut:
        one, first = encode_records(log[:cut])
        two, second = encode_records(log[cut:], first=cut + 1, chain_before=first.chain)
        assert second.chain == whole.chain
        assert [*decode_segment(one).records, *decode_segment(two).records] == log


def test_the_chain_binds_sequence_position_hash_and_what_came_before() -> None:
    (record,) = make_records(1)
    chain = extend_chain(bytes(32), [record], first=1)
    others = {
        extend_chain(bytes(31) + b"\1", [record], first=1),
        extend_chain(bytes(32), [record], first=2),
        extend_chain(bytes(32), [record._replace(position=2)], first=1),
        extend_chain(bytes(32), [record._replace(record_hash=bytes(32))], first=1),
    }
    assert len(others - {chain}) == 4


def test_hashes_that_can_be_computed_are_left_out() -> None:
    records = make_records(3)
    body = unpack(encode_records(records)[0])
    assert not [record for record in records if record.record_hash in body]
    altered = [records[0], records[1]._replace(parts=(Part(0, b"other"),)), records[2]]
    body = unpack(encode_records(altered)[0])
    assert [record.record_hash in body for record in records] == [False, True, False]


# -- what the header claims ---------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"last": 5},
        {"last": 3},
        {"first": 2},
        {"first": 2, "last": 5},
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
        {"adopted": 1},
        {"adopted": 2},
        {"adopted": False},
        {"new": 1},
    ],
    ids=str,
)
def test_a_header_that_claims_something_else_is_refused(header: dict[str, Any]) -> None:
    data = encode_records(make_records(4))[0]
    assert decodes(rewrap(data)) is not None
    assert decodes(rewrap(data, **header)) is None


@pytest.mark.parametrize("records", [make_records(3), make_records(5)], ids=["less", "more"])
def test_a_body_with_other_records_than_claimed_is_refused(records: list[StoredRecord]) -> None:
    data = encode_records(make_records(4))[0]
    assert decodes(rewrap(data, body=unpack(encode_records(records)[0]))) is None


def test_records_over_those_claimed_are_not_even_parsed() -> None:
    data = encode_records(make_records(2), first=7)[0]
    with pytest.raises(SegmentCorruptError, match="holds more than the 2 records that it claims"):
        decode_segment(rewrap(data, body=unpack(encode_records(make_records(3))[0])))


def test_a_header_without_a_member_is_refused() -> None:
    data = encode_records(make_records(1))[0]
    found = decode_container(data, MAGIC, what="it")
    whole = json.loads(found.header)
    for name in whole:
        less = {key: value for key, value in whole.items() if key != name}
        assert decodes(encode_container(MAGIC, less, body=found.body)) is None, name


@pytest.mark.parametrize("length", [0, 1, (1 << 20) + 1, (1 << 31) - 1, (1 << 32) - 1])
def test_a_length_of_the_header_that_is_not_its_own(length: int) -> None:
    data = encode_records(make_records(2))[0]
    assert decodes(data[:8] + struct.pack(">I", length) + data[12:]) is None


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SegmentCorruptError, match="to be written"):
        encode_container(MAGIC, {"text": "x" * (1 << 20)}, body=b"")
    monkeypatch.setattr(segments, "MAX_BODY_BYTES", 100)
    with pytest.raises(SegmentCorruptError, match="to be written"):
        encode_records(make_records(9))


def test_a_segment_at_a_limit_is_written_and_read_and_one_over_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = make_records(3, parts=(Part(0, b"x" * 999),))
    data = encode_records(records)[0]
    limits = (("MAX_BODY_BYTES", len(unpack(data))), ("MAX_RECORDS", len(records)))
    for name, limit in limits:
        with monkeypatch.context() as patch:
            patch.setattr(segments, name, limit)
            assert encode_records(records)[0] == data
            assert decodes(data) is not None
            patch.setattr(segments, name, limit - 1)
            with pytest.raises(SegmentCorruptError, match="to be written"):
                encode_records(records)
            assert decodes(data) is None


# -- hostile bytes ------------------------------------------------------------------------


def test_every_truncation_is_refused() -> None:
    data = encode_records(make_records(3))[0]
    assert [n for n in range(len(data)) if decodes(data[:n]) is not None] == []
    assert decodes(data + b"\0") is None
    assert decodes(data + data) is None


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    data, header = encode_records(make_records(3))
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
    good = encode_records(make_records(2))[0]
    assert decodes(rewrap(good, body=data)) is None
    framed = struct.pack(">I", len(data)) + data
    assert decodes(rewrap(good, body=framed)) is None


@given(logs(), st.data())
def test_altered_bodies_are_refused_or_read(log: list[StoredRecord], data: st.DataObject) -> None:
    good = encode_records(log)[0]
    body = bytearray(unpack(good))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    decodes(rewrap(good, body=bytes(body)))


EDGES = st.sampled_from((0, 1, (1 << 31) - 1, (1 << 63) - 1, 1 << 63, BIGGEST))
STEPS = st.sampled_from((0, 1, -1, (1 << 63) - 1, -(1 << 63), 1 << 40))


@st.composite
def messages(draw: st.DrawFn) -> archive_pb2.ArchivedRecord:
    """What parses, with values at the edges of their fields."""
    message = archive_pb2.ArchivedRecord(
        position_step=draw(STEPS),
        record_id=draw(st.sampled_from((b"", bytes(16), bytes(17)))),
        transaction_id=draw(EDGES),
        format=draw(EDGES) & 0xFFFFFFFF,
        key_id=draw(st.sampled_from(("", "k1", "\0"))),
        recorded_step=draw(STEPS),
        aggregates=draw(st.lists(st.sampled_from(("", "a", "b", "\0")), max_size=3)),
        versions=draw(st.lists(EDGES, max_size=3)),
    )
    for key in draw(st.lists(st.sampled_from(("", "a", "\0")), max_size=2)):
        message.metadata.add(key=key, value=key)
    for number in draw(st.lists(st.sampled_from((0, 1, 2, 0xFFFFFFFF)), max_size=3)):
        message.prev_hashes.add(
            aggregate=number, hash=draw(st.sampled_from((b"", bytes(32), bytes(33))))
        )
    for number in draw(st.lists(st.sampled_from((0, 1, 0xFFFFFFFF)), max_size=2)):
        message.parts.add(first=number, data=b"x")
    if draw(st.booleans()):
        message.idempotency_key = draw(st.sampled_from(("", "\0")))
    if draw(st.booleans()):
        message.record_hash = draw(st.sampled_from((b"", bytes(32), bytes(33))))
    return message


def frame(*found: archive_pb2.ArchivedRecord) -> bytes:
    written = [one.SerializeToString() for one in found]
    return b"".join(struct.pack(">I", len(one)) + one for one in written)


@given(st.lists(messages(), min_size=1, max_size=3))
def test_values_at_the_edges_are_refused(found: Sequence[archive_pb2.ArchivedRecord]) -> None:
    good = encode_records(make_records(len(found)))[0]
    decodes(rewrap(good, body=frame(*found)))


def test_positions_that_no_column_holds_are_refused() -> None:
    # Each step fits its field, and both together do not fit the chain's eight bytes.
    step = (1 << 63) - 1
    given_ = [
        archive_pb2.ArchivedRecord(
            record_id=UUID(int=number).bytes,
            position_step=step,
            aggregates=["a"],
            format=1,
            record_hash=bytes(32),
        )
        for number in (1, 2)
    ]
    data, header = encode_records(make_records(2))
    with pytest.raises(SegmentCorruptError, match="its records cannot be read"):
        decode_segment(rewrap(data, body=frame(*given_)))
    # The first alone is a record as good as any other.
    alone = rewrap(
        data,
        body=frame(given_[0]),
        last=1,
        first_position=step,
        last_position=step,
        first_recorded=0,
        last_recorded=0,
        chain=_chain_one(header.chain_before, step).hex(),
    )
    assert decode_segment(alone).records[0].position == step


def _chain_one(before: bytes, position: int) -> bytes:
    return sha256(
        b"oplog/v1/sequence\0" + before + struct.pack(">qq", 1, position) + bytes(32)
    ).digest()


def test_the_header_is_a_document_in_front_of_the_body() -> None:
    data, _ = encode_records(make_records(2))
    end = 12 + struct.unpack(">I", data[8:12])[0]
    assert json.loads(data[12:end])["last"] == 2
    assert encode_document(json.loads(data[12:end])) == data[12:end]


def test_a_segment_of_an_unknown_format_is_refused_by_its_number() -> None:
    data = encode_records(make_records(2))[0]
    with pytest.raises(ManifestInvalidError, match="number is 2, this library knows 1"):
        decode_segment(rewrap(data, format=2))


def test_a_segment_says_whether_rows_were_adopted() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    adopted = make_record(3, heads, aggregates=("account/1", "adopted/account"))
    data, header = encode_records([*make_records(2), adopted])
    assert (header.adopted, decode_segment(data).header.adopted) == (True, True)
    assert decodes(rewrap(data, adopted=0)) is None
