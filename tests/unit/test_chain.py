"""Entry hashes: every input counts, no two inputs run together, and time is exact."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.crypto.hashing import ZERO_HASH, hash_body, hash_entry, hash_metadata
from oplog.errors import DecodeError, EntryError

pytestmark = pytest.mark.unit

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=4)
BODY: dict[str, Any] = {
    "format": 1,
    "entry_id": UUID(int=7),
    "aggregate": "account/42",
    "key_id": "k1",
    "metadata_hash": bytes(range(32)),
    "transaction_size": 2,
    "idempotency_key": "request-1",
    "data": b"sealed",
}
ENTRY: dict[str, Any] = {
    "prev_hash": bytes(range(32)),
    "version": 3,
    "recorded_at": datetime(2025, 3, 30, 1, 59, 59, 999_999, tzinfo=UTC),
    "body_hash": bytes(range(32, 64)),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("entry_id", UUID(int=8)),
        ("aggregate", "account/43"),
        ("aggregate", ""),
        ("key_id", "k2"),
        ("metadata_hash", bytes(32)),
        ("transaction_size", 3),
        ("idempotency_key", "request-2"),
        ("idempotency_key", ""),
        ("idempotency_key", None),
        ("data", b"sealee"),
        ("data", b"sealed\0"),
        ("data", b""),
    ],
)
def test_every_part_of_the_body_counts(field: str, value: object) -> None:
    assert hash_body(**{**BODY, field: value}) != hash_body(**BODY)


def test_no_idempotency_key_is_not_an_empty_one() -> None:
    none, empty = ({**BODY, "idempotency_key": key} for key in (None, ""))
    assert hash_body(**none) != hash_body(**empty)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prev_hash", ZERO_HASH),
        ("version", 4),
        ("recorded_at", ENTRY["recorded_at"] - timedelta(microseconds=1)),
        ("recorded_at", ENTRY["recorded_at"] + timedelta(microseconds=1)),
        ("body_hash", ZERO_HASH),
    ],
)
def test_every_part_of_the_entry_counts(field: str, value: object) -> None:
    assert hash_entry(**{**ENTRY, field: value}) != hash_entry(**ENTRY)


@given(TEXT, TEXT, TEXT, TEXT)
def test_texts_of_the_body_do_not_run_together(a: str, b: str, c: str, d: str) -> None:
    one = hash_body(**{**BODY, "aggregate": a, "key_id": b})
    two = hash_body(**{**BODY, "aggregate": c, "key_id": d})
    assert (one == two) == ((a, b) == (c, d))


def test_moving_a_character_across_a_boundary_changes_the_hash() -> None:
    one = hash_body(**{**BODY, "aggregate": "ab", "key_id": "c"})
    two = hash_body(**{**BODY, "aggregate": "a", "key_id": "bc"})
    assert one != two
    assert hash_metadata([("ab", "c")]) != hash_metadata([("a", "bc")])


@given(PAIRS, PAIRS)
def test_metadata_hashes_are_equal_only_for_equal_metadata(
    one: list[tuple[str, str]], two: list[tuple[str, str]]
) -> None:
    assert (hash_metadata(one) == hash_metadata(two)) == (one == two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([("a", "1"), ("a", "2")], [("a", "2"), ("a", "1")]),
        ([("a", "1")], [("a", "1"), ("a", "1")]),
        ([], [("", "")]),
        ([("name", "\u00e9")], [("name", "e\u0301")]),
    ],
)
def test_metadata_order_number_and_spelling_count(
    one: list[tuple[str, str]], two: list[tuple[str, str]]
) -> None:
    assert hash_metadata(one) != hash_metadata(two)


def test_metadata_that_could_not_be_stored_is_refused() -> None:
    with pytest.raises(EntryError, match="NUL"):
        hash_metadata([("key", "a\0b")])


def test_the_three_hashes_have_different_domains() -> None:
    # With no label, the metadata of no pairs would hash like four zero bytes of anything.
    assert hash_metadata([]) == hashlib.sha256(b"oplog/v1/metadata\0" + bytes(4)).digest()
    assert hash_metadata([]) != hashlib.sha256(bytes(4)).digest()
    labels = {b"oplog/v1/body\0", b"oplog/v1/entry\0", b"oplog/v1/metadata\0"}
    assert not any(a != b and a.startswith(b) for a in labels for b in labels)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-14 * 60, 14 * 60))
def test_the_zone_in_which_a_time_is_written_does_not_count(at: datetime, minutes: int) -> None:
    try:
        elsewhere = at.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:  # the first and last hours of the calendar have no such zone
        elsewhere = at
    moved = hash_entry(**{**ENTRY, "recorded_at": elsewhere})
    assert moved == hash_entry(**{**ENTRY, "recorded_at": at})


def test_the_hour_that_happens_twice_has_two_hashes() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first, second = (datetime(2025, 10, 26, 2, 30, tzinfo=zone, fold=fold) for fold in (0, 1))
    in_utc = hash_entry(**{**ENTRY, "recorded_at": datetime(2025, 10, 26, 0, 30, tzinfo=UTC)})
    assert hash_entry(**{**ENTRY, "recorded_at": first}) == in_utc
    assert hash_entry(**{**ENTRY, "recorded_at": second}) != in_utc


@given(st.datetimes(timezones=st.just(UTC)))
def test_time_is_whole_microseconds_since_2000(at: datetime) -> None:
    days = at.date().toordinal() - datetime(2000, 1, 1, tzinfo=UTC).date().toordinal()
    seconds = days * 86_400 + at.hour * 3600 + at.minute * 60 + at.second
    sent = (seconds * 10**6 + at.microsecond).to_bytes(8, "big", signed=True)
    expected = hashlib.sha256(
        b"oplog/v1/entry\0" + ZERO_HASH + (1).to_bytes(8, "big") + sent + ZERO_HASH
    ).digest()
    found = hash_entry(prev_hash=ZERO_HASH, version=1, recorded_at=at, body_hash=ZERO_HASH)
    assert found == expected


def test_naive_time_is_refused() -> None:
    with pytest.raises(EntryError, match="no time zone"):
        hash_entry(**{**ENTRY, "recorded_at": ENTRY["recorded_at"].replace(tzinfo=None)})


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_hash_of_another_length_is_refused(length: int) -> None:
    for field in ("prev_hash", "body_hash"):
        with pytest.raises(DecodeError, match=f"{field} has {length} bytes"):
            hash_entry(**{**ENTRY, field: bytes(length)})
    with pytest.raises(DecodeError, match="metadata_hash"):
        hash_body(**{**BODY, "metadata_hash": bytes(length)})


@pytest.mark.parametrize("number", [-1, 2**32])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    for field in ("format", "transaction_size"):
        with pytest.raises(DecodeError, match="out of the range"):
            hash_body(**{**BODY, field: number})
    with pytest.raises(DecodeError, match="version"):
        hash_entry(**{**ENTRY, "version": 2**63})


@pytest.mark.parametrize("field", ["aggregate", "key_id", "idempotency_key"])
def test_text_that_could_not_be_stored_is_refused(field: str) -> None:
    with pytest.raises(EntryError, match="surrogate"):
        hash_body(**{**BODY, field: "\ud800"})


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("key", "tail"), [(None, b"\0"), ("", b"\1" + number(0)), ("k", b"\1" + number(1) + b"k")]
)
def test_the_body_is_hashed_in_the_documented_form(key: str | None, tail: bytes) -> None:
    parts = [
        b"oplog/v1/body\0",
        number(1),
        UUID(int=7).bytes,
        number(10),
        b"account/42",
        number(2),
        b"k1",
        bytes(range(32)),
        number(2),
        tail,
        number(6),
        b"sealed",
    ]
    found = hash_body(**{**BODY, "idempotency_key": key})
    assert found == hashlib.sha256(b"".join(parts)).digest()


def test_metadata_is_hashed_in_the_documented_form() -> None:
    parts = [b"oplog/v1/metadata\0", number(2), number(1), b"a", number(2), "\u00e9".encode()]
    parts += [number(0), number(3), b"xyz"]
    found = hash_metadata([("a", "\u00e9"), ("", "xyz")])
    assert found == hashlib.sha256(b"".join(parts)).digest()


def test_the_first_entry_follows_32_zero_bytes() -> None:
    assert bytes(32) == ZERO_HASH


def test_what_cannot_be_hashed_is_named() -> None:
    for field in ("aggregate", "key_id", "idempotency_key"):
        what = {"aggregate": "aggregate name", "key_id": "key id"}.get(field, "idempotency key")
        with pytest.raises(EntryError, match=what):
            hash_body(**{**BODY, field: "\0"})
    with pytest.raises(EntryError, match="metadata"):
        hash_metadata([("\0", "")])
