"""Rows that were written and are hidden at COMMIT: logged as they are, or refused.

Row security lets a role write what it need not see a moment later, when the setting that its
policies look at was reset, or the role was. The owner of the log sees them on guarded tables. On
others the transaction is refused: a hidden row is never taken for deleted. What a statement
deleted is not read back, and rows that are seen are logged as they are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog.errors import NotCapturableError, SchemaChangedError
from oplog.schema.grants import RoleKind, list_grants
from tests.logged import LoggedDatabase, open_logged
from tests.support import administer

pytestmark = pytest.mark.postgres

TENANT = "(tenant = current_setting('app.tenant', true))"


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    body: Mapped[str | None]
    size: Mapped[Decimal] = mapped_column(sa.Numeric(8, 2), server_default="1.50")
    touched: Mapped[dt.datetime | None] = mapped_column(
        sa.DateTime(timezone=True), onupdate=sa.func.clock_timestamp()
    )


class Weight(Base):
    """A key that SQL finds under other spellings, in an aggregate that the key does not name."""

    __tablename__ = "weight"
    # SQLAlchemy 2.0 makes an integer that counts of it, unless told not to.
    id: Mapped[Decimal] = mapped_column(sa.Numeric, primary_key=True, autoincrement=False)
    tenant: Mapped[str]


@dataclass(frozen=True)
class Tenants:
    """A database whose rows belong to tenants, and a role that row security applies to."""

    db: LoggedDatabase
    """Everything that the role writes through `sessions`, read by the server's superuser."""
    sessions: sessionmaker[Session]
    role: str
    url: URL

    @contextmanager
    def acting(self, tenant: str, *, reset: bool) -> Iterator[Session]:
        """A transaction as a tenant; what sets the tenant may reset it before COMMIT."""
        with self.sessions.begin() as session:
            act_as(session, tenant)
            yield session
            session.flush()
            if reset:
                act_as(session, "")

    def fill(self) -> None:
        with self.acting("a", reset=False) as session:
            session.add_all(Doc(id=n, tenant="a", body="first") for n in (1, 2, 3))

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Nothing is committed and nothing logged, and the error says why."""
        before = self.db.tell(), self.read()
        with pytest.raises(NotCapturableError, match="row security is active") as caught:
            yield
        assert "SELECT policy" in caught.value.hint
        assert (self.db.tell(), self.read()) == before
        self.db.assert_replays()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Refused without a guard; with one it is logged as it is stored."""
        if not self.is_guarded():
            with self.refused():
                yield
            return
        before = len(self.db.tell())
        yield
        assert len(self.db.tell()) > before
        self.db.assert_replays()
        with self.db.engine.connect() as connection:
            assert self.db.log.verify(connection).ok

    def is_guarded(self) -> bool:
        with self.db.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_guard")
            return bool(found.scalar())

    def read(self) -> list[object]:
        with self.db.engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT * FROM doc ORDER BY 1")
            return [tuple(row) for row in rows]


def act_as(session: Session, tenant: str) -> None:
    session.execute(sa.text("SELECT set_config('app.tenant', :t, true)"), {"t": tenant})


@pytest.fixture
def role(server_url: URL) -> Iterator[str]:
    name = f"tenants_{uuid4().hex[:12]}"
    administer(server_url, f"CREATE ROLE {name}")
    yield name
    administer(server_url, f"DROP ROLE {name}")


def open_tenants(engine: Engine, role: str, *, guarded: bool, **options: object) -> Tenants:
    db = open_logged(
        engine,
        Base,
        guarded=guarded,
        aggregates={"weight": "tenant/{tenant}"},
        strict=bool(options.get("strict")),
    )
    db.execute(
        *list_grants(role, RoleKind.APPLICATION, schema="oplog"),
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON doc, weight TO {role}",
        "ALTER TABLE doc ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY per_tenant ON doc USING {TENANT}",
        "ALTER TABLE weight ENABLE ROW LEVEL SECURITY",
    )
    application = sa.create_engine(engine.url, connect_args={"options": f"-c role={role}"})
    sessions = sessionmaker(application)
    db.log.attach(sessions)
    return Tenants(db, sessions, role, engine.url)


