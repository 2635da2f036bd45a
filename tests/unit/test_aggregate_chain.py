"""An aggregate's records follow one another, or it is said which does not."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from oplog.crypto.aggregate_chain import BEGINNING, ChainCheck, ChainHead, follows
from oplog.errors import ChainBrokenError
from oplog.store.rows import StoredRecord
from tests.archived import make_record, make_records

pytestmark = pytest.mark.unit


def find_breaks(records: Iterable[StoredRecord], chain: ChainCheck) -> list[tuple[str, int]]:
    """Aggregates and versions of the links that do not follow."""
    return [
        (link.aggregate, link.version)
        for record in records
        for link in record.list_links()
        if chain.find_break(link) is not None
    ]


def find_versions(records: Iterable[StoredRecord], chain: ChainCheck) -> list[int]:
    return [version for _, version in find_breaks(records, chain)]


def test_a_whole_chain_has_no_break() -> None:
    assert find_breaks(make_records(5), ChainCheck()) == []


def test_the_first_record_follows_the_beginning() -> None:
    first, second, *_ = (next(record.list_links()) for record in make_records(3))
    assert follows(BEGINNING, version=first.version, prev_hash=first.prev_hash)
    assert not follows(BEGINNING, version=second.version, prev_hash=second.prev_hash)
    # Version 1 with a link is no beginning either.
    assert not follows(BEGINNING, version=1, prev_hash=second.prev_hash)


@pytest.mark.parametrize("lost", range(4))
def test_a_missing_record_shows_once(lost: int) -> None:
    records = make_records(5)
    del records[lost]
    assert find_versions(records, ChainCheck()) == [lost + 2]


def test_a_missing_record_shows_in_each_of_its_aggregates() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    names = (("a", "b"), ("a", "b", "c"), ("b", "c"), ("a",), ("a", "b", "c"))
    records = [make_record(n, heads, aggregates=each) for n, each in enumerate(names, 1)]
    assert find_breaks(records, ChainCheck()) == []
    del records[1]
    assert find_breaks(records, ChainCheck()) == [("b", 3), ("c", 2), ("a", 3)]


def test_another_hash_shows_in_the_record_after() -> None:
    records = make_records(4)
    records[1] = records[1]._replace(record_hash=bytes(31) + b"\1")
    assert find_versions(records, ChainCheck()) == [3]


def test_two_records_in_one_place() -> None:
    records = make_records(3)
    assert find_versions([*records[:2], records[1], records[2]], ChainCheck()) == [2]


def test_a_log_without_its_beginning() -> None:
    _, _, *rest = make_records(5)
    assert find_breaks(rest, ChainCheck(whole=False)) == []
    assert find_versions(rest, ChainCheck()) == [3]
    del rest[1]
    assert find_versions(rest, ChainCheck(whole=False)) == [5]


def test_known_heads_come_before() -> None:
    first, *rest = make_records(3)
    head = ChainHead(first.versions[0], first.record_hash)
    assert find_breaks(rest, ChainCheck(heads={first.aggregates[0]: head})) == []
    other = head._replace(record_hash=bytes(32))
    assert find_versions(rest, ChainCheck(heads={first.aggregates[0]: other})) == [2]


def test_aggregates_are_held_apart() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    names = ["a", "b", "a", "c", "b"]
    records = [make_record(n, heads, aggregates=(name,)) for n, name in enumerate(names, 1)]
    assert find_breaks(records, ChainCheck()) == []


def test_the_error_names_the_record() -> None:
    first, _, third = make_records(3)
    chain = ChainCheck()
    chain.require(first.list_links(), hint="look")
    with pytest.raises(
        ChainBrokenError, match=r"position 3 .*'account/1' version 3.* does not follow version 1"
    ) as found:
        chain.require(third.list_links(), hint="look")
    assert found.value.hint == "look"
