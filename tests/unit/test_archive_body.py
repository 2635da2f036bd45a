"""Bodies of segments, message by message: what is left out, what is computed, what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format import body as bodies
from oplog.archive.format.body import decode_body, encode_body
from oplog.crypto.hashing import ZERO_HASH
from oplog.errors import DecodeError, SegmentCorruptError
from oplog.store.rows import Part, StoredRecord, compute_hash
from tests.archived import MOMENT, make_record, make_records, seal_record

pytestmark = pytest.mark.unit

PLENTY = 1_000_000
PAIR, AGGREGATE, VERSIONS, PREV_HASH, PART = 0x3A, 0x4A, 0x52, 0x5A, 0x62
REPEATED = (PAIR, AGGREGATE, PREV_HASH, PART)
SINGLE = (0x08, 0x12, 0x18, 0x20, 0x2A, 0x30, 0x42, VERSIONS, 0x6A)


def frame(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def write(*records: StoredRecord) -> bytes:
    return b"".join(encode_body(records))


def parse(body: bytes) -> list[archive_pb2.ArchivedRecord]:
    found = []
    while body:
        length = int.from_bytes(body[:4], "big")
        found.append(archive_pb2.ArchivedRecord.FromString(body[4 : 4 + length]))
        body = body[4 + length :]
    return found


def read(body: bytes, *, most: int = PLENTY) -> list[StoredRecord]:
    return decode_body(body, "LOG/x", most=most)


def refused(body: bytes, *, most: int = PLENTY) -> str:
    with pytest.raises(SegmentCorruptError, match=r"LOG/x is not") as caught:
        decode_body(body, "LOG/x", most=most)
    return str(caught.value)


def make_message(number: int = 1, **given: Any) -> archive_pb2.ArchivedRecord:
    """A record with the first version of one aggregate, one position on."""
    values: dict[str, Any] = {
        "record_id": UUID(int=number).bytes,
        "position_step": 1,
        "aggregates": [f"account/{number}"],
        "format": 1,
    }
    return archive_pb2.ArchivedRecord(**values | given)


def write_message(*messages: archive_pb2.ArchivedRecord) -> bytes:
    return b"".join(frame(one.SerializeToString(deterministic=True)) for one in messages)


GOOD = make_message().SerializeToString(deterministic=True)


# -- what is written ----------------------------------------------------------------------


def test_nothing_is_nothing() -> None:
    assert write() == b""
    assert read(b"", most=0) == []


def test_a_record_is_one_message() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    pairs = (("actor", "ada"), ("actor", "bob"))
    parts = (Part(0, b"one"), Part(1, b"two"))
    records = [
        make_record(
            1,
            heads,
            aggregates=("account/1", "account/2"),
            metadata=pairs,
            parts=parts,
            idempotency_key="",
            transaction_id=9,
        ),
        make_record(4, heads, aggregates=("account/3",)),
        make_record(2, heads, aggregates=("account/3",)),
    ]
    body = write(*records)
    first, second, third = parse(body)
    assert [(pair.key, pair.value) for pair in first.metadata] == list(pairs)
    assert [(part.first, part.data) for part in first.parts] == list(parts)
    assert list(first.aggregates) == ["account/1", "account/2"]
    assert (first.transaction_id, first.format, first.key_id) == (9, 1, "k1")
    assert UUID(bytes=first.record_id) == records[0].record_id
    assert [one.position_step for one in (first, second, third)] == [1, 3, -2]
    assert [one.recorded_step for one in (first, second, third)] == [MOMENT + 1, 3, -2]
    # An empty key is a key.
    assert [one.HasField("idempotency_key") for one in (first, second)] == [True, False]
    assert read(body, most=3) == records


def test_versions_are_left_out_if_all_are_1() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    records = [
        make_record(1, heads, aggregates=("a", "b")),
        make_record(2, heads, aggregates=("a", "c")),
        make_record(3, heads, aggregates=("d",)),
    ]
    assert [list(one.versions) for one in parse(write(*records))] == [[], [2, 1], []]
    assert read(write(*records)) == records


def test_hashes_that_follow_from_the_rest_are_left_out() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    names = (("a", "b"), ("b", "c"), ("a", "b", "c", "d"))
    records = [make_record(n, heads, aggregates=each) for n, each in enumerate(names, 1)]
    messages = parse(write(*records))
    assert [len(one.prev_hashes) for one in messages] == [0, 0, 0]
    assert not any(one.HasField("record_hash") for one in messages)
    # Without the record before, its hash follows from nothing.
    second, third = parse(write(*records[1:]))
    assert [(one.aggregate, one.hash) for one in second.prev_hashes] == [
        (0, records[0].record_hash)
    ]
    assert [(one.aggregate, one.hash) for one in third.prev_hashes] == [(0, records[0].record_hash)]
    assert read(write(*records[1:])) == records[1:]


@pytest.mark.parametrize("given", [bytes(range(32)), b"", bytes(31), bytes(33)], ids=len)
@pytest.mark.parametrize("place", [0, 1])
def test_an_altered_hash_before_is_kept(given: bytes, place: int) -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    before = make_record(1, heads, aggregates=("a",))
    record = make_record(2, heads, aggregates=("a", "b"))
    assert record.versions == (2, 1)
    changed = list(record.prev_hashes)
    changed[place] = given
    altered = record._replace(prev_hashes=tuple(changed))
    body = write(before, altered)
    assert [one.aggregate for one in parse(body)[1].prev_hashes] == [place]
    assert read(body) == [before, altered]


def test_no_hash_at_all_before_a_later_version_is_kept() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    before, record = (make_record(n, heads) for n in (1, 2))
    altered = seal_record(record._replace(prev_hashes=(ZERO_HASH,)))
    body = write(before, altered)
    assert not parse(body)[1].HasField("record_hash")
    assert read(body) == [before, altered]


@pytest.mark.parametrize("given", [bytes(range(32)), b"", bytes(31), bytes(33)], ids=len)
def test_an_altered_hash_of_a_record_is_kept_and_is_what_the_next_one_follows(
    given: bytes,
) -> None:
    first, second = make_records(2)
    altered = first._replace(record_hash=given)
    body = write(altered, second)
    assert parse(body)[0].record_hash == given
    assert [one.hash for one in parse(body)[1].prev_hashes] == [first.record_hash]
    assert read(body) == [altered, second]
    following = seal_record(second._replace(prev_hashes=(given,)))
    assert not parse(write(altered, following))[1].prev_hashes
    assert read(write(altered, following)) == [altered, following]


@pytest.mark.parametrize(
    "changed",
    [
        {"parts": ()},
        {"parts": (Part(7, b"sealed 2"),)},
        {"parts": (Part(0, b"sealed 2"), Part(0, b""))},
        {"metadata": (("actor", "eve"),)},
        {"versions": (7,)},
        {"versions": (0,)},
        {"aggregates": ("b",)},
        {"record_id": UUID(int=9)},
        {"transaction_id": 0},
        {"format": 32767},
        {"key_id": ""},
        {"idempotency_key": ""},
        {"position": 77},
        {"aggregates": (), "versions": (), "prev_hashes": ()},
        {
            "aggregates": ("account/1", "account/1"),
            "versions": (2, 2),
            "prev_hashes": (ZERO_HASH, b""),
        },
    ],
    ids=str,
)
def test_an_altered_row_is_kept(changed: dict[str, Any]) -> None:
    first, second, third = make_records(3)
    altered = second._replace(**changed)
    assert read(write(first, altered, third)) == [first, altered, third]


def test_a_record_that_can_have_no_hash_keeps_the_one_it_has() -> None:
    (record,) = make_records(1)
    impossible = record._replace(aggregates=("a\0b",))
    assert compute_hash(impossible) is None
    assert read(write(impossible)) == [impossible]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"versions": ()}, "a version and a previous hash for each aggregate"),
        ({"versions": (1, 1)}, "a version and a previous hash for each aggregate"),
        ({"prev_hashes": ()}, "a version and a previous hash for each aggregate"),
        ({"aggregates": ("a", "b")}, "a version and a previous hash for each aggregate"),
        ({"versions": (-1,)}, "range"),
        ({"transaction_id": -1}, "range"),
        ({"format": -1}, "range"),
        ({"parts": (Part(-1, b""),)}, "range"),
        ({"position": 1 << 63}, "range"),
    ],
    ids=str,
)
def test_a_row_that_no_reader_could_take_is_refused(changed: dict[str, Any], why: str) -> None:
    record = make_records(2)[1]._replace(**changed)
    with pytest.raises(DecodeError, match=f"position {record.position} cannot be .*{why}"):
        write(record)


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"\0", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff\x4a\x00"])
def test_a_body_that_is_cut_short_is_refused(rest: bytes) -> None:
    whole = write_message(make_message())
    assert len(read(whole, most=1)) == 1
    assert "its body is cut short" in refused(rest)
    assert "its body is cut short" in refused(whole + rest)
    assert "its body is cut short" in refused(whole[:-1])


def test_more_records_than_claimed_are_refused_before_they_are_parsed() -> None:
    body = write_message(make_message(1), make_message(2), make_message(3))
    assert len(read(body, most=3)) == 3
    assert "more than the 2 records that it claims" in refused(body, most=2)
    # Parsed, these would be an error of another kind: a record without an id.
    assert "more than the 0 records that it claims" in refused(bytes(4), most=0)
    assert "more than the 1 records" in refused(write_message(make_message()) + b"\0", most=1)


def fill(tag: int, count: int) -> bytes:
    """So many items, all as small as there are: parsed, they would be another error."""
    return bytes((tag, count)) + b"\1" * count if tag == VERSIONS else bytes((tag, 0)) * count


@pytest.mark.parametrize("tag", [PAIR, AGGREGATE, VERSIONS, PREV_HASH, PART])
def test_more_items_than_a_segment_may_hold_are_refused_before_they_are_parsed(
    tag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_ITEMS", 3)
    told = f"holds more than a segment may ({tag:#04x})"
    assert told in refused(frame(fill(tag, 4)))
    # All that a body holds counts, not what a single record does.
    full = make_message(versions=[1], metadata=[{}], parts=[{}])
    full.prev_hashes.add(hash=ZERO_HASH)
    assert len(read(write_message(full, full, full))) == 3
    for records in (1, 2, 3):
        begun = write_message(*[full] * records)
        assert told in refused(begun + frame(fill(tag, 4 - records)))


@pytest.mark.parametrize(("tag", "name"), [(PAIR, "MAX_PAIRS"), (PART, "MAX_PARTS")])
def test_more_items_than_a_record_has_are_refused_before_they_are_parsed(
    tag: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, name, 2)
    two = make_message(metadata=[{}, {}], parts=[{}, {}])
    # In each record.
    assert len(read(write_message(two, two, two))) == 3
    assert "more than a segment may" in refused(frame(GOOD + fill(tag, 3)))
    assert "more than a segment may" in refused(frame(fill(tag, 3)))


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("MAX_ITEMS", make_records(3)),
        ("MAX_PARTS", make_records(1, parts=(Part(0, b""),) * 3)),
        ("MAX_PAIRS", make_records(1, metadata=(("", ""),) * 3)),
    ],
)
def test_what_is_over_a_limit_is_not_written(
    name: str, records: list[StoredRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, name, 3)
    assert read(write(*records)) == records
    monkeypatch.setattr(bodies, name, 2)
    with pytest.raises(SegmentCorruptError, match="a segment to be written is not"):
        write(*records)


@pytest.mark.parametrize(
    "tag", [0x00, 0x09, 0x0A, 0x10, 0x1A, 0x22, 0x38, 0x48, 0x50, 0x58, 0x68, 0x70, 0x72, 0xFF]
)
def test_a_field_that_no_record_has_is_refused(tag: int) -> None:
    assert f"has an unknown field, or one twice ({tag:#04x})" in refused(frame(bytes((tag, 0))))
    assert f"has an unknown field, or one twice ({tag:#04x})" in refused(
        frame(GOOD + bytes((tag, 0)))
    )


@pytest.mark.parametrize("tag", SINGLE)
def test_a_field_that_a_record_has_once_is_refused_twice(tag: int) -> None:
    # Without a limit, a body of nothing but these would take a minute.
    told = refused(frame(bytes((tag, 0)) * 2))
    assert f"has an unknown field, or one twice ({tag:#04x})" in told


@pytest.mark.parametrize("tag", [tag for tag in (*REPEATED, *SINGLE) if tag & 7 == 2])
def test_a_field_longer_than_its_record_is_refused(tag: int) -> None:
    good = make_message(aggregates=[], format=0, position_step=0, record_id=b"")
    assert good.SerializeToString() == b""
    for length in (b"\x01", b"\x7f", b"\x80\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        assert "a record is cut short" in refused(frame(bytes((tag,)) + length))


def test_numbers_end_within_ten_bytes_and_within_their_record() -> None:
    biggest = make_message(transaction_id=(1 << 64) - 1)
    (record,) = read(write_message(biggest))
    assert record.transaction_id == (1 << 64) - 1
    assert len(read(frame(b"\x18" + b"\x80" * 9 + b"\x00" + GOOD))) == 1
    assert "has no end" in refused(frame(b"\x18" + b"\x80" * 10 + b"\x00" + GOOD))
    for cut in (b"\x18", b"\x18\x80", b"\x4a", b"\x4a\x80"):
        assert "has no end" in refused(frame(GOOD + cut))


def test_versions_are_counted_by_where_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{n}" for n in range(5)]
    versions = [1, 127, 128, 16_384, (1 << 63) - 1]
    message = make_message(aggregates=names, versions=versions)
    for number in range(1, 5):
        message.prev_hashes.add(aggregate=number, hash=ZERO_HASH)
    monkeypatch.setattr(bodies, "MAX_ITEMS", 5)
    assert read(write_message(message))[0].versions == tuple(versions)
    monkeypatch.setattr(bodies, "MAX_ITEMS", 4)
    del message.aggregates[:], message.prev_hashes[:]
    assert "more than a segment may (0x52)" in refused(write_message(message))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 70_000])
def test_parts_of_any_length_are_stepped_over(size: int) -> None:
    # Bytes that would be fields, were they looked at.
    records = make_records(2, parts=(Part(0, b"\x4a\x00" * (size // 2)),))
    assert read(write(*records)) == records


def test_a_message_that_is_none_is_refused() -> None:
    # A part whose first field has wire type 7.
    assert "a record cannot be parsed" in refused(frame(b"\x62\x02\x0f\x00"))


@pytest.mark.parametrize("count", [1, 3])
def test_versions_of_another_count_are_refused(count: int) -> None:
    message = make_message(aggregates=["a", "b"], versions=[1] * count)
    with pytest.raises(DecodeError, match=f"position 1 has {count} versions of 2 aggregates"):
        read(write_message(message))


@pytest.mark.parametrize("numbers", [[2], [0, 2], [1, 0], [0, 0], [(1 << 32) - 1]], ids=str)
def test_hashes_before_what_is_no_aggregate_or_out_of_order_are_refused(
    numbers: Sequence[int],
) -> None:
    message = make_message(aggregates=["a", "b"])
    for number in numbers:
        message.prev_hashes.add(aggregate=number, hash=ZERO_HASH)
    with pytest.raises(DecodeError, match=r"position 1 has a hash before .* out of place"):
        read(write_message(message))


def test_a_hash_that_follows_from_nothing_must_be_there() -> None:
    message = make_message(aggregates=["a", "b"], versions=[1, 2])
    with pytest.raises(DecodeError, match="position 1 has no hash before aggregate 1"):
        read(write_message(message))
    message = make_message(aggregates=["a\0b"])
    with pytest.raises(DecodeError, match="position 1 has no hash, and it can have none\n"):
        read(write_message(message))


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message.ClearField("record_id"),
        lambda message: setattr(message, "record_id", bytes(15)),
        lambda message: setattr(message, "recorded_step", (1 << 63) - 1),
    ],
)
def test_values_that_no_record_has_are_refused(
    change: Callable[[archive_pb2.ArchivedRecord], None],
) -> None:
    message = make_message()
    change(message)
    with pytest.raises((ValueError, OverflowError)):
        read(write_message(message))


def test_a_record_of_no_bytes_is_none() -> None:
    with pytest.raises(ValueError, match="16"):
        read(bytes(4))