@pytest.fixture
def database(engine: Engine, role: str) -> Iterator[Engine]:
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def tenants(database: Engine, role: str, request: pytest.FixtureRequest) -> Iterator[Tenants]:
    made = open_tenants(database, role, guarded=request.param)
    yield made
    made.sessions.kw["bind"].dispose()


@pytest.fixture
def guarded(database: Engine, role: str) -> Iterator[Tenants]:
    made = open_tenants(database, role, guarded=True)
    yield made
    made.sessions.kw["bind"].dispose()


@pytest.fixture
def plain(database: Engine, role: str) -> Iterator[Tenants]:
    made = open_tenants(database, role, guarded=False)
    yield made
    made.sessions.kw["bind"].dispose()


Work = Callable[[Session], object]


def change_object(session: Session) -> None:
    session.get_one(Doc, 2).body = "second"


def change_by_key(session: Session) -> None:
    session.execute(sa.update(Doc).where(Doc.id == 2).values(body=sa.func.upper("x")))


def add_with_default(session: Session) -> None:
    session.add(Doc(id=4, tenant="a", body=None))


def insert_expression(session: Session) -> None:
    session.execute(sa.insert(Doc).values(id=4, tenant="a", body=sa.func.upper("x"), size=1))


def change_text(session: Session) -> None:
    session.execute(sa.text("UPDATE doc SET body = 'second' WHERE id = 2"))


def insert_text(session: Session) -> None:
    session.execute(sa.text("INSERT INTO doc (id, tenant) VALUES (4, 'a')"))


def change_many(session: Session) -> None:
    session.execute(sa.update(Doc).where(Doc.body == "first").values(body="many"))


def replace_text(session: Session) -> None:
    session.execute(sa.text("DELETE FROM doc WHERE id = 1"))
    session.execute(sa.text("INSERT INTO doc (id, tenant) VALUES (1, 'a')"))


def replace_object(session: Session) -> None:
    session.delete(session.get_one(Doc, 1))
    session.flush()
    session.execute(sa.text("INSERT INTO doc (id, tenant) VALUES (1, 'a')"))


SEEN: dict[str, Work] = {
    work.__name__: work
    for work in (change_object, change_by_key, add_with_default, insert_expression)
}
LEFT: dict[str, Work] = {
    work.__name__: work
    for work in (change_text, insert_text, change_many, replace_text, replace_object)
}


@pytest.mark.parametrize("way", SEEN)
def test_a_hidden_row(tenants: Tenants, way: str) -> None:
    tenants.fill()
    with tenants.hidden(), tenants.acting("a", reset=True) as session:
        SEEN[way](session)


@pytest.mark.parametrize("way", LEFT)
def test_a_hidden_row_of_an_image(guarded: Tenants, way: str) -> None:
    guarded.fill()
    with guarded.hidden(), guarded.acting("a", reset=True) as session:
        LEFT[way](session)


@pytest.mark.parametrize("way", SEEN)
def test_a_row_that_is_seen_is_logged(tenants: Tenants, way: str) -> None:
    tenants.fill()
    with tenants.acting("a", reset=False) as session:
        SEEN[way](session)
    assert len(tenants.db.tell()) == 4
    tenants.db.assert_replays()


@pytest.mark.parametrize("way", LEFT)
def test_a_row_of_an_image_that_is_seen_is_logged(guarded: Tenants, way: str) -> None:
    guarded.fill()
    with guarded.acting("a", reset=False) as session:
        LEFT[way](session)
    assert len(guarded.db.tell()) > 3
    guarded.db.assert_replays()


def delete_object(session: Session) -> None:
    session.delete(session.get_one(Doc, 2))


def delete_by_key(session: Session) -> None:
    session.execute(sa.delete(Doc).where(Doc.id == 2))


def change_and_delete(session: Session) -> None:
    doc = session.get_one(Doc, 2)
    doc.body = "second"
    session.flush()
    session.delete(doc)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("work", [delete_object, delete_by_key, change_and_delete])
