"""An application's Alembic environment whose revisions are written by a test, and its log."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import URL, Connection, Engine

from oplog import Keyring, Oplog, OpType, TypeCatalog

ENVIRONMENT = """
from alembic import context
import oplog.migration

given = context.config.attributes
options = dict(transaction_per_migration=given["per_migration"], **given["options"])
if context.is_offline_mode():
    context.configure(url=given["url"], literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
elif given["begun"]:
    with given["engine"].begin() as connection:
        context.configure(connection=connection, **options)
        context.run_migrations()
else:
    with given["engine"].connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

START = """
op.create_table(
    "acct",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
)
op.track_tables("acct")
names = sa.table("acct", sa.column("id"), sa.column("name"))
op.bulk_insert(names, [{"id": n, "name": f"N {n}"} for n in range(3)])
"""
"""The first revision where the log is there: a table with three rows, and a guard."""
START_BARE = "op.create_oplog(version=1)\n" + START
"""The same where it is not."""

Row = dict[str, Any]


def make_metadata() -> sa.MetaData:
    """Models that know of the tables no more than their keys."""
    metadata = sa.MetaData()
    for name in ("acct", "owner"):
        sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    return metadata


class Project:
    """Revisions named 1, 2, 3 and so on, an engine to run them on, and the log."""

    def __init__(self, directory: Path, url: URL, *, schema: str = "oplog") -> None:
        self.directory, self.url = directory, url
        self.engine = sa.create_engine(url)
        catalog = TypeCatalog.from_models(make_metadata())
        self.log = Oplog(catalog, keyring=Keyring.generate(), schema=schema)
        self.options: dict[str, Any] = {"oplog": self.log}
        self.per_migration = self.begun = False
        (directory / "versions").mkdir()
        (directory / "env.py").write_text(ENVIRONMENT)
        self.count = 0

    def add(self, upgrade: str, downgrade: str = "pass") -> None:
        """Write the next revision."""
        before = repr(str(self.count)) if self.count else None
        self.count += 1
        text = "\n".join(
            [
                "import sqlalchemy as sa",
                "from alembic import op",
                f"revision = '{self.count}'",
                f"down_revision = {before}",
                "def upgrade():",
                indent(upgrade.strip("\n"), "    "),
                "def downgrade():",
                indent(downgrade.strip("\n"), "    "),
            ]
        )
        (self.directory / "versions" / f"r{self.count}.py").write_text(text)

    def configure(self, output: Any = None) -> Config:
        config = Config(output_buffer=output)
        config.set_main_option("script_location", str(self.directory))
        config.set_main_option("path_separator", "os")
        config.attributes.update(
            engine=self.engine,
            url=self.url,
            options=self.options,
            per_migration=self.per_migration,
            begun=self.begun,
        )
        return config

    def upgrade(self, target: str = "head") -> None:
        command.upgrade(self.configure(), target)

    def downgrade(self, target: str) -> None:
        command.downgrade(self.configure(), target)

    def print_upgrade(self, target: str = "head") -> str:
        output = io.StringIO()
        command.upgrade(self.configure(output), target, sql=True)
        return output.getvalue()

    def find_revision(self) -> str | None:
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            return found.scalar()

    def list_changes(self) -> list[str]:
        """'UPDATE acct 1' for each operation, in the order of the log."""
        with self.engine.connect() as connection:
            return [
                f"{o.kind.name} {o.type_name} {'/'.join(map(str, o.key.values()))}"
                for entry in self.log.read(connection)
                for o in entry.operations
            ]

    def count_records(self) -> int:
        with self.engine.connect() as connection:
            return len({entry.position for entry in self.log.read(connection)})


def compare(log: Oplog, engine: Engine, *tables: str) -> None:
    """`verify` is equal, and so is a comparison of its own: entries folded by hand."""
    with engine.connect() as connection:
        verdict = log.verify(connection)
        assert verdict.ok, verdict.differences
        told = fold(log, connection)
        for table in tables:
            live = read_live(connection, table)
            logged = told.get(table, {})
            assert logged.keys() == live.keys()
            for key, row in live.items():
                # A column that is gone is no more to be compared; one that nobody filled is NULL.
                assert {name: logged[key].get(name) for name in row} == row


def fold(log: Oplog, connection: Connection) -> dict[str, dict[Any, Row]]:
    """Rows by type and key, as the entries tell them."""
    told: dict[str, dict[Any, Row]] = {}
    for entry in log.read(connection):
        for operation in entry.operations:
            rows = told.setdefault(operation.type_name, {})
            key = tuple(operation.key.values())
            if operation.kind is OpType.CREATE:
                assert key not in rows, f"created twice: {operation.type_name} {key}"
                rows[key] = dict(operation.fields)
            elif operation.kind is OpType.UPDATE:
                rows[key].update(operation.fields)
            else:
                del rows[key]
    return told


def read_live(connection: Connection, table: str, key: Sequence[str] = ("id",)) -> dict[Any, Row]:
    rows = connection.exec_driver_sql(f"SELECT * FROM {table}").mappings()
    return {tuple(row[name] for name in key): dict(row) for row in rows}
