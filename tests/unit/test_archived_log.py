"""An archive read as a log: sequences, records with an entry that fits, and what items answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.crypto.aggregate_chain import ChainCheck
from oplog.crypto.hashing import ZERO_HASH
from oplog.errors import ChainBrokenError, SegmentMissingError
from oplog.schema.mark_names import ADOPTED
from oplog.store import EntryFilter
from oplog.store.adopted import ADOPTED_REVISION, ADOPTED_ROWS, Turns
from oplog.store.rows import StoredRecord, read_microseconds
from tests.archived import MOMENT, HandMade, make_record, make_records, seal_record

pytestmark = pytest.mark.unit

PAIRS = (("actor", "ada"), ("actor", "bob"), ("reason", "x"))


def make_log() -> list[StoredRecord]:
    """Six records at positions that rise and fall."""
    heads: dict[str, tuple[int, bytes]] = {}
    return [
        make_record(3, heads, aggregates=("a", "b"), metadata=PAIRS),
        make_record(1, heads, aggregates=("c",)),
        make_record(5, heads, aggregates=("a", "b", "c"), metadata=PAIRS[:1]),
        make_record(4, heads, aggregates=("b",), metadata=PAIRS[1:]),
        make_record(9, heads, aggregates=("d",)),
        make_record(7, heads, aggregates=("a", "d")),
    ]


def publish(records: Sequence[StoredRecord], *, size: int = 2) -> HandMade:
    """Segments of `size` records."""
    made = HandMade()
    for start in range(0, len(records), size):
        made.add_records(records[start : start + size])
    made.publish()
    return made


def open_log(made: HandMade, *, through: int | None = None) -> ArchivedLog:
    return ArchivedLog(Archive(made.store), made.head, through=through)


def read_positions(log: ArchivedLog, filter: EntryFilter) -> list[int]:
    return [record.position for page in log.iterate(filter) for record in page]


# -- in order -----------------------------------------------------------------------------


def test_pages_are_those_of_segments() -> None:
    records = make_log()
    log = open_log(publish(records))
    assert [(page.first, page.records) for page in log.iterate_sequence()] == [
        (1, records[:2]),
        (3, records[2:4]),
        (5, records[4:]),
    ]
    assert list(log.iterate(EntryFilter())) == [records[:2], records[2:4], records[4:]]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("through", [None, 0, 1, 3, 4, 6])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 6])
def test_any_stretch_of_the_sequence_is_read(size: int, through: int | None, after: int) -> None:
    records = make_log()
    log = open_log(publish(records, size=size), through=through)
    found = {
        page.first + place: record
        for page in log.iterate_sequence(after=after)
        for place, record in enumerate(page.records)
    }
    last = len(records) if through is None else through
    assert found == {n: records[n - 1] for n in range(after + 1, last + 1)}
    assert log.sequence == last
    assert [r for page in log.iterate(EntryFilter()) for r in page] == records[:last]


def test_the_sequence_is_that_of_a_record_of_the_page_given_last() -> None:
    log = open_log(publish(make_log()), through=5)
    pages = log.iterate(EntryFilter())
    next(pages)
    assert [log.find_sequence(position) for position in (3, 1, 5)] == [1, 2, None]
    next(pages)
    assert [log.find_sequence(position) for position in (3, 5, 4)] == [None, 3, 4]
    next(pages)
    # What is not to be seen has none.
    assert [log.find_sequence(position) for position in (9, 7)] == [5, None]


def test_the_chain_is_that_after_a_sequence() -> None:
    made = publish(make_log())
    log = open_log(made, through=5)
    chains = [log.find_chain(sequence) for sequence in range(7)]
    assert len(set(chains[:6])) == 6
    assert chains[6] is None
    assert chains[4] == made.items[1].chain
    assert open_log(made).find_chain(6) == made.head.chain


# -- links --------------------------------------------------------------------------------


def test_a_record_that_does_not_follow_is_found_when_all_are_read() -> None:
    records = make_log()
    altered = seal_record(records[2]._replace(prev_hashes=(*records[2].prev_hashes[:2], ZERO_HASH)))
    log = open_log(publish([*records[:2], altered]))
    with pytest.raises(ChainBrokenError, match=r"position 5 \(aggregate 'c' version 2\)"):
        list(log.iterate(EntryFilter()))
    # Of some it cannot be said.
    assert read_positions(log, EntryFilter(aggregate="c")) == [1, 5]


def test_what_comes_after_can_be_held_to_what_was_read() -> None:
    records = make_log()
    chain = ChainCheck()
    list(open_log(publish(records[:4])).iterate(EntryFilter(), chain=chain))
    for record in records[4:]:
        chain.require(record.list_links(), hint="")
    with pytest.raises(ChainBrokenError):
        chain.require(records[4].list_links(), hint="")


# -- filters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "positions"),
    [
        (EntryFilter(aggregate="a"), [3, 5, 7]),
        (EntryFilter(aggregate="d"), [9, 7]),
        (EntryFilter(aggregate="e"), []),
        (EntryFilter(aggregates=("c", "e")), [1, 5]),
        (EntryFilter(aggregates=("c", "d")), [1, 5, 9, 7]),
        # One entry is of both.
        (EntryFilter(aggregate="a", aggregates=("a", "c")), [3, 5, 7]),
        (EntryFilter(aggregate="a", aggregates=("c",)), []),
        (EntryFilter(metadata=(("actor", "ada"),)), [3, 5]),
        (EntryFilter(metadata=(("actor", "bob"),)), [3, 4]),
        (EntryFilter(metadata=(("actor", "ada"), ("actor", "bob"))), [3]),
        (EntryFilter(metadata=(("actor", "x"),)), []),
        (EntryFilter(aggregate="b", metadata=(("reason", "x"),)), [3, 4]),
        (EntryFilter(after=4), [5, 9, 7]),
        (EntryFilter(through=4), [3, 1, 4]),
        (EntryFilter(after=3, through=7), [5, 4, 7]),
        (EntryFilter(after=0), [3, 1, 5, 4, 9, 7]),
        (EntryFilter(aggregate="a", after=3, through=5), [5]),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_records_with_an_entry_that_fits_are_given_whole(
    size: int, filter: EntryFilter, positions: list[int]
) -> None:
    records = {record.position: record for record in make_log()}
    pages = list(open_log(publish(make_log(), size=size)).iterate(filter))
    assert all(pages)
    assert [r for page in pages for r in page] == [records[position] for position in positions]


NAMES = st.sampled_from("abcde")
POSITIONS = st.none() | st.integers(0, 10)


@given(
    st.builds(
        EntryFilter,
        aggregate=st.none() | NAMES,
        aggregates=st.lists(NAMES, max_size=2).map(tuple),
        metadata=st.lists(st.sampled_from(PAIRS), max_size=2).map(tuple),
        after=POSITIONS,
        through=POSITIONS,
    )
)
def test_filters_hold_together(filter: EntryFilter) -> None:
    def fits(record: StoredRecord, aggregate: str) -> bool:
        return (
            (filter.aggregate is None or aggregate == filter.aggregate)
            and (not filter.aggregates or aggregate in filter.aggregates)
            and set(filter.metadata) <= set(record.metadata)
            and (filter.after is None or record.position > filter.after)
            and (filter.through is None or record.position <= filter.through)
        )

    expected = [
        record.position
        for record in make_log()
        if any(fits(record, aggregate) for aggregate in record.aggregates)
    ]
    assert read_positions(open_log(publish(make_log())), filter) == expected


def test_segments_without_a_position_that_is_asked_for_are_not_read() -> None:
    made = publish(make_log())
    made.store.delete(made.items[1].path)
    log = open_log(made)
    assert read_positions(log, EntryFilter(after=5)) == [9, 7]
    assert read_positions(log, EntryFilter(through=3)) == [3, 1]
    for asked in (EntryFilter(after=4), EntryFilter(through=4), EntryFilter(aggregate="z")):
        with pytest.raises(SegmentMissingError):
            read_positions(log, asked)


# -- what a database finds by index -------------------------------------------------------


def test_the_position_at_a_time_is_the_highest_recorded_until_then() -> None:
    # Recorded at their positions' microseconds.
    log = open_log(publish(make_log()))
    found = [log.find_position(read_microseconds(MOMENT + n)) for n in range(11)]
    assert found == [0, 1, 1, 3, 4, 5, 5, 7, 7, 9, 9]
    assert log.find_position(read_microseconds(MOMENT) + timedelta(days=1)) == 9


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@given(times=st.permutations(range(6)), at=st.integers(-1, 6))
def test_the_position_at_a_time_is_the_longest_stretch_that_is_not_younger(
    size: int, times: list[int], at: int
) -> None:
    """The clock was set back and forth: what is at or before it is older than `at`, all of it."""
    heads: dict[str, tuple[int, bytes]] = {}
    records = [
        make_record(position, heads, recorded_at=read_microseconds(MOMENT + time))
        for position, time in zip((3, 1, 5, 4, 9, 7), times, strict=True)
    ]
    moment = read_microseconds(MOMENT + at)
    young = [record.position for record in records if record.recorded_at > moment]
    old = [r.position for r in records if not young or r.position < min(young)]
    log = open_log(publish(records, size=size))
    assert log.find_position(moment) == max(old, default=0)
    assert log.find_later(moment) == min(young, default=None)


def test_the_position_at_a_time_is_one_that_is_to_be_seen() -> None:
    log = open_log(publish(make_log(), size=6), through=2)
    assert log.find_position(read_microseconds(MOMENT + 9)) == 3
    assert (
        open_log(publish(make_log()), through=4).find_position(read_microseconds(MOMENT + 9)) == 5
    )


def make_adoptions() -> list[StoredRecord]:
    heads: dict[str, tuple[int, bytes]] = {}
    ended = ((ADOPTED, "account"), (ADOPTED_ROWS, "7"), (ADOPTED_REVISION, "2"))
    return [
        make_record(1, heads, aggregates=("adopted/account",), metadata=ended[:1]),
        make_record(2, heads, aggregates=("account/1",), metadata=ended),
        make_record(4, heads, aggregates=("account/1", "adopted/account"), metadata=ended),
        make_record(3, heads, aggregates=("adopted/book", "adopted/page"), metadata=ended[:2]),
        make_record(5, heads, aggregates=("account/1",)),
    ]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_adoptions_are_found_by_their_aggregates(size: int) -> None:
    log = open_log(publish(make_adoptions(), size=size))
    types = ("account", "book", "page", "other")
    ended = {"book": Turns(began=True, ended=3), "page": Turns(began=True, ended=3)}
    account = Turns(began=True, ended=4, revision=2)
    assert log.find_adoptions(types) == ended | {"account": account}
    assert log.find_adoptions(("page",)) == {"page": ended["page"]}
    assert log.find_adoptions(types, through=3) == ended | {"account": Turns(began=True)}
    assert log.find_adoptions(types, through=2) == {"account": Turns(began=True)}
    assert log.find_adoptions(("other",)) == {}
    until = open_log(publish(make_adoptions(), size=size), through=3)
    assert until.find_adoptions(types) == {"account": account}


def test_segments_without_adopted_rows_are_not_read_for_adoptions() -> None:
    made = publish(make_adoptions(), size=1)
    for place in (1, 4):
        made.store.delete(made.items[place].path)
    assert open_log(made).find_adoptions(("page",)) == {"page": Turns(began=True, ended=3)}


def test_a_log_is_that_of_its_head() -> None:
    made = HandMade()
    made.add_records(make_records(2))
    head = made.publish()
    made.add_records(make_records(1, first=3))
    made.publish()
    log = ArchivedLog(Archive(made.store), head)
    assert (log.sequence, log.first_sequence, log.whole, log.generation) == (2, 1, True, 0)
    assert log.read_log_id() == head.log_id
    assert log.read_snapshot() == "head 1"
    assert [len(page.records) for page in log.iterate_sequence()] == [2]
    assert log.list_broken_links() == []
