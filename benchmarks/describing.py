"""What a context costs: inserts inside of one, in pairs with inserts that are annotated alike."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.database import fresh_database
from benchmarks.targets import CONTEXT
from oplog import Keyring, Oplog, TypeCatalog, context

METADATA = sa.MetaData()
NOTE = sa.Table(
    "note", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.Text)
)
SAID = {"actor": "u_1", "request": "r-1"}
"""Both ways store the same record."""


def compare_context(server: str, pairs: int) -> dict[str, Any]:
    """Time of one insert, the same with a context, and of a context alone."""
    with fresh_database(server, METADATA) as url:
        engine = sa.create_engine(url)
        sessions = sessionmaker(engine)
        log = Oplog(TypeCatalog.from_models(METADATA), keyring=Keyring.generate())
        log.attach(sessions)
        for number in range(100):
            _insert(log, sessions, number, inside=number % 2 == 0)
        found = [
            # The one that goes first alternates, as caches may help the second.
            {
                inside: _insert(log, sessions, 2 * number + turn, inside=inside)
                for turn, inside in enumerate((number % 2 == 0, number % 2 == 1))
            }
            for number in range(50, 50 + pairs)
        ]
        engine.dispose()
    ratio = statistics.median(one[True] / one[False] for one in found)
    return {
        "pairs": pairs,
        "insert_milliseconds": round(statistics.median(one[False] for one in found) * 1e3, 3),
        "context_microseconds": round(_time_alone() * 1e6, 1),
        "ratio": round(ratio, 4),
        "target": CONTEXT.must,
    }


def _insert(log: Oplog, sessions: sessionmaker[Session], key: int, *, inside: bool) -> float:
    begun = time.perf_counter()
    with context(**SAID) if inside else nullcontext(), sessions.begin() as session:
        if not inside:
            log.annotate(session, **SAID)
        session.execute(sa.insert(NOTE), {"id": key, "text": "x"})
    return time.perf_counter() - begun


def _time_alone(times: int = 20_000) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        with context(**SAID):
            pass
    return (time.perf_counter() - begun) / times