@pytest.mark.parametrize("reset", [False, True])
def test_what_a_statement_deleted_needs_no_sight(tenants: Tenants, work: Work, reset: bool) -> None:
    tenants.fill()
    with tenants.acting("a", reset=reset) as session:
        work(session)
    assert tenants.db.tell()[3:] == ["DELETE doc 2"]
    tenants.db.assert_replays()


def delete_text(session: Session) -> None:
    session.execute(sa.text("DELETE FROM doc WHERE id = 2"))


def change_and_delete_text(session: Session) -> None:
    change_object(session)
    session.flush()
    change_text(session)
    delete_text(session)


@pytest.mark.parametrize("work", [delete_text, change_and_delete_text])
def test_what_an_image_says_was_deleted_needs_no_sight(guarded: Tenants, work: Work) -> None:
    guarded.fill()
    with guarded.acting("a", reset=True) as session:
        work(session)
    assert guarded.db.tell()[3:] == ["DELETE doc 2"]
    guarded.db.assert_replays()


def test_a_row_that_came_and_went_in_the_session_is_nothing(tenants: Tenants) -> None:
    with tenants.acting("a", reset=True) as session:
        doc = Doc(id=4, tenant="a", body=None, size=1)
        session.add(doc)
        session.flush()
        session.delete(doc)
    assert tenants.db.tell() == []
    tenants.db.assert_replays()


def test_two_tenants_in_one_transaction(guarded: Tenants) -> None:
    guarded.fill()
    with guarded.hidden(), guarded.sessions.begin() as session:
        for tenant in "ab":
            act_as(session, tenant)
            session.execute(sa.update(Doc).values(body=f"loop {tenant}"))


def test_one_hidden_row_among_many(tenants: Tenants) -> None:
    tenants.fill()
    with tenants.hidden(), tenants.acting("a", reset=False) as session:
        for doc in session.query(Doc):
            doc.body = "all"
        session.flush()
        act_as(session, "b")
        session.add(Doc(id=9, tenant="b", body=None))


def test_the_owner_under_forced_row_security(plain: Tenants) -> None:
    plain.fill()
    plain.db.execute(
        f"ALTER TABLE doc OWNER TO {plain.role}",
        "ALTER TABLE doc FORCE ROW LEVEL SECURITY",
        "GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC",
    )
    with plain.refused(), plain.acting("a", reset=True) as session:
        change_object(session)
    plain.db.execute("ALTER TABLE doc NO FORCE ROW LEVEL SECURITY")
    with plain.acting("a", reset=True) as session:
        change_object(session)
    assert plain.db.tell()[3:] == ["UPDATE doc 2"]
    plain.db.assert_replays()


def test_a_role_that_bypasses_row_security_sees_what_is_there(tenants: Tenants) -> None:
    tenants.fill()
    tenants.db.execute(f"ALTER ROLE {tenants.role} BYPASSRLS")
    with tenants.acting("", reset=True) as session:
        change_object(session)
        session.flush()
        add_with_default(session)
    assert tenants.db.tell()[3:] == ["UPDATE doc 2", "CREATE doc 4"]
    tenants.db.assert_replays()


def test_a_policy_that_shows_less_than_it_lets_write(tenants: Tenants) -> None:
    tenants.db.execute(
        "DROP POLICY per_tenant ON doc",
        "CREATE POLICY shown ON doc FOR SELECT USING (body = 'public')",
        "CREATE POLICY written ON doc FOR INSERT WITH CHECK (true)",
    )
    with tenants.hidden(), tenants.sessions.begin() as session:
        insert_expression(session)
    with tenants.sessions.begin() as session:
        session.execute(
            sa.insert(Doc).values(id=5, tenant="a", body=sa.func.lower("PUBLIC"), size=1)
        )
    assert tenants.db.tell() == ["CREATE doc 4"] * tenants.is_guarded() + ["CREATE doc 5"]
    tenants.db.assert_replays()


