"""The checker against histories made by hand: each law has one that breaks it and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fault import history
from tests.fault.history import (
    ABORTED,
    ACKNOWLEDGED,
    COMMITTED,
    FAILED,
    INVOKED,
    PENDING,
    RESOLVED,
    UNKNOWN,
    Event,
    Promise,
    State,
    judge,
    locate,
)
from tests.fault.story import Story, tell_story

pytestmark = [pytest.mark.unit, pytest.mark.fault]


def test_nothing_is_wrong_with_a_good_story() -> None:
    story = tell_story()
    story.tickets["counter/9"] = 0
    story.earlier = {locate(entry): entry for entry in story.entries[:3]}
    assert story.judge() == []


def find(story: Story, operation: str, what: str) -> int:
    """Where the operation's (last) event of this kind is."""
    places = [n for n, e in enumerate(story.events) if (e.operation, e.what) == (operation, what)]
    return places[-1]


def tell(story: Story, operation: str, told: str, **values: object) -> None:
    """Let the client have been told something else."""
    place = find(story, operation, told)
    story.events[place] = replace(story.events[place], **values)  # type: ignore[arg-type]


def leave_version_out(story: Story) -> None:
    lost = story.entries[-1]
    assert (lost.operation, lost.version) == ("f1", 2)
    story.change(-1, version=3)


def repeat_version(story: Story) -> None:
    # Nobody was promised the version of an operation whose client died.
    story.change(-1, version=1)


def follow_another(story: Story) -> None:
    story.change(2, prev_hash="hash of nothing")


def lag_ticket(story: Story) -> None:
    story.tickets["counter/3"] = 1


def lose_ticket(story: Story) -> None:
    del story.tickets["counter/3"]


def leave_ticket_alone(story: Story) -> None:
    story.tickets["counter/9"] = 1


def find_both(story: Story) -> tuple[int, int]:
    """Where the two entries of the only record with two are."""
    first, second = (n for n, entry in enumerate(story.entries) if entry.operation == "b1")
    return first, second


def split_hash(story: Story) -> None:
    _, second = find_both(story)
    # What follows it follows the other hash, so that every link holds.
    story.change(second, record_hash="hash of another")
    story.change(second + 1, prev_hash="hash of another")
    promises = story.events[find(story, "b1", ACKNOWLEDGED)].receipts
    others = (promises[0], replace(promises[1], record_hash="hash of another"))
    tell(story, "b1", ACKNOWLEDGED, receipts=others)


def split_bytes(story: Story) -> None:
    story.change(find_both(story)[1], digest="other bytes")


def split_key(story: Story) -> None:
    story.change(find_both(story)[1], key="another")


def happen_twice(story: Story) -> None:
    story.store("f1", "counter/3")


def happen_uninvited(story: Story) -> None:
    story.store("g1", "counter/3")


def share_record(story: Story) -> None:
    story.change(-1, position=story.entries[-2].position)


def change_bytes(story: Story) -> None:
    last = story.entries[-1]
    story.earlier[locate(last)] = replace(last, digest="other bytes")


def lose_after_reading(story: Story) -> None:
    gone = replace(story.entries[-1], record_id="gone")
    story.earlier[locate(gone)] = gone


def complain(story: Story) -> None:
    story.complaints.append("counter 1: live 3, logged 4")


def lose_acknowledged(story: Story) -> None:
    story.invoke("g1")
    promise = Promise("g1-0", "counter/1", 5, "hash of g1")
    story.say(ACKNOWLEDGED, "g1", receipts=(promise,))


def promise_another_hash(story: Story) -> None:
    (promise,) = story.events[find(story, "a3", ACKNOWLEDGED)].receipts
    tell(story, "a3", ACKNOWLEDGED, receipts=(replace(promise, record_hash="other"),))


def promise_another_version(story: Story) -> None:
    (promise,) = story.events[find(story, "a3", ACKNOWLEDGED)].receipts
    tell(story, "a3", ACKNOWLEDGED, receipts=(replace(promise, version=2),))


def promise_nothing(story: Story) -> None:
    story.invoke("g1")
    story.say(ACKNOWLEDGED, "g1")


def promise_half(story: Story) -> None:
    promises = story.events[find(story, "b1", ACKNOWLEDGED)].receipts
    tell(story, "b1", ACKNOWLEDGED, receipts=promises[:1])


def keep_failed(story: Story) -> None:
    story.store("c1", "counter/3")


def deny_committed(story: Story) -> None:
    tell(story, "d1", RESOLVED, verdict=ABORTED)


def affirm_aborted(story: Story) -> None:
    tell(story, "d2", RESOLVED, verdict=COMMITTED)


def commit_after_verdict(story: Story) -> None:
    story.store("d2", "counter/2", record_id="d2-0")


def affirm_half(story: Story) -> None:
    story.invoke("g1")
    (there,) = story.store("g1", "counter/1")
    half = (there, Promise(there.record_id, "counter/2", 0, ""))
    story.say(UNKNOWN, "g1", receipts=half)
    story.say(RESOLVED, "g1", receipts=half, verdict=COMMITTED)


