"""What RETURNING brings back, or a cast leaves, is not taken for what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, mapped_column

from tests.logged import open_logged

pytestmark = pytest.mark.postgres

DEFAULTS: dict[str, tuple[Any, str]] = {
    "a month, not thirty days": (pg.INTERVAL(), "1 mon"),
    "a number's scale in jsonb": (pg.JSONB(), '{"a": 1.00}'),
    "an array's lower bound": (pg.ARRAY(sa.Integer()), "[2:3]={1,2}"),
    "a scale": (sa.Numeric(10, 2), "1.50"),
    "a scale of its own": (sa.Numeric(), "1.50"),
    "all digits": (sa.Double(), "0.3333333333333333"),
    "single precision": (sa.REAL(), "0.1"),
    "text": (sa.Text(), "a"),
    "a timestamp": (sa.DateTime(), "2024-01-01"),
    "a date": (sa.Date(), "2024-01-01"),
    "padding": (sa.CHAR(4), "ab"),
    "an array of texts": (pg.ARRAY(sa.Text()), "{a}"),
    "a zone": (sa.Time(timezone=True), "10:00+02"),
    "bytes": (pg.BYTEA(), "abc"),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("eager", [True, "auto"])
@pytest.mark.parametrize(("kind", "default"), DEFAULTS.values(), ids=DEFAULTS.keys())
def test_a_default_that_comes_back(engine: Engine, kind: Any, default: str, *, eager: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = "row"
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(kind, server_default=default)
        __mapper_args__ = {"eager_defaults": eager}  # noqa: RUF012 - SQLAlchemy's way

    db = open_logged(engine, Base)
    with db.sessions.begin() as session:
        session.execute(sa.text("SET LOCAL extra_float_digits = -5"))
        session.add(Row())
    db.assert_replays()


def test_a_cast_of_the_model_that_cuts_off(engine: Engine) -> None:
    table = sa.Table(
        "row",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("one", sa.CHAR()),
        sa.Column("many", pg.ARRAY(sa.CHAR())),
    )
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE TABLE "row" (id int PRIMARY KEY, one text, many text[])')
    db = open_logged(engine, table.metadata)
    with db.sessions.begin() as session:
        session.execute(table.insert().values(id=1, one="abc", many=["abc"]))
    db.assert_replays()


@pytest.mark.parametrize("guarded", [True, False])
def test_xml_that_postgres_does_not_read_back(engine: Engine, *, guarded: bool) -> None:
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql("SELECT '<a/>'::xml")
        except DBAPIError:
            pytest.skip("this server was built without libxml")
    table = sa.Table(
        "row",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.Text),
    )
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE TABLE "row" (id integer PRIMARY KEY, value xml)')
    db = open_logged(engine, table.metadata, guarded=guarded)
    broken = sa.text(r"xmlelement(name a, E'\x01')")
    with pytest.raises(DBAPIError, match="invalid XML"), db.sessions.begin() as session:
        session.execute(table.insert().values(id=1, value=broken))
    with db.sessions.begin() as session:
        session.execute(table.insert().values(id=2, value=sa.text("xmlelement(name a)")))
    db.assert_replays()
