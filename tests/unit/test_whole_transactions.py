"""Entries are put together to transactions, whatever order they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.errors import ChainBrokenError
from oplog.store.export import Novelty
from oplog.store.rows import StoredEntry
from oplog.store.whole_transactions import TransactionGroups, count_missing
from oplog.sync.batch import check_whole
from tests.archived import make_entry

pytestmark = pytest.mark.unit


def make_transactions(sizes: list[int]) -> list[list[StoredEntry]]:
    heads: dict[str, tuple[int, bytes]] = {}
    position, made = 0, []
    for size in sizes:
        begin, group = position + 1, []
        for _ in range(size):
            position += 1
            group.append(
                make_entry(
                    position, heads, pairs=[], transaction_position=begin, transaction_size=size
                )
            )
        made.append(group)
    return made


def collect(entries: list[StoredEntry]) -> tuple[list[list[int]], TransactionGroups[int]]:
    groups = TransactionGroups[int]()
    found = [groups.add(entry, entry.position) for entry in entries]
    return [group for group in found if group is not None], groups


@given(st.lists(st.integers(1, 4), max_size=6), st.randoms(use_true_random=False))
def test_each_is_given_once_and_whole(sizes: list[int], chance: object) -> None:
    transactions = make_transactions(sizes)
    entries = [entry for group in transactions for entry in group]
    chance.shuffle(entries)  # type: ignore[attr-defined]
    found, groups = collect(entries)
    expected = [{entry.position for entry in group} for group in transactions]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert not groups
    groups.require_complete(hint="")


def test_it_is_given_with_its_last_entry() -> None:
    one, two = make_transactions([2, 2])
    groups = TransactionGroups[str]()
    assert groups.add(one[0], "a") is None
    assert groups.add(two[0], "b") is None
    assert groups.add(two[1], "c") == ["b", "c"]
    assert groups
    assert groups.add(one[1], "d") == ["a", "d"]
    assert not groups


def test_what_is_not_complete_is_an_error_that_names_the_first() -> None:
    one, two = make_transactions([3, 2])
    found, groups = collect([two[0], *one[:2]])
    assert found == []
    with pytest.raises(
        ChainBrokenError, match="transaction at position 1 has 2 of 3 entries"
    ) as error:
        groups.require_complete(hint="look there")
    assert error.value.hint == "look there"


def test_how_many_entries_are_missing() -> None:
    one, two, three = make_transactions([3, 2, 1])
    assert count_missing([*one, *two, *three]) == {}
    assert count_missing([one[0], *two, two[0]]) == {1: 2}
    assert count_missing([one[2], two[0]]) == {1: 2, 4: 1}


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_published_of_a_transaction_with_too_few_entries_or_too_many(count: int) -> None:
    whole = [Novelty(1, position, 2, 10) for position in (1, 2)]
    check_whole(whole)
    wrong = [Novelty(3, 3 + number, 2, 10) for number in range(count)]
    with pytest.raises(ChainBrokenError, match="transaction at position 3 has 1 of 2 entries"):
        check_whole([*whole, *wrong])
