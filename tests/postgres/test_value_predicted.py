"""What is predicted from the parameters that SQLAlchemy sends is what the server stores.

Logs are strict here: every recorded value is compared with the row before COMMIT. How much of it
was predicted is counted, because a row that is read back is right by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, date
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.datetime import DateDumper, DateLoader
from psycopg.types.json import Jsonb, JsonbDumper
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import registry
from sqlalchemy.pool import NullPool

from oplog.capture import gathering, readback
from oplog.capture.net_row import NetRow
from oplog.errors import NotCapturableError
from tests.logged import LoggedDatabase, open_logged
from tests.postgres.value_samples import PARAMETERS
from tests.property.type_tables import Spelled
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

EXAMPLES = settings(
    deadline=None,
    max_examples=12,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Unknown = list[set[str]]
"""For each row of the transactions so far, the columns to be read back."""


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Unknown:
    seen: Unknown = []
    complete = readback.complete_rows

    def watch(connection: Any, rows: Sequence[NetRow], **options: Any) -> None:
        seen.extend(set(row.unknown) for row in rows)
        complete(connection, rows, **options)

    monkeypatch.setattr(gathering, "complete_rows", watch)
    return seen


class Shouted(sa.TypeDecorator[Any]):
    """A decorated document."""

    impl = pg.JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return {"loud": value}


_DOCUMENTS = PARAMETERS["jsonb"] | st.lists(PARAMETERS["jsonb"], max_size=3)
_DECIMALS = PARAMETERS["numeric(10,2)"]
_MOMENTS = PARAMETERS["timestamp with time zone"]
_NAIVE = PARAMETERS["timestamp without time zone"]

KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "boolean": (sa.Boolean(), st.booleans()),
    "smallint": (sa.SmallInteger(), PARAMETERS["smallint"]),
    "integer": (sa.Integer(), PARAMETERS["integer"]),
    "bigint": (sa.BigInteger(), PARAMETERS["bigint"]),
    "numeric": (sa.Numeric(), PARAMETERS["numeric"]),
    "numeric(10,2)": (sa.Numeric(10, 2), _DECIMALS),
    "double precision": (sa.Double(), PARAMETERS["double precision"]),
    "text": (sa.Text(), PARAMETERS["text"]),
    "varchar(5)": (sa.String(5), PARAMETERS["character varying(5)"] | st.text("a ", max_size=8)),
    "bytea": (sa.LargeBinary(), PARAMETERS["bytea"]),
    "uuid": (sa.Uuid(), st.uuids()),
    "uuid as text": (sa.Uuid(as_uuid=False), st.uuids().map(str)),
    "date": (sa.Date(), PARAMETERS["date"]),
    "time": (sa.Time(), PARAMETERS["time without time zone"]),
    "time(3)": (pg.TIME(precision=3), PARAMETERS["time(3) without time zone"]),
    "timestamp": (sa.DateTime(), _NAIVE),
    "timestamp(0)": (pg.TIMESTAMP(precision=0), _NAIVE),
    "timestamptz": (sa.DateTime(timezone=True), _MOMENTS),
    "timestamptz(2)": (pg.TIMESTAMP(timezone=True, precision=2), _MOMENTS),
    "interval": (sa.Interval(), PARAMETERS["interval"]),
    "jsonb": (pg.JSONB(), _DOCUMENTS),
    "json": (sa.JSON(), _DOCUMENTS),
    "decorated jsonb": (Shouted(), _DOCUMENTS),
    "numeric(10,2)[]": (pg.ARRAY(sa.Numeric(10, 2)), st.lists(_DECIMALS, max_size=3)),
    "timestamptz[]": (
        pg.ARRAY(sa.DateTime(timezone=True)),
        st.lists(st.none() | st.datetimes(timezones=st.just(UTC)), max_size=3),
    ),
    "date[]": (pg.ARRAY(sa.Date()), st.lists(st.none() | st.dates(), max_size=3)),
    "bytea[]": (pg.ARRAY(sa.LargeBinary()), st.lists(st.none() | st.binary(), max_size=3)),
    "uuid[]": (pg.ARRAY(sa.Uuid()), st.lists(st.none() | st.uuids(), max_size=3)),
    "jsonb[]": (pg.ARRAY(pg.JSONB()), st.lists(PARAMETERS["jsonb"], max_size=3)),
    "json[]": (pg.ARRAY(sa.JSON()), st.lists(PARAMETERS["jsonb"], max_size=3)),
    "integer[][]": (
        pg.ARRAY(sa.Integer(), dimensions=2),
        st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=3),
    ),
}


def open_column(engine: Engine, kind: Any, *objects: str, **options: Any) -> LoggedDatabase:
    metadata = sa.MetaData()
    sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", kind))
    return open_logged(engine, metadata, strict=True, objects=objects, **options)


def table_of(db: LoggedDatabase) -> sa.Table:
    (declared,) = db.log.catalog.types.values()
    return declared.table


def map_row(table: sa.Table, **options: Any) -> Any:
    row: Any = type("Row", (), {})
    registry().map_imperatively(row, table, **options)
    return row


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("kind", "values"), KINDS.values(), ids=KINDS)
def test_a_predicted_parameter_is_what_is_stored(
    engine: Engine, unknown: Unknown, kind: Any, values: st.SearchStrategy[Any]
) -> None:
    db = open_column(engine, kind)
    table, ids = table_of(db), count(1)
    row = map_row(table)

    @EXAMPLES
    @given(st.lists(values, min_size=1, max_size=4))
    def check(drawn: list[Any]) -> None:
        for value in drawn:
            id_ = next(ids)
            try:
                with db.sessions.begin() as session:
                    session.add(row(id=id_, v=value))
            except (DBAPIError, StatementError, psycopg.Error, TypeError, ValueError):
                continue
            with db.sessions.begin() as session:
                rows = [{"id": next(ids), "v": value}, {"id": next(ids), "v": value}]
                session.execute(sa.insert(table), rows)
            with db.sessions.begin() as session:
                session.execute(sa.update(table).where(table.c.id == id_).values(v=None))
            with db.sessions.begin() as session:
                session.get_one(row, id_).v = value

    check()
    assert set() in unknown
    db.assert_replays()


# -- serializers ----------------------------------------------------------------------------


@contextmanager
def open_documents(url: URL, kind: Any, **options: Any) -> Iterator[LoggedDatabase]:
    engine = create_engine(url, poolclass=NullPool, **options)
    yield open_column(engine, kind)
    engine.dispose()


def write(db: LoggedDatabase, *values: Any) -> None:
    with db.sessions.begin() as session:
        session.execute(
            sa.insert(table_of(db)), [{"id": id_, "v": v} for id_, v in enumerate(values)]
        )
    with db.sessions.begin() as session:
        table = table_of(db)
        session.execute(sa.update(table).where(table.c.id == 0).values(v=values[-1]))


def dump_decimals(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, indent=1)


def dump_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_NUMBERS = count()


def dump_anew(value: Any) -> str:
    return json.dumps({"n": next(_NUMBERS), "value": value})


@pytest.mark.parametrize("kind", [pg.JSONB(), sa.JSON()], ids=repr)
@pytest.mark.parametrize("serializer", [dump_decimals, dump_bytes, dump_anew, None])
def test_the_text_of_the_serializer_is_what_counts(
    database_url: URL, unknown: Unknown, kind: Any, serializer: Any
) -> None:
    with open_documents(database_url, kind, json_serializer=serializer) as db:
        odd = Decimal("1.50") if serializer is dump_decimals else "é"
        write(db, {"b": [1.50, None], "a": odd}, ["é\n"], {})
        assert unknown == [set()] * 4
        db.assert_replays()


def test_a_document_that_is_serialized_twice(database_url: URL, unknown: Unknown) -> None:
    """By a listener of the application's, say, and to another text each time."""
    with open_documents(database_url, pg.JSONB(), json_serializer=dump_anew) as db:
        write(db, {"a": 1})
        unknown.clear()

        def serialize(_connection: Any, _cursor: Any, _sql: str, sent: Any, *_rest: Any) -> None:
            if isinstance(sent, dict) and isinstance(sent.get("v"), Jsonb):
                document = sent["v"]
                assert document.dumps is not None
                document.dumps(document.obj)

        sa.event.listen(db.engine, "before_cursor_execute", serialize)
        with db.sessions.begin() as session:
            session.execute(sa.insert(table_of(db)).values(id=9, v={"a": 1}))
        assert unknown == [{"v"}]
        db.assert_replays()