def test_a_role_that_was_changed_before_commit(tenants: Tenants, server_url: URL) -> None:
    tenants.fill()
    other = f"{tenants.role}_other"
    administer(server_url, f"CREATE ROLE {other}")
    tenants.db.execute(
        # Policies for a role are also for those who inherit from it.
        f"ALTER ROLE {tenants.role} NOINHERIT",
        f"GRANT {other} TO {tenants.role}",
        *list_grants(other, RoleKind.APPLICATION, schema="oplog"),
    )

    def write() -> None:
        with tenants.acting("a", reset=False) as session:
            session.get_one(Doc, 2).body = uuid4().hex
            session.flush()
            session.execute(sa.text(f"SET LOCAL ROLE {other}"))

    if tenants.is_guarded():
        with tenants.hidden():
            write()
    else:
        with pytest.raises(ProgrammingError, match="permission denied"):
            write()
    tenants.db.execute(
        f"GRANT SELECT ON doc TO {other}",
        f"CREATE POLICY nothing ON doc AS RESTRICTIVE TO {other} USING (false)",
    )
    with tenants.hidden():
        write()
    tenants.db.execute("DROP POLICY nothing ON doc")
    write()
    assert tenants.db.tell()[3:] == ["UPDATE doc 2"] * (3 if tenants.is_guarded() else 1)
    tenants.db.assert_replays()
    tenants.db.execute(f"DROP OWNED BY {other} CASCADE")
    administer(server_url, f"DROP ROLE {other}")


DELETED_BY_TRIGGER = (
    """CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM doc WHERE id = NEW.id AND NEW.body = 'gone'; RETURN NULL; END $$""",
    "CREATE TRIGGER vanish AFTER UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION vanish()",
)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_row_that_a_trigger_deleted(tenants: Tenants, hidden: bool) -> None:
    """A guard saw it go. Without one that cannot be told from a key that the trigger changed."""
    tenants.fill()
    tenants.db.execute(*DELETED_BY_TRIGGER)
    tenants.db.log.refresh()
    if not hidden:
        tenants.db.execute(f"ALTER ROLE {tenants.role} BYPASSRLS")
    if hidden and not tenants.is_guarded():
        with tenants.refused(), tenants.acting("a", reset=False) as session:
            session.get_one(Doc, 2).body = "gone"
        return
    if not tenants.is_guarded():
        refused = pytest.raises(NotCapturableError, match="changed by the database")
        with refused, tenants.acting("a", reset=False) as session:
            session.get_one(Doc, 2).body = "gone"
        return
    with tenants.acting("a", reset=False) as session:
        session.get_one(Doc, 2).body = "gone"
    assert tenants.db.tell()[3:] == ["DELETE doc 2"]
    tenants.db.assert_replays()


@pytest.mark.parametrize("key", ["1", "1.0"])
def test_a_key_whose_row_is_not_seen_before_it_is_deleted(plain: Tenants, key: str) -> None:
    """It is read under the policies for UPDATE, and deleted under those for DELETE."""
    plain.db.execute(
        "CREATE POLICY shown ON weight FOR SELECT USING (true)",
        "CREATE POLICY added ON weight FOR INSERT WITH CHECK (true)",
        "CREATE POLICY removed ON weight FOR DELETE USING (true)",
    )
    with plain.sessions.begin() as session:
        session.add(Weight(id=Decimal("1.00"), tenant="a"))
    statement = sa.delete(Weight).where(Weight.id == Decimal(key))
    with plain.refused(), plain.sessions.begin() as session:
        session.execute(statement)
    plain.db.execute("CREATE POLICY changed ON weight FOR UPDATE USING (true)")
    with plain.sessions.begin() as session:
        session.execute(statement)
    assert plain.db.tell() == ["CREATE weight 1.00", "DELETE weight 1.00"]
    plain.db.assert_replays()


