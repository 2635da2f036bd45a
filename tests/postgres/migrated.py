"""An application that migrates: its models are what its tables are, release by release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import sessionmaker

from oplog import Archive, Keyring, Oplog, RestoreReport, TypeCatalog, VerifyReport
from tests.logged import track

Rows = Mapping[str, Sequence[Mapping[str, str | None]]]
"""Tables by schema and name; their rows as text, sorted."""


class App:
    """A release of an application: its log, and sessions on a database.

    The models are read from the database, so that any DDL can be a migration.
    """

    def __init__(
        self, engine: Engine, keyring: Keyring, *, schemas: Sequence[str] = ("public",)
    ) -> None:
        self.engine = engine
        self.keyring = keyring
        self.schemas = schemas
        self.metadata = sa.MetaData()
        for schema in schemas:
            self.metadata.reflect(engine, schema=None if schema == "public" else schema)
        self.log = Oplog(TypeCatalog.from_models(self.metadata), keyring=keyring)
        self.sessions = sessionmaker(engine)
        self.log.attach(self.sessions)

    def write(self, *statements: str) -> None:
        """One logged transaction."""
        with self.sessions.begin() as session:
            for statement in statements:
                session.execute(sa.text(statement))

    def migrate(self, *ddl: str, schemas: Sequence[str] | None = None) -> App:
        """The next release. Nobody has noted yet what became of its tables."""
        self.log.detach(self.sessions)
        run_ddl(self.engine, *ddl)
        return App(self.engine, self.keyring, schemas=schemas or self.schemas)

    def note(self) -> None:
        """What `oplog types sync` does."""
        with self.engine.begin() as connection:
            self.log.store_types(connection)

    def position(self) -> int:
        """The newest one."""
        with self.engine.connect() as connection:
            return max((entry.position for entry in self.log.read(connection)), default=0)

    def verify(self) -> VerifyReport:
        with self.engine.connect() as connection:
            return self.log.verify(connection)

    def replay(self, **options: Any) -> Rows:
        """The rows that a replay gives; whatever their tables are called."""
        with self.engine.begin() as connection:
            self.log.replay(connection, into="again", **options)
            return dump_schemas(connection, ["again"])

    def restore(self, archive: Archive, **options: Any) -> RestoreReport:
        with self.engine.connect() as connection:
            return self.log.restore(archive, connection, **options)

    def dump(self) -> Rows:
        """The live rows."""
        with self.engine.connect() as connection:
            return dump_schemas(connection, self.schemas)


def make_app(engine: Engine, *ddl: str, keyring: Keyring | None = None, **options: Any) -> App:
    """The first release, with guarded tables."""
    run_ddl(engine, *ddl)
    app = App(engine, keyring or Keyring.generate(), **options)
    track(engine, *app.metadata.tables.values())
    return app


def run_ddl(engine: Engine, *ddl: str) -> None:
    """A migration, in one transaction."""
    with engine.begin() as connection:
        for statement in ddl:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def dump_schemas(connection: Connection, schemas: Sequence[str]) -> Rows:
    """All rows of all tables but those of the log, by the tables' names alone."""
    names = connection.exec_driver_sql(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
        (list(schemas),),
    ).all()
    found: dict[str, Sequence[Mapping[str, str | None]]] = {}
    for schema, table in names:
        columns = connection.exec_driver_sql(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass "
            "AND attnum > 0 AND NOT attisdropped ORDER BY attname",
            (f'{schema}."{table}"',),
        ).scalars()
        names_of = list(columns)
        texts = ", ".join(f"{name}::text" for name in names_of)
        rows = connection.exec_driver_sql(f'SELECT {texts} FROM {schema}."{table}"')
        found[table] = sorted((dict(zip(names_of, row, strict=True)) for row in rows), key=repr)
    return found
