"""What guards cost: a logged transaction with and without them, raw SQL, a bulk update.

Ratios over adjacent pairs, on one server and in one process: both sides see the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.measuring import list_rows
from benchmarks.workloads import WORKLOADS, Transfer, Turn, Workload, make_log
from oplog import Keyring
from oplog.schema.tables import track_statements

BULK_ROWS = 100_000
GUARD_TARGET = 0.93
BULK_TARGET = 0.25
_INSERT = sa.text(
    "INSERT INTO transfer (source, target, amount, memo) VALUES (:source, :target, 12.50, :memo)"
)
_BULK = sa.text("UPDATE transfer SET status = 'settled', amount = amount + 1")

Sessions = sessionmaker[Session]


def open_sessions(url: str, way: str, *, guarded: bool) -> Sessions:
    """A sessionmaker on a database of its own, guarded or not; `way` says how it is logged."""
    engine = sa.create_engine(url, pool_size=1)
    if guarded:
        with engine.begin() as connection:
            for statement in track_statements(["transfer"]):
                connection.exec_driver_sql(statement)
    sessions = sessionmaker(engine)
    if way.startswith("log"):
        make_log(way, Keyring.generate()).attach(sessions)
    return sessions


def compare_guards(urls: tuple[str, str], pairs: int) -> Iterator[dict[str, Any]]:
    """Logged transactions on guarded tables, as a ratio to the same on tables without."""
    guarded, bare = (open_sessions(url, "log", guarded=n == 0) for n, url in enumerate(urls))
    for workload in WORKLOADS:

        def on(known: list[int], workload: Workload = workload) -> None:
            _run(guarded, workload, known)

        def off(known: list[int], workload: Workload = workload) -> None:
            _run(bare, workload, known)

        def prepare(workload: Workload = workload) -> list[int]:
            # Both databases have seen the same statements: the rows have the same keys.
            list_rows(guarded, workload)
            return list_rows(bare, workload)

        measured = _compare(on, off, pairs=pairs * 2, prepare=prepare)
        yield _describe(f"guard on / off: {workload.title}", measured, GUARD_TARGET)
    _dispose(guarded, bare)


def compare_raw(urls: tuple[str, str], pairs: int) -> Iterator[dict[str, Any]]:
    """Inserts as raw SQL, captured from images, beside captured objects and unlogged raw SQL."""
    logged = open_sessions(urls[0], "log", guarded=True)
    plain = open_sessions(urls[1], "plain", guarded=False)
    workload = WORKLOADS[0]
    for title, other in (
        ("raw SQL, captured / ORM, captured", lambda turn: _run(logged, workload, turn)),
        ("raw SQL, captured / raw SQL, plain", lambda turn: _run_raw(plain, workload, turn)),
    ):
        yield _describe(
            f"{title}: one insert",
            _compare(lambda turn: _run_raw(logged, workload, turn), other, pairs=pairs),
            None,
        )
    _dispose(logged, plain)


def compare_bulk(urls: tuple[str, str], pairs: int) -> Iterator[dict[str, Any]]:
    """An UPDATE of 100,000 rows by one statement, captured, beside the same unlogged."""
    plain = open_sessions(urls[1], "plain", guarded=False)
    _fill(plain)
    for way in ("log, one aggregate", "log"):
        logged = open_sessions(urls[0], way, guarded=True)
        _fill(logged)
        yield _describe(
            f"UPDATE of {BULK_ROWS:,} rows, captured ({way}) / plain",
            _compare(
                lambda _, s=logged: _update_all(s),  # type: ignore[misc]
                lambda _: _update_all(plain),
                pairs=max(3, pairs // 3),
            ),
            BULK_TARGET,
        )
        with logged.begin() as session:
            session.execute(sa.text("SET LOCAL oplog.bypass = 'next way'"))
            session.execute(sa.text("TRUNCATE transfer"))
        _dispose(logged)
    _dispose(plain)


def _run(sessions: Sessions, workload: Workload, known: list[int]) -> None:
    for turn in range(workload.transactions):
        with sessions.begin() as session:
            workload.run(session, Turn(turn, known))


def _run_raw(sessions: Sessions, workload: Workload, _: list[int]) -> None:
    for turn in range(workload.transactions):
        with sessions.begin() as session:
            session.execute(_INSERT, {"source": turn, "target": turn + 1, "memo": f"turn {turn}"})


def _update_all(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(_BULK)


def _fill(sessions: Sessions) -> None:
    insert = sa.insert(Transfer).from_select(
        ["source", "target", "amount", "memo"],
        sa.select(
            sa.literal_column("n"),
            sa.literal_column("n + 1"),
            sa.literal(1),
            sa.literal_column("'transfer number ' || n"),
        ).select_from(sa.func.generate_series(1, BULK_ROWS).alias("n")),
    )
    with sessions.begin() as session:
        session.execute(insert)


def _compare(
    one: Callable[[list[int]], None],
    other: Callable[[list[int]], None],
    *,
    pairs: int,
    prepare: Callable[[], list[int]] = list,
) -> list[tuple[float, float]]:
    """Seconds of `one` and of `other`, taken one right after the other."""
    measured = []
    for turn in range(pairs + 1):
        known = prepare()
        # Alternate who goes first: a checkpoint or a warm cache must not favour one side.
        sides = (one, other) if turn % 2 else (other, one)
        seconds = {side: _clock(side, known) for side in sides}
        if turn:
            measured.append((seconds[one], seconds[other]))
    return measured


def _clock(work: Callable[[list[int]], None], known: list[int]) -> float:
    begun = time.perf_counter()
    work(known)
    return time.perf_counter() - begun


def _describe(
    title: str, measured: list[tuple[float, float]], target: float | None
) -> dict[str, Any]:
    ratios = [base / taken for taken, base in measured]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "what": title,
        "milliseconds": round(statistics.median(taken for taken, _ in measured) * 1000, 2),
        "base_milliseconds": round(statistics.median(base for _, base in measured) * 1000, 2),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "target": target,
    }


def _dispose(*makers: Sessions) -> None:
    for maker in makers:
        maker.kw["bind"].dispose()
