"""What a transaction wrote is logged as it is stored, whatever the session may see at COMMIT.

The owner of the log reads rows of guarded tables back, and only those that the transaction wrote.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog.errors import NotCapturableError
from oplog.schema.grants import RoleKind, list_grants
from tests.logged import LoggedDatabase, open_logged
from tests.support import administer

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Pair(Base):
    """A key of two columns, a default that a setting decides, and a computed column."""

    __tablename__ = "pair"
    left: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    right: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=sa.text("current_setting('app.tenant')"))
    shout: Mapped[str] = mapped_column(sa.Computed("upper(tenant)"))
    body: Mapped[str | None]


class Mixed(Base):
    """Keys of types whose equality is another operator, or that print differently by settings."""

    __tablename__ = "mixed"
    kind: Mapped[str] = mapped_column(sa.Enum("hot", "cold", name="warmth"), primary_key=True)
    day: Mapped[dt.datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    code: Mapped[UUID] = mapped_column(primary_key=True)
    size: Mapped[Decimal] = mapped_column(sa.Numeric(8, 2), primary_key=True, autoincrement=False)
    raw: Mapped[bytes] = mapped_column(primary_key=True)
    body: Mapped[str | None]


class Part(Base):
    __tablename__ = "part"
    __table_args__ = ({"postgresql_partition_by": "LIST (tenant)"},)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str | None]


OBJECTS = (
    "CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a') PARTITION BY RANGE (id)",
    "CREATE TABLE part_a_1 PARTITION OF part_a FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b')",
)
LOUD = (
    """CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$""",
    "CREATE TRIGGER loud BEFORE INSERT OR UPDATE ON part_a_1 FOR EACH ROW EXECUTE FUNCTION loud()",
)
HIDE = (
    "ALTER TABLE pair ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON pair USING (tenant = current_setting('app.tenant', true))",
    "ALTER TABLE part ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON part USING (tenant = current_setting('app.tenant', true))",
)


@pytest.fixture
def role(server_url: URL, engine: Engine) -> Iterator[str]:
    name = f"writer_{uuid4().hex[:12]}"
    administer(server_url, f"CREATE ROLE {name}")
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name} CASCADE")
    administer(server_url, f"DROP ROLE {name}")


@pytest.fixture
def guarded(engine: Engine, role: str) -> Iterator[LoggedDatabase]:
    yield from open_as(engine, role, guarded=True)


def open_as(engine: Engine, role: str, *, guarded: bool) -> Iterator[LoggedDatabase]:
    """A database whose log is read by the superuser and whose sessions are the role's."""
    db = open_logged(engine, Base, guarded=guarded, objects=OBJECTS)
    db.execute(
        *list_grants(role, RoleKind.APPLICATION, schema="oplog"),
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON pair, part TO {role}",
        *HIDE,
    )
    application = sa.create_engine(engine.url, connect_args={"options": f"-c role={role}"})
    sessions = sessionmaker(application)
    db.log.attach(sessions)
    yield LoggedDatabase(engine, db.log, sessions)
    application.dispose()


def act_as(session: Session, tenant: str) -> None:
    session.execute(sa.text("SELECT set_config('app.tenant', :t, true)"), {"t": tenant})


def write_hidden(db: LoggedDatabase, work: Callable[[Session], Any]) -> None:
    with db.sessions.begin() as session:
        act_as(session, "a")
        work(session)
        session.flush()
        act_as(session, "")


def execute_text(session: Session, *, text: str) -> None:
    session.execute(sa.text(text))


def test_keys_of_several_columns_and_defaults_of_a_setting(guarded: LoggedDatabase) -> None:
    write_hidden(guarded, lambda s: s.add_all(Pair(left=f"it's {n}", right=n) for n in range(3)))
    write_hidden(
        guarded, lambda s: s.execute(sa.text("UPDATE pair SET body = 'x', \"left\" = 'moved'"))
    )
    assert {o.fields["tenant"] for e in guarded.read() for o in e.operations if o.fields} == {"a"}
    assert guarded.count("pair") == 3
    guarded.assert_replays()


def test_rows_that_a_savepoint_wrote(guarded: LoggedDatabase) -> None:
    def work(session: Session) -> None:
        session.add(Pair(left="one", right=1))
        with session.begin_nested():
            session.add(Pair(left="two", right=2))
            session.flush()
            with session.begin_nested():
                session.execute(sa.text("UPDATE pair SET body = 'inner' WHERE \"right\" = 1"))
        gone = session.begin_nested()
        session.add(Pair(left="three", right=3))
        session.flush()
        gone.rollback()

    write_hidden(guarded, work)
    assert guarded.tell() == ["CREATE pair one/1", "CREATE pair two/2"]
    guarded.assert_replays()