class Wrapper(JsonbDumper):
    """Sends something else than the serializer returned."""

    def dump(self, obj: Any) -> bytes:
        return b'{"sent": ' + bytes(super().dump(obj) or b"null") + b"}"


class LastDay(DateDumper):
    """Sends the last day as infinity: the recipe in psycopg's documentation."""

    def dump(self, obj: Any) -> bytes | None:
        return b"infinity" if obj == date.max else bytes(super().dump(obj) or b"")


@pytest.mark.parametrize(
    ("kind", "dumper", "value"),
    [
        (pg.JSONB(), (Jsonb, Wrapper), {"a": 1}),
        (sa.Date(), (date, LastDay), date.max),
        (pg.ARRAY(sa.Date()), (date, LastDay), [date(2024, 1, 2), date.max]),
    ],
    ids=["jsonb", "date", "date[]"],
)
def test_a_dumper_of_the_application_is_not_second_guessed(
    database_url: URL, unknown: Unknown, kind: Any, dumper: tuple[Any, Any], value: Any
) -> None:
    with open_documents(database_url, kind) as db:

        def adapt(connection: Any, _record: Any) -> None:
            connection.adapters.register_dumper(*dumper)

        sa.event.listen(db.engine, "connect", adapt)
        write(db, value)
        assert unknown == [{"v"}] * 2
        db.assert_replays()


