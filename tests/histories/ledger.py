"""The log of one walked database: made from what the database has, kept over one era.

An era begins with a new log, into which all rows are adopted, and lasts until a revision does
not pass. It has an archive of its own, and remembers some moments, to which it is replayed and
restored in the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from oplog import Oplog, TypeCatalog, open_archive
from oplog.errors import OplogError
from oplog.migration import CreateOplogOp, TrackTablesOp
from tests.histories.tables import (
    Content,
    Table,
    compare_content,
    read_content,
    read_tables,
)

REPLAYED = "replayed"
NO_KEY = "has no primary key"


class StepError(Exception):
    """A check failed. `stage` says which one."""

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage


@contextlib.contextmanager
def staged(stage: str) -> Iterator[None]:
    """Name the stage in which an error was raised."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:
        lines = str(getattr(error, "orig", None) or error).strip().splitlines() or [""]
        hint = getattr(error, "hint", "")
        text = f"{type(error).__name__}: {' '.join(lines[:3])}" + (
            f" | hint: {hint}" if hint else ""
        )
        raise StepError(stage, text) from error


@dataclass(frozen=True)
class Moment:
    """A position of the log, and what the tables held then."""

    revision: str
    position: int
    content: Mapping[str, Content]
    copy: str
    """Name of a database that is as this one was."""


