"""Data and DDL in one revision, on guarded tables, in any order: all of it is in the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Oplog, TypeCatalog
from oplog.errors import NotCapturableError, UnloggedWriteError
from tests.postgres.revisions import ENVIRONMENT, START, START_BARE, Project, compare

pytestmark = pytest.mark.postgres


@pytest.fixture
def project(tmp_path: Path, database_url: URL) -> Iterator[Project]:
    project = Project(tmp_path, database_url)
    yield project
    project.engine.dispose()


SHAPES = {
    "add, fill, not null": """
op.add_column("acct", sa.Column("kind", sa.Text))
op.execute("UPDATE acct SET kind = 'personal'")
op.alter_column("acct", "kind", nullable=False)
""",
    "fill, then add a column": """
op.execute("UPDATE acct SET name = upper(name)")
op.add_column("acct", sa.Column("kind", sa.Text))
""",
    "fill, then an index": """
op.execute(sa.text("UPDATE acct SET name = name || :suffix").bindparams(suffix="; !"))
op.create_index("by_name", "acct", ["name"])
op.execute("UPDATE acct SET name = lower(name) WHERE id = 1")
op.create_index("one_name", "acct", ["name"], unique=True)
""",
    "fill, then a check": """
op.execute("UPDATE acct SET name = lower(name)")
op.create_check_constraint("lower_name", "acct", "name = lower(name)")
op.execute("INSERT INTO acct VALUES (9, 'nine')")
""",
    "fill, then a foreign key": """
