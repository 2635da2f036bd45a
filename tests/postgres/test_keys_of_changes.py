"""Whether a key is still the same does not depend on how the server plans the comparison."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.logged import LoggedDatabase, open_logged

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Span(Base):
    __tablename__ = "span"
    # The key's columns are in another order than their names.
    trace: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int]
    id: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def database(engine: Engine) -> Iterator[LoggedDatabase]:
    database = open_logged(engine, Base, guarded=True, seed="")
    with database.sessions.begin() as session:
        session.add(Span(trace="t", place=1, id="s"))
    yield database
    database.assert_pool_is_clean()


@pytest.mark.parametrize(
    "off", [(), ("nestloop", "mergejoin"), ("hashjoin", "mergejoin"), ("hashjoin", "nestloop")]
)
def test_a_key_is_compared_in_one_order(database: LoggedDatabase, off: tuple[str, ...]) -> None:
    log = database.log
    with database.engine.begin() as connection, log.migrating(connection):
        for join in off:
            connection.exec_driver_sql(f"SET LOCAL enable_{join} = off")
        connection.exec_driver_sql("ALTER TABLE span ADD COLUMN body text DEFAULT 'none'")
        report = log.note_changes(connection)
    assert [(shape.type_name, shape.revision) for shape in report.stored] == [("span", 2)]
    with database.engine.connect() as connection:
        assert log.verify(connection).ok