class EndlessDay(DateLoader):
    """Reads infinity as the last day that Python has."""

    def load(self, data: Any) -> date:
        return date.max if bytes(data) == b"infinity" else super().load(data)


@pytest.mark.parametrize("keyed", [False, True])
def test_a_loader_of_the_application_is_not_believed(engine: Engine, *, keyed: bool) -> None:
    metadata = sa.MetaData()
    day = sa.Column("day", sa.Date, primary_key=keyed, server_default="infinity")
    id_ = sa.Column("id", sa.Integer, primary_key=not keyed)
    row = map_row(sa.Table("t", metadata, id_, day), eager_defaults=True)
    db = open_logged(engine, metadata, strict=True)
    engine.dispose()
    sa.event.listen(
        engine, "connect", lambda raw, _record: raw.adapters.register_loader("date", EndlessDay)
    )
    refused = pytest.raises(NotCapturableError, match="what comes back") if keyed else nullcontext()
    with refused, db.sessions.begin() as session:
        session.add(row(id=1))
    db.assert_replays()


def test_a_document_in_another_client_encoding(database_url: URL, unknown: Unknown) -> None:
    options = {"connect_args": {"client_encoding": "LATIN1"}, "json_serializer": dump_decimals}
    with open_documents(database_url, pg.JSONB(), **options) as db:
        write(db, "é", "plain")
        assert unknown == [{"v"}, set(), set()]
        db.assert_replays()


@pytest.fixture
def latin_database(server_url: URL) -> Iterator[URL]:
    """A database in which é is one byte."""
    name = f"oplog_test_{uuid4().hex[:12]}"
    administer(
        server_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    engine = create_engine(server_url.set(database=name), poolclass=NullPool)
    with engine.begin() as connection:
        install_log(connection)
    yield engine.url
    administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_in_another_encoding_orders_keys_its_own_way(
    latin_database: URL, unknown: Unknown
) -> None:
    with open_documents(latin_database, pg.JSONB()) as db:
        write(db, {"bb": 1, "é": 2})
        assert unknown == [{"v"}] * 2
        db.assert_replays()


def test_a_wrapper_of_the_application_is_left_alone(database_url: URL, unknown: Unknown) -> None:
    wrapper = Jsonb({"a": 1})
    with open_documents(database_url, Spelled("jsonb")) as db:
        write(db, wrapper)
        assert unknown == [{"v"}] * 2
        assert wrapper.dumps is None
        db.assert_replays()


def test_a_cast_to_jsonb_on_the_way_to_json(database_url: URL, unknown: Unknown) -> None:
    with open_documents(database_url, pg.JSONB()) as db:
        db.execute("ALTER TABLE t ALTER v TYPE json")
        write(db, {"bb": 1, "a": 1.50})
        assert unknown == [{"v"}] * 2
        db.assert_replays()


def test_a_trigger_that_rewrites_a_document(engine: Engine, unknown: Unknown) -> None:
    db = open_column(
        engine,
        pg.JSONB(),
        "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS"
        """ $$ BEGIN NEW.v := NEW.v || '{"changed": true}'; RETURN NEW; END $$""",
        "CREATE TRIGGER change BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION change()",
    )
    write(db, {"a": 1})
    assert [o.fields["v"] for e in db.read() for o in e.operations] == [
        {"a": 1, "changed": True}
    ] * 2
    db.assert_replays()


async def test_a_document_of_an_async_engine(
    database_url: URL, engine: Engine, unknown: Unknown
) -> None:
    db = open_column(engine, pg.JSONB())
    other = create_async_engine(database_url, json_serializer=dump_decimals)
    sessions = async_sessionmaker(other)
    db.log.attach(sessions)
    async with sessions.begin() as session:
        await session.execute(
            sa.insert(table_of(db)).values(id=1, v={"bb": Decimal("1.0"), "a": 1e2})
        )
    await other.dispose()
    assert unknown == [set()]
    db.assert_replays()
