"""Bodies of segments, message by message: what is left out, what is computed, what is refused."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from oplog._proto.oplog.v1 import archive_pb2
from oplog.archive.format import body as bodies
from oplog.archive.format.body import Pairs, compute_hash, decode_body, encode_body
from oplog.crypto.hashing import ZERO_HASH, hash_metadata
from oplog.errors import DecodeError, SegmentCorruptError
from oplog.store.rows import StoredEntry
from tests.archived import MOMENT, make_entries, make_entry, seal_entry

pytestmark = pytest.mark.unit

ENTRY = bytes.fromhex("2a00")
PAIR = bytes.fromhex("2200")
PLENTY = 1_000_000


def frame(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def write(entries: list[StoredEntry], metadata: dict[int, Pairs] | None = None) -> bytes:
    return b"".join(encode_body(entries, metadata or {}))


def parse(body: bytes) -> list[archive_pb2.ArchivedTransaction]:
    groups = []
    while body:
        length = int.from_bytes(body[:4], "big")
        groups.append(archive_pb2.ArchivedTransaction.FromString(body[4 : 4 + length]))
        body = body[4 + length :]
    return groups


def refused(body: bytes, *, most: int = PLENTY) -> str:
    with pytest.raises(SegmentCorruptError, match=r"LOG/x is not") as caught:
        decode_body(body, "LOG/x", most=most)
    return str(caught.value)


def make_group(*ids: int, **given: Any) -> archive_pb2.ArchivedTransaction:
    """A transaction of entries that are first versions, at positions 1, 2, 3..."""
    values: dict[str, Any] = {"transaction_id": 9, "transaction_position": 1, "transaction_size": 1}
    group = archive_pb2.ArchivedTransaction(**values | given)
    for number in ids:
        group.entries.add(
            entry_id=UUID(int=number).bytes,
            position_step=1,
            aggregate=f"account/{number}",
            version=1,
            format=1,
        )
    return group


def write_group(group: archive_pb2.ArchivedTransaction) -> bytes:
    return frame(group.SerializeToString(deterministic=True))


# -- what is written ----------------------------------------------------------------------


def test_nothing_is_nothing() -> None:
    assert write([]) == b""
    assert decode_body(b"", "LOG/x", most=0) == ([], {})


def test_entries_of_a_transaction_are_one_message() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    two: dict[str, Any] = {"transaction_id": 9, "transaction_position": 1, "transaction_size": 2}
    pairs = [("actor", "ada"), ("actor", "bob")]
    entries = [
        make_entry(1, heads, pairs=pairs, idempotency_key="", **two),
        make_entry(4, heads, pairs=pairs, aggregate="account/2", **two),
        make_entry(2, heads, pairs=[]),
    ]
    body = write(entries, {1: pairs})
    first, second = parse(body)
    assert [(pair.key, pair.value) for pair in first.metadata] == pairs
    assert not first.HasField("metadata_hash")
    assert (first.transaction_id, first.transaction_position, first.transaction_size) == (9, 1, 2)
    assert [e.position_step for e in (*first.entries, *second.entries)] == [1, 3, -2]
    assert [e.recorded_step for e in (*first.entries, *second.entries)] == [MOMENT + 1, 3, -2]
    # An empty key is a key.
    assert [e.HasField("idempotency_key") for e in first.entries] == [True, False]
    assert decode_body(body, "LOG/x", most=3) == (entries, {1: pairs})


@pytest.mark.parametrize("column", ["transaction_id", "transaction_size", "transaction_position"])
def test_entries_whose_transactions_differ_in_anything_are_two_messages(column: str) -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    two: dict[str, Any] = {"transaction_id": 9, "transaction_position": 1, "transaction_size": 2}
    entries = [make_entry(n, heads, pairs=[], **two) for n in (1, 2)]
    changed: dict[str, Any] = {column: 2 if column == "transaction_position" else 7}
    entries[1] = entries[1]._replace(**changed)
    assert len(parse(write(entries))) == 2
    assert decode_body(write(entries), "LOG/x", most=2) == (entries, {})


def test_a_transaction_that_began_earlier_has_the_hash_of_its_metadata() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    pairs = [("actor", "ada")]
    later: dict[str, Any] = {"transaction_position": 1, "transaction_size": 3}
    entries = [make_entry(n, heads, pairs=pairs, transaction_id=9, **later) for n in (2, 3)]
    heads.clear()
    entries = [seal_entry(e._replace(version=1, prev_hash=ZERO_HASH)) for e in entries]
    # Its pairs are in the segment with its first entry, even if the caller has them.
    (group,) = parse(write(entries, {1: pairs}))
    assert (group.metadata_hash, list(group.metadata)) == (hash_metadata(pairs), [])
    assert not any(entry.HasField("metadata_hash") for entry in group.entries)
    assert decode_body(write(entries), "LOG/x", most=2) == (entries, {})


def test_hashes_that_follow_from_the_rest_are_left_out() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    entries = [make_entry(n, heads, pairs=[]) for n in (1, 2, 3)]
    names = ("prev_hash", "metadata_hash", "entry_hash")
    assert not [n for g in parse(write(entries)) for n in names if g.entries[0].HasField(n)]
    # Without the version before, its hash does not follow from anything.
    (second, third) = parse(write(entries[1:]))
    assert [n for n in names if second.entries[0].HasField(n)] == ["prev_hash"]
    assert not [n for n in names if third.entries[0].HasField(n)]
    for name in names:
        changed: dict[str, Any] = {name: bytes(range(32))}
        altered = entries[1]._replace(**changed)
        altered = altered if name == "entry_hash" else seal_entry(altered)
        body = write([entries[0], altered])
        assert [n for n in names if parse(body)[1].entries[0].HasField(n)] == [name]
        assert decode_body(body, "LOG/x", most=2) == ([entries[0], altered], {})


def test_an_entry_that_can_have_no_hash_keeps_the_one_it_has() -> None:
    (entry,) = make_entries(1)
    impossible = entry._replace(aggregate="a\0b")
    assert compute_hash(impossible) is None
    assert decode_body(write([impossible]), "LOG/x", most=1) == ([impossible], {})


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"\0", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff" + ENTRY])
def test_a_body_that_is_cut_short_is_refused(rest: bytes) -> None:
    whole = write_group(make_group(1))
    assert len(decode_body(whole, "LOG/x", most=1)[0]) == 1
    assert "its body is cut short" in refused(rest)
    assert "its body is cut short" in refused(whole + rest)
    assert "its body is cut short" in refused(whole[:-1])


def test_more_entries_than_claimed_are_refused_before_they_are_parsed() -> None:
    body = write_group(make_group(1, 2)) + write_group(make_group(3, transaction_position=3))
    assert len(decode_body(body, "LOG/x", most=3)[0]) == 3
    assert "more than its segment claims" in refused(body, most=2)
    assert "more than its segment claims" in refused(body, most=1)
    # Parsed, these would be an error of another kind: an entry without an id.
    assert "more than its segment claims" in refused(frame(ENTRY * 3), most=2)


def test_more_pairs_than_any_transaction_has_are_refused_before_they_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "MAX_PAIRS", 2)
    group = make_group(1)
    for key in ("a", "b"):
        group.metadata.add(key=key, value="")
    assert decode_body(write_group(group), "LOG/x", most=1)[1] == {1: [("a", ""), ("b", "")]}
    group.metadata.add(key="c", value="")
    assert "more than its segment claims" in refused(write_group(group))
    assert "more than its segment claims" in refused(frame(PAIR * 3 + ENTRY))


@pytest.mark.parametrize("tag", [0x00, 0x09, 0x0A, 0x12, 0x20, 0x28, 0x2B, 0x30, 0x38, 0x3A, 0xFF])
def test_a_field_that_no_transaction_has_is_refused(tag: int) -> None:
    good = make_group(1).SerializeToString()
    assert f"has an unknown field ({tag:#04x})" in refused(frame(bytes((tag, 0)) + good))
    assert f"has an unknown field ({tag:#04x})" in refused(frame(good + bytes((tag, 0))))


@pytest.mark.parametrize("tag", [0x22, 0x2A, 0x32])
def test_a_field_longer_than_its_transaction_is_refused(tag: int) -> None:
    good = make_group(1).SerializeToString()
    for length in (b"\x01", b"\x7f", b"\x80\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        assert "is cut short, or holds more" in refused(frame(good + bytes((tag,)) + length))


def test_numbers_end_within_ten_bytes_and_within_their_transaction() -> None:
    biggest = make_group(1, transaction_id=(1 << 64) - 1)
    (entry,) = decode_body(write_group(biggest), "LOG/x", most=1)[0]
    assert entry.transaction_id == (1 << 64) - 1
    good = make_group(1).SerializeToString()
    assert len(decode_body(frame(b"\x08" + b"\x80" * 9 + b"\x00" + good), "LOG/x", most=1)[0]) == 1
    assert "has no end" in refused(frame(b"\x08" + b"\x80" * 10 + b"\x00" + good))
    for cut in (b"\x08", b"\x08\x80", b"\x2a", b"\x2a\x80"):
        assert "has no end" in refused(frame(good + cut))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 70_000])
def test_entries_of_any_length_are_stepped_over(size: int) -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    # Bytes that would be fields, were they looked at.
    entries = [make_entry(n, heads, pairs=[], data=ENTRY * (size // 2)) for n in (1, 2)]
    assert decode_body(write(entries), "LOG/x", most=2) == (entries, {})


def test_a_transaction_without_an_entry_is_refused() -> None:
    group = make_group()
    group.metadata.add(key="a", value="b")
    for body in (frame(b""), write_group(group), write_group(make_group(1)) + frame(b"")):
        assert "holds no entry" in refused(body)


def test_a_message_that_is_none_is_refused() -> None:
    # An entry whose first field has wire type 7.
    assert "cannot be parsed" in refused(frame(b"\x2a\x02\x0f\x00"))


def test_metadata_of_a_transaction_that_began_earlier_is_refused() -> None:
    group = make_group(1, metadata_hash=bytes(32))
    assert decode_body(write_group(group), "LOG/x", most=1)[1] == {}
    group.metadata.add(key="a", value="b")
    assert "was begun in an earlier segment" in refused(write_group(group))


@pytest.mark.parametrize("name", ["prev_hash", "metadata_hash", "entry_hash"])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_hash_of_another_length_is_refused(name: str, length: int) -> None:
    group = make_group(1)
    setattr(group.entries[0], name, bytes(32))
    assert getattr(decode_body(write_group(group), "LOG/x", most=1)[0][0], name) == bytes(32)
    setattr(group.entries[0], name, bytes(length))
    with pytest.raises(DecodeError, match=f"the {name} of 'account/1' version 1 is missing"):
        decode_body(write_group(group), "LOG/x", most=1)


def test_a_hash_that_follows_from_nothing_must_be_there() -> None:
    group = make_group(1)
    group.entries[0].version = 2
    with pytest.raises(DecodeError, match="the prev_hash of 'account/1' version 2 is missing"):
        decode_body(write_group(group), "LOG/x", most=1)
    group.entries[0].version = 1
    group.entries[0].aggregate = "a\0b"
    with pytest.raises(DecodeError, match=r"the entry_hash of .* version 1 is missing"):
        decode_body(write_group(group), "LOG/x", most=1)
