"""A database as the guide sets it up: an owner that is no superuser, and roles that `grants` made.

Each role is a login of the test's own, and is gone with the database. Nothing here judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Finding, Keyring, Oplog, TypeCatalog
from oplog.postgres.quoting import (
    quote,
)
from oplog.schema.grants import RoleKind, list_grants
from tests.models.bank import AGGREGATES, Base
from tests.support import administer

OWNER, APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER = ROLES = (
    "owner",
    "application",
    "worker",
    "auditor",
    "consumer",
    "stranger",
)


@dataclass(frozen=True)
class Roles:
    """The database's roles by what they are, and engines that work as one of them."""

    url: URL
    names: dict[str, str]
    keyring: Keyring

    def engine(self, role: str) -> Engine:
        """Each of its connections is the role's, as if it had logged in."""
        engine = sa.create_engine(self.url, poolclass=NullPool)
        name = self.names[role]

        @event.listens_for(engine, "connect")
        def become(connection: Any, _record: Any) -> None:
            connection.execute(f"SET SESSION AUTHORIZATION {name}")
            connection.commit()

        return engine

    def superuser(self, *statements: str) -> None:
        """Run statements, each on its own."""
        administer(self.url, *statements)

    def run(self, role: str, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.engine(role).begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def refuse(self, role: str, *statements: str) -> tuple[str, str, str]:
        """SQLSTATE, message and hint of the refusal that the transaction must meet."""
        try:
            self.run(role, *statements)
        except DBAPIError as refused:
            found: Any = refused.orig
            diagnostic = found.diag
            return found.sqlstate, diagnostic.message_primary, diagnostic.message_hint or ""
        raise AssertionError(f"{role} may do this: {statements}")

    def ask(self, statement: str) -> list[Any]:
        """First column of the answer, as the owner."""
        with self.engine(OWNER).connect() as connection:
            return list(connection.exec_driver_sql(statement).scalars())

    def open_log(self) -> Oplog:
        return Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), keyring=self.keyring)

    def open_sessions(self, role: str = APPLICATION) -> sessionmaker[Session]:
        """Attached to a log of their own."""
        sessions = sessionmaker(self.engine(role))
        self.open_log().attach(sessions)
        return sessions

    def find_problems(self, role: str = OWNER) -> list[Finding]:
        """What doctor calls a problem, except for the server's settings."""
        with self.engine(role).connect() as connection:
            found = self.open_log().diagnose(connection)
        return [f for f in found if f.severity == "problem" and f.what != "setting"]

    def verifies(self) -> bool:
        with self.engine(OWNER).connect() as connection:
            return self.open_log().verify(connection).ok

    def grant(self, role: str, kind: RoleKind) -> None:
        """What `oplog grants` prints."""
        tables = [] if kind is RoleKind.APPLICATION else [(None, "account"), (None, "order")]
        self.run(OWNER, *list_grants(self.names[role], kind, schema="oplog", tables=tables))


@contextmanager
def open_roles(
    url: URL, definition: Sequence[str], *, granted: bool = True, prepare: Sequence[str] = ()
) -> Iterator[Roles]:
    """Install a log by `definition` in an empty database, and guard the bank's tables.

    `prepare` runs before as the owner, with `{application}` and the like for roles' names.
    """
    suffix = uuid4().hex[:8]
    roles = Roles(url, {role: f"{role}_{suffix}" for role in ROLES}, Keyring.generate())
    for name in roles.names.values():
        roles.superuser(f"CREATE ROLE {name} LOGIN")
    owner = roles.names[OWNER]
    try:
        roles.superuser(
            f"ALTER DATABASE {quote(str(url.database))} OWNER TO {owner}",
            f"GRANT ALL ON SCHEMA public TO {owner}",
        )
        roles.run(OWNER, *(statement.format(**roles.names) for statement in prepare))
        Base.metadata.create_all(roles.engine(OWNER))
        roles.run(OWNER, *definition)
        tables = ("account", '"order"', "order_line")
        roles.run(
            OWNER, *(f"SELECT oplog.oplog_track_table('{t}'::regclass, NULL)" for t in tables)
        )
        everything = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO"
        numbers = "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO"
        for role in (APPLICATION, STRANGER):
            roles.run(OWNER, f"{everything} {roles.names[role]}", f"{numbers} {roles.names[role]}")
        if granted:
            roles.grant(APPLICATION, RoleKind.APPLICATION)
            roles.grant(WORKER, RoleKind.WORKER)
            roles.grant(AUDITOR, RoleKind.AUDITOR)
            roles.grant(CONSUMER, RoleKind.CONSUMER)
        yield roles
    finally:
        for name in roles.names.values():
            roles.superuser(f"DROP OWNED BY {name} CASCADE")
        roles.superuser(
            f"ALTER DATABASE {quote(str(url.database))} OWNER TO CURRENT_USER",
            *(f"DROP ROLE {name}" for name in roles.names.values()),
        )