op.create_table("owner", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
op.track_tables("owner")
op.execute("INSERT INTO owner SELECT id FROM acct")
op.execute("UPDATE acct SET name = 'x' || id")
op.create_foreign_key("belongs", "acct", "owner", ["id"], ["id"])
op.execute("DELETE FROM acct WHERE id = 2")
""",
    "split a column": """
op.add_column("acct", sa.Column("letter", sa.Text))
op.add_column("acct", sa.Column("number", sa.Text))
op.execute("UPDATE acct SET letter = split_part(name, ' ', 1), number = split_part(name, ' ', 2)")
op.drop_column("acct", "name")
""",
    "bulk insert, then another type": """
t = sa.table("acct", sa.column("id"), sa.column("name"))
op.bulk_insert(t, [{"id": n, "name": "seven"} for n in range(7, 60)])
op.alter_column("acct", "name", type_=sa.String(99))
op.execute(sa.update(t).where(t.c.id > 50).values(name="over"))
op.execute(sa.delete(t).where(t.c.id == 7))
""",
    "the cure that others know": """
op.add_column("acct", sa.Column("kind", sa.Text))
op.execute("UPDATE acct SET kind = 'personal'")
op.execute("SET CONSTRAINTS ALL IMMEDIATE")
op.alter_column("acct", "kind", nullable=False)
op.execute("UPDATE acct SET kind = 'business'")
""",
    "several statements in one text": """
op.execute('''
    -- a comment; with a semicolon
    ALTER TABLE acct ADD COLUMN kind text;
    UPDATE acct SET kind = 'a;b%';
    ALTER TABLE acct ALTER COLUMN kind SET NOT NULL;
    INSERT INTO acct (id, name, kind) VALUES (8, $q$ it's; $q$, 'x');
''')
""",
    "a routine that does both": """
op.execute("UPDATE acct SET name = 'before'")
op.execute('''DO $do$ BEGIN
    ALTER TABLE acct ADD COLUMN kind text;
    UPDATE acct SET kind = name;
END $do$''')
op.execute("CREATE FUNCTION late() RETURNS void LANGUAGE sql AS "
           "$f$ALTER TABLE acct ADD COLUMN late integer$f$")
op.execute("UPDATE acct SET name = 'then'")
op.execute("SELECT late()")
op.execute("UPDATE acct SET name = 'after'")
""",
    "partitions": """
op.execute("CREATE TABLE owner (id integer PRIMARY KEY, name text) PARTITION BY RANGE (id)")
op.execute("CREATE TABLE owner_1 PARTITION OF owner FOR VALUES FROM (0) TO (10)")
op.track_tables("owner")
op.execute("INSERT INTO owner SELECT * FROM acct")
op.execute("CREATE TABLE owner_2 PARTITION OF owner FOR VALUES FROM (10) TO (20)")
op.execute("UPDATE owner SET id = id + 10 WHERE id > 0")
op.add_column("owner", sa.Column("kind", sa.Text))
op.execute("UPDATE owner_2 SET kind = name")
op.create_index("by_kind", "owner", ["kind"])
op.execute("DELETE FROM owner WHERE id = 11")
""",
    "guards after rows": """
op.execute("UPDATE acct SET name = 'before'")
op.track_tables("acct")
op.execute("UPDATE acct SET name = name || ' and after'")
""",
    "a table copied and filled": """
op.execute("CREATE TABLE owner (id integer PRIMARY KEY, name text)")
op.track_tables("owner")
op.execute("INSERT INTO owner SELECT * FROM acct")
op.execute("DELETE FROM acct")
op.alter_column("owner", "name", nullable=False)
op.add_column("acct", sa.Column("note", sa.Text, server_default="none"))
""",
}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("per_migration", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_logged(project: Project, shape: str, per_migration: bool) -> None:
    project.per_migration = per_migration
    project.add(START)
    project.add(SHAPES[shape])
    project.upgrade()
    assert project.find_revision() == "2"
    tables = ["acct", *(["owner"] if "owner" in SHAPES[shape] else [])]
    compare(project.log, project.engine, *tables)
    # Nothing is left that a later writer would stumble over.
    project.add("op.execute('DELETE FROM acct WHERE id = 1')")
    project.upgrade()
    compare(project.log, project.engine, *tables)


def test_revisions_in_one_transaction_down_and_up_again(project: Project) -> None:
    project.add(START)
    project.add(SHAPES["add, fill, not null"], "op.drop_column('acct', 'kind')")
    project.add(
        "op.execute(\"UPDATE acct SET kind = 'k' WHERE id = 1\")\nop.drop_column('acct', 'name')",
        "op.add_column('acct', sa.Column('name', sa.Text))\n"
        "op.execute('UPDATE acct SET name = kind')\n"
        "op.alter_column('acct', 'name', nullable=False)",
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")
    project.downgrade("1")
    compare(project.log, project.engine, "acct")
    project.per_migration = True
    project.upgrade()
    compare(project.log, project.engine, "acct")


def test_back_to_the_base_and_up_again(tmp_path: Path, bare_database_url: URL) -> None:
    project = Project(tmp_path, bare_database_url)
    project.add(
        START_BARE, "op.execute('DELETE FROM acct')\nop.drop_oplog()\nop.drop_table('acct')"
    )
    project.add(SHAPES["split a column"])
    project.upgrade()
    project.downgrade("base")
    project.upgrade("1")
    compare(project.log, project.engine, "acct")
    project.engine.dispose()


def test_a_table_that_is_emptied_and_dropped(project: Project) -> None:
    project.add(START)
    project.add(
        """
op.create_table("owner", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
op.track_tables("owner")
op.execute("INSERT INTO owner VALUES (1)")
op.execute("DELETE FROM owner")
op.execute("UPDATE acct SET name = 'meanwhile'")
op.drop_table("owner")
op.retire_type("owner", reason="empty")
"""
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")
    changes = project.list_changes()
    assert "UPDATE acct 2" in changes


@pytest.mark.parametrize("ending", ["raise RuntimeError('no')", "op.execute('SELECT 1/0')"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_failure_in_the_middle_leaves_nothing(project: Project, ending: str, begun: bool) -> None:
    project.add(START)
    project.upgrade()
    before = project.list_changes()
    project.add(f"{SHAPES['add, fill, not null']}\n{ending}")
    project.begun = begun
    with pytest.raises((RuntimeError, DBAPIError)):
        project.upgrade()
    assert project.list_changes() == before
    compare(project.log, project.engine, "acct")
    with project.engine.connect() as connection:
        columns = sa.inspect(connection).get_columns("acct")
    assert [column["name"] for column in columns] == ["id", "name"]


# -- savepoints -------------------------------------------------------------------------------

SAVEPOINTS = """
op.execute("UPDATE acct SET name = 'outside' WHERE id = 0")
bind = op.get_bind()
with bind.begin_nested() as undone:
    op.execute("UPDATE acct SET name = 'lost' WHERE id = 1")
    op.add_column("acct", sa.Column("lost", sa.Text))
    op.execute("UPDATE acct SET lost = 'x'")
    with bind.begin_nested():
        op.create_index("lost_too", "acct", ["lost"])
        op.execute("DELETE FROM acct")
        op.drop_column("acct", "lost")
    undone.rollback()
with bind.begin_nested():
    op.execute("UPDATE acct SET name = 'kept' WHERE id = 2")
    op.add_column("acct", sa.Column("kept", sa.Text))
    op.execute("UPDATE acct SET kept = name")
AFTER
"""


@pytest.mark.parametrize("after", ["", "op.alter_column('acct', 'kept', nullable=False)"])
def test_settled_records_go_with_their_savepoint(project: Project, after: str) -> None:
    project.add(START)
    project.upgrade()
    project.add(SAVEPOINTS.replace("AFTER", after))
    project.upgrade()
    compare(project.log, project.engine, "acct")
    with project.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT * FROM acct ORDER BY id").fetchall()
    assert found == [(0, "outside", "outside"), (1, "N 1", "N 1"), (2, "kept", "kept")]


def test_a_savepoint_by_text(project: Project) -> None:
    project.add(START)
    project.add(
        """
op.execute("UPDATE acct SET name = 'a'")
op.execute("SAVEPOINT s")
op.create_index("i", "acct", ["name"])
op.execute("UPDATE acct SET name = 'b'")
op.execute("ROLLBACK TO s")
op.execute("UPDATE acct SET name = name || 'c'")
op.create_index("i", "acct", ["name"])
"""
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")


# -- what writes ------------------------------------------------------------------------------

SESSIONS = """
from sqlalchemy.orm import Session, DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase): pass
class Frozen(Base):
    __tablename__ = "acct"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
op.add_column("acct", sa.Column("kind", sa.Text))
with Session(op.get_bind()) as session:
    session.get(Frozen, 1).name = "by a session"
    session.add(Frozen(id=5, name="new"))
    session.commit()
op.execute("UPDATE acct SET kind = name")
op.alter_column("acct", "kind", nullable=False)
session = Session(bind=op.get_bind())
session.delete(session.get(Frozen, 0))
session.flush()
op.create_index("by_name", "acct", ["name"])
session.commit()
"""


@pytest.mark.parametrize("per_migration", [True, False])
def test_sessions_with_models_of_another_time(project: Project, per_migration: bool) -> None:
    project.per_migration = per_migration
    project.add(START)
    project.add(SESSIONS)
    project.upgrade()
    compare(project.log, project.engine, "acct")
    assert "CREATE acct 5" in project.list_changes()


def test_sessions_that_are_attached(project: Project) -> None:
    """They share the migration's connection, and are the application's own."""
    sessions = sessionmaker(project.engine)
    project.log.attach(sessions)
    project.options["sessions"] = sessions
    project.add(START)
    project.add(
        """
sessions, log = op.get_context().opts["sessions"], op.get_context().opts["oplog"]
table = log.catalog.types["acct"].table
op.add_column("acct", sa.Column("kind", sa.Text))
with sessions(bind=op.get_bind()) as session:
    log.annotate(session, actor="a revision")
    session.execute(table.insert(), [{"id": 5}, {"id": 6}])
    session.execute(sa.text("UPDATE acct SET kind = 'k'"))
    session.commit()
op.execute("UPDATE acct SET name = 'set' WHERE name IS NULL")
op.alter_column("acct", "kind", nullable=False)
""".replace(
            "op.add_column",
            "op.alter_column('acct', 'name', nullable=True)\nop.add_column",
        )
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")
    with project.engine.connect() as connection:
        actors = [entry.metadata.get("actor") for entry in project.log.read(connection)]
    assert ["a revision"] in actors


def test_what_the_environment_writes_around_the_revisions(project: Project) -> None:
    """The transaction had begun before the migration, and goes on after it."""
    project.add(START)
    project.upgrade()
    project.add(SHAPES["add, fill, not null"])
    project.begun = True
    begun, other = ENVIRONMENT.split("else:\n    with given")
    before, after = (
        f"        connection.exec_driver_sql(\"UPDATE acct SET name = '{name}' WHERE id = {n}\")\n"
        for n, name in enumerate(("before", "after"))
    )
    offline, begun = begun.split("        context.configure(connection")
    text = f"{offline}{before}        context.configure(connection{begun}{after}"
    (project.directory / "env.py").write_text(f"{text}else:\n    with given{other}")
    project.upgrade()
    compare(project.log, project.engine, "acct")
    with project.engine.connect() as connection:
        names = connection.exec_driver_sql("SELECT name FROM acct ORDER BY id").scalars().all()
    assert names == ["before", "after", "N 2"]


def test_deferred_triggers_of_the_application(project: Project) -> None:
    project.add(START)
    project.add(
        """
op.execute("CREATE TABLE free (id integer)")
op.execute('''CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN UPDATE acct SET name = 'late'; RETURN NULL; END $f$''')
op.execute('''CREATE CONSTRAINT TRIGGER late AFTER INSERT ON free DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION late()''')
op.execute("INSERT INTO free VALUES (1)")
"""
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")
    assert "UPDATE acct 2" in project.list_changes()


def test_a_bypass_hides_nothing_in_a_migration(project: Project) -> None:
    project.add(START)
    project.add(
        "op.execute(\"SET LOCAL oplog.bypass = 'habit'\")\n"
        "op.execute(\"UPDATE acct SET name = 'seen'\")\n"
        "op.create_index('i', 'acct', ['name'])"
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")
    assert project.list_changes()[-1] == "UPDATE acct 2"


# -- AUTOCOMMIT -------------------------------------------------------------------------------

AUTOCOMMIT = """
op.execute("UPDATE acct SET name = 'first'")
with op.get_context().autocommit_block():
    op.execute("CREATE INDEX CONCURRENTLY by_name ON acct (name)")
    op.execute("UPDATE acct SET name = 'alone' WHERE id = 1")
    t = sa.table("acct", sa.column("id"), sa.column("name"), sa.column("kind"))
    op.bulk_insert(t, [{"id": n, "name": "bulk"} for n in range(20, 25)])
    op.execute("ALTER TABLE acct ADD COLUMN kind text")
    op.execute("UPDATE acct SET kind = name; ALTER TABLE acct ALTER kind SET NOT NULL")
    made = op.get_bind().execute(sa.insert(t).values(id=30, name="x", kind="y").returning(t.c.id))
    assert made.scalar_one() == 30
op.execute("UPDATE acct SET name = 'last' WHERE id = 2")
"""


@pytest.mark.parametrize("per_migration", [True, False])
def test_in_an_autocommit_block(project: Project, per_migration: bool) -> None:
    project.per_migration = per_migration
    project.add(START)
    project.add(AUTOCOMMIT)
    project.upgrade()
    compare(project.log, project.engine, "acct")
    assert "CREATE acct 24" in project.list_changes()


def test_what_fails_in_an_autocommit_block_is_not_logged(project: Project) -> None:
    project.add(START)
    project.add(
        """
with op.get_context().autocommit_block():
    op.execute("UPDATE acct SET name = 'alone'")
    try:
        op.execute("INSERT INTO acct VALUES (0, 'twice')")
    except sa.exc.IntegrityError:
        pass
    op.execute("UPDATE acct SET name = 'again' WHERE id = 1")
op.execute("UPDATE acct SET name = 'last' WHERE id = 2")
"""
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")


def test_a_routine_in_an_autocommit_block_is_refused(project: Project) -> None:
    project.add(START)
    project.upgrade()
    project.add(
        """
with op.get_context().autocommit_block():
    op.execute("DO $$ BEGIN UPDATE acct SET name = 'x'; END $$")
"""
    )
    with pytest.raises(UnloggedWriteError) as refused:
        project.upgrade()
    assert "AUTOCOMMIT" in refused.value.hint
    compare(project.log, project.engine, "acct")


def test_an_engine_in_autocommit(project: Project) -> None:
    project.engine = sa.create_engine(project.url, isolation_level="AUTOCOMMIT")
    project.add(START)
    project.add(SHAPES["add, fill, not null"])
    project.upgrade()
    project.engine.dispose()
    project.engine = sa.create_engine(project.url)
    compare(project.log, project.engine, "acct")


def test_rows_that_ddl_rewrites_on_an_engine_in_autocommit(project: Project) -> None:
    project.engine = sa.create_engine(project.url, isolation_level="AUTOCOMMIT")
    project.add(START)
    project.add("op.alter_column('acct', 'name', type_=sa.String(400))")
    project.add("op.execute('ALTER TABLE acct ADD COLUMN tag uuid DEFAULT gen_random_uuid()')")
    project.upgrade()
    project.engine.dispose()
    project.engine = sa.create_engine(project.url)
    compare(project.log, project.engine, "acct")


def test_commit_as_a_statement(project: Project) -> None:
    """As revisions did before Alembic had autocommit blocks."""
    project.add(START)
    project.add(
        """
op.execute("UPDATE acct SET name = 'before'")
op.execute("COMMIT")
op.add_column("acct", sa.Column("kind", sa.Text))
op.execute("UPDATE acct SET kind = 'after'")
op.alter_column("acct", "kind", nullable=False)
"""
    )
    project.upgrade()
    compare(project.log, project.engine, "acct")


# -- which log, and what is left of it --------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Acct(Base):
    __tablename__ = "acct"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


@pytest.mark.parametrize("per_migration", [True, False])
def test_the_log_of_an_attached_engine(project: Project, per_migration: bool) -> None:
    project.per_migration = per_migration
    project.options = {}
    project.log.attach(project.engine)
    project.add(START)
    project.add(SHAPES["add, fill, not null"])
    project.upgrade()
    compare(project.log, project.engine, "acct")


UNGUARDED = """
op.create_table("owner", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
op.bulk_insert(sa.table("owner", sa.column("id")), [{"id": 1}])
"""


def test_what_an_attached_engine_would_not_see_is_refused(project: Project) -> None:
    project.options = {}
    project.log.attach(project.engine)
    project.add(START)
    project.upgrade()
    project.add(UNGUARDED)
    with pytest.raises(NotCapturableError, match=r"owner.* has no guard") as refused:
        project.upgrade()
    assert "op.track_tables('owner')" in refused.value.hint
    compare(project.log, project.engine, "acct")


def test_without_a_log_nothing_is_attached(project: Project) -> None:
    project.add(START)
    project.upgrade()
    project.options = {}
    project.add(SHAPES["fill, then add a column"])
    with pytest.raises(DBAPIError, match="pending trigger events"):
        project.upgrade()
    compare(project.log, project.engine, "acct")


def change_name(log: Oplog, sessions: sessionmaker[Session], name: str) -> None:
    """Change a row. Another log has migrated: what this one knows is refused once."""

    def change(session: Session) -> None:
        session.get_one(Acct, 10).name = name

    log.run(sessions, change)


def test_the_application_captures_as_before(project: Project) -> None:
    """It migrates at its start, on its own engine."""
    log = Oplog(TypeCatalog.from_models(Base), keyring=project.log.keyring)
    sessions = sessionmaker(project.engine)
    log.attach(sessions)
    project.add(START)
    project.upgrade("1")
    with sessions.begin() as session:
        session.add(Acct(id=10, name="by a session"))
        session.execute(sa.text("UPDATE acct SET name = 'text' WHERE id = 0"))
    project.add(SHAPES["fill, then add a column"])
    project.upgrade("2")
    change_name(log, sessions, "changed")
    compare(log, project.engine, "acct")
    with (
        pytest.raises((DBAPIError, UnloggedWriteError), match="does not log them"),
        sa.create_engine(project.url, poolclass=sa.NullPool).begin() as connection,
    ):
        connection.exec_driver_sql("UPDATE acct SET name = 'unseen'")
    compare(log, project.engine, "acct")


def test_a_log_in_another_schema(tmp_path: Path, bare_database_url: URL) -> None:
    schema = 'a "log": 100%s'
    project = Project(tmp_path, bare_database_url, schema=schema)
    start = START_BARE.replace("version=1", f"version=1, schema={schema!r}")
    project.add(start.replace('track_tables("acct"', f'track_tables("acct", log_schema={schema!r}'))
    project.add(SHAPES["add, fill, not null"])
    project.upgrade()
    compare(project.log, project.engine, "acct")
    project.engine.dispose()


def test_two_logs_on_one_connection(project: Project) -> None:
    other: Any = Oplog(TypeCatalog.from_models(Base), keyring=project.log.keyring, schema="audit")
    project.add(START)
    project.add(
        "op.create_oplog(version=1, schema='audit')\nop.track_tables('acct', log_schema='audit')\n"
    )
    project.upgrade()
    with project.engine.connect() as connection:
        other.adopt(connection, ["acct"])
    other.attach(project.engine)
    project.add(SHAPES["fill, then add a column"])
    project.upgrade()
    compare(project.log, project.engine, "acct")
    with project.engine.begin() as connection:
        other.note_changes(connection)
    with project.engine.connect() as connection:
        verdict = other.verify(connection)
    assert verdict.ok, verdict.differences


async def test_an_asynchronous_engine(project: Project) -> None:
    """As environments for asyncio use it, with `connection.run_sync`."""
    project.add(START)
    project.upgrade()
    log = project.log

    def migrate(connection: Connection) -> None:
        with log.migrating(connection):
            for statement in (
                "UPDATE acct SET name = 'x'",
                "ALTER TABLE acct ADD COLUMN kind text",
                "UPDATE acct SET kind = name; CREATE INDEX by_kind ON acct (kind)",
            ):
                connection.exec_driver_sql(statement)
            log.note_changes(connection)

    engine = create_async_engine(project.url)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.run_sync(
            lambda inner: migrate_apart(log, inner),
        )
    await engine.dispose()
    compare(log, project.engine, "acct")


def migrate_apart(log: Oplog, connection: Connection) -> None:
    with log.migrating(connection):
        connection.exec_driver_sql("UPDATE acct SET name = 'y'")
        with suppress(DBAPIError):
            connection.exec_driver_sql("INSERT INTO acct VALUES (1, 'twice')")
        connection.exec_driver_sql("CREATE INDEX CONCURRENTLY by_name ON acct (name)")
        log.note_changes(connection)