def test_many_rows_at_once(guarded: LoggedDatabase) -> None:
    statements = (
        """INSERT INTO pair ("left", "right", tenant, body)
        SELECT 'k', n, 'a', repeat('x', 3000) FROM generate_series(1, 3000) n""",
        "UPDATE pair SET body = body || 'y'",
        'DELETE FROM pair WHERE "right" > 5',
    )
    for one in statements:
        write_hidden(guarded, partial(execute_text, text=one))
    assert guarded.count("pair") == 5
    guarded.assert_replays()


def test_keys_of_all_kinds(guarded: LoggedDatabase, role: str) -> None:
    guarded.execute(
        "ALTER TABLE mixed ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON mixed USING (current_setting('app.tenant') <> '')",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON mixed TO {role}",
    )
    rows = [
        Mixed(
            kind=kind,
            day=dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC),
            code=uuid4(),
            size=Decimal("1.50"),
            raw=b"\x00'\\",
        )
        for kind in ("hot", "cold")
    ]
    write_hidden(guarded, lambda session: session.add_all(rows))
    with guarded.sessions.begin() as session:
        session.execute(sa.text("SET LOCAL datestyle = 'SQL, DMY'"))
        session.execute(sa.text("SET LOCAL timezone = 'Asia/Tokyo'"))
        act_as(session, "a")
        session.execute(sa.text("UPDATE mixed SET body = 'x'"))
        act_as(session, "")
    assert [told.split()[0] for told in guarded.tell()] == ["CREATE", "CREATE", "UPDATE", "UPDATE"]
    guarded.assert_replays()


def test_partitions(guarded: LoggedDatabase) -> None:
    write_hidden(guarded, lambda s: s.add(Part(id=1, tenant="a")))
    write_hidden(guarded, lambda s: s.execute(sa.text("UPDATE part SET body = 'x'")))
    assert guarded.tell() == ["CREATE part 1/a", "UPDATE part 1/a"]
    guarded.assert_replays()


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guarded"])
def test_a_trigger_of_a_partition_changes_what_is_stored(engine: Engine, guard: bool) -> None:
    db = open_logged(engine, Base, guarded=guard, objects=(*OBJECTS, *LOUD))
    with db.sessions.begin() as session:
        session.add_all([Part(id=1, tenant="a", body="x"), Part(id=1, tenant="b", body="x")])
    with db.sessions.begin() as session:
        session.get_one(Part, (1, "a")).body = "y"
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT body FROM part ORDER BY tenant")
        assert rows.scalars().all() == ["Y", "x"]
    db.assert_replays()


def test_a_role_that_may_insert_and_not_read(guarded: LoggedDatabase, role: str) -> None:
    guarded.execute(
        f"REVOKE SELECT ON pair FROM {role}", "ALTER TABLE pair DISABLE ROW LEVEL SECURITY"
    )
    with guarded.sessions.begin() as session:
        act_as(session, "a")
        session.execute(sa.insert(Pair).values(left="one", right=1))
    assert guarded.tell() == ["CREATE pair one/1"]
    guarded.assert_replays()


def test_an_owner_that_is_under_row_security_itself(guarded: LoggedDatabase, role: str) -> None:
    """What hides rows from the owner of the log hides them from all: refused, with the reason."""
    owner = f"{role}_owner"
    administer(guarded.engine.url, f"CREATE ROLE {owner}")
    guarded.execute(
        f"GRANT USAGE ON SCHEMA oplog TO {owner}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA oplog TO {owner}",
        f"GRANT SELECT ON pair TO {owner}",
        f"ALTER FUNCTION oplog.oplog_read_written OWNER TO {owner}",
    )
    insert = sa.text('INSERT INTO pair ("left", "right") VALUES (\'one\', 1)')
    with pytest.raises(NotCapturableError, match="row security"):
        write_hidden(guarded, lambda s: s.execute(insert))
    with guarded.sessions.begin() as session:
        act_as(session, "a")
        session.execute(insert)
    assert guarded.tell() == ["CREATE pair one/1"]
    guarded.execute(
        "ALTER FUNCTION oplog.oplog_read_written OWNER TO CURRENT_USER", f"DROP OWNED BY {owner}"
    )
    administer(guarded.engine.url, f"DROP ROLE {owner}")


# -- it is no way to read anything else ----------------------------------------------------------


