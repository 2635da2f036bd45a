"""Those who are compared: plain SQLAlchemy, an outbox, PostgreSQL-Audit, and the log.

Each works in processes and in a database of its own. PostgreSQL-Audit listens to all sessions of
its process, so that it must not share one. Each is told who acts and on which request: two
values for each transaction, stored in the way of the contender.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
    sessionmaker,
)

from benchmarks.workloads import Changes, Transfer, TransferColumns, make_log
from oplog import Keyring
from oplog.errors import ConflictError
from oplog.schema.tables import create_statements, track_statements

FIELDS = ("id", "account", "amount", "made_at", "memo", "details", "status")


class Plain:
    """SQLAlchemy and nothing else: the base of every ratio."""

    model: type[Any] = Transfer
    relations = "SELECT NULL::oid AS oid WHERE false"
    """Query for the tables that hold the history, whose size is measured."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, pool_size=1)
        self.sessions = sessionmaker(self.engine)

    def create(self) -> None:
        """Create the tables."""
        self.model.metadata.create_all(self.engine)

    def attach(self) -> None:
        """Whatever a process does once, when the tables are there."""

    def run(self, work: Callable[[Session], None]) -> None:
        """Commit a transaction; `work` may be called again if it lost a conflict."""
        with self.sessions.begin() as session:
            work(session)

    def begin(self, session: Session, number: int) -> None:
        """What a transaction does first: saying who acts."""

    def finish(self, session: Session, changes: Changes) -> None:
        """What a transaction does last: describing what it did."""

    def index_history(self) -> None:
        """Add what an indexed read of a row's history needs and the contender does not have."""

    def read_history(self, session: Session, key: int) -> int:
        """Read what happened to a row, and return how many changes that were.

        Without a history, the row itself is read.
        """
        return int(session.get(self.model, key) is not None)


class OutboxBase(DeclarativeBase):
    """The outbox, which only its contender creates."""


class OutboxRow(OutboxBase):
    """One JSON document for each transaction."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    payload: Mapped[Any] = mapped_column(JSONB)


class Outbox(Plain):
    """A row that the application writes by hand, in the same transaction."""

    relations = "SELECT 'outbox'::regclass::oid AS oid"

    def create(self) -> None:
        """The table and the outbox."""
        super().create()
        OutboxBase.metadata.create_all(self.engine)

    def begin(self, session: Session, number: int) -> None:
        """Kept until the outbox row is written."""
        session.info.update(describe_request(number))

    def finish(self, session: Session, changes: Changes) -> None:
        """One row for the whole transaction."""
        # Keys that the database makes are known after a flush.
        session.flush()
        rows = [{"kind": kind, **describe_row(row)} for kind, row in changes]
        session.add(OutboxRow(payload={**session.info, "rows": rows}))

    def index_history(self) -> None:
        """An index on all that the documents hold."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE INDEX ON outbox USING gin (payload jsonb_path_ops)")

    def read_history(self, session: Session, key: int) -> int:
        """The documents that name the row, and of them its changes."""
        wanted = OutboxRow.payload.contains({"rows": [{"id": key}]})
        found = session.scalars(sa.select(OutboxRow.payload).where(wanted).order_by(OutboxRow.id))
        return sum(row["id"] == key for payload in found for row in payload["rows"])


