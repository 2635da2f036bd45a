"""An aggregate's entries follow one another, or it is said which does not."""

from __future__ import annotations

import pytest

from oplog.crypto.aggregate_chain import BEGINNING, ChainCheck, ChainHead, follows
from oplog.errors import ChainBrokenError
from oplog.store.rows import StoredEntry
from tests.archived import make_entries, make_entry

pytestmark = pytest.mark.unit


def find_breaks(entries: list[StoredEntry], chain: ChainCheck) -> list[int]:
    return [entry.version for entry in entries if chain.find_break(entry) is not None]


def test_a_whole_chain_has_no_break() -> None:
    assert find_breaks(make_entries(5), ChainCheck()) == []


def test_the_first_entry_follows_the_beginning() -> None:
    first, second, *_ = make_entries(3)
    assert follows(BEGINNING, version=first.version, prev_hash=first.prev_hash)
    assert not follows(BEGINNING, version=second.version, prev_hash=second.prev_hash)
    # Version 1 with a link is no beginning either.
    assert not follows(BEGINNING, version=1, prev_hash=second.prev_hash)


@pytest.mark.parametrize("lost", range(4))
def test_a_missing_entry_shows_once(lost: int) -> None:
    entries = make_entries(5)
    del entries[lost]
    assert find_breaks(entries, ChainCheck()) == [lost + 2]


def test_another_hash_shows_in_the_entry_after() -> None:
    entries = make_entries(4)
    entries[1] = entries[1]._replace(entry_hash=bytes(31) + b"\1")
    assert find_breaks(entries, ChainCheck()) == [3]


def test_two_entries_in_one_place() -> None:
    entries = make_entries(3)
    assert find_breaks([*entries[:2], entries[1], entries[2]], ChainCheck()) == [2]


def test_a_log_without_its_beginning() -> None:
    _, _, *rest = make_entries(5)
    assert find_breaks(rest, ChainCheck(whole=False)) == []
    assert find_breaks(rest, ChainCheck()) == [3]
    del rest[1]
    assert find_breaks(rest, ChainCheck(whole=False)) == [5]


def test_known_heads_come_before() -> None:
    first, *rest = make_entries(3)
    head = ChainHead(first.version, first.entry_hash)
    assert find_breaks(rest, ChainCheck(heads={first.aggregate: head})) == []
    other = head._replace(entry_hash=bytes(32))
    assert find_breaks(rest, ChainCheck(heads={first.aggregate: other})) == [2]


def test_aggregates_are_held_apart() -> None:
    heads: dict[str, tuple[int, bytes]] = {}
    names = ["a", "b", "a", "c", "b"]
    entries = [
        make_entry(number, heads, pairs=[], aggregate=name) for number, name in enumerate(names, 1)
    ]
    assert find_breaks(entries, ChainCheck()) == []


def test_the_error_names_the_entry() -> None:
    first, _, third = make_entries(3)
    chain = ChainCheck()
    chain.require(first, hint="look")
    with pytest.raises(
        ChainBrokenError, match=r"position 3 .*'account/1' version 3.* does not follow version 1"
    ) as found:
        chain.require(third, hint="look")
    assert found.value.hint == "look"
