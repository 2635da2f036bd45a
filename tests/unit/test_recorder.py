"""What a transaction did so far: savepoints take back their own, and nothing is forgotten."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from oplog.binding import Binding
from oplog.capture.recorder import Recorder, RowChange
from oplog.capture.request import Claim
from oplog.entry import (
    Entry,
    Operation,
    OpType,
    Ticket,
)
from oplog.errors import (
    ConfigurationError,
    NotCapturableError,
    OplogError,
    TicketConflictError,
    UnloggedWriteError,
)
from oplog.receipt import Receipt
from tests.bound import make_bound

pytestmark = pytest.mark.unit

BOUND = make_bound([("id", "integer")], key=["id"], aggregate="item/{id}")


def change(id: int) -> RowChange:
    return RowChange(OpType.UPDATE, BOUND, (id,), {}, ())


def make_entry(aggregate: str) -> Entry:
    return Entry(aggregate, [Operation.delete("item", key={"id": 1})])


def is_dirty(recorder: Recorder) -> bool:
    # Called, so that the type checker does not take it for a constant.
    return recorder.dirty


def find_claim(recorder: Recorder) -> Claim | None:
    return recorder.claim


def told(recorder: Recorder) -> list[object]:
    return [change.key[0] for change in recorder.iterate_changes()]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_new_transaction_has_nothing(recorder: Recorder) -> None:
    assert not is_dirty(recorder)
    assert not recorder.bound
    assert recorder.drained is False
    assert recorder.owned is False
    assert recorder.wrote is False
    assert recorder.ending is False
    assert recorder.process_id == 0
    assert recorder.tally == 0
    assert [frame.name for frame in recorder.frames] == [""]
    recorder.raise_failure()
    with pytest.raises(UnloggedWriteError, match="before the log looked"):
        _ = recorder.binding


def test_a_binding_is_kept(recorder: Recorder) -> None:
    binding = cast("Binding", object())
    recorder.bind(binding)
    assert recorder.bound
    assert recorder.binding is binding


def fill(recorder: Recorder, number: int) -> None:
    """One of everything that a frame holds."""
    recorder.record([change(number)], tally=10**number)
    recorder.frames[-1].entries.append(make_entry(f"entry/{number}"))
    recorder.add_ticket(Ticket(f"ticket/{number}", number))
    recorder.annotate({f"key{number}": [str(number)]})


def held(recorder: Recorder) -> list[list[int]]:
    """The numbers of `fill` that survive, as each kind of thing tells them."""
    return [
        [cast("int", key) for key in told(recorder)],
        [int(entry.aggregate.partition("/")[2]) for entry in recorder.iterate_entries()],
        [n for n in range(9) if recorder.find_ticket(f"ticket/{n}") is not None],
        [int(value) for _, value in recorder.list_metadata()],
        [n for n in range(9) if str(recorder.tally)[::-1][n : n + 1] == "1"],
    ]


def test_a_savepoint_rolled_back_takes_its_own_and_stays(recorder: Recorder) -> None:
    fill(recorder, 0)
    recorder.push("a")
    fill(recorder, 1)
    recorder.push("b")
    fill(recorder, 2)
    assert held(recorder) == [[0, 1, 2]] * 5
    recorder.roll_back("a")
    assert held(recorder) == [[0]] * 5
    assert [frame.name for frame in recorder.frames] == ["", "a"]
    fill(recorder, 3)
    recorder.roll_back("a")
    assert held(recorder) == [[0]] * 5


def test_a_savepoint_released_gives_everything_to_the_outer_one(recorder: Recorder) -> None:
    fill(recorder, 0)
    recorder.push("a")
    fill(recorder, 1)
    recorder.push("b")
    fill(recorder, 2)
    recorder.push("c")
    fill(recorder, 3)
    recorder.release("b")
    assert [frame.name for frame in recorder.frames] == ["", "a"]
    assert held(recorder) == [[0, 1, 2, 3]] * 5
    recorder.roll_back("a")
    assert held(recorder) == [[0]] * 5


def test_the_innermost_savepoint_of_a_name_counts(recorder: Recorder) -> None:
    recorder.push("a")
    fill(recorder, 0)
    recorder.push("a")
    fill(recorder, 1)
    recorder.roll_back("a")
    assert held(recorder) == [[0]] * 5
    recorder.release("a")
    recorder.roll_back("a")
    assert held(recorder) == [[]] * 5


def test_a_savepoint_from_before_takes_everything_when_rolled_back(recorder: Recorder) -> None:
    fill(recorder, 0)
    recorder.push("a")
    recorder.release("unknown")
    assert held(recorder) == [[0]] * 5
    assert len(recorder.frames) == 2
    recorder.roll_back("unknown")
    assert held(recorder) == [[]] * 5
    assert [frame.name for frame in recorder.frames] == [""]


def test_the_root_is_no_savepoint(recorder: Recorder) -> None:
    fill(recorder, 0)
    recorder.release("")
    assert held(recorder) == [[0]] * 5
    recorder.roll_back("")
    assert held(recorder) == [[]] * 5


# -- tickets ------------------------------------------------------------------------------


def test_the_first_ticket_taken_is_the_one_held(recorder: Recorder) -> None:
    first, second = Ticket("a", 1), Ticket("a", 2)
    recorder.add_ticket(first)
    recorder.push("s")
    recorder.add_ticket(second)
    assert recorder.find_ticket("a") is first
    recorder.release("s")
    assert recorder.find_ticket("a") is first
    assert recorder.find_ticket("b") is None


def test_a_ticket_of_a_savepoint_is_found_inside_it(recorder: Recorder) -> None:
    assert recorder.has_tickets is False
    recorder.push("s")
    ticket = Ticket("a", 1)
    recorder.add_ticket(ticket)
    assert recorder.find_ticket("a") is ticket
    assert any([recorder.has_tickets])
    recorder.push("t")
    recorder.release("t")
    recorder.roll_back("s")
    assert recorder.find_ticket("a") is None
    assert not any([recorder.has_tickets])


def test_an_entry_needs_the_ticket_of_this_transaction(recorder: Recorder) -> None:
    ticket = Ticket("a", 1)
    recorder.add_ticket(ticket)
    recorder.add_entry(make_entry("a"), ticket)
    assert [entry.aggregate for entry in recorder.iterate_entries()] == ["a"]
    for aggregate, given in [("a", Ticket("a", 1)), ("b", ticket)]:
        with pytest.raises(TicketConflictError, match="was not taken for") as caught:
            recorder.add_entry(make_entry(aggregate), given)
        assert caught.value.retryable is False
    with pytest.raises(TicketConflictError, match="'a' was not taken for 'b'"):
        recorder.check_ticket("b", ticket)
    with pytest.raises(TicketConflictError, match="ticket for 'none' was"):
        recorder.check_ticket("b", cast("Any", "none"))
    assert len(list(recorder.iterate_entries())) == 1


def test_new_changes_are_given_once_with_their_frame(recorder: Recorder) -> None:
    recorder.record([change(1), change(2)])
    recorder.push("s")
    recorder.record([change(3)])
    root, inner = recorder.frames
    given = list(recorder.iterate_new())
    assert [(frame, change.key[0]) for frame, change in given] == [(root, 1), (root, 2), (inner, 3)]
    assert list(recorder.iterate_new()) == []
    recorder.record([change(4)])
    assert [change.key[0] for _, change in recorder.iterate_new()] == [4]
    assert told(recorder) == [1, 2, 3, 4]


# -- metadata -----------------------------------------------------------------------------


def test_the_later_value_of_a_key_replaces_the_earlier_one(recorder: Recorder) -> None:
    recorder.annotate({"a": ["1", "2"], "b": ["3"]})
    recorder.push("s")
    recorder.annotate({"c": [], "a": ["9", "8"]})
    assert recorder.list_metadata() == [("a", "9"), ("a", "8"), ("b", "3")]
    recorder.release("s")
    assert recorder.list_metadata() == [("a", "9"), ("a", "8"), ("b", "3")]


# -- failures -----------------------------------------------------------------------------


def test_the_first_failure_stays_until_its_savepoint_is_gone(recorder: Recorder) -> None:
    first, second = OplogError("one", hint="h"), OplogError("two", hint="h")
    recorder.push("s")
    recorder.fail(first)
    recorder.fail(second)
    assert is_dirty(recorder)
    with pytest.raises(OplogError, match="one"):
        recorder.raise_failure()
    recorder.release("s")
    with pytest.raises(OplogError, match="one"):
        recorder.raise_failure()
    recorder.push("t")
    recorder.fail(second)
    recorder.release("t")
    with pytest.raises(OplogError, match="one"):
        recorder.raise_failure()
    recorder.roll_back("gone")
    recorder.raise_failure()
    assert not is_dirty(recorder)


def test_a_statement_that_was_never_observed_is_a_failure(recorder: Recorder) -> None:
    recorder.push("s")
    recorder.announce("one")
    recorder.announce("two")
    assert is_dirty(recorder)
    recorder.settle("one")
    with pytest.raises(NotCapturableError, match="never seen"):
        recorder.raise_failure()
    recorder.release("s")
    with pytest.raises(NotCapturableError, match="never seen"):
        recorder.raise_failure()
    recorder.push("t")
    recorder.settle("two")
    recorder.settle("unknown")
    recorder.raise_failure()
    assert not is_dirty(recorder)


def test_everything_there_is_to_write_makes_it_dirty(recorder: Recorder) -> None:
    recorder.record([], tally=3)
    recorder.annotate({"a": ["1"]})
    recorder.add_ticket(Ticket("a", 1))
    assert not is_dirty(recorder)
    recorder.push("s")
    recorder.record([change(1)])
    assert is_dirty(recorder)
    recorder.roll_back("s")
    assert not is_dirty(recorder)
    recorder.frames[-1].entries.append(make_entry("a"))
    assert is_dirty(recorder)


# -- idempotency keys ---------------------------------------------------------------------


def test_a_key_is_held_until_its_savepoint_is_gone(recorder: Recorder) -> None:
    assert find_claim(recorder) is None
    assert recorder.find_claim("k") is None
    recorder.push("s")
    claim = Claim("k", None)
    recorder.add_claim(claim)
    assert find_claim(recorder) is claim
    assert recorder.find_claim("k") is claim
    assert is_dirty(recorder)
    with pytest.raises(ConfigurationError, match="'k' and is given 'other'"):
        recorder.find_claim("other")
    recorder.release("s")
    assert find_claim(recorder) is claim
    recorder.push("t")
    recorder.add_claim(Claim("k", "later"))
    assert find_claim(recorder) is claim
    recorder.release("t")
    assert find_claim(recorder) is claim
    recorder.mark_drained()
    assert find_claim(recorder) is None
    assert recorder.spent is claim


def test_a_key_that_was_used_is_nothing_to_write(recorder: Recorder) -> None:
    assert recorder.spent is None
    recorder.add_claim(Claim("k", None, (Receipt(UUID(int=1), "a", 1, b"h"),)))
    assert not is_dirty(recorder)
    recorder.record([change(1)])
    assert is_dirty(recorder)


def test_after_the_entries_nothing_may_be_written(recorder: Recorder) -> None:
    recorder.check_open(BOUND)
    recorder.push("s")
    fill(recorder, 0)
    recorder.mark_drained()
    assert recorder.drained
    assert held(recorder) == [[]] * 5
    assert [frame.name for frame in recorder.frames] == ["", "s"]
    with pytest.raises(UnloggedWriteError, match=r'"public"\."item" is written after'):
        recorder.check_open(BOUND)


def test_what_is_announced_belongs_to_the_innermost_savepoint(recorder: Recorder) -> None:
    for name in ("a", "b", "c"):
        recorder.push(name)
    recorder.announce("statement")
    recorder.add_claim(Claim("k", None))
    assert recorder.frames[-1].under_way == {"statement"}
    recorder.roll_back("c")
    assert not is_dirty(recorder)
    recorder.raise_failure()


def test_changes_count_for_nothing_unless_it_is_said(recorder: Recorder) -> None:
    recorder.record([change(1)])
    assert recorder.tally == 0
