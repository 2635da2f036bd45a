"""What a transaction did so far: savepoints take back their own, and nothing is forgotten."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from oplog.binding import Binding
from oplog.capture.frame import NamedTable
from oplog.capture.notices import NoticeState
from oplog.capture.recorder import Recorder
from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange
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
from oplog.type_binding import BoundType
from tests.bound import make_bound

pytestmark = pytest.mark.unit

BOUND = make_bound([("id", "integer")], key=["id"], aggregate="item/{id}")
COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_TEAM = make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member")
AS_ONE = make_bound(COLUMNS, key=["id"], aggregate="all", name="thing")
BINDING = cast("Binding", object())


def change(id: int) -> RowChange:
    return update(BOUND, id)


def update(
    bound: BoundType, id: int, group: dict[str, Any] | None = None, **values: Any
) -> RowChange:
    return RowChange(OpType.UPDATE, bound, (id,), values, group=group)


def make_entry(aggregate: str) -> Entry:
    return Entry(aggregate, [Operation.delete("item", key={"id": 1})])


def is_dirty(recorder: Recorder) -> bool:
    # Called, so that the type checker does not take it for a constant.
    return recorder.dirty


def find_claim(recorder: Recorder) -> Claim | None:
    return recorder.claim


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    recorder.bind(BINDING)
    return recorder


def test_a_new_transaction_has_nothing() -> None:
    recorder = Recorder()
    assert not is_dirty(recorder)
    assert not recorder.has_binding
    assert recorder.end.closed is False
    assert recorder.owned is False
    assert recorder.wrote is False
    assert recorder.end.ending is False
    assert recorder.end.process_id == 0
    assert recorder.end.final_claim is None
    assert not recorder.has_unchecked
    assert recorder.checking_names is False
    assert [frame.name for frame in recorder.frames] == [""]
    recorder.raise_failure()
    with pytest.raises(UnloggedWriteError, match="before the log looked"):
        recorder.freeze()
    with pytest.raises(UnloggedWriteError, match="before the log looked"):
        _ = recorder.binding


def test_a_binding_is_kept() -> None:
    recorder, binding = Recorder(), cast("Binding", object())
    recorder.bind(binding)
    assert recorder.has_binding
    assert recorder.binding is binding


def fill(recorder: Recorder, number: int) -> None:
    """One of everything that a frame holds."""
    recorder.record([change(number)], tally=10**number)
    recorder.frames[-1].entries.append(make_entry(f"entry/{number}"))
    recorder.add_ticket(Ticket(f"ticket/{number}", number))
    recorder.annotate({f"key{number}": [str(number)]})


def held(recorder: Recorder) -> list[list[int]]:
    """The numbers of `fill` that survive, as each kind of thing tells them."""
    work = recorder.freeze()
    return [
        [cast("int", change.key[0]) for change in work.changes],
        [int(entry.aggregate.partition("/")[2]) for entry in work.entries],
        [ticket.version for ticket in work.tickets.values()],
        [int(value) for _, value in work.metadata],
        [n for n in range(9) if str(work.tally)[::-1][n : n + 1] == "1"],
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
    assert recorder.freeze().tickets == {"a": first}
    assert recorder.find_ticket("b") is None


def test_a_ticket_of_a_savepoint_is_found_inside_it(recorder: Recorder) -> None:
    recorder.push("s")
    ticket = Ticket("a", 1)
    recorder.add_ticket(ticket)
    assert recorder.find_ticket("a") is ticket
    recorder.push("t")
    recorder.release("t")
    recorder.roll_back("s")
    assert recorder.find_ticket("a") is None
    assert recorder.freeze().tickets == {}


def test_an_entry_needs_the_ticket_of_this_transaction(recorder: Recorder) -> None:
    ticket = Ticket("a", 1)
    recorder.add_ticket(ticket)
    recorder.add_entry(make_entry("a"), ticket)
    assert [entry.aggregate for entry in recorder.freeze().entries] == ["a"]
    for aggregate, given in [("a", Ticket("a", 1)), ("b", ticket)]:
        with pytest.raises(TicketConflictError, match="was not taken for") as caught:
            recorder.add_entry(make_entry(aggregate), given)
        assert caught.value.retryable is False
    with pytest.raises(TicketConflictError, match="'a' was not taken for 'b'"):
        recorder.check_ticket("b", ticket)
    with pytest.raises(TicketConflictError, match="ticket for 'none' was"):
        recorder.check_ticket("b", cast("Any", "none"))
    assert len(recorder.freeze().entries) == 1


def test_aggregates_without_a_ticket_in_lock_order(recorder: Recorder) -> None:
    recorder.add_ticket(Ticket("item/3", 1))
    recorder.record([change(20), change(3), change(1), update(AS_ONE, 1)])
    root = recorder.frames[0]
    recorder.push("s")
    recorder.record([change(1), update(BY_TEAM, 1, {"team": "\U0001f600"}, team="new")])
    recorder.record([update(BY_TEAM, 2, team="\uffff"), update(BY_TEAM, 3)])
    recorder.record([update(BY_TEAM, 4, {"team": "d"}, points=1)])
    names = recorder.list_unticketed()
    teams = ["team/d", "team/\uffff", "team/\U0001f600"]
    assert list(names) == ["all", "item/1", "item/20", *teams]
    assert names["item/1"] is root
    assert names["team/\uffff"] is recorder.frames[1]
    assert recorder.list_unticketed() == {}
    recorder.record([change(4)])
    assert list(recorder.list_unticketed()) == ["item/4"]


def create(bound: BoundType, id: int, **values: Any) -> RowChange:
    return RowChange(OpType.CREATE, bound, (id,), {"id": id, **values})


def test_an_aggregate_that_is_created_takes_no_ticket(recorder: Recorder) -> None:
    recorder.record([create(BOUND, 1), change(1), change(2)])
    assert list(recorder.list_unticketed()) == ["item/2"]
    recorder.record([change(1)])
    recorder.push("s")
    recorder.record([change(1)])
    assert recorder.list_unticketed() == {}


def test_an_aggregate_of_several_rows_takes_one_whatever_is_created(recorder: Recorder) -> None:
    recorder.record([create(BY_TEAM, 1, team="a", points=0), create(AS_ONE, 1)])
    assert list(recorder.list_unticketed()) == ["all", "team/a"]


def test_an_aggregate_that_was_there_before_takes_one(recorder: Recorder) -> None:
    recorder.record([RowChange(OpType.DELETE, BOUND, (1,), {}), create(BOUND, 1)])
    assert list(recorder.list_unticketed()) == ["item/1"]


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_savepoint_created_is_known_as_long_as_it_lasts(
    recorder: Recorder, kept: bool
) -> None:
    recorder.push("s")
    recorder.record([create(BOUND, 1)])
    assert recorder.list_unticketed() == {}
    if kept:
        recorder.release("s")
    else:
        recorder.roll_back("s")
    recorder.record([change(1)])
    assert list(recorder.list_unticketed()) == ([] if kept else ["item/1"])


# -- names of tables ----------------------------------------------------------------------


def test_names_stay_unchecked_within_a_savepoint_and_after_it(recorder: Recorder) -> None:
    table = NamedTable(BY_TEAM.declared.table, "item")
    recorder.note_names([table], None)
    recorder.push("before")
    assert any([recorder.has_unchecked])
    recorder.mark_checked()
    recorder.note_names([table], None)
    recorder.push("inner")
    assert any([recorder.has_unchecked])
    recorder.roll_back("before")
    assert not any([recorder.has_unchecked])


def test_names_are_unchecked_until_they_are_compared(recorder: Recorder) -> None:
    one = NamedTable(BY_TEAM.declared.table, "one")
    two = NamedTable(AS_ONE.declared.table, "two")
    recorder.note_names([one], "public")
    recorder.push("s")
    recorder.note_names([one, two], None)
    assert recorder.unchecked == {one: None, two: None}
    recorder.roll_back("s")
    assert recorder.unchecked == {one: "public"}
    recorder.note_names([two], "public")
    recorder.release("s")
    assert recorder.unchecked == {one: "public", two: "public"}
    assert any([recorder.has_unchecked])
    recorder.mark_checked()
    assert recorder.unchecked == {}
    assert not any([recorder.has_unchecked])


# -- metadata -----------------------------------------------------------------------------


def test_the_later_value_of_a_key_replaces_the_earlier_one(recorder: Recorder) -> None:
    recorder.annotate({"a": ["1", "2"], "b": ["3"]})
    recorder.push("s")
    recorder.annotate({"c": [], "a": ["9", "8"]})
    assert recorder.freeze().metadata == [("a", "9"), ("a", "8"), ("b", "3")]
    recorder.release("s")
    assert recorder.freeze().metadata == [("a", "9"), ("a", "8"), ("b", "3")]


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
    recorder.begin_statement("one")
    recorder.begin_statement("two")
    assert is_dirty(recorder)
    recorder.end_statement("one")
    with pytest.raises(NotCapturableError, match="never seen"):
        recorder.raise_failure()
    recorder.release("s")
    with pytest.raises(NotCapturableError, match="never seen"):
        recorder.raise_failure()
    recorder.push("t")
    recorder.end_statement("two")
    recorder.end_statement("unknown")
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
    recorder.close()
    assert find_claim(recorder) is None
    assert recorder.end.final_claim is claim


def test_a_key_that_was_used_is_nothing_to_write(recorder: Recorder) -> None:
    assert recorder.end.final_claim is None
    recorder.add_claim(Claim("k", None, (Receipt(UUID(int=1), "a", 1, b"h"),)))
    assert not is_dirty(recorder)
    recorder.record([change(1)])
    assert is_dirty(recorder)


def is_closed(recorder: Recorder) -> bool:
    return recorder.end.closed


def is_late(recorder: Recorder) -> bool:
    return recorder.is_late


def test_what_is_written_after_the_entries_is_a_further_record(recorder: Recorder) -> None:
    recorder.push("s")
    fill(recorder, 0)
    told = recorder.freeze().metadata
    recorder.close()
    assert is_closed(recorder)
    assert held(recorder) == [[]] * 5
    assert [frame.name for frame in recorder.frames] == ["", "s"]
    recorder.note_write("PREPARE TRANSACTION 'x'")
    assert is_closed(recorder)
    recorder.note_write("UPDATE item SET id = 2")
    assert not is_closed(recorder)
    recorder.record([change(2)])
    work = recorder.freeze()
    assert [change.key for change in work.changes] == [(2,)]
    assert work.metadata == told


def test_rows_are_late_from_the_announcement_on(recorder: Recorder) -> None:
    recorder.close()
    recorder.note_write("UPDATE item SET id = 2")
    assert not is_late(recorder)
    recorder.end.awaited = True
    assert is_late(recorder)
    recorder.push("s")
    assert not is_late(recorder)
    recorder.release("s")
    assert is_late(recorder)
    with recorder.at_work():
        assert not is_late(recorder)
    recorder.close()
    assert not is_late(recorder)


def test_what_is_announced_belongs_to_the_innermost_savepoint(recorder: Recorder) -> None:
    for name in ("a", "b", "c"):
        recorder.push(name)
    recorder.begin_statement("statement")
    recorder.add_claim(Claim("k", None))
    assert recorder.frames[-1].statements == {"statement"}
    recorder.roll_back("c")
    assert not is_dirty(recorder)
    recorder.raise_failure()


def test_changes_count_for_nothing_unless_it_is_said(recorder: Recorder) -> None:
    recorder.record([change(1)])
    assert recorder.freeze().tally == 0


# -- what is handed over ------------------------------------------------------------------


def test_what_is_frozen_stays_as_it_was(recorder: Recorder) -> None:
    fill(recorder, 0)
    work = recorder.freeze()
    assert work.log is BINDING
    assert work.claim is None
    fill(recorder, 1)
    recorder.close()
    assert [change.key for change in work.changes] == [(0,)]
    assert [entry.aggregate for entry in work.entries] == ["entry/0"]
    assert work.tickets == {"ticket/0": Ticket("ticket/0", 0)}
    assert (work.metadata, work.tally) == ([("key0", "0")], 1)


def test_a_failure_is_raised_instead(recorder: Recorder) -> None:
    recorder.record([change(1)])
    recorder.fail(OplogError("not captured", hint="h"))
    with pytest.raises(OplogError, match="not captured"):
        recorder.freeze()
    assert recorder.end.closed is False


@pytest.mark.parametrize(
    ("claim", "metadata"),
    [
        (Claim("k", "print"), [("actor", "ada"), ("oplog.request", "print")]),
        (Claim("k", None), [("actor", "ada")]),
    ],
)
def test_the_fingerprint_of_a_key_is_metadata(
    recorder: Recorder, claim: Claim, metadata: list[tuple[str, str]]
) -> None:
    recorder.add_claim(claim)
    recorder.annotate({"actor": ["ada"]})
    work = recorder.freeze()
    assert (work.claim, work.metadata) == (claim, metadata)


def test_a_statement_of_its_own_that_failed_leaves_what_was_there() -> None:
    recorder = Recorder()
    recorder.bind(BINDING)
    recorder.annotate({"actor": ["ada"]})
    recorder.frames[-1].receipts = [cast("Receipt", object())]
    recorder.record([change(1)], tally=3)
    recorder.begin_statement("statement")
    recorder.fail(NotCapturableError("which rows is not known"))
    recorder.apart = recorder.wrote = True
    recorder.notices = NoticeState(told=True)
    recorder.end_apart()
    recorder.raise_failure()
    assert not recorder.dirty
    assert (recorder.apart, recorder.notices.told, recorder.wrote) == (False, False, False)
    assert not recorder.has_binding
    assert len(recorder.receipts) == 1
    assert recorder.frames[-1].metadata == {"actor": ["ada"]}
    assert recorder.frames[-1].tally == 0
