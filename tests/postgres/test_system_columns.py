"""System columns in models: xmin as the version of a row, as SQLAlchemy's manual has it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from oplog import Oplog, TypeCatalog
from oplog.errors import ConfigurationError
from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "page"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    xmin: Mapped[int] = mapped_column(
        "xmin", sa.Integer, system=True, server_default=sa.FetchedValue()
    )
    tableoid: Mapped[int] = mapped_column(system=True, server_default=sa.FetchedValue())

    __mapper_args__ = {"version_id_col": xmin, "version_id_generator": False}  # noqa: RUF012


@pytest.fixture(params=[False, True], ids=["plain", "guarded"])
def db(engine: Engine, request: pytest.FixtureRequest) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=request.param)


def test_rows_are_written_and_versions_are_compared(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add_all([Page(id=n, body="new") for n in range(1, 4)])
    with db.sessions.begin() as session:
        session.get_one(Page, 1).body = "changed"
        session.delete(session.get_one(Page, 3))
    first, second = db.sessions(), db.sessions()
    first.get_one(Page, 2).body = "first"
    second.get_one(Page, 2).body = "second"
    first.commit()
    with pytest.raises(StaleDataError):
        second.commit()
    first.close()
    second.close()
    assert db.tell() == [
        *(f"CREATE page {n}" for n in range(1, 4)),
        "UPDATE page 1",
        "DELETE page 3",
        "UPDATE page 2",
    ]
    assert all({*o.fields} <= {"id", "body"} for e in db.read() for o in e.operations)
    db.assert_replays()


def test_asynchronous_sessions(db: LoggedDatabase) -> None:
    async def main() -> None:
        engine = create_async_engine(db.engine.url)
        sessions = async_sessionmaker(engine)
        db.log.attach(sessions)
        async with sessions.begin() as session:
            session.add(Page(id=1, body="new"))
        async with sessions.begin() as session:
            (await session.get_one(Page, 1)).body = "changed"
        await engine.dispose()

    asyncio.run(main())
    assert db.tell() == ["CREATE page 1", "UPDATE page 1"]
    db.assert_replays()


def test_core_and_text(db: LoggedDatabase) -> None:
    table = Base.metadata.tables["page"]
    with db.sessions.begin() as session:
        session.execute(table.insert(), [{"id": n, "body": "new"} for n in (1, 2)])
        xmin = session.scalars(
            table.insert().values(id=3, body="new").returning(table.c.xmin)
        ).one()
    assert xmin
    with db.sessions.begin() as session:
        session.execute(table.update().where(table.c.id == 1).values(body="changed"))
    assert len(db.tell()) == 4
    db.assert_replays()


def test_doctor_is_content_and_a_replay_has_what_the_table_has(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Page(id=1, body="new"))
    with db.engine.connect() as connection:
        found = {finding.what for finding in db.log.diagnose(connection)}
        assert not {what for what in found if "column" in what or "type" in what}
        db.log.replay(connection, into="aside")
        rows = connection.exec_driver_sql("SELECT * FROM aside.page").all()
    assert [tuple(row) for row in rows] == [(1, "new")]


def test_a_row_of_the_past(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Page(id=1, body="new"))
    with db.engine.connect() as connection:
        assert db.log.as_of(connection, Page, 1, at=db.read()[-1].position) == {
            "id": 1,
            "body": "new",
        }


@pytest.mark.parametrize(
    "options", [{"aggregates": {"page": "page/{xmin}"}}, {"secret": ["page.xmin"]}]
)
def test_they_are_in_no_name_and_no_secret(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="xmin"):
        TypeCatalog.from_models(Base, **options)


def test_to_exclude_one_changes_nothing(db: LoggedDatabase) -> None:
    """A catalog from before needs no new revision."""
    with db.sessions.begin() as session:
        session.add(Page(id=1, body="new"))
    db.log.detach(db.sessions)
    catalog = TypeCatalog.from_models(Base, exclude={"page.xmin": "a system column"})
    other = Oplog(catalog, keyring=db.log.keyring)
    other.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(Page(id=2, body="new"))
    with db.engine.connect() as connection:
        revisions = connection.exec_driver_sql("SELECT revision FROM oplog.oplog_type").scalars()
        assert revisions.all() == [1]
    db.assert_replays()
