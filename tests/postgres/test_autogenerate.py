"""Alembic's autogenerate in a database with a log: what it proposes, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.operations import Operations
from alembic.operations.ops import MigrationScript, UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import oplog.migration
from oplog import Oplog, TypeCatalog
from oplog.errors import ConfigurationError
from oplog.migration.autogenerate import register_autogenerate
from oplog.store.guard_state import list_declared_guards

pytestmark = pytest.mark.postgres

TRACK = oplog.migration.TrackTablesOp  # importing it registers what is tested


class Base(DeclarativeBase):
    """An application with tables in two schemas, one of them not logged."""


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)


class Part(Base):
    __tablename__ = "part"
    __table_args__ = {"schema": "store"}  # noqa: RUF012 - SQLAlchemy's form
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)


def make_log(schema: str = "oplog") -> Oplog:
    catalog = TypeCatalog.from_models(Base, untracked={"note": "nobody asks"})
    return Oplog(catalog, plaintext=True, schema=schema)


@pytest.fixture
def bare(bare_database_url: URL) -> Any:
    engine = create_engine(bare_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA store")
    yield engine
    engine.dispose()


def operate(connection: Connection, **options: Any) -> Any:
    """Operations, with those that were registered."""
    return Operations(MigrationContext.configure(connection, opts=options))


def create_log(engine: Engine, schema: str = "oplog") -> None:
    with engine.begin() as connection:
        operate(connection).create_oplog(version=1, schema=schema)


def produce(connection: Connection, log: Oplog | None = None, **options: Any) -> MigrationScript:
    given = {"include_schemas": True, **({} if log is None else {"oplog": log}), **options}
    return produce_migrations(MigrationContext.configure(connection, opts=given), Base.metadata)


def print_lines(operations: Any) -> list[str]:
    code = render_python_code(operations).splitlines()
    return [line.strip() for line in code if line.strip().startswith("op.")]


def run(engine: Engine, operations: Any) -> None:
    """Run the text of a revision, as Alembic writes it."""
    with engine.begin() as connection:
        names = {"op": operate(connection), "sa": sa}
        exec(f"def change():\n    {render_python_code(operations)}\nchange()", names)


def list_guarded(engine: Engine, schema: str = "oplog") -> list[tuple[str, str]]:
    with engine.connect() as connection:
        found = list_declared_guards(connection, schema)
    return [(guard.schema, guard.table) for guard in found if guard.tracked]


@pytest.mark.parametrize("schema", ["oplog", "public", 'au"dit 100%'])
@pytest.mark.parametrize("include_schemas", [True, False])
def test_the_logs_own_tables_are_left_alone(
    bare: Engine, schema: str, include_schemas: bool
) -> None:
    Base.metadata.create_all(bare)
    create_log(bare, schema)
    with bare.connect() as connection:
        script = produce(connection, include_schemas=include_schemas)
        assert script.upgrade_ops is not None
        told = script.upgrade_ops.as_diffs()
    if include_schemas:
        assert told == []
    else:
        # Alembic does not look into the other schema, and proposes its table once more.
        assert [(diff[0], diff[1].name) for diff in told] == [("add_table", "part")]


def test_other_tables_in_the_logs_schema_are_compared(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare)
    with bare.begin() as connection:
        for name in ("report", "oplog_notes"):
            connection.exec_driver_sql(f"CREATE TABLE oplog.{name} (id integer PRIMARY KEY)")
    with bare.connect() as connection:
        told = compare_metadata(
            MigrationContext.configure(connection, opts={"include_schemas": True}), Base.metadata
        )
    assert sorted(diff[1].name for diff in told) == ["oplog_notes", "report"]


def test_tables_of_the_same_names_without_a_log_are_compared(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    with bare.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE oplog_entry (id integer PRIMARY KEY)")
    with bare.connect() as connection:
        script = produce(connection)
    assert print_lines(script.upgrade_ops) == ["op.drop_table('oplog_entry')"]


def test_new_tables_are_proposed_with_their_guards(bare: Engine) -> None:
    create_log(bare)
    with bare.connect() as connection:
        script = produce(connection, make_log())
    lines = print_lines(script.upgrade_ops)
    assert [line for line in lines if "track" in line] == [
        "op.track_tables('item')",
        "op.track_tables('part', schema='store')",
    ]
    assert lines[-2:] == [line for line in lines if "track" in line]
    assert print_lines(script.downgrade_ops)[:2] == [
        "op.untrack_tables('part', reason='downgrade', schema='store')",
        "op.untrack_tables('item', reason='downgrade')",
    ]
    run(bare, script.upgrade_ops)
    assert list_guarded(bare) == [("public", "item"), ("store", "part")]
    with bare.connect() as connection:
        again = produce(connection, make_log()).upgrade_ops
        assert again is not None
        assert again.as_diffs() == []
    run(bare, script.downgrade_ops)
    assert list_guarded(bare) == []
    with bare.connect() as connection:
        names = sa.inspect(connection).get_table_names()
    assert names == []


def test_registered_twice_it_proposes_once(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare)
    register_autogenerate()
    with bare.connect() as connection:
        assert print_lines(produce(connection, make_log()).upgrade_ops) == [
            "op.track_tables('item')",
            "op.track_tables('part', schema='store')",
        ]


def test_a_table_that_is_there_and_unguarded_is_found_by_alembic_check(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare, "audit")
    with bare.connect() as connection:
        found = produce(connection, make_log("audit")).upgrade_ops
        assert found is not None
        assert found.as_diffs() == [("track_tables", "item"), ("track_tables", "part")]
        assert print_lines(found) == [
            "op.track_tables('item', log_schema='audit')",
            "op.track_tables('part', schema='store', log_schema='audit')",
        ]


def test_what_migrations_untracked_is_not_proposed_again(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare)
    with bare.begin() as connection:
        operations = operate(connection)
        operations.track_tables("item")
        operations.track_tables("part", schema="store")
        operations.untrack_tables("item", reason="too many rows")
    with bare.connect() as connection:
        script = produce(connection, make_log())
    assert print_lines(script.upgrade_ops) == []


def test_without_a_log_in_the_database_there_is_nothing_to_guard_with(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    with bare.connect() as connection:
        assert print_lines(produce(connection, make_log()).upgrade_ops) == []


def test_a_table_of_another_environment_is_not_proposed(bare: Engine) -> None:
    """The catalog has tables of two sets of models, and this environment compares one of them."""
    Base.metadata.create_all(bare)
    create_log(bare)
    other = sa.MetaData()
    Item.__table__.to_metadata(other)  # type: ignore[attr-defined]
    with bare.connect() as connection:
        context = MigrationContext.configure(connection, opts={"oplog": make_log()})
        found = produce_migrations(context, other).upgrade_ops
        assert found is not None
        assert [diff for diff in found.as_diffs() if diff[0] == "track_tables"] == [
            ("track_tables", "item")
        ]


def test_the_log_attached_to_the_engine_will_do(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare)
    log = make_log()
    log.attach(bare)
    with bare.connect() as connection, connection.begin():
        assert print_lines(produce(connection).upgrade_ops) == [
            "op.track_tables('item')",
            "op.track_tables('part', schema='store')",
        ]
    log.detach(bare)


def test_track_tables_without_names_takes_them_from_the_catalog(bare: Engine) -> None:
    Base.metadata.create_all(bare)
    create_log(bare)
    with bare.begin() as connection:
        operations = operate(connection)
        with pytest.raises(ConfigurationError, match="no table, and no log") as refused:
            operations.track_tables()
        assert "oplog=log" in refused.value.hint
        operations.track_tables(schema="store", log=make_log())
    assert list_guarded(bare) == [("store", "part")]
    with bare.begin() as connection:
        operate(connection, oplog=make_log()).track_tables()
    assert list_guarded(bare) == [("public", "item"), ("store", "part")]


def test_names_from_the_catalog_are_printed(
    bare: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "oplog": make_log("audit")}
    )
    operations: Any = Operations(context)
    operations.track_tables()
    printed = capsys.readouterr().out
    assert """SELECT "audit".oplog_track_table('"item"'::regclass, NULL);""" in printed
    assert """'"store"."part"'::regclass""" in printed


OPERATIONS = {
    "op.create_oplog(version=1)": oplog.migration.CreateOplogOp(1),
    "op.create_oplog(version=1, schema='audit')": oplog.migration.CreateOplogOp(1, schema="audit"),
    "op.upgrade_oplog(version=1)": oplog.migration.UpgradeOplogOp(1),
    "op.drop_oplog(schema='audit')": oplog.migration.DropOplogOp(schema="audit"),
    "op.retire_type('item', reason='it\\'s gone')": oplog.migration.RetireTypeOp(
        "item", reason="it's gone", log_schema="oplog"
    ),
    "op.track_tables('a', 'b', bypass_role='admin')": TRACK(
        "a", "b", schema=None, bypass_role="admin", log_schema="oplog"
    ),
}


@pytest.mark.parametrize(("line", "operation"), OPERATIONS.items(), ids=OPERATIONS)
def test_every_operation_has_a_line(line: str, operation: Any) -> None:
    (printed,) = print_lines(UpgradeOps(ops=[operation]))
    assert eval(printed, {"op": Echo()}) == eval(line, {"op": Echo()})


class Echo:
    """What was called, and with what."""

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: (name, given, named)
