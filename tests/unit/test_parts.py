"""A record's effects in parts: none over the limit, all full, and nothing lost between them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.entry import (
    MAX_AGGREGATE_BYTES,
    MAX_NAMES_BYTES,
    MAX_PART_BYTES,
    PART_BYTES,
    OpType,
)
from oplog.errors import EntryTooLargeError
from oplog.payload import parts as cutting
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.parts import MOST_EFFECTS, CutPart, check_names, cut_parts
from oplog.payload.row_run import MAX_RUN_ROWS, RunRows
from tests.bound import make_shape
from tests.unit.test_block import Types

pytestmark = pytest.mark.unit

ITEM = make_shape([("id", "bigint"), ("note", "text"), ("data", "bytea")], key=["id"])


class Counting(PayloadCodec):
    """A codec that counts what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.effects = self.bytes = 0

    def encode(
        self, effects: Sequence[Effect], *, first: int = 0, rows: Sequence[RunRows] = ()
    ) -> bytes:
        payload = super().encode(effects, first=first, rows=rows)
        self.calls += 1
        self.effects += len(effects)
        self.bytes += len(payload)
        return payload


def create(number: int, size: int = 0, *, place: int | None = None) -> Effect:
    """A row with so many bytes that cannot be compressed or guessed from another's."""
    row = {"id": number, "note": None, "data": bytes(size)}
    there = number if place is None else place
    return Effect(OpType.CREATE, ITEM, (number,), row, complete=True, ordinal=number, place=there)


def delete(number: int) -> Effect:
    return Effect(OpType.DELETE, ITEM, (number,), {}, complete=False, ordinal=number, place=number)


def check(effects: Sequence[Effect], *, limit: int = PART_BYTES) -> tuple[list[CutPart], Counting]:
    """The parts of these effects, after everything that holds for any parts."""
    codec = Counting()
    parts = cut_parts(codec, effects)
    found: list[Effect] = []
    for first, payload, hides in parts:
        decoded = PayloadCodec().decode(payload, Types(ITEM), first=first)
        assert min(effect.place for effect in decoded) == first
        assert len(payload) <= limit or len(decoded) == 1
        assert len(decoded) <= MOST_EFFECTS
        assert not hides
        found += sorted(decoded, key=lambda effect: (effect.place, effect.ordinal))
    assert found == list(effects)
    return parts, codec


def measure(parts: Sequence[CutPart]) -> list[int]:
    return [len(payload) for _, payload, _ in parts]


def test_a_few_effects_are_one_part_that_is_encoded_once() -> None:
    effects = [create(0), create(1), delete(2)]
    parts, codec = check(effects)
    assert parts == [(0, PayloadCodec().encode(effects), False)]
    assert codec.calls == 1


def test_a_part_may_be_as_large_as_the_limit() -> None:
    rest = len(PayloadCodec().encode([create(0, 60_000), create(1, 190_000)])) - 250_000
    within = [create(0, 60_000), create(1, PART_BYTES - rest - 60_000)]
    parts, codec = check(within)
    assert (measure(parts), codec.calls) == ([PART_BYTES], 1)
    beyond = [create(0, 60_000), create(1, PART_BYTES - rest - 59_999)]
    assert [first for first, _, _ in check(beyond)[0]] == [0, 1]


@pytest.mark.parametrize("count", [1000, 1024, 1025, 5_000, 40_000])
@pytest.mark.parametrize("size", [3, 300, 3000])
def test_rows_of_one_size_fill_their_parts_and_are_hardly_encoded_twice(
    count: int, size: int
) -> None:
    if count * size > 20_000_000:
        count = 20_000_000 // size
    parts, codec = check([create(number, size) for number in range(count)])
    assert all(length > PART_BYTES * 0.8 for length in measure(parts)[1:-1])
    assert len(parts) == 1 or len(parts[0][1]) > PART_BYTES * 0.5
    assert codec.effects < count * 1.1 + 1100


def test_the_first_part_of_a_large_record_is_guessed_from_a_sample() -> None:
    _, codec = check([create(number, 200) for number in range(1100)])
    assert codec.effects < 1200


def test_rows_of_many_sizes_fill_their_parts() -> None:
    sizes = random.Random(7).choices([1, 50, 2000, 60_000], [40, 30, 20, 1], k=4000)
    parts, codec = check([create(number, size) for number, size in enumerate(sizes)])
    lengths = measure(parts)
    assert sum(lengths) / len(lengths) > PART_BYTES * 0.6
    assert codec.bytes < sum(lengths) * 2.5


