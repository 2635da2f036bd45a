"""The cursor's rules, without a database."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace

import pytest

from oplog.errors import ConfigurationError, DecodeError
from oplog.store.cursor import Cursor

pytestmark = [pytest.mark.unit]

START = Cursor("1", 1, None)

SEED = int(os.environ.get("OPLOG_TEST_SEED", "20260"))


@pytest.mark.parametrize(
    ("old", "snapshot", "seen", "expected"),
    [
        (None, "10:20:10,15", [12, 13], "10:14:10"),
        (None, "20:20:", [12], "13:13:"),
        ("5:14:5", "15:20:15", [5], "14:14:"),
        ("5:14:5", "5:20:5,16", [14, 17], "5:18:5,16"),
        ("5:14:5", "5:30:5", [], "5:14:5"),
        ("5:30:5,9", "9:40:9", [5], "9:30:9"),
    ],
)
def test_the_cursor_never_claims_more_than_it_was_given(
    old: str | None, snapshot: str, seen: list[int], expected: str
) -> None:
    advanced = replace(START, snapshot=old).advance(snapshot, seen)
    assert advanced.snapshot == expected


def test_a_model_of_crashes_loses_nothing() -> None:
    """Against a list of transactions: commits, aborts, and crashes that reuse ids of aborts."""
    draw = random.Random(SEED)
    cursor, next_xid, durable_xid = START, 3, 3
    running: set[int] = set()
    committed: dict[int, int] = {}
    delivered: list[int] = []
    for step in range(4_000):
        action = draw.random()
        if action < 0.4:
            running.add(next_xid)
            next_xid += 1
        elif action < 0.9 and running:
            xid = draw.choice(sorted(running))
            running.discard(xid)
            if action < 0.65:
                committed[xid] = step
                durable_xid = max(durable_xid, xid + 1)
        elif action > 0.99:
            running.clear()
            next_xid = durable_xid
        else:
            xip = sorted(running)
            snapshot = f"{min(xip, default=next_xid)}:{next_xid}:{','.join(map(str, xip))}"
            batch = [xid for xid in committed if not sees(cursor.snapshot, xid)]
            delivered += batch
            cursor = cursor.advance(snapshot, batch)
    delivered += [xid for xid in committed if not sees(cursor.snapshot, xid)]
    assert sorted(delivered) == sorted(committed), f"seed {SEED}"


def sees(snapshot: str | None, xid: int) -> bool:
    if snapshot is None:
        return False
    _, xmax, xip = snapshot.split(":")
    return xid < int(xmax) and str(xid) not in xip.split(",")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        START.to_json().replace("null", '"1:2"', 1),
        START.to_json().replace("null", '"1:2:x"', 1),
        START.to_json().replace('"target": null', '"target": "1:2"'),
        START.to_json().replace('"target": null', '"target": 7'),
        START.to_json().replace('"timeline": 1', '"timeline": "one"'),
        START.to_json().replace('"after": 0', '"after": null'),
    ],
)
def test_an_unreadable_cursor_is_an_error(text: str) -> None:
    with pytest.raises(DecodeError):
        Cursor.from_json(text)


def test_a_cursor_survives_its_text() -> None:
    cursor = Cursor("7", 2, "3:5:4", "3:9:4", 12)
    assert Cursor.from_json(cursor.to_json()) == cursor


@pytest.mark.parametrize(
    ("saved", "before", "behind"),
    [
        (("5:5:", None, 0), (None, None, 0), False),
        ((None, None, 0), ("5:5:", None, 0), True),
        (("5:5:", None, 0), ("5:5:", None, 0), False),
        (("4:4:", None, 0), ("5:5:", None, 0), True),
        # The same end, and one more transaction seen: forward, and back again.
        (("7:7:", None, 0), ("5:7:5", None, 0), False),
        (("5:7:5", None, 0), ("7:7:", None, 0), True),
        (("5:9:5,8", None, 0), ("5:7:5", None, 0), False),
        # On the way to one target.
        (("5:5:", "9:9:", 3), ("5:5:", None, 0), False),
        (("5:5:", "9:9:", 4), ("5:5:", "9:9:", 3), False),
        (("5:5:", "9:9:", 2), ("5:5:", "9:9:", 3), True),
        (("5:5:", None, 0), ("5:5:", "9:9:", 3), True),
        (("5:5:", "8:8:", 3), ("5:5:", "9:9:", 3), True),
        (("9:9:", None, 0), ("5:5:", "9:9:", 3), False),
    ],
)
def test_a_cursor_only_goes_forward(
    saved: tuple[str | None, str | None, int],
    before: tuple[str | None, str | None, int],
    behind: bool,
) -> None:
    assert Cursor("1", 1, *saved).is_behind(Cursor("1", 1, *before)) is behind


def test_a_cursor_is_kept_as_json_that_others_can_read() -> None:
    assert json.loads(Cursor("7", 2, "3:5:4", "3:9:4", 12).to_json()) == {
        "system_identifier": "7",
        "timeline": 2,
        "snapshot": "3:5:4",
        "target": "3:9:4",
        "after": 12,
    }
    given = (
        '{"system_identifier": 7, "timeline": "2", "snapshot": null, "target": null, "after": 0}'
    )
    assert Cursor.from_json(given) == Cursor("7", 2, None)


def test_an_unreadable_cursor_is_shown_in_part() -> None:
    with pytest.raises(DecodeError, match=r"'x{100}'\n"):
        Cursor.from_json("x" * 101)


def test_a_cursor_belongs_to_one_history() -> None:
    START.check_origin("1", timeline=1)
    for identifier, timeline in (("2", 1), ("1", 2)):
        with pytest.raises(ConfigurationError, match=f"this is server {identifier}"):
            START.check_origin(identifier, timeline=timeline)


def test_the_way_to_a_goal_is_gone_in_steps() -> None:
    goal = Cursor("1", 1, "5:9:5")
    begun = replace(START, snapshot="3:3:").begin(goal, after=2)
    assert begun == Cursor("1", 1, "3:3:", "5:9:5", 2)
    assert START.begin(goal, after=0).after == 0
    reached = begun.reach(7)
    assert reached == Cursor("1", 1, "3:3:", "5:9:5", 7)
    assert reached.finish() == Cursor("1", 1, "5:9:5")


def test_a_cursor_that_advances_keeps_its_history_and_forgets_its_way() -> None:
    cursor = Cursor("7", 3, "3:3:", "3:9:", 5)
    assert cursor.advance("4:9:4,6", [5, 3]) == Cursor("7", 3, "4:6:4")
    assert cursor.advance("4:9:", []) is cursor


def test_a_new_cursor_has_no_way() -> None:
    assert (START.target, START.after) == (None, 0)


def test_a_cursor_is_not_behind_itself_nor_behind_one_that_saw_less() -> None:
    way = Cursor("1", 1, "3:3:", "5:9:5", 7)
    assert way.is_behind(way) is False
    # What still runs for the one had not begun for the other.
    assert replace(START, snapshot="5:9:5").is_behind(replace(START, snapshot="5:5:")) is False
