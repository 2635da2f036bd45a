"""Whatever a role sends in a session of its own, no change of a guarded row goes untold.

`tests/sessions` makes the sessions. They run on the newest server and on an older one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.errors import Error

from tests.older import NEWEST_AND_OLDER, find_programs
from tests.sampling import Sample
from tests.sessions.arena import BYPASSING, ROLES, STRANGER, Arena, open_arena
from tests.sessions.generator import build, list_cases

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=NEWEST_AND_OLDER)
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with open_arena(find_programs(request.param)) as arena:
        yield arena


@pytest.mark.sampled
@pytest.mark.parametrize("role", ROLES)
def test_no_session_hides_a_change(arena: Arena, sample: Sample, role: str) -> None:
    cases = sample(list_cases(role, arena.settings, version=arena.version), 200)
    arena.ends.clear()
    broken = [
        verdict
        for case in cases
        if (verdict := arena.judge_session(build(case, arena.settings))) is not None
    ]
    assert not broken, "\n".join([f"{len(broken)} sessions hide a change", *broken[:10]])
    # Most were not stopped by something else.
    met = arena.ends["OP003"] + arena.ends["mark"]
    assert met > len(cases) / 2, arena.ends
    assert (arena.ends["mark"] > 0) == (role in BYPASSING), arena.ends


def test_a_type_of_the_sessions_own_breaks_nothing(arena: Arena) -> None:
    """The guards' condition was compiled with it, and failed when it was gone."""
    connection = arena.connect(STRANGER)
    for statement in ("CREATE DOMAIN pg_temp.text AS pg_catalog.text", "SELECT 1", "DISCARD ALL"):
        connection.execute(statement.encode())
        with pytest.raises(Error) as refused:
            connection.execute("UPDATE public.account SET balance = 0")
        assert refused.value.sqlstate == "OP003"
