"""The log's tables come and go by an application's own Alembic revision, executed or printed.

What `create_statements` itself makes of an empty database is the measure; every other way to get
there must leave exactly the same tables, triggers, functions and comments.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import alembic.op
import psycopg
import pytest
import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import URL

import oplog.migration
from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.migration import CreateOplogOp, DropOplogOp, UpgradeOplogOp
from oplog.postgres.quoting import quote
from oplog.store import Store
from tests.postgres.log_schema import (
    BARE_OPTIONS,
    ODD,
    TEMPLATE_OPTIONS,
    Application,
    Described,
    describe,
    list_schemas,
    list_tables,
    run_script,
)

pytestmark = pytest.mark.postgres

ROOT = Path(oplog.migration.__file__).parents[2]


@pytest.fixture
def application(tmp_path: Path, bare_database_url: URL) -> Application:
    return Application(tmp_path, bare_database_url)


@pytest.fixture
def measure(database_url: URL) -> Described:
    return describe(database_url)


# -- in an application's revision ---------------------------------------------------------------


@pytest.mark.parametrize("schema", ["oplog", "audit", "public", ODD])
def test_upgrade_and_downgrade(application: Application, measure: Described, schema: str) -> None:
    application.write(
        upgrade=f"op.create_oplog(version=1, schema={schema!r})",
        downgrade=f"op.drop_oplog(schema={schema!r})",
    )
    before = list_schemas(application.url)
    application.upgrade()
    assert describe(application.url, schema) == measure

    application.downgrade()
    assert list_schemas(application.url) == before
    assert list_tables(application.url) == {"alembic_version"}
    application.upgrade()
    assert describe(application.url, schema) == measure


@pytest.mark.parametrize("options", [TEMPLATE_OPTIONS, BARE_OPTIONS])
@pytest.mark.parametrize("schema", ["oplog", "audit", "public", ODD])
def test_printed_sql_does_the_same(
    application: Application, measure: Described, schema: str, options: str
) -> None:
    application.write(
        upgrade=f"op.create_oplog(version=1, schema={schema!r})",
        downgrade=f"op.drop_oplog(schema={schema!r})",
        options=options,
    )
    before = list_schemas(application.url)
    run_script(application.url, application.print_upgrade())
    assert describe(application.url, schema) == measure

    run_script(application.url, application.print_downgrade())
    assert list_schemas(application.url) == before
    # Some versions of Alembic print a DROP of their own table, too.
    assert list_tables(application.url) <= {"alembic_version"}


def test_default_schema_is_oplog(application: Application, measure: Described) -> None:
    application.write(upgrade="op.create_oplog(version=1)", downgrade="op.drop_oplog()").upgrade()
    assert describe(application.url) == measure
    application.downgrade()
    assert "oplog" not in list_schemas(application.url)


def test_drop_leaves_what_others_put_beside_the_log(application: Application) -> None:
    application.write(upgrade="op.create_oplog(version=1)", downgrade="op.drop_oplog()").upgrade()
    run_script(application.url, "CREATE TABLE oplog.theirs (id int)")
    application.downgrade()
    assert list_tables(application.url, "oplog") == {"theirs"}


@pytest.mark.parametrize("version", [0, 2, 99])
@pytest.mark.parametrize("operation", ["create", "upgrade"])
def test_unknown_version_is_refused(application: Application, operation: str, version: int) -> None:
    application.write(upgrade=f"op.{operation}_oplog(version={version})")
    with pytest.raises(SchemaVersionError, match=f"version {version} is not known") as caught:
        application.upgrade()
    assert "oplog package" in caught.value.hint
    with pytest.raises(SchemaVersionError):
        application.print_upgrade()
    assert "oplog" not in list_schemas(application.url)
    assert "account" not in list_tables(application.url)


def test_an_upgrade_changes_nothing_in_a_new_log(
    application: Application, measure: Described
) -> None:
    application.write(upgrade="op.create_oplog(version=1); op.upgrade_oplog(version=1)")
    application.upgrade()
    assert describe(application.url) == measure


def test_an_upgrade_of_nothing_is_refused(application: Application) -> None:
    application.write(upgrade="op.upgrade_oplog(version=1)")
    with pytest.raises(SchemaVersionError, match="no oplog tables to upgrade") as caught:
        application.upgrade()
    assert "op.create_oplog(version=1)" in caught.value.hint


@pytest.mark.parametrize("schema", ["oplog", ODD])
def test_a_log_is_created_once(application: Application, measure: Described, schema: str) -> None:
    line = f"op.create_oplog(version=1, schema={schema!r})"
    application.write(upgrade=line).upgrade()
    application.write(upgrade=f"{line}; op.execute('DROP TABLE account')")
    statements = application.print_upgrade().partition(");")[2]
    run_script(application.url, "DELETE FROM alembic_version; DROP TABLE account")
    with pytest.raises(SchemaVersionError, match="has a log of schema version 1 already") as caught:
        application.upgrade()
    assert "op.upgrade_oplog(version=1" in caught.value.hint
    with pytest.raises(psycopg.DatabaseError, match="has a log already"):
        run_script(application.url, statements)
    assert describe(application.url, schema) == measure


OTHER = """
    CREATE SCHEMA {s};
    CREATE TABLE {s}.oplog_entry (id bigint PRIMARY KEY, entry_hash bytea);
    COMMENT ON TABLE {s}.oplog_entry IS 'oplog schema version 1';
    INSERT INTO {s}.oplog_entry VALUES (1, 'hash')"""


@pytest.mark.parametrize("operation", ["create", "upgrade"])
@pytest.mark.parametrize("schema", ["oplog", ODD])
def test_tables_of_another_definition_are_refused(
    application: Application, operation: str, schema: str
) -> None:
    """Executed and printed; nothing in them changes, and nothing proposes to give them up."""
    run_script(application.url, OTHER.format(s=quote(schema)))
    application.write(upgrade=f"op.{operation}_oplog(version=1, schema={schema!r})")
    refused = pytest.raises(SchemaVersionError, match="as a development version")
    with refused as caught:
        application.upgrade()
    assert "leave them as they are" in caught.value.hint
    with pytest.raises(psycopg.DatabaseError, match="as a development version") as printed:
        run_script(application.url, application.print_upgrade())
    assert printed.value.diag.message_hint == caught.value.hint
    assert list_tables(application.url) <= {"alembic_version"}
    engine = sa.create_engine(application.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert list_tables(application.url, schema) == {"oplog_entry"}
        with refused:
            Store(schema).require_current(connection)
        with refused:
            Store(schema).require_home(connection)


def test_version_must_be_said(application: Application) -> None:
    with pytest.raises(TypeError, match="version"):
        application.write(upgrade="op.create_oplog()").upgrade()


# -- the operations themselves ------------------------------------------------------------------


def print_operation(operation: MigrateOperation, *, dialect: str = "postgresql") -> str:
    output = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=dialect, opts={"as_sql": True, "output_buffer": output}
    )
    Operations(context).invoke(operation)
    return output.getvalue()


def test_reversed_operations() -> None:
    dropped = CreateOplogOp(1, schema="audit").reverse()
    assert isinstance(dropped, DropOplogOp)
    assert print_operation(dropped) == print_operation(DropOplogOp(schema="audit"))
    assert 'DROP TABLE "audit".oplog_record' in print_operation(dropped)
    created = dropped.reverse()
    assert print_operation(created) == print_operation(CreateOplogOp(1, schema="audit"))
    with pytest.raises(SchemaVersionError, match="not known"):
        DropOplogOp(schema="audit").reverse()
    with pytest.raises(SchemaVersionError, match="cannot be undone"):
        UpgradeOplogOp(2).reverse()


def test_another_database_is_refused() -> None:
    for operation in (CreateOplogOp(1), DropOplogOp()):
        with pytest.raises(ConfigurationError, match="runs on sqlite"):
            print_operation(operation, dialect="sqlite")


def test_registering_twice_is_harmless() -> None:
    program = """
        import importlib, io
        import alembic.op
        from alembic.operations import Operations
        from alembic.runtime.migration import MigrationContext
        import oplog.migration

        importlib.reload(oplog.migration)
        opts = {"as_sql": True, "output_buffer": io.StringIO()}
        context = MigrationContext.configure(dialect_name="postgresql", opts=opts)
        with Operations.context(context):
            alembic.op.create_oplog(version=1)
        print(opts["output_buffer"].getvalue(), end="")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout == print_operation(CreateOplogOp(1))


def test_operations_are_there_for_a_revision_to_call() -> None:
    assert {"create_oplog", "upgrade_oplog", "drop_oplog"} <= set(dir(alembic.op))
