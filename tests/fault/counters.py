"""Tables that count what was done to them, and how they and the log about them are read back.

Holds the models of the soak, its log, and the state that `history` judges. Must not know who
writes. The hard thing is that every effect says what it was based on: `seen` is what its
operation read, `value` what it wrote, so that a lost update shows in the log and in the row.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import OplogError
from tests.fault.history import NO_HASH, KeptEntry, State
from tests.logged import track
from tests.support import install_log


class Base(DeclarativeBase):
    pass


class Counter(Base):
    """One row, one aggregate."""

    __tablename__ = "counter"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seen: Mapped[int]
    value: Mapped[int]


class Tally(Base):
    """The same behind guards, written as SQL text that the library does not read."""

    __tablename__ = "tally"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seen: Mapped[int]
    value: Mapped[int]


class Member(Base):
    """A team's counter is the sum of its members' points: writers of one touch different rows."""

    __tablename__ = "member"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    team: Mapped[int]
    points: Mapped[int]
    seen: Mapped[int]
    value: Mapped[int]


OPERATION = "operation"
"""Metadata key of the name that a client gave its operation."""


def make_log(keyring: Path, **options: Any) -> Oplog:
    """The log of clients and of whoever judges them."""
    catalog = TypeCatalog.from_models(Base, aggregates={"member": "team/{team}"})
    return Oplog(catalog, keyring=Keyring.from_file(keyring), **options)


def create_tables(engine: Engine) -> None:
    """The log and the counters, on an empty database; guards on the tally alone."""
    with engine.begin() as connection:
        install_log(connection)
    Base.metadata.create_all(engine)
    track(engine, Base.metadata.tables["tally"])


def read_entries(log: Oplog, connection: Connection, *, after: int = 0) -> list[KeptEntry]:
    """Entries as the log and its tables have them, in the order of positions."""
    rows = connection.exec_driver_sql(
        "SELECT position, aggregates, versions, encode(prev_hashes, 'hex'), "
        "encode(sha256(data), 'hex'), idempotency_key FROM oplog.oplog_record WHERE position > %s",
        (after,),
    )
    stored = {row[0]: row[1:] for row in rows}
    kept = []
    for entry in log.read(connection, after=after):
        aggregates, versions, hashes, digest, key = stored[entry.position]
        (operation,) = entry.operations
        kept.append(
            KeptEntry(
                record_id=str(entry.entry_id),
                aggregate=entry.aggregate,
                version=entry.version,
                record_hash=entry.entry_hash.hex(),
                prev_hash=_spread_hashes(aggregates, versions, hashes)[entry.aggregate],
                digest=digest,
                position=entry.position,
                operation=entry.metadata[OPERATION][0],
                key=key,
                seen=operation.fields["seen"],
                value=operation.fields["value"],
            )
        )
    return kept


def _spread_hashes(
    aggregates: list[str], versions: list[int] | None, hashes: str | None
) -> dict[str, str]:
    """The hash that each aggregate follows: the row has those of versions over 1, joined."""
    joined = iter(re.findall("." * len(NO_HASH), hashes or ""))
    return {
        name: NO_HASH if version == 1 else next(joined)
        for name, version in zip(aggregates, versions or [1] * len(aggregates), strict=True)
    }


def read_state(log: Oplog, engine: Engine, *, earlier: dict[tuple[str, str], KeptEntry]) -> State:
    """The database once all is quiet, and what the product's own checks say of it."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as connection:
        links = log.store.list_broken_links(connection)
        return State(
            entries=read_entries(log, connection),
            tickets=_read_tickets(connection),
            rows=_read_rows(connection),
            complaints=[str(link) for link in links] + _verify(log, engine),
            earlier=earlier,
        )


def _verify(log: Oplog, engine: Engine) -> list[str]:
    try:
        with engine.connect() as connection:
            report = log.verify(connection)
    except OplogError as error:
        return [str(error)]  # it refuses to compare with a broken log
    if report.ok:
        return []
    return [str(difference) for difference in report.differences] or ["verify is not ok"]


def _read_tickets(connection: Connection) -> dict[str, int]:
    rows = connection.exec_driver_sql("SELECT aggregate_name, version FROM oplog.oplog_ticket")
    return {row.aggregate_name: row.version for row in rows}


def _read_rows(connection: Connection) -> dict[str, int]:
    counted = sa.union_all(
        sa.select(sa.func.concat("counter/", Counter.id), Counter.value),
        sa.select(sa.func.concat("tally/", Tally.id), Tally.value),
        sa.select(sa.func.concat("team/", Member.team), sa.func.sum(Member.points)).group_by(
            Member.team
        ),
    )
    return {name: int(value) for name, value in connection.execute(counted)}
