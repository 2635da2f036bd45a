"""Builds of an application with one table, and the database that they are deployed to."""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog, TypesCheckReport
from tests.databases import fill_database
from tests.logged import track

SWAP = (
    "ALTER TABLE acct RENAME a TO t; ALTER TABLE acct RENAME b TO a; ALTER TABLE acct RENAME t TO b"
)
REPLACE = (
    "CREATE TABLE acct2 AS SELECT * FROM acct; DROP TABLE acct;"
    "ALTER TABLE acct2 RENAME TO acct; ALTER TABLE acct ADD PRIMARY KEY (id)"
)
MOVE = "CREATE SCHEMA books; ALTER TABLE acct SET SCHEMA books"
BASE = ("id int", "a int", "b text", "kind mood")
TYPES: dict[str, Any] = {
    "int": sa.Integer,
    "bigint": sa.BigInteger,
    "text": sa.Text,
    "mood": sa.Enum(name="mood", create_type=False),
}


def declare(*columns: str, table: str = "acct", **more: Any) -> sa.MetaData:
    """Models of one table, whose first column is the key; `more` are options of the table."""
    metadata = sa.MetaData()
    add_table(metadata, table, *columns, **more)
    return metadata


def add_table(metadata: sa.MetaData, table: str, *columns: str, **more: Any) -> None:
    found = []
    for place, one in enumerate(columns):
        name, kind = one.split()
        found.append(sa.Column(name, TYPES[kind], primary_key=place == 0))
    sa.Table(table, metadata, *found, **more)


class GivenUpError(Exception):
    """An interruption."""


class Build:
    """A build of the application, with the database that it is checked against."""

    def __init__(self, engine: Engine, keyring: Keyring, models: sa.MetaData, **options: Any):
        self.engine = engine
        self.keyring = keyring
        self.models = models
        self.log = Oplog(TypeCatalog.from_models(models, **options), keyring=keyring)

    def write(self, statement: str) -> None:
        sessions = sessionmaker(self.engine)
        self.log.attach(sessions)
        with sessions.begin() as session:
            session.execute(sa.text(statement))
        self.log.detach(sessions)

    def run(self, ddl: str) -> None:
        with self.engine.begin() as connection:
            for statement in filter(str.strip, ddl.split(";")):
                connection.exec_driver_sql(statement)

    def build(self, models: sa.MetaData, **options: Any) -> Build:
        """The next one."""
        return Build(self.engine, self.keyring, models, **options)

    def give_up(self) -> None:
        """Note what changed, and be interrupted after the first row that is logged again."""

        def give_up(*_: int) -> None:
            raise GivenUpError

        with self.engine.connect() as connection, contextlib.suppress(GivenUpError):
            self.log.note_changes(connection, chunk_rows=1, progress=give_up)

    def check(self) -> TypesCheckReport:
        with self.engine.connect() as connection:
            read_only = connection.execution_options(postgresql_readonly=True)
            return self.log.check_types(read_only)

    def sync(self) -> None:
        """`oplog types sync`."""
        with self.engine.connect() as connection:
            self.log.store_types(connection)

    def diagnose(self) -> list[tuple[str, str, str]]:
        with self.engine.connect() as connection:
            found = self.log.diagnose(connection)
        # Not what depends on the server of the tests and its account.
        mute = {"setting", "owner-connected", "owner-superuser"}
        return [(f.severity, f.what, f.where) for f in found if f.what not in mute]


def open_first(engine: Engine) -> Build:
    """The first build, which has written two rows.

    In the database itself: a copy of one has other tables, as far as the log can say.
    """
    build = Build(engine, Keyring.generate(), declare(*BASE))
    fill_database(engine, open_first, _create)
    build.write("INSERT INTO acct VALUES (1, 11, '12', 'sad'), (2, 21, '22', 'glad')")
    return build


def _create(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TYPE mood AS ENUM ('sad', 'glad')")
        connection.exec_driver_sql(
            "CREATE TABLE acct (id int PRIMARY KEY, a int, b text, kind mood)"
        )
    track(engine, *declare(*BASE).tables.values())
