"""Many threads append whatever comes to their mind: chains are whole, positions causal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from oplog.store.rows import CREATED
from tests.postgres.appending import append_apart, assert_whole, name_many, sqlstate

pytestmark = pytest.mark.postgres

THREADS, STEPS = 6, 40
Drawn = tuple[list[str], list[int | None]]
"""Aggregates, and what is expected of each."""


def work_at_random(
    engine: Engine,
    steps: Callable[[random.Random, int, int], Drawn],
    *,
    isolation: str = "READ COMMITTED",
) -> Counter[str]:
    """Append what `steps` draws, in many threads; how often each SQLSTATE, or "" for none, came."""

    def work(number: int) -> list[str]:
        draw, ends = random.Random(number), []
        for step in range(STEPS):
            names, expected = steps(draw, number, step)
            try:
                append_apart(engine, names, expected=expected, isolation=isolation)
                ends.append("")
            except DBAPIError as refused:
                ends.append(sqlstate(refused) or "?")
        return ends

    # The database is made when it is first connected to, by one thread.
    engine.connect().close()
    with ThreadPoolExecutor(THREADS) as pool:
        return Counter(end for ends in pool.map(work, range(THREADS)) for end in ends)


def test_those_who_are_right_never_deadlock(engine: Engine) -> None:
    """Many aggregates at once, known ones of everybody's and created ones of one's own."""
    shared = name_many(60)
    for name in shared[::2]:
        append_apart(engine, [name], expected=CREATED)
    append_apart(engine, shared[1::2])

    def draw_names(
        draw: random.Random, number: int, step: int
    ) -> tuple[list[str], list[int | None]]:
        own = {f"{draw.choice('05af')}/{number}/{step}/{n}" for n in range(draw.randrange(5))}
        names = sorted({*own, *draw.sample(shared, draw.choice([1, 2, 4, 8, 40, 60]))})
        return names, [CREATED if name in own else None for name in names]

    assert work_at_random(engine, draw_names) == {"": THREADS * STEPS}
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_those_who_may_be_wrong_leave_no_gap(engine: Engine, isolation: str) -> None:
    """Everybody believes anything of a few aggregates, which everybody creates and writes."""
    shared = name_many(70)

    def draw_names(
        draw: random.Random, number: int, step: int
    ) -> tuple[list[str], list[int | None]]:
        near = shared[step // 2 : step // 2 + 40]
        names = sorted(draw.sample(near, draw.choice([1, 2, 5, 40])))
        return names, [draw.choice([CREATED, CREATED, None, 0, 1]) for _ in names]

    ends = work_at_random(engine, draw_names, isolation=isolation)
    # Who is wrong may be half of a deadlock, which Postgres ends; that is a conflict like another.
    lost = {"OP001", "40P01"} | ({"40001"} if isolation != "READ COMMITTED" else set())
    assert set(ends) <= {"", *lost}
    assert ends[""] > THREADS
    with engine.connect() as connection:
        assert_whole(connection)


def test_all_create_the_same(engine: Engine) -> None:
    """In whichever order they come, each aggregate has one first version."""

    def draw_names(
        draw: random.Random, number: int, step: int
    ) -> tuple[list[str], list[int | None]]:
        names = [f"{step // 4}/{n}" for n in range(draw.choice([1, 1, 3]))]
        return names, [CREATED] * len(names)

    ends = work_at_random(engine, draw_names)
    assert set(ends) <= {"", "OP001", "40P01"}
    with engine.connect() as connection:
        records = assert_whole(connection)
    firsts = [link for r in records for link in r.list_links() if link.version == 1]
    assert len(firsts) == len({link.aggregate for link in firsts}) == 3 * STEPS // 4
