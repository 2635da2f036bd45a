"""Step six, the database is destroyed: everything is restored from the archive.

Proves that the restored database has the same rows and the same log and continues where the old
one stopped, and that an earlier commit comes back as git has it. Only fingerprints of the old
database are kept for the comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from examples.demo.commits import find_position, read_files
from examples.demo.database import (
    LOG_SCHEMA,
    Database,
    describe_differences,
    dispose,
    migrate,
    open_database,
    verify,
)
from examples.demo.history import History, Listing
from examples.demo.models import Account, Base, Shipment
from examples.demo.narration import Narrator
from examples.demo.publishing import Press
from oplog import Archive, RestoreReport

PATIENCE_SECONDS = 60.0
LOG_TABLES = ("record", "part", "entry", "token", "outcome", "type", "log")
"""Tables of the log that come back as they were, without the prefix `oplog_`.

Tickets are not among them: an aggregate needs none before its next record.
"""


@dataclass(frozen=True, slots=True)
class Remains:
    """Fingerprint of a database: rows and a hash of each table, and a digest of all."""

    tables: dict[str, tuple[int, str]]
    digest: str

    @property
    def rows(self) -> int:
        """Rows of all tables, the log's among them."""
        return sum(count for count, _ in self.tables.values())


@dataclass(frozen=True, slots=True)
class Past:
    """A commit: the files that git lists for it, its position, the digest of a replay there."""

    commit: str
    files: Listing
    position: int
    digest: str


def prove_archived(press: Press) -> None:
    """Make a last write that must be archived before it is acknowledged."""
    database, narrator = press.database, press.narrator
    with database.sessions() as session:
        database.log.annotate(session, actor="the founders", purpose="closing time")
        session.add(Account(id=1000, owner="the last customer", balance=0))
        session.commit()
        receipts = database.log.receipts(session)
    began = time.monotonic()
    sequence = database.log.wait_until_archived(
        receipts, press.archive, timeout=PATIENCE_SECONDS, engine=database.engine
    ).sequence
    seconds = time.monotonic() - began
    lag = database.log.measure_lag(database.engine, press.archive)
    narrator.prove(
        f"a write waited until it was archived: record {sequence:,}, after {seconds:.2f} s",
        holds=lag.entries == 0 and sequence == press.archive.read_head().sequence,
        otherwise=f"{lag.entries} entries are not archived; this one has sequence {sequence}",
    )


def remember(database: Database) -> Remains:
    """Read every row in plain SQL, independently of the log."""
    with database.engine.connect() as connection:
        tables = {
            name: _hash_table(connection, name)
            for name in (
                *(table.name for table in Base.metadata.sorted_tables),
                *(f"{LOG_SCHEMA}.oplog_{name}" for name in LOG_TABLES),
            )
        }
        digest = database.log.replay(connection, into="remembered").digest
        connection.rollback()
    return Remains(tables, digest)


def _hash_table(connection: sa.Connection, name: str) -> tuple[int, str]:
    # Transaction numbers and times of arrival differ between servers. Of outcomes, an archive has
    # those of records: a transaction that was declared aborted left none.
    row = (
        "to_jsonb(t) - 'transaction_id'"
        if name.endswith("_record")
        else "to_jsonb(t) - 'created_at'"
    )
    archived = "WHERE position IS NOT NULL" if name.endswith("_outcome") else ""
    counted = connection.execute(
        sa.text(
            "SELECT count(*), coalesce(md5(string_agg(r, chr(10) ORDER BY r COLLATE \"C\")), '') "  # noqa: S608 - names of ours
            f"FROM (SELECT ({row})::text AS r FROM {name} t {archived}) x"
        )
    ).one()
    return counted[0], counted[1]


