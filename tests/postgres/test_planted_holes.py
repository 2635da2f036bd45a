"""Guards that were broken on purpose: the sessions of `tests/sessions` find each hole."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from oplog.schema.tables import create_statements
from tests.sessions.arena import (
    APPLICATION,
    AUDITOR,
    BYPASSING,
    CHIEF,
    KEEPER,
    STRANGER,
    Arena,
    open_arena,
)
from tests.sessions.generator import Case, build, list_cases

pytestmark = pytest.mark.postgres
MOST = 800
"""So many sessions are tried until one finds the hole."""


@dataclass(frozen=True)
class Hole:
    """`old` becomes `new` in the log's definition; sessions of `role` find it.

    Only those are tried whose way around, or whose write, has the word `about` in its name.
    """

    role: str
    old: str
    new: str
    about: str = ""


HOLES = {
    "nothing is checked at COMMIT": Hole(
        APPLICATION, "IF v_tally = '0' THEN", "IF v_tally = '0' OR session_user <> 'postgres' THEN"
    ),
    "images are not checked at COMMIT": Hole(
        STRANGER, "WHERE i.ctid = NEW.ctid) THEN", "WHERE i.ctid IS NULL) THEN", about="open"
    ),
    "anybody announces": Hole(
        STRANGER, "::regproc, 'EXECUTE')", "::regproc, 'EXECUTE') IS NOT NULL", about="open"
    ),
    "an empty tally is closed": Hole(
        APPLICATION, "IF coalesce(v_tally, '') = '' THEN", "IF v_tally = '' THEN RETURN NULL;"
    ),
    "marks of announced statements": Hole(
        CHIEF,
        "coalesce(sum(i.weight) = v_tally::bigint, false)",
        "count(*) > 0",
        about="two tables",
    ),
    "marks are cut": Hole(
        KEEPER,
        "session_user::text, p_changes]",
        "session_user::text, left(p_changes, 250)]",
        about="many tables",
    ),
    "marks of the first table": Hole(
        KEEPER,
        "try_bypass(v_changes, v_tables)",
        "try_bypass(split_part(v_changes, ', ', 1), v_tables)",
        about="and partition",
    ),
    "anybody bypasses": Hole(
        STRANGER, "pg_has_role(session_user, g.bypass_role, 'MEMBER')", "true", about="undone"
    ),
    "TRUNCATE": Hole(
        AUDITOR,
        "ARRAY[v_root]) THEN RETURN NULL;",
        "ARRAY[v_root]) OR true THEN RETURN NULL;",
        about="truncate",
    ),
    "partitions are not counted": Hole(
        KEEPER,
        "oplog_guard_row AFTER INSERT OR UPDATE OR DELETE ON",
        "oplog_guard_row AFTER INSERT OR UPDATE ON",
        about="and partition",
    ),
    "triggers that a replica does not fire": Hole(
        AUDITOR, "g.tgenabled <> 'A' ORDER", "g.tgenabled = 'A' ORDER", about="replica"
    ),
}


def plant(hole: Hole) -> list[str]:
    sound = create_statements()
    broken = [statement.replace(hole.old, hole.new) for statement in sound]
    assert broken != sound, f"the definition has no {hole.old!r}"
    return broken


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", HOLES)
def test_the_sessions_find_it(name: str) -> None:
    hole = HOLES[name]
    with open_arena(None, definition=plant(hole)) as arena:
        cases = [
            case
            for case in list_cases(hole.role, arena.settings, version=arena.version)
            if hole.about in f"{case.around} {case.write}"
        ]
        random.Random(name).shuffle(cases)
        assert find(arena, cases[:MOST]), f"{name}: {MOST} sessions found nothing"


def find(arena: Arena, cases: list[Case]) -> str | None:
    for case in cases:
        verdict = arena.judge_session(build(case, arena.settings))
        if verdict is not None:
            return verdict
        if arena.ends["mark"] and case.role not in BYPASSING:
            return f"{case.role} leaves a mark"
    return None
