"""Columns that a program's settings leave out or call secret, where its tables are learned."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from oplog import Keyring, Oplog
from oplog.errors import ConfigurationError
from oplog.outside.learned_log import learn_log
from oplog.outside.program_settings import read_settings
from tests.logged import run, track

pytestmark = pytest.mark.postgres

HASH = "argon2-of-something-nobody-may-see"


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password_hash: Mapped[str] = mapped_column(server_default="")
    note: Mapped[str | None]


@pytest.fixture(autouse=True)
def prepared(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPLOG_KEYRING", Keyring.generate().to_text())
    monkeypatch.chdir(tmp_path)
    for name in ("OPLOG_EXCLUDE", "OPLOG_SECRET"):
        monkeypatch.delenv(name, raising=False)
    Base.metadata.create_all(engine)
    track(engine, *Base.metadata.sorted_tables)


@contextmanager
def attached(engine: Engine) -> Iterator[Engine]:
    """As a program starts that has the URL: what another one has learned is not known."""
    logged = sa.create_engine(engine.url.update_query_dict({"plugin": "oplog"}))
    try:
        yield logged
    finally:
        logged.dispose()


def write(engine: Engine, number: int, **given: Any) -> None:
    with attached(engine) as logged, Session(logged) as session, session.begin():
        session.add(User(id=number, name="Ada", password_hash=HASH, **given))


def learn(engine: Engine) -> Oplog:
    with engine.connect() as connection:
        return learn_log(read_settings(os.environ, Path.cwd()), connection)


def read_fields(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        entries = learn(engine).read(connection)
        return [dict(one.fields) for entry in entries for one in entry.operations]


def test_a_column_is_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPLOG_EXCLUDE", "user.password_hash")
    write(engine, 1)
    with attached(engine) as logged, logged.begin() as connection:
        connection.exec_driver_sql("UPDATE \"user\" SET password_hash = 'x', name = 'Bo'")
    with attached(engine) as logged, logged.begin() as connection:
        connection.exec_driver_sql("UPDATE \"user\" SET password_hash = 'y'")
    assert read_fields(engine) == [{"id": 1, "name": "Ada", "note": None}, {"name": "Bo"}]
    log = learn(engine)
    with engine.connect() as connection:
        assert log.verify(connection).ok


def test_what_was_left_out_stays_out_for_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPLOG_EXCLUDE", "user.password_hash")
    write(engine, 1)
    monkeypatch.delenv("OPLOG_EXCLUDE")
    monkeypatch.setenv("OPLOG_SECRET", "public.user.note")
    write(engine, 2, note="a")
    assert [sorted(fields) for fields in read_fields(engine)] == [["id", "name", "note"]] * 2


def test_sizes_of_secret_columns_are_not_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(number: int, note: str) -> int:
        write(engine, number, note=note)
        with engine.connect() as connection:
            query = "SELECT octet_length(data) FROM oplog.oplog_record ORDER BY position DESC"
            return int(connection.exec_driver_sql(query).scalars().first() or 0)

    # Another name for each: the types are stored with the first record.
    assert measure(1, "a") != measure(2, os.urandom(40).hex())
    monkeypatch.setenv("OPLOG_SECRET", "user.note")
    assert measure(3, "a") == measure(4, os.urandom(40).hex())


@pytest.mark.parametrize(
    ("variable", "column", "says"),
    [
        ("OPLOG_EXCLUDE", "user.pasword_hash", "no column 'pasword_hash'"),
        ("OPLOG_SECRET", "user.nothing", "no column 'nothing'"),
        ("OPLOG_EXCLUDE", "user.id", "a part of the primary key"),
    ],
)
def test_a_column_that_is_not_there_stops_the_write(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, variable: str, column: str, says: str
) -> None:
    monkeypatch.setenv(variable, column)
    with pytest.raises(ConfigurationError, match=says):
        write(engine, 1)
    with engine.connect() as connection:
        assert connection.exec_driver_sql('SELECT count(*) FROM "user"').scalar_one() == 0


def test_tables_in_other_schemas_and_those_that_are_not_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, "CREATE SCHEMA shop", "CREATE TABLE shop.item (id int PRIMARY KEY, memo text)")
    track(engine, sa.Table("item", sa.MetaData(), schema="shop"))
    monkeypatch.setenv("OPLOG_EXCLUDE", "shop.item.memo,later.column")
    with attached(engine) as logged, logged.begin() as connection:
        connection.exec_driver_sql("INSERT INTO shop.item VALUES (1, 'seen by nobody')")
    assert read_fields(engine) == [{"id": 1}]


def test_the_command_line_has_the_same_choice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPLOG_EXCLUDE", "user.password_hash")
    run(engine, "SELECT 1")
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'there before the log'")
        connection.exec_driver_sql(
            f"INSERT INTO \"user\" (id, name, password_hash) VALUES (9, 'old', '{HASH}')"
        )
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn(engine).adopt(connection)
    (fields,) = [one for one in read_fields(engine) if one.get("id") == 9]
    assert fields == {"id": 9, "name": "old", "note": None}


def test_without_a_choice_all_is_logged(engine: Engine) -> None:
    write(engine, 1)
    assert read_fields(engine)[0]["password_hash"] == HASH