def remember_past(database: Database, *, history: History) -> Past:
    """The commit in the middle of those whose files are known."""
    commit = history.listed[len(history.listed) // 2]
    with database.engine.connect() as connection:
        position = find_position(connection, database, commit=commit)
        digest = database.log.replay(connection, into="past", through=position).digest
        connection.rollback()
    return Past(commit, history.list_files(commit), position, digest)


def destroy(database: Database) -> None:
    """Drop the database, even while clients are connected to it."""
    database.engine.dispose()
    url = sa.make_url(database.url)
    with administer(database) as connection:
        connection.execute(sa.text(f'DROP DATABASE "{url.database}" WITH (FORCE)'))


@contextmanager
def administer(database: Database) -> Iterator[sa.Connection]:
    """A connection to the same server that survives the database."""
    url = sa.make_url(database.url).set(database="template1")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def open_empty(database: Database, *, name: str) -> Iterator[Database]:
    """A new database called `name` on the same server, migrated and empty."""
    with administer(database) as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE template0'))
    url = sa.make_url(database.url).set(database=name).render_as_string(hide_password=False)
    fresh = open_database(url, database.directory, name="oplog-demo-restored")
    try:
        migrate(fresh.engine)
        yield fresh
    finally:
        dispose(fresh)


def restore(
    database: Database, archive: Archive, *, through: int | None = None
) -> tuple[RestoreReport, float]:
    """Restore the archive into an empty database; return the report and the seconds it took."""
    began = time.monotonic()
    with database.engine.connect() as connection:
        report = database.log.restore(archive, connection, through=through)
    return report, time.monotonic() - began


def prove_return(
    restored: Database, narrator: Narrator, *, archive: Archive, remains: Remains
) -> None:
    """The newest state comes back, row for row."""
    report, seconds = restore(restored, archive)
    narrator.say(
        f"Restored from snapshot and log: {report.rows:,} rows and {report.entries:,} entries in "
        f"{seconds:.2f} s."
    )
    found = remember(restored)
    differing = [name for name, seen in remains.tables.items() if found.tables.get(name) != seen]
    narrator.prove(
        f"the restored database is the destroyed one: {found.rows:,} rows of {len(found.tables)} "
        "tables, the log's own among them, compared by hash in plain SQL",
        holds=not differing and report.digest == remains.digest == found.digest,
        otherwise=f"{', '.join(differing) or 'the digest'} came back otherwise",
    )
    verdict, checking = verify(restored)
    narrator.prove(
        f"verify is clean, in {checking:.2f} s",
        holds=verdict.ok,
        otherwise=describe_differences(verdict.differences),
    )


def prove_continuation(restored: Database, narrator: Narrator, *, archive: Archive) -> None:
    """The application goes on, in the same archive, with no fork."""
    before = archive.read_head()
    with restored.sessions.begin() as session:
        restored.log.annotate(session, actor="the founders", purpose="reopening")
        shipment = Shipment(destination="a new beginning")
        session.add(shipment)
        session.flush()
        number = shipment.id
    report = restored.log.sync(restored.engine, archive)
    narrator.prove(
        f"everybody goes on: shipment {number:,} is published as the next record, "
        f"{report.sequence:,}, and nothing has forked",
        holds=(report.entries, report.sequence, report.generation)
        == (1, before.sequence + 1, before.generation),
        otherwise=f"{report.entries} entries were published, up to {report.sequence} of "
        f"generation {report.generation}",
    )


def prove_past(
    database: Database, narrator: Narrator, *, archive: Archive, past: Past, witness: str
) -> None:
    """Another database, restored through an earlier commit."""
    name = f"{sa.make_url(database.url).database}_earlier"
    with open_empty(database, name=name) as earlier:
        report, seconds = restore(earlier, archive, through=past.position)
        with earlier.engine.connect() as connection:
            files = read_files(connection, "public")
        verdict, _ = verify(earlier)
        destroy(earlier)
    narrator.prove(
        f"restored once more, through commit {past.commit[:10]} (position {past.position:,}), "
        f"{len(files):,} files in {seconds:.2f} s: what replay gave there, exactly {witness}",
        holds=files == past.files
        and (report.digest, report.position) == (past.digest, past.position)
        and verdict.ok,
        otherwise=f"{len(files)} files at position {report.position}, {len(past.files)} are "
        f"listed at {past.position}; verify found {describe_differences(verdict.differences)}",
    )


def prove_recovery(press: Press, *, history: History) -> None:
    """Destroy the database, then restore its last state and an earlier one."""
    database, narrator, archive = press.database, press.narrator, press.archive
    past = remember_past(database, history=history)
    remains = remember(database)
    destroy(database)
    narrator.say("DROP DATABASE. What is left is a directory of files, and the keys.")
    name = sa.make_url(database.url).database or ""
    with open_empty(database, name=name) as restored:
        prove_return(restored, narrator, archive=archive, remains=remains)
        prove_continuation(restored, narrator, archive=archive)
    prove_past(database, narrator, archive=archive, past=past, witness=history.witness)