def test_a_row_that_is_larger_than_a_part_is_alone_in_its_part() -> None:
    effects = [create(n, 5_000_000 if n in (20, 21, 900) else 100) for n in range(1000)]
    parts, codec = check(effects)
    large = [first for first, payload, _ in parts if len(payload) > PART_BYTES]
    assert large == [20, 21, 900]
    # What is between large rows is not cut smaller than it has to be.
    assert [first for first, _, _ in parts] == [0, 20, 21, 22, 900, 901]
    assert codec.bytes < 6.5 * 5_000_000


def test_rows_of_very_different_sizes_are_not_encoded_again_and_again() -> None:
    effects = [create(n, 500_000 * (n % 2)) for n in range(200)]
    parts, codec = check(effects)
    assert len(parts) == 200
    assert codec.bytes < 3 * sum(measure(parts))


def test_an_aggregate_may_go_on_in_the_next_part() -> None:
    effects = [create(n, 1000, place=n // 700) for n in range(1400)]
    parts, _ = check(effects)
    firsts = [first for first, _, _ in parts]
    assert firsts == sorted(firsts)
    assert firsts.count(0) > 1
    assert firsts.count(1) > 1


def test_a_part_has_no_more_rows_than_are_read() -> None:
    assert MOST_EFFECTS <= MAX_RUN_ROWS
    parts, _ = check([replace(delete(1), ordinal=n, place=0) for n in range(MOST_EFFECTS + 9)])
    assert len(parts) == 2


def test_the_same_effects_give_the_same_parts() -> None:
    effects = [create(number, number % 700) for number in range(3000)]
    assert cut_parts(PayloadCodec(), effects) == cut_parts(PayloadCodec(), effects)


# -- limits -------------------------------------------------------------------------------


def test_a_row_over_the_limit_is_refused() -> None:
    rest = len(PayloadCodec().encode([create(1, 16_000_000)], first=1)) - 16_000_000
    (part,) = cut_parts(PayloadCodec(), [create(1, MAX_PART_BYTES - rest)])
    assert len(part[1]) == MAX_PART_BYTES
    for effects in (
        [create(1, MAX_PART_BYTES - rest + 1)],
        [create(0), create(1, MAX_PART_BYTES - rest + 1), create(2)],
    ):
        with pytest.raises(EntryTooLargeError, match=r"row of type 'item' \(id=1\) has") as caught:
            cut_parts(PayloadCodec(), effects)
        assert f"{MAX_PART_BYTES + 1} bytes, the limit is {MAX_PART_BYTES}" in str(caught.value)


def test_a_record_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    effects = [create(number, 3000) for number in range(2000)]
    total = sum(measure(cut_parts(PayloadCodec(), effects)))
    monkeypatch.setattr(cutting, "MAX_RECORD_BYTES", total)
    assert sum(measure(cut_parts(PayloadCodec(), effects))) == total
    monkeypatch.setattr(cutting, "MAX_RECORD_BYTES", total - 1)
    with pytest.raises(EntryTooLargeError, match=f"over {total - 1} bytes"):
        cut_parts(PayloadCodec(), effects)


# -- any sizes ----------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0, 1, 5, 40, 90, 200, 500, 3000]), min_size=3, max_size=60),
    st.integers(1, 5),
    st.sampled_from([1, 8, 1024]),
)
def test_any_rows_are_cut(sizes: list[int], rows: int, unmeasured: int) -> None:
    effects = [create(n, size, place=n // rows) for n, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        limits: dict[str, Any] = {"PART_BYTES": 400, "_UNMEASURED": unmeasured, "_SAMPLED": 3}
        for name, value in limits.items():
            patch.setattr(cutting, name, value)
        check(effects, limit=400)


def test_as_many_names_as_a_segment_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit a transaction would commit that no archive can ever hold."""
    monkeypatch.setattr(cutting, "_FEW_NAMES", 0)
    monkeypatch.setattr(cutting, "MAX_NAMES_BYTES", 3 * (48 + 4))
    check_names(["a/é", "a/b", "ab/c"])
    with pytest.raises(
        EntryTooLargeError, match="3 aggregates, whose names have 157 bytes"
    ) as found:
        check_names(["a/é", "a/b1", "ab/c2"])
    assert "fewer rows" in found.value.hint
    monkeypatch.setattr(cutting, "MAX_AGGREGATES", 2)
    check_names(["a", "b"])
    with pytest.raises(EntryTooLargeError, match="3 aggregates"):
        check_names(["a", "b", "c"])


def test_few_names_cannot_be_too_long_together() -> None:
    assert cutting._FEW_NAMES * (MAX_AGGREGATE_BYTES + 48) <= MAX_NAMES_BYTES
