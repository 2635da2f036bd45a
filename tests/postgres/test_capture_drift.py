"""A model that is not quite the table: the table's stored values are logged all the same."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import SchemaDriftError
from tests.logged import LoggedDatabase

pytestmark = pytest.mark.postgres

CASES: dict[str, tuple[Any, str, Any]] = {
    "a shorter fraction": (
        pg.TIMESTAMP(precision=0),
        "timestamp",
        datetime(2024, 1, 1, 1, 2, 3, 600000),
    ),
    "a date": (sa.Date(), "timestamp", datetime(2024, 1, 1, 1, 2, 3)),
    "single precision": (sa.REAL(), "double precision", 0.1),
    "double precision": (sa.Float(), "real", 0.1),
    "short words": (pg.ARRAY(sa.String(3)), "text[]", ["longer"]),
    "a shorter string": (sa.String(3), "text", "longer"),
    "a smaller numeric": (sa.Numeric(5, 1), "numeric", 1),
    "a string": (sa.String(), "varchar(9)", "a"),
    "a string, padded": (sa.String(), "char(9)", "a  "),
    "a domain": (sa.Integer(), "positive", 7),
    "json for jsonb": (sa.JSON(), "jsonb", {"b": 1, "a": [1.50, None]}),
    "no zone": (sa.DateTime(), "timestamptz", datetime(2024, 1, 1, tzinfo=UTC)),
    "an integer": (sa.Integer(), "numeric(8,3)", 5),
    "a boolean": (sa.Boolean(), "boolean", True),
}


def open_drifted(engine: Engine, column_type: Any, live: str) -> tuple[LoggedDatabase, sa.Table]:
    metadata = sa.MetaData()
    table = sa.Table(
        "drifted",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", column_type),
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE DOMAIN positive AS integer CHECK (value > 0)")
        connection.exec_driver_sql(
            f"CREATE TABLE drifted (id integer PRIMARY KEY, value {live}, more text DEFAULT 'new')"
        )
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return LoggedDatabase(engine, log, sessions), table


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("column_type", "live", "value"), CASES.values(), ids=CASES.keys())
def test_the_stored_value_is_logged(
    engine: Engine, column_type: Any, live: str, value: Any
) -> None:
    db, table = open_drifted(engine, column_type, live)
    with db.sessions.begin() as session:
        session.execute(table.insert(), [{"id": 1, "value": value}, {"id": 2, "value": None}])
    with db.sessions.begin() as session:
        session.execute(table.update().where(table.c.id == 2).values(value=value))
    assert db.read()[0].operations[0].fields["more"] == "new"
    db.assert_replays()


def test_a_column_that_the_table_lacks_is_refused(engine: Engine) -> None:
    db, table = open_drifted(engine, sa.Integer(), "integer")
    db.execute("ALTER TABLE drifted DROP COLUMN value")
    with (
        pytest.raises(SchemaDriftError, match=r"drifted\.value") as caught,
        db.sessions.begin() as session,
    ):
        session.execute(table.insert().values(id=1))
    assert "migrations" in caught.value.hint
    assert db.count("drifted") == 0


def test_another_primary_key_is_refused(engine: Engine) -> None:
    db, table = open_drifted(engine, sa.Integer(), "integer")
    db.execute(
        "ALTER TABLE drifted DROP CONSTRAINT drifted_pkey, ADD PRIMARY KEY (id, value)",
    )
    with (
        pytest.raises(SchemaDriftError, match="primary key") as caught,
        db.sessions.begin() as session,
    ):
        session.execute(table.insert().values(id=1))
    assert caught.value.hint
    assert db.count("drifted") == 0
