"""An aggregate's records follow one another, or it is said which does not."""

from __future__ import annotations

import pytest

from oplog.crypto.aggregate_chain import BEGINNING, ChainCheck, ChainHead, follows
from oplog.errors import ChainBrokenError
from oplog.store.rows import Link, StoredRecord
from tests.archived import make_record, make_records

pytestmark = pytest.mark.unit


def list_links(records: list[StoredRecord]) -> list[Link]:
    return [link for record in records for link in record.list_links()]


def make_links(count: int) -> list[Link]:
    """Links of one aggregate."""
    return list_links(make_records(count))


def find_breaks(links: list[Link], chain: ChainCheck) -> list[int]:
    return [link.version for link in links if chain.find_break(link) is not None]


def test_a_whole_chain_has_no_break() -> None:
    assert find_breaks(make_links(5), ChainCheck()) == []


def test_the_first_record_follows_the_beginning() -> None:
    first, second, *_ = make_links(3)
    assert follows(BEGINNING, version=first.version, prev_hash=first.prev_hash)
    assert not follows(BEGINNING, version=second.version, prev_hash=second.prev_hash)
    # Version 1 with a link is no beginning either.
    assert not follows(BEGINNING, version=1, prev_hash=second.prev_hash)


@pytest.mark.parametrize("lost", range(4))
def test_a_missing_record_shows_once(lost: int) -> None:
    links = make_links(5)
    del links[lost]
    assert find_breaks(links, ChainCheck()) == [lost + 2]


def test_another_hash_shows_in_the_record_after() -> None:
    links = make_links(4)
    links[1] = links[1]._replace(record_hash=bytes(31) + b"\1")
    assert find_breaks(links, ChainCheck()) == [3]


def test_two_records_in_one_place() -> None:
    links = make_links(3)
    assert find_breaks([*links[:2], links[1], links[2]], ChainCheck()) == [2]


def test_a_log_without_its_beginning() -> None:
    _, _, *rest = make_links(5)
    assert find_breaks(rest, ChainCheck(whole=False)) == []
    assert find_breaks(rest, ChainCheck()) == [3]
    del rest[1]
    assert find_breaks(rest, ChainCheck(whole=False)) == [5]


def test_known_heads_come_before() -> None:
    first, *rest = make_links(3)
    head = ChainHead(first.version, first.record_hash)
    assert find_breaks(rest, ChainCheck(heads={first.aggregate: head})) == []
    other = head._replace(record_hash=bytes(32))
    assert find_breaks(rest, ChainCheck(heads={first.aggregate: other})) == [2]


def test_given_heads_are_not_moved() -> None:
    first, second, *_ = make_links(2)
    heads = {first.aggregate: ChainHead(first.version, first.record_hash)}
    ChainCheck(heads=heads).require([second], hint="look")
    assert heads == {first.aggregate: ChainHead(1, first.record_hash)}


def make_web() -> list[StoredRecord]:
    """Records that share aggregates: each is one link in several chains."""
    heads: dict[str, tuple[int, bytes]] = {}
    names = [("a", "b"), ("b",), ("a", "c"), ("a", "b", "c"), ("c",)]
    return [
        make_record(number, heads, aggregates=aggregates)
        for number, aggregates in enumerate(names, 1)
    ]


def test_aggregates_are_held_apart() -> None:
    records = make_web()
    assert find_breaks(list_links(records), ChainCheck()) == []
    assert records[3].versions == (3, 3, 2)


def test_a_missing_record_breaks_the_chains_of_all_its_aggregates() -> None:
    records = make_web()
    del records[0]
    chain = ChainCheck()
    broken = [
        (link.position, link.aggregate)
        for link in list_links(records)
        if chain.find_break(link) is not None
    ]
    assert broken == [(2, "b"), (3, "a")]


def test_the_error_names_the_record() -> None:
    first, _, third = make_records(3)
    chain = ChainCheck()
    chain.require(first.list_links(), hint="look")
    with pytest.raises(
        ChainBrokenError, match=r"position 3 .*'account/1' version 3.* does not follow version 1"
    ) as found:
        chain.require(third.list_links(), hint="look")
    assert found.value.hint == "look"


def test_every_link_of_a_record_is_required() -> None:
    records = make_web()
    last = records[3]
    wrong = last._replace(prev_hashes=(*last.prev_hashes[:2], bytes(31) + b"\1"))
    chain = ChainCheck()
    for record in records[:3]:
        chain.require(record.list_links(), hint="look")
    with pytest.raises(ChainBrokenError, match=r"position 4 .*'c' version 2"):
        chain.require(wrong.list_links(), hint="look")
