"""The cursor's rules, without a database."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from oplog.cursor import Cursor
from oplog.errors import DecodeError

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
    "text", ["", "[]", "{}", "null", START.to_json().replace("null", '"1:2"', 1)]
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