def test_a_trigger_that_changes_another_row_in_place(plain: Tenants) -> None:
    """An INSERT that a trigger turns into an UPDATE of a row that is not shown."""
    plain.fill()
    plain.db.execute(
        "CREATE FUNCTION merge() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
        "UPDATE doc SET body = NEW.body WHERE id = NEW.id; "
        "IF FOUND THEN RETURN NULL; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER merge BEFORE INSERT ON doc FOR EACH ROW EXECUTE FUNCTION merge()",
    )
    plain.db.log.refresh()
    statement = sa.insert(Doc).values(id=2, tenant="b", body="merged", size=1)
    with plain.refused(), plain.acting("b", reset=False) as session:
        session.execute(statement)
    statement = sa.insert(Doc).values(id=2, tenant="a", body="merged", size=1)
    with plain.acting("a", reset=False) as session:
        session.execute(statement)
    assert plain.db.tell()[3:] == ["UPDATE doc 2"]
    plain.db.assert_replays()


def test_strictly(database: Engine, role: str) -> None:
    """Also rows of which everything is known."""
    tenants = open_tenants(database, role, guarded=False, strict=True)
    tenants.fill()
    with tenants.refused(), tenants.acting("a", reset=True) as session:
        session.add(Doc(id=4, tenant="a", body="x", size=Decimal("1.00"), touched=None))
    tenants.sessions.kw["bind"].dispose()


@pytest.mark.parametrize("reset", [False, True])
async def test_asynchronously(guarded: Tenants, reset: bool) -> None:
    guarded.fill()
    engine = create_async_engine(guarded.url, connect_args={"options": f"-c role={guarded.role}"})
    sessions = async_sessionmaker(engine)
    guarded.db.log.attach(sessions)

    async def write() -> None:
        async with sessions.begin() as session:
            await session.run_sync(act_as, "a")
            await session.run_sync(change_object)
            await session.run_sync(change_text)
            # SQLAlchemy 2.0 does not flush before text; at COMMIT the policy would hide the row.
            await session.flush()
            if reset:
                await session.run_sync(act_as, "")

    with guarded.hidden():
        await write()
    assert guarded.db.tell()[3:] == ["UPDATE doc 2"]
    await engine.dispose()


@pytest.mark.parametrize("reset", [False, True])
def test_on_a_connection_of_an_attached_engine(guarded: Tenants, reset: bool) -> None:
    guarded.fill()
    engine: Engine = guarded.sessions.kw["bind"]
    guarded.db.log.attach(engine)

    def write(connection: Connection) -> None:
        set_tenant = sa.text("SELECT set_config('app.tenant', :t, true)")
        connection.execute(set_tenant, {"t": "a"})
        connection.exec_driver_sql("UPDATE doc SET body = 'second' WHERE id = 2")
        connection.execute(set_tenant, {"t": "" if reset else "a"})

    with guarded.hidden(), engine.begin() as connection:
        write(connection)
    assert guarded.db.tell()[3:] == ["UPDATE doc 2"]


def test_row_security_that_is_switched_off(tenants: Tenants) -> None:
    """`row_security = off` makes a query fail that policies would have filtered."""
    tenants.fill()

    def write() -> None:
        with tenants.acting("a", reset=False) as session:
            session.execute(sa.update(Doc).where(Doc.id == 2).values(body=sa.func.upper("x")))
            session.execute(sa.text("SET LOCAL row_security = off"))

    if tenants.is_guarded():
        with tenants.hidden():
            write()
        return
    with pytest.raises(ProgrammingError, match="row-level security"):
        write()
    assert len(tenants.db.tell()) == 3
    tenants.db.assert_replays()


def test_a_table_without_policies_is_refused_for_its_trigger_alone(engine: Engine) -> None:
    """Nothing hides the row, and row security is not blamed."""
    db = open_logged(engine, Base, aggregates={"weight": "tenant/{tenant}"})
    with db.sessions.begin() as session:
        session.add(Doc(id=2, tenant="a", body="x"))
    db.execute(*DELETED_BY_TRIGGER)
    with pytest.raises(SchemaChangedError), db.sessions.begin() as session:
        session.get_one(Doc, 2).body = "gone"
    refused = pytest.raises(NotCapturableError, match="changed by the database")
    with refused as caught, db.sessions.begin() as session:
        session.get_one(Doc, 2).body = "gone"
    assert "row security" not in str(caught.value)
    assert db.tell() == ["CREATE doc 2"]
    db.assert_replays()