@dataclass
class Ledger:
    """The log in the database at `url`, with an archive in a directory."""

    url: sa.URL
    archive_path: Path
    hidden: tuple[str, ...] = ("alembic_version",)
    untracked: dict[str, str] = field(default_factory=dict)
    """Tables that cannot have a guard, with the reason."""
    moments: list[Moment] = field(default_factory=list)
    _log: Oplog | None = None
    _engine: Engine | None = None
    first: str = ""
    """Revision at which the era began."""

    def open_engine(self) -> Engine:
        """A plain engine, which keeps no connection."""
        return sa.create_engine(self.url, poolclass=NullPool)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection without a log attached; commits in the end."""
        if self._engine is None:
            self._engine = sa.create_engine(self.url)
        with self._engine.begin() as connection:
            yield connection

    def release(self) -> None:
        """Close all connections, so that the database can be copied."""
        if self._engine is not None:
            self._engine.dispose()

    @contextlib.contextmanager
    def attached(self) -> Iterator[Engine]:
        """An engine with the log attached, of a catalog that is read from the database."""
        engine = self.open_engine()
        log = self.make_log()
        log.attach(engine)
        try:
            yield engine
        finally:
            log.detach(engine)
            engine.dispose()

    def read(self) -> dict[str, Table]:
        """The tables as they are."""
        with self.connect() as connection:
            return read_tables(connection, without=self.hidden)

    def make_log(self) -> Oplog:
        """The log, with the tables that are there and can be logged; kept until a migration."""
        if self._log is None:
            self._log = self._reflect()
        return self._log

    def renew(self) -> None:
        """The next log is made from the database as it is then."""
        self._log = None

    def _reflect(self) -> Oplog:
        with self.connect() as connection:
            metadata = sa.MetaData()
            metadata.reflect(connection)
        left = {name: NO_KEY for name, one in metadata.tables.items() if not one.primary_key}
        left |= {name: "of Alembic" for name in self.hidden if name in metadata.tables}
        self.untracked = {k: v for k, v in self.untracked.items() if k in metadata.tables}
        for name in metadata.tables.keys() - left.keys() - self.untracked.keys():
            reason = _find_refusal(metadata, name)
            if reason:
                self.untracked[name] = reason
        left |= self.untracked
        self.untracked |= {k: v for k, v in left.items() if k not in self.hidden}
        return Oplog(TypeCatalog.from_models(metadata, untracked=left), plaintext=True)

    # -- the log's tables and guards ----------------------------------------------------------

    def begin(self, revision: str) -> None:
        """Make the log anew: all tables guarded, all rows adopted."""
        self.first = revision
        self.moments.clear()
        self.untracked.clear()
        self.renew()
        with self.connect() as connection:
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS oplog CASCADE")
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {REPLAYED} CASCADE")
            operations = Operations(MigrationContext.configure(connection))
            CreateOplogOp.create_oplog(operations, 1)
        self.track()

    def track(self) -> list[str]:
        """Guard what has no guard, and adopt what has rows; returns the tables."""
        log = self.make_log()
        with self.connect() as connection:
            guarded = {
                row[0]
                for row in connection.exec_driver_sql(
                    "SELECT c.relname FROM pg_catalog.pg_trigger AS t"
                    " JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid"
                    " WHERE t.tgname LIKE 'oplog%%' AND NOT t.tgisinternal"
                )
            }
        new = sorted(one.table.name for one in log.catalog.types.values())
        new = [one for one in new if one not in guarded]
        if new:
            self._guard(new)
        new = [one for one in new if one not in self.untracked]
        log = self.make_log()
        engine = self.open_engine()
        with engine.connect() as connection:
            filled = [one for one in new if _has_rows(connection, one)]
            connection.rollback()
            if filled:
                log.adopt(connection, filled)
        engine.dispose()
        return new

    def _guard(self, names: list[str]) -> None:
        """Guard the tables together; if that fails one by one, and note which cannot have one."""
        try:
            with self.connect() as connection:
                operations = Operations(MigrationContext.configure(connection))
                TrackTablesOp.track_tables(operations, *names)
        except (OplogError, sa.exc.DBAPIError) as error:
            if len(names) == 1:
                self.untracked[names[0]] = str(getattr(error, "orig", error)).splitlines()[0]
                self.renew()
                return
            for name in names:
                self._guard([name])

    def list_logged(self) -> dict[str, Table]:
        """The tables that are logged."""
        return {k: v for k, v in self.read().items() if v.key and k not in self.untracked}

    # -- what must hold -----------------------------------------------------------------------

    def check(self, *, replayed: bool) -> None:
        """Verify; and replay, and compare with SELECT. Raises `StepError`."""
        with staged("catalog"):
            log = self.make_log()
        with staged("verify"), self.connect() as connection:
            report = log.verify(connection)
            if not report.ok:
                told = "; ".join(str(one)[:200] for one in report.differences[:4])
                raise StepError("verify", f"{report.count} differences: {told}")
        if replayed:
            self.compare_replay(log)

    def compare_replay(self, log: Oplog, moment: Moment | None = None) -> None:
        """Replay as of now or as of a moment, and compare. Raises `StepError`."""
        stage = "replay" if moment is None else "replay of earlier position"
        with staged(stage), self.connect() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {REPLAYED} CASCADE")
            log.replay(connection, into=REPLAYED, through=moment.position if moment else None)
            # Of a column that the server computes the log has nothing, so a table that is no more
            # as it was then is rebuilt without it.
            tables = read_tables(connection, schema=REPLAYED)
            found = read_content(connection, tables, schema=REPLAYED, generated=moment is None)
            expected = (
                read_content(connection, self.list_logged()) if moment is None else moment.content
            )
            connection.exec_driver_sql(f"DROP SCHEMA {REPLAYED} CASCADE")
        differences = compare_content(expected, found)
        # A table that was never written through the log is not in it.
        differences = [
            one
            for one in differences
            if not (one.endswith(" is missing") and not expected[one.split(" ")[0]].rows)
        ]
        if differences:
            where = f"as of revision {moment.revision}: " if moment else ""
            raise StepError(stage, where + "; ".join(differences)[:1500])

    def remember(self, revision: str, copy: str) -> None:
        """Keep what the tables hold now, with the position; `copy` names a copy of the database."""
        with self.connect() as connection:
            position = connection.exec_driver_sql(
                "SELECT coalesce(max(position), 0) FROM oplog.oplog_record"
            ).scalar_one()
            content = read_content(connection, self.list_logged(), generated=False)
        if position:
            self.moments.append(Moment(revision, position, content, copy))

    def publish(self, *, snapshot: bool) -> None:
        """Publish to the archive, with a snapshot or without."""
        stage = "snapshot" if snapshot else "sync"
        with staged(stage):
            log, engine = self.make_log(), self.open_engine()
            archive = open_archive(f"file://{self.archive_path}")
            (log.snapshot if snapshot else log.sync)(engine, archive)
            engine.dispose()


def _has_rows(connection: Connection, table: str) -> bool:
    name = table.replace('"', '""').replace("%", "%%")
    sql = f'SELECT EXISTS (SELECT FROM "{name}")'
    return bool(connection.exec_driver_sql(sql).scalar_one())


def _find_refusal(metadata: sa.MetaData, name: str) -> str:
    """Why the table cannot be logged, if it cannot."""
    try:
        TypeCatalog.from_models(
            metadata, untracked={one: "not asked" for one in metadata.tables if one != name}
        )
    except OplogError as error:
        return str(error).splitlines()[0]
    return ""
