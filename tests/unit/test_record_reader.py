"""A record is checked, opened and told as entries: whole, in order, and no more than is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import pytest

from oplog.crypto.hashing import ZERO_HASH
from oplog.crypto.seal import FORMAT_PLAIN, Sealer, name_part
from oplog.entry import OpType
from oplog.errors import ChainBrokenError, DecodeError, UnknownTypeError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.shape import Shape
from oplog.reading.reader import (
    RecordReader,
    check_hashes,
    choose_parts,
    group_pairs,
)
from oplog.reading.shape_table import ShapeTable
from oplog.schema.guard import FORMAT_MARK
from oplog.store.rows import EntryFilter, Part, StoredRecord, list_aggregates
from oplog.value import Wire
from tests.archived import LOG_ID, make_record, make_shape, seal_record

pytestmark = pytest.mark.unit

SHAPE = make_shape()
CODEC = PayloadCodec()
SEALER = Sealer(None)


class Source:
    """A log with one type and these records."""

    ordered = True

    def __init__(self, *pages: list[StoredRecord]) -> None:
        self.pages = pages

    def list_types(self) -> list[Shape]:
        return [SHAPE]

    def iterate(self, filter: EntryFilter, *, snapshot: str) -> Iterator[list[StoredRecord]]:
        assert snapshot == "now"
        yield from self.pages

    def find_sequence(self, position: int) -> int | None:
        return position - 1

    def list_quarantine_marks(self) -> list[StoredRecord]:
        return []


def make_reader(*pages: list[StoredRecord]) -> RecordReader:
    source = cast("Any", Source(*pages))
    return RecordReader(
        source, sealer=SEALER, codec=CODEC, types=ShapeTable(source), log_id=LOG_ID, key_checks={}
    )


def effect(id: int, *, place: int, ordinal: int) -> Effect:
    values: dict[str, Wire | None] = {"id": id, "owner": f"owner {id}"}
    return Effect(OpType.CREATE, SHAPE, (id,), values, complete=True, ordinal=ordinal, place=place)


def store(
    *parts: list[Effect], aggregates: list[str], position: int = 7, **given: Any
) -> StoredRecord:
    """A plaintext record with these effects in its parts."""
    record_id = UUID(int=position)
    sealed = []
    for number, effects in enumerate(parts):
        first = effects[0].place
        payload = CODEC.encode(effects, first=first)
        sealed.append(Part(first, SEALER.seal(payload, name_part(LOG_ID, record_id, number))))
    return make_record(
        position,
        {},
        aggregates=aggregates,
        parts=tuple(sealed),
        format=FORMAT_PLAIN,
        key_id="",
        **given,
    )


def store_three(**given: Any) -> StoredRecord:
    """Aggregates a, b and c in two parts; the second goes on with b."""
    first = [effect(1, place=0, ordinal=3), effect(2, place=1, ordinal=1)]
    second = [effect(3, place=1, ordinal=2), effect(4, place=2, ordinal=0)]
    return store(first, second, aggregates=["a", "b", "c"], **given)


# -- effects ------------------------------------------------------------------------------------


def test_effects_are_in_the_order_they_happened_across_parts() -> None:
    record = store_three()
    opened = make_reader().open(record)
    assert opened.stored is record
    assert [(e.key, e.place) for e in opened.effects] == [
        ((4,), 2),
        ((2,), 1),
        ((3,), 1),
        ((1,), 0),
    ]


def test_effects_are_in_the_order_they_happened_within_a_part() -> None:
    effects = [effect(1, place=0, ordinal=1), effect(2, place=1, ordinal=0)]
    opened = make_reader().open(store(effects, aggregates=["a", "b"]))
    assert [e.key for e in opened.effects] == [(2,), (1,)]


def test_a_mark_has_no_effects() -> None:
    record = make_record(3, {}, format=FORMAT_MARK, parts=(Part(0, b""),), key_id="")
    assert make_reader().open(record).effects == []


def test_only_parts_that_may_hold_an_aggregate_are_opened() -> None:
    record = store_three()
    reader = make_reader()
    assert {e.key for e in reader.open(record, aggregates={"a"}).effects} == {(1,), (2,)}
    assert {e.key for e in reader.open(record, aggregates={"c"}).effects} == {(3,), (4,)}
    assert len(reader.open(record, aggregates={"b"}).effects) == 4
    assert len(reader.open(record, aggregates={"a", "c"}).effects) == 4
    assert reader.open(record, aggregates={"d"}).effects == []


@pytest.mark.parametrize(
    ("firsts", "wanted", "expected"),
    [
        ([0], "a", [0]),
        ([0, 1, 2], "a", [0]),
        # What a part begins with may have begun in the one before.
        ([0, 1, 2], "b", [0, 1]),
        ([0, 1, 2], "c", [1, 2]),
        ([0, 1, 1, 1, 2], "b", [0, 1, 2, 3]),
        ([0, 1, 1, 1, 2], "c", [3, 4]),
        ([0, 0, 0], "a", [0, 1, 2]),
        ([0, 0, 0], "c", [2]),
    ],
)
def test_parts_are_chosen_by_where_they_begin(
    firsts: list[int], wanted: str, expected: list[int]
) -> None:
    parts = tuple(Part(first, b"") for first in firsts)
    record = make_record(1, {}, aggregates=["a", "b", "c"], parts=parts)
    assert choose_parts(record, {wanted}) == expected


def test_an_effect_on_an_aggregate_that_the_record_lacks_is_refused() -> None:
    record = store([effect(1, place=0, ordinal=0), effect(2, place=1, ordinal=1)], aggregates=["a"])
    with pytest.raises(DecodeError, match=r"part 0 .* beyond the 1 of the record") as caught:
        make_reader().open(record)
    assert caught.value.__notes__ == ["at position 7, aggregate 'a' version 1"]


def test_an_error_names_where_it_was_met() -> None:
    other = Effect(OpType.DELETE, make_shape("unknown"), (1,), {}, complete=False, ordinal=0)
    record = store([other], aggregates=["a", "b", "c"])
    with pytest.raises(UnknownTypeError) as caught:
        make_reader().open(record)
    assert caught.value.__notes__ == ["at position 7, aggregate 'a' version 1 and 2 more"]


# -- hashes -------------------------------------------------------------------------------------


def make_second() -> StoredRecord:
    """A record with a new aggregate and one that has a version."""
    heads = {"b": (4, b"h" * 32)}
    return make_record(9, heads, aggregates=["a", "b"], metadata=(("who", "me"),))


ALTERED: list[dict[str, Any]] = [
    {"position": 10},
    {"record_id": UUID(int=1)},
    {"format": 2},
    {"key_id": "k2"},
    {"parts": ()},
    {"parts": (Part(1, b"sealed 9"),)},
    {"parts": (Part(0, b"sealed 8"),)},
    {"parts": (Part(0, b"sealed 9"), Part(0, b""))},
    {"aggregates": ("a", "c")},
    {"aggregates": ("a",)},
    {"aggregates": ("a", "b", "c")},
    {"aggregates": ("a", "\0")},
    {"versions": (1, 6)},
    {"versions": (2, 5)},
    {"versions": (1,)},
    {"versions": (1, 1 << 63)},
    {"prev_hashes": (ZERO_HASH, b"i" * 32)},
    {"prev_hashes": (ZERO_HASH, b"h" * 31)},
    {"prev_hashes": (ZERO_HASH, b"h" * 64)},
    {"prev_hashes": (ZERO_HASH,)},
    {"prev_hashes": (b"h" * 32, b"h" * 32)},
    {"metadata": ()},
    {"metadata": (("who", "you"),)},
    {"idempotency_key": ""},
    {"record_hash": b"h" * 32},
]


@pytest.mark.parametrize("altered", ALTERED, ids=str)
def test_an_altered_record_is_refused_before_it_is_unsealed(altered: dict[str, Any]) -> None:
    record = make_second()
    check_hashes(record)
    changed = record._replace(**altered)
    with pytest.raises(ChainBrokenError, match=rf"position {changed.position} .* not match"):
        make_reader().open(changed)


def test_a_hash_that_fits_is_enough() -> None:
    """The transaction id is not in it: a restore gives others."""
    record = make_second()
    check_hashes(record._replace(transaction_id=1))
    check_hashes(seal_record(record._replace(versions=(1, 9))))


# -- entries ------------------------------------------------------------------------------------


def test_a_record_is_told_as_one_entry_for_each_aggregate() -> None:
    pairs = (("who", "me"), ("tag", "x"), ("who", "you"))
    record = store_three(metadata=pairs)
    entries = list(make_reader().present([record]))
    assert [(e.aggregate, e.version) for e in entries] == [("a", 1), ("b", 1), ("c", 1)]
    assert [[o.key["id"] for o in e.operations] for e in entries] == [[1], [2, 3], [4]]
    assert {(e.position, e.sequence, e.entry_id, e.entry_hash) for e in entries} == {
        (7, 6, record.record_id, record.record_hash)
    }
    assert all(e.metadata == {"who": ["me", "you"], "tag": ["x"]} for e in entries)
    assert {(e.transaction_id, e.recorded_at) for e in entries} == {
        (record.transaction_id, record.recorded_at)
    }


def test_an_aggregate_without_effects_is_told_all_the_same() -> None:
    record = store([effect(1, place=1, ordinal=0)], aggregates=["a", "b"])
    assert [len(e.operations) for e in make_reader().present([record])] == [0, 1]


def test_only_entries_that_are_wanted_are_told() -> None:
    reader = make_reader([store_three()], [store_three(position=8)])
    told = reader.read(EntryFilter(aggregates=("b", "c")), snapshot="now")
    assert [(e.position, e.aggregate) for e in told] == [(7, "b"), (7, "c"), (8, "b"), (8, "c")]
    told = reader.read(EntryFilter(aggregate="b"), snapshot="now")
    assert [[o.key["id"] for o in e.operations] for e in told] == [[2, 3]] * 2


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (EntryFilter(), None),
        (EntryFilter(metadata=(("a", "b"),), after=3), None),
        (EntryFilter(aggregate="a"), {"a"}),
        (EntryFilter(aggregates=("a", "b")), {"a", "b"}),
        (EntryFilter(aggregate="a", aggregates=("a", "b")), {"a"}),
        (EntryFilter(aggregate="c", aggregates=("a", "b")), set()),
    ],
)
def test_which_aggregates_a_filter_wants(filter: EntryFilter, expected: set[str] | None) -> None:
    assert list_aggregates(filter) == expected


def test_records_are_read_up_to_a_position() -> None:
    reader = make_reader([store_three(), store_three(position=8)], [store_three(position=9)])
    read = reader.iterate_records("now", through=8)
    assert [record.stored.position for record in read] == [7, 8]
    assert len(list(reader.iterate_records("now"))) == 3
    assert list(reader.iterate_records("now", through=6)) == []


def test_where_positions_do_not_rise_a_later_page_may_have_lower_ones() -> None:
    reader = make_reader([store_three(position=9)], [store_three()])
    assert list(reader.iterate_records("now", through=8)) == []
    reader.source.ordered = False  # type: ignore[misc]
    assert [r.stored.position for r in reader.iterate_records("now", through=8)] == [7]


def test_pairs_are_grouped_in_the_order_given() -> None:
    pairs = [("b", "1"), ("a", "2"), ("b", "0")]
    assert list(group_pairs(pairs).items()) == [("b", ["1", "0"]), ("a", ["2"])]