class Audit(Plain):
    """PostgreSQL-Audit, with its triggers for each statement, which are its default."""

    relations = "SELECT unnest(ARRAY['activity'::regclass, 'transaction'::regclass])::oid AS oid"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        audit = importlib.import_module("postgresql_audit")

        class AuditBase(DeclarativeBase):
            """The audited table beside those of the audit."""

        self._manager = audit.VersioningManager()
        self._manager.init(AuditBase)

        class AuditedTransfer(TransferColumns, AuditBase):
            """The same columns, marked for the audit."""

            __tablename__ = "transfer"
            __versioned__: dict[str, Any] = {}  # noqa: RUF012 - as the audit reads it

        self.model = AuditedTransfer
        configure_mappers()

    def create(self) -> None:
        """The audit's tables first: creating the table adds its triggers."""
        # Its DDL is many statements in one string, which is only possible without parameters.
        psycopg = importlib.import_module("psycopg")
        options = {"cursor_factory": psycopg.ClientCursor}
        engine = sa.create_engine(self.engine.url, connect_args=options)
        with engine.begin() as connection:
            for model in (self._manager.transaction_cls, self._manager.activity_cls, self.model):
                model.__table__.create(connection)
        engine.dispose()

    def begin(self, session: Session, number: int) -> None:  # noqa: ARG002 - the audit finds it
        """The audit writes these values with its row for the transaction."""
        request = describe_request(number)
        self._manager.values = {"actor_id": request["actor"], "client_addr": request["address"]}

    def index_history(self) -> None:
        """An index on the row's key, which the audit keeps inside JSON."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE INDEX ON activity (table_name, "
                "(coalesce(old_data ->> 'id', changed_data ->> 'id')))"
            )

    def read_history(self, session: Session, key: int) -> int:
        """The row's activities, each with its transaction."""
        activity = self._manager.activity_cls
        # No parameter in it: the expression must be that of the index.
        found_key: sa.ColumnElement[str] = sa.literal_column(
            "coalesce(old_data ->> 'id', changed_data ->> 'id')"
        )
        found = session.execute(
            sa.select(activity, self._manager.transaction_cls)
            .join(activity.transaction)
            .where(activity.table_name == "transfer", found_key == str(key))
            .order_by(activity.id)
        )
        return len(found.all())


class Log(Plain):
    """The log, with guards and the default aggregate: one for each row."""

    relations = (
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'oplog' AND c.relkind = 'r'"
    )
    one_aggregate = False
    guarded = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.log = make_log(Keyring.generate(), one_aggregate=self.one_aggregate)

    def create(self) -> None:
        """The table, the log, and the guard."""
        super().create()
        with self.engine.begin() as connection:
            for statement in create_statements():
                connection.exec_driver_sql(statement)
            for statement in track_statements(["transfer"]) if self.guarded else ():
                connection.exec_driver_sql(statement)

    def attach(self) -> None:
        """The sessions are logged from now on."""
        self.log.attach(self.sessions)

    def run(self, work: Callable[[Session], None]) -> None:
        """As others, and again after a conflict."""
        try:
            super().run(work)
        except ConflictError:
            # What an application does that lost: with one aggregate, several clients get here.
            self.log.run(self.sessions, work, retries=10**6)

    def begin(self, session: Session, number: int) -> None:
        """Metadata of the transaction."""
        self.log.annotate(session, **describe_request(number))

    def read_history(self, session: Session, key: int) -> int:
        """The row's changes, opened and decoded."""
        return len(self.log.history(session.connection(), Transfer, key))


class LogOneAggregate(Log):
    """The log with one aggregate for the whole table."""

    one_aggregate = True


class LogWithoutGuards(Log):
    """The log on a table that has no guard."""

    guarded = False


CONTENDERS: dict[str, Callable[[str], Plain]] = {
    "plain": Plain,
    "outbox": Outbox,
    "PostgreSQL-Audit": Audit,
    "log": Log,
    "log, one aggregate": LogOneAggregate,
    "log, no guards": LogWithoutGuards,
}
"""Name -> what it is; made with the URL of its database."""


def describe_request(number: int) -> dict[str, str]:
    """Who acts, and from where: the two values that each transaction is given."""
    return {"actor": f"clerk {number % 50}", "address": f"10.0.{number % 200}.7"}


def describe_row(row: Any) -> dict[str, Any]:
    """A row as JSON, as one writes it for an outbox."""
    values = {name: getattr(row, name) for name in FIELDS}
    return {**values, "amount": str(row.amount), "made_at": row.made_at.isoformat()}