def change_mind(story: Story) -> None:
    receipts = story.events[find(story, "d1", RESOLVED)].receipts
    story.say(RESOLVED, "d1", receipts=receipts, verdict=ABORTED)


def answer_nothing(story: Story) -> None:
    tell(story, "e1", RESOLVED, verdict=PENDING)


def invent_verdict(story: Story) -> None:
    tell(story, "d2", RESOLVED, verdict="LIKELY")


def deny_key(story: Story) -> None:
    tell(story, "e1", RESOLVED, verdict=ABORTED)


def affirm_unused_key(story: Story) -> None:
    story.invoke("g1", key="unused", request="x")
    story.say(UNKNOWN, "g1")
    story.say(RESOLVED, "g1", verdict=COMMITTED)


def use_key_twice(story: Story) -> None:
    story.invoke("e4", key="k", request="x")
    story.store("e4", "counter/3", key="k")


def promise_others_for_key(story: Story) -> None:
    story.invoke("e4", key="k", request="x")
    story.say(ACKNOWLEDGED, "e4", receipts=tuple(story.store("e4", "counter/3")))


def accept_other_request(story: Story) -> None:
    receipts = story.events[find(story, "e2", ACKNOWLEDGED)].receipts
    tell(story, "e3", FAILED, what=ACKNOWLEDGED, receipts=receipts)


def begin_too_late(story: Story) -> None:
    # a2 is version 2; a3, version 3, was acknowledged before it began.
    place = find(story, "a2", INVOKED)
    later = story.events[find(story, "a3", ACKNOWLEDGED)].at + 1
    story.events[place] = replace(story.events[place], at=later)
    tell(story, "a2", ACKNOWLEDGED, at=later + 1)


def resolve_before_beginning(story: Story) -> None:
    # d1 is version 2 of counter/2; b1, version 1, began after its verdict.
    later = story.events[find(story, "d1", RESOLVED)].at + 1
    tell(story, "b1", INVOKED, at=later)
    tell(story, "b1", ACKNOWLEDGED, at=later + 1)
    # On the other counter of its transaction nothing follows.
    assert story.entries[3].aggregate == "counter/1"
    assert story.entries[3].version == 4


def see_the_past(story: Story) -> None:
    story.change(2, seen=1, value=2)


def see_something_at_first(story: Story) -> None:
    story.change(-2, seen=1, value=2)
    story.change(-1, seen=2, value=3)


def add_two(story: Story) -> None:
    story.change(-1, value=3)


def count_less(story: Story) -> None:
    story.rows["counter/3"] = 1


def count_unlogged(story: Story) -> None:
    story.rows["counter/7"] = 1


BREACHES: list[tuple[str, Callable[[Story], None]]] = [
    ("versions", leave_version_out),
    ("versions", repeat_version),
    ("tickets", lag_ticket),
    ("tickets", lose_ticket),
    ("tickets", leave_ticket_alone),
    ("links", follow_another),
    ("records", split_hash),
    ("records", split_bytes),
    ("records", split_key),
    ("whole", happen_twice),
    ("whole", happen_uninvited),
    ("whole", share_record),
    ("stable", change_bytes),
    ("stable", lose_after_reading),
    ("verify", complain),
    ("acknowledged", lose_acknowledged),
    ("acknowledged", promise_another_hash),
    ("acknowledged", promise_another_version),
    ("acknowledged", promise_nothing),
    ("acknowledged", promise_half),
    ("failed", keep_failed),
    ("verdicts", deny_committed),
    ("verdicts", affirm_aborted),
    ("verdicts", commit_after_verdict),
    ("verdicts", affirm_half),
    ("verdicts", change_mind),
    ("verdicts", answer_nothing),
    ("verdicts", invent_verdict),
    ("verdicts", deny_key),
    ("verdicts", affirm_unused_key),
    ("keys", use_key_twice),
    ("keys", promise_others_for_key),
    ("keys", accept_other_request),
    ("order", begin_too_late),
    ("order", resolve_before_beginning),
    ("updates", see_the_past),
    ("updates", see_something_at_first),
    ("updates", add_two),
    ("rows", count_less),
    ("rows", count_unlogged),
]


@pytest.mark.parametrize(
    ("law", "spoil"), BREACHES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_breach_of_one_law_is_named(law: str, spoil: Callable[[Story], None]) -> None:
    story = tell_story()
    spoil(story)
    assert story.list_broken_laws() == {law}, story.judge()


def test_every_law_has_a_breach() -> None:
    names = {law.__name__.removeprefix("check_") for law in history.LAWS}
    assert names == {{"verify": "complaints"}.get(law, law) for law, _ in BREACHES}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(INVOKED, "a"), (INVOKED, "a")], "invoked twice"),
        ([(FAILED, "a")], "never invoked"),
        ([(INVOKED, "a"), (FAILED, "a"), (ACKNOWLEDGED, "a")], "ended twice"),
    ],
)
def test_a_journal_that_cannot_be_is_refused(events: list[tuple[str, str]], message: str) -> None:
    told = [Event(what, operation, at) for at, (what, operation) in enumerate(events)]
    with pytest.raises(ValueError, match=message):
        judge(told, State([], {}, {}))
