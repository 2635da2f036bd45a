"""Hashes of records: every input counts, no two inputs run together, and time is exact."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.crypto.hashing import ZERO_HASH, hash_body, hash_record
from oplog.errors import DecodeError, EntryError

pytestmark = pytest.mark.unit

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=4)
NAMES = st.lists(TEXT, max_size=4)
PARTS = st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=4)), max_size=4)
BODY: dict[str, Any] = {
    "format": 1,
    "record_id": UUID(int=7),
    "key_id": "k1",
    "metadata": [("actor", "ada")],
    "idempotency_key": "request-1",
    "aggregates": ["account/42", "b"],
    "parts": [(0, b"sealed"), (1, b"more")],
}
RECORD: dict[str, Any] = {
    "body_hash": bytes(range(32, 64)),
    "position": 9,
    "recorded_at": datetime(2025, 3, 30, 1, 59, 59, 999_999, tzinfo=UTC),
    "versions": [3, 1],
    "prev_hashes": [bytes(range(32)), ZERO_HASH],
}


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def long(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def framed(text: str) -> bytes:
    return number(len(text.encode())) + text.encode()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# 9220 days from 2000-01-01 to 2025-03-30, and two hours less a microsecond.
SENT = long((9220 * 86_400 + 7200) * 10**6 - 1)


# -- the body -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("record_id", UUID(int=8)),
        ("key_id", "k2"),
        ("metadata", []),
        ("metadata", [("actor", "bob")]),
        ("metadata", [("actor", "ada"), ("actor", "ada")]),
        ("idempotency_key", "request-2"),
        ("idempotency_key", ""),
        ("idempotency_key", None),
        ("aggregates", ["account/43", "b"]),
        ("aggregates", ["b", "account/42"]),
        ("aggregates", ["account/42"]),
        ("aggregates", ["", "b"]),
        ("parts", [(0, b"sealed"), (2, b"more")]),
        ("parts", [(0, b"sealee"), (1, b"more")]),
        ("parts", [(0, b"sealed\0"), (1, b"more")]),
        ("parts", [(0, b"sealed"), (1, b"")]),
        ("parts", [(1, b"more"), (0, b"sealed")]),
        ("parts", [(0, b"sealed")]),
        ("parts", [(0, b"sealedmore")]),
    ],
)
def test_every_piece_of_the_body_counts(field: str, value: object) -> None:
    assert hash_body(**{**BODY, field: value}) != hash_body(**BODY)


def test_no_idempotency_key_is_not_an_empty_one() -> None:
    none, empty = ({**BODY, "idempotency_key": key} for key in (None, ""))
    assert hash_body(**none) != hash_body(**empty)


@given(st.tuples(TEXT, PAIRS, NAMES, PARTS), st.tuples(TEXT, PAIRS, NAMES, PARTS))
def test_pieces_of_the_body_do_not_run_together(one: Any, two: Any) -> None:
    names = ("key_id", "metadata", "aggregates", "parts")
    hashes = [hash_body(**{**BODY, **dict(zip(names, body, strict=True))}) for body in (one, two)]
    assert (hashes[0] == hashes[1]) == (one == two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"key_id": "ab", "metadata": [("c", "")]}, {"key_id": "a", "metadata": [("bc", "")]}),
        ({"metadata": [("ab", "c")]}, {"metadata": [("a", "bc")]}),
        ({"metadata": [("a", "b")]}, {"metadata": [("a", ""), ("b", "")]}),
        ({"aggregates": ["ab", "c"]}, {"aggregates": ["a", "bc"]}),
        (
            {"metadata": [("a", "b")], "idempotency_key": None, "aggregates": []},
            {"metadata": [], "idempotency_key": None, "aggregates": ["a", "b"]},
        ),
        ({"parts": [(0, b"ab"), (0, b"c")]}, {"parts": [(0, b"a"), (0, b"bc")]}),
    ],
)
def test_moving_a_character_across_a_boundary_changes_the_hash(one: Any, two: Any) -> None:
    assert hash_body(**{**BODY, **one}) != hash_body(**{**BODY, **two})


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
    assert hash_body(**{**BODY, "metadata": one}) != hash_body(**{**BODY, "metadata": two})


@pytest.mark.parametrize(
    ("key", "tail"), [(None, b"\0"), ("", b"\1" + number(0)), ("k", b"\1" + number(1) + b"k")]
)
def test_the_body_is_hashed_in_the_documented_form(key: str | None, tail: bytes) -> None:
    pieces = [
        b"oplog/v1/record-body\0",
        number(1) + UUID(int=7).bytes,
        framed("k1"),
        number(2) + framed("a") + framed("\u00e9") + framed("") + framed("xyz"),
        tail,
        number(2) + framed("account/42") + framed("b"),
        number(2) + number(0) + sha256(b"sealed") + number(1) + sha256(b"more"),
    ]
    metadata = [("a", "\u00e9"), ("", "xyz")]
    found = hash_body(**{**BODY, "idempotency_key": key, "metadata": metadata})
    assert found == sha256(b"".join(pieces))


def test_an_empty_body_is_hashed_in_the_documented_form() -> None:
    body: dict[str, Any] = {
        "key_id": "",
        "metadata": [],
        "idempotency_key": None,
        "aggregates": [],
        "parts": [],
    }
    pieces = b"oplog/v1/record-body\0" + number(1) + UUID(int=7).bytes + number(0) + number(0)
    assert hash_body(**{**BODY, **body}) == sha256(pieces + b"\0" + number(0) + number(0))


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2500])
def test_many_aggregates_are_hashed_in_the_documented_form(count: int) -> None:
    """They are hashed a few at a time."""
    names = [f"account/{n}" for n in range(count)]
    body: dict[str, Any] = {"key_id": "", "metadata": [], "aggregates": names}
    pieces = b"oplog/v1/record-body\0" + number(1) + UUID(int=7).bytes + number(0) + number(0)
    pieces += b"\0" + number(count) + b"".join(map(framed, names)) + number(1) + number(0)
    found = hash_body(**{**BODY, **body, "idempotency_key": None, "parts": [(0, b"x")]})
    assert found == sha256(pieces + sha256(b"x"))


@pytest.mark.parametrize("value", [-1, 2**32])
def test_numbers_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(DecodeError, match="out of the range"):
        hash_body(**{**BODY, "format": value})
    with pytest.raises(DecodeError, match="out of the range"):
        hash_body(**{**BODY, "parts": [(value, b"")]})
    assert hash_body(**{**BODY, "parts": [(2**32 - 1, b"")], "format": 2**32 - 1})


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("key_id", "{}", "key id"),
        ("idempotency_key", "{}", "idempotency key"),
        ("aggregates", ["a", "{}", "b"], "aggregate name"),
        ("metadata", [("a", "b"), ("{}", "")], "metadata"),
        ("metadata", [("a", "b"), ("", "{}")], "metadata"),
    ],
)
def test_text_that_could_not_be_stored_is_refused(field: str, value: Any, what: str) -> None:
    for bad, why in (("a\0b", "NUL"), ("\ud800", "surrogate")):
        with pytest.raises(EntryError, match=f"{what} holds a .*{why}"):
            hash_body(**{**BODY, field: _put(value, bad)})


def _put(value: Any, bad: str) -> Any:
    if isinstance(value, str):
        return value.format(bad)
    return [_put(item, bad) if isinstance(item, str) else tuple(_put(item, bad)) for item in value]


# -- the record ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("body_hash", ZERO_HASH),
        ("position", 10),
        ("recorded_at", RECORD["recorded_at"] - timedelta(microseconds=1)),
        ("recorded_at", RECORD["recorded_at"] + timedelta(microseconds=1)),
        ("versions", [4, 1]),
        ("versions", [1, 1]),
        ("prev_hashes", [ZERO_HASH, ZERO_HASH]),
    ],
)
def test_every_piece_of_the_record_counts(field: str, value: object) -> None:
    assert hash_record(**{**RECORD, field: value}) != hash_record(**RECORD)


def test_which_aggregate_follows_which_record_counts() -> None:
    one, two = bytes(range(32)), bytes(range(1, 33))
    forth = {**RECORD, "versions": [2, 2], "prev_hashes": [one, two]}
    assert hash_record(**forth) != hash_record(**{**forth, "prev_hashes": [two, one]})
    turned = {**RECORD, "versions": [1, 3]}
    assert hash_record(**turned) != hash_record(**RECORD)


def test_the_record_is_hashed_in_the_documented_form() -> None:
    one, two = bytes(range(32)), bytes(range(1, 33))
    pieces = [b"oplog/v1/record\0", bytes(range(32, 64)), long(9), SENT]
    pieces += [long(7), long(1), long(2**63 - 1), one, two]
    found = hash_record(
        **{**RECORD, "versions": [7, 1, 2**63 - 1], "prev_hashes": [one, ZERO_HASH, two]}
    )
    assert found == sha256(b"".join(pieces))


@pytest.mark.parametrize("count", [1, 3])
def test_first_versions_are_not_hashed(count: int) -> None:
    """There is nothing to say of them: the body has the aggregates, and nothing came before."""
    pieces = b"oplog/v1/record\0" + bytes(range(32, 64)) + long(9) + SENT
    hashes = [ZERO_HASH] * count
    found = hash_record(**{**RECORD, "versions": [1] * count, "prev_hashes": hashes})
    assert found == sha256(pieces)


def test_the_two_hashes_have_different_domains() -> None:
    labels = {b"oplog/v1/record-body\0", b"oplog/v1/record\0"}
    assert not any(a != b and a.startswith(b) for a in labels for b in labels)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-14 * 60, 14 * 60))
def test_the_zone_in_which_a_time_is_written_does_not_count(at: datetime, minutes: int) -> None:
    try:
        elsewhere = at.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:  # the first and last hours of the calendar have no such zone
        elsewhere = at
    moved = hash_record(**{**RECORD, "recorded_at": elsewhere})
    assert moved == hash_record(**{**RECORD, "recorded_at": at})


def test_the_hour_that_happens_twice_has_two_hashes() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first, second = (datetime(2025, 10, 26, 2, 30, tzinfo=zone, fold=fold) for fold in (0, 1))
    in_utc = hash_record(**{**RECORD, "recorded_at": datetime(2025, 10, 26, 0, 30, tzinfo=UTC)})
    assert hash_record(**{**RECORD, "recorded_at": first}) == in_utc
    assert hash_record(**{**RECORD, "recorded_at": second}) != in_utc


@given(st.datetimes(timezones=st.just(UTC)))
def test_time_is_whole_microseconds_since_2000(at: datetime) -> None:
    days = at.date().toordinal() - datetime(2000, 1, 1, tzinfo=UTC).date().toordinal()
    seconds = days * 86_400 + at.hour * 3600 + at.minute * 60 + at.second
    sent = long(seconds * 10**6 + at.microsecond)
    expected = sha256(b"oplog/v1/record\0" + ZERO_HASH + long(1) + sent)
    found = hash_record(
        body_hash=ZERO_HASH, position=1, recorded_at=at, versions=[1], prev_hashes=[ZERO_HASH]
    )
    assert found == expected


def test_naive_time_is_refused() -> None:
    with pytest.raises(EntryError, match="no time zone"):
        hash_record(**{**RECORD, "recorded_at": RECORD["recorded_at"].replace(tzinfo=None)})


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_hash_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(DecodeError, match=f"body_hash has {length} bytes"):
        hash_record(**{**RECORD, "body_hash": bytes(length)})
    with pytest.raises(DecodeError, match=f"prev_hash has {length} bytes"):
        hash_record(**{**RECORD, "prev_hashes": [bytes(length), ZERO_HASH]})


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**63])
def test_numbers_that_no_column_holds_are_refused(value: int) -> None:
    with pytest.raises(DecodeError, match="out of the range"):
        hash_record(**{**RECORD, "position": value})
    with pytest.raises(DecodeError, match="out of the range"):
        hash_record(**{**RECORD, "versions": [3, value]})


def test_the_first_record_follows_32_zero_bytes() -> None:
    assert bytes(32) == ZERO_HASH
