"""A log that is pruned by the entry, and everything that can be asked of it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog import Archive, LoggedEntry, PruneReport
from oplog.upkeep.prune import prune_log
from tests.postgres.archived import publish, reopen
from tests.postgres.replay_models import Bench, Line, Owner, Task, dump_tables

NOTHING = timedelta(0)


def open_plain(engine: Engine) -> Engine:
    """An engine on the same database that no application knows."""
    return sa.create_engine(engine.url, poolclass=sa.NullPool)


def prune(bench: Bench, archive: Archive, **options: Any) -> PruneReport:
    """Prune as an operator does; whatever is archived unless told otherwise."""
    return bench.log.prune(
        open_plain(bench.engine), reopen(archive), **{"keep": NOTHING, **options}
    )


def prune_small(bench: Bench, archive: Archive, **options: Any) -> PruneReport:
    """The same in small batches."""
    return prune_log(
        open_plain(bench.engine),
        reopen(archive),
        schema="oplog",
        **{"keep": NOTHING, "batch_entries": 3, **options},
    )


def sync(bench: Bench, archive: Archive, **settings: Any) -> None:
    """Publish in small segments."""
    settings = {"page_entries": 4, "segment_bytes": 400, **settings}
    publish(bench.log, bench.engine, reopen(archive), **settings)


def write_anything(session: Session, chance: random.Random) -> None:
    """One to four changes of rows that are there, or are not yet."""
    for _ in range(chance.randint(1, 4)):
        number = chance.randint(1, 6)
        task = session.get(Task, number)
        if task is None:
            session.add(Task(id=number, project=chance.choice("pqr"), title=None))
        elif chance.random() < 0.2:
            session.delete(task)
        elif chance.random() < 0.3:
            task.project = chance.choice("pqr")
        else:
            task.title = str(chance.random())
        line = session.get(Line, (number, "a"))
        if line is None:
            session.add(Line(order_id=number, number="a", weight=chance.random()))
        else:
            line.weight = chance.random()
        session.flush()


def write_random(bench: Bench, chance: random.Random, count: int) -> None:
    """Transactions; some have metadata, some an idempotency key."""
    for _ in range(count):
        with bench.sessions() as session:
            words = {"actor": chance.choice(["ann", "bob"])} if chance.random() < 0.5 else {}
            key = f"key {chance.random()}" if chance.random() < 0.2 else None
            bench.log.annotate(session, idempotency_key=key, **words)
            write_anything(session, chance)
            session.commit()


def ask_everything(bench: Bench, moments: Iterable[Any], **archive: Any) -> list[str]:
    """Every answer that a log gives, but for the sequences of entries; as text, for NaN."""
    answers: list[object] = []
    with open_plain(bench.engine).connect() as connection:
        read = _Reads(bench, connection, archive)
        answers.append(read.entries())
        answers += [read.entries(aggregate=f"project/{name}") for name in "pqr"]
        answers += [read.entries(metadata={"actor": name}) for name in ("ann", "bob", "x")]
        keys = [(Task, number) for number in range(1, 4)] + [(Line, (1, "a")), (Owner, 1)]
        answers += [bench.log.history(connection, model, key, **archive) for model, key in keys]
        connection.rollback()
        for moment in moments:
            answers.append(read.entries(through=moment))
            answers.append(
                [bench.log.as_of(connection, m, key=k, at=moment, **archive) for m, k in keys]
            )
            connection.rollback()
            report = bench.log.replay(connection, through=moment, **archive)
            answers.append((report, dump_tables(connection, "replayed")))
        verdict = bench.log.verify(connection, **archive)
        assert verdict.ok, verdict
        answers.append(verdict)
    return [repr(answer) for answer in answers]


class _Reads:
    def __init__(self, bench: Bench, connection: Connection, archive: dict[str, Any]) -> None:
        self._bench, self._connection, self._archive = bench, connection, archive

    def entries(self, **filter: Any) -> list[LoggedEntry]:
        found = self._bench.log.read(self._connection, **filter, **self._archive)
        entries = [replace(entry, sequence=None) for entry in found]
        self._connection.rollback()
        # The archive has transactions in another order that is causal as well.
        return sorted(entries, key=lambda entry: entry.position)


def list_positions(bench: Bench) -> list[int]:
    """Of the entries that the database gives."""
    with open_plain(bench.engine).connect() as connection:
        return [entry.position for entry in bench.log.read(connection)]