READ = "SELECT texts FROM oplog.oplog_read_written('pair'::regclass, %s, %s, ARRAY['body'])"
KEY = ["left", "right"]


def read(connection: Connection, *keys: str, names: list[str] = KEY) -> list[Any]:
    return list(connection.exec_driver_sql(READ, (names, list(keys))).scalars())


@pytest.fixture
def secret(guarded: LoggedDatabase) -> Iterator[Connection]:
    """A connection of the role, beside a row of another tenant that it may not see."""
    with guarded.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'test'")
        connection.exec_driver_sql("SET LOCAL app.tenant = 'b'")
        connection.exec_driver_sql(
            "INSERT INTO pair (\"left\", \"right\", body) VALUES ('one', 1, 'secret')"
        )
    with guarded.sessions.kw["bind"].connect() as connection:
        yield connection


def test_rows_of_others_are_not_given(secret: Connection) -> None:
    assert read(secret, "one", "1") == []
    secret.exec_driver_sql("SET LOCAL app.tenant = 'a'")
    secret.exec_driver_sql("UPDATE pair SET body = body")
    secret.exec_driver_sql("INSERT INTO pair (\"left\", \"right\", body) VALUES ('own', 1, 'mine')")
    secret.exec_driver_sql("SET LOCAL app.tenant = ''")
    assert read(secret, "one", "1", "own", "1") == [["mine"]]
    secret.rollback()


def test_a_row_whose_key_was_tried_is_not_given(secret: Connection) -> None:
    secret.exec_driver_sql("SET LOCAL app.tenant = 'a'")
    savepoint = secret.begin_nested()
    with pytest.raises(DBAPIError, match="duplicate key"):
        secret.exec_driver_sql('INSERT INTO pair ("left", "right") VALUES (\'one\', 1)')
    savepoint.rollback()
    assert read(secret, "one", "1") == []
    secret.rollback()


@pytest.mark.parametrize("names", [["right"], ["body"], ["left", "left"], ["left", "body"]])
def test_other_keys_are_refused(secret: Connection, names: list[str]) -> None:
    with pytest.raises(DBAPIError, match="not the primary key"):
        read(secret, *(["1"] * len(names)), names=names)


def test_a_table_without_a_guard_is_refused(secret: Connection) -> None:
    secret.exec_driver_sql("CREATE TEMP TABLE pair (LIKE public.pair INCLUDING ALL)")
    with pytest.raises(DBAPIError, match="does not guard"):
        read(secret, "one", "1")


def test_columns_that_the_role_may_not_touch_are_not_given(
    guarded: LoggedDatabase, secret: Connection, role: str
) -> None:
    """A role that may update another column makes the row version its own."""
    # A superuser's login may take on any role.
    secret.exec_driver_sql(f"SET SESSION AUTHORIZATION {role}")
    secret.commit()
    guarded.execute(
        f"REVOKE ALL ON pair FROM {role}",
        f'GRANT SELECT ("left", "right"), UPDATE ("right") ON pair TO {role}',
    )
    secret.exec_driver_sql("SET LOCAL app.tenant = 'b'")
    secret.exec_driver_sql('UPDATE pair SET "right" = "right" WHERE "left" = \'one\'')
    with pytest.raises(DBAPIError, match="permission denied for column body"):
        read(secret, "one", "1")
    secret.rollback()
    guarded.execute(f"GRANT INSERT (body) ON pair TO {role}")
    secret.exec_driver_sql("SET LOCAL app.tenant = 'b'")
    secret.exec_driver_sql('UPDATE pair SET "right" = "right" WHERE "left" = \'one\'')
    assert read(secret, "one", "1") == [["secret"]]
    secret.rollback()


@pytest.mark.parametrize("name", ["ctid", "xmin", "row_to_json", "nothing", ""])
def test_names_that_are_no_columns_are_refused(secret: Connection, name: str) -> None:
    """After a table's alias, the name of a function would call it with the whole row."""
    with pytest.raises(DBAPIError, match="permission denied for column"):
        secret.exec_driver_sql(
            "SELECT oplog.oplog_read_written('pair'::regclass, %s, %s, %s)",
            (KEY, ["one", "1"], [name]),
        )


def test_who_may_call_it(guarded: LoggedDatabase, role: str) -> None:
    guarded.execute(f"REVOKE EXECUTE ON FUNCTION oplog.oplog_read_written FROM {role}")
    engine: Engine = guarded.sessions.kw["bind"]
    with engine.connect() as connection, pytest.raises(DBAPIError, match="permission denied"):
        read(connection, "one", "1")
