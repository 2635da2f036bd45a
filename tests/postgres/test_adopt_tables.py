"""Tables of every sort adopted: keys, names, types, partitions, what never enters an entry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.types import UserDefinedType

from oplog import Keyring, Oplog, TypeCatalog
from oplog.schema.grants import RoleKind, list_grants
from tests.logged import LoggedDatabase, open_logged
from tests.models import family, names
from tests.older import READ_SINCE, name_cases
from tests.postgres.value_samples import ENUM_LABELS, STORED
from tests.support import administer, assert_replays, install_log

pytestmark = pytest.mark.postgres


class Of(UserDefinedType[Any]):
    """A column of a type that SQLAlchemy need not know."""

    cache_ok = True

    def __init__(self, spelling: str) -> None:
        self.spelling = spelling

    def get_col_spec(self, **_: Any) -> str:
        return self.spelling


def open_log(engine: Engine, metadata: sa.MetaData, **catalog: Any) -> LoggedDatabase:
    """The log of tables that the test has made already."""
    return open_logged(engine, metadata, **catalog)


def adopt(database: LoggedDatabase, **more: Any) -> int:
    with database.engine.connect() as connection:
        rows = database.log.adopt(connection, **more).rows
    database.assert_replays()
    return rows


KEYS = {
    "smallint": ["-32768", "0", "32767"],
    "bigint": ["-9223372036854775808", "-1", "10", "9", "9223372036854775807"],
    "text": [
        "",
        " ",
        "a",
        "B",
        "b",
        "ä",
        "\\N",
        "\\",
        "a\tb",
        "a\nb",
        "'",
        '"',
        "%s",
        "日本",
        "10",
        "9",
    ],
    "character varying(4)": ["a", "a ", "B", "b", "ab"],
    "character(4)": ["a", "B", "ab", " b"],
    "numeric": ["-10.50", "1e20", "9", "10", "0.001", "NaN"],
    "numeric(6,2)": ["1", "2.5", "10"],
    "double precision": ["-0.1", "1e300", "5e-324", "Infinity", "-Infinity", "NaN", "2"],
    "real": ["0.1", "3e38", "NaN", "-Infinity"],
    "boolean": ["true", "false"],
    "uuid": [str(uuid4()) for _ in range(7)],
    "bytea": ["\\x", "\\x00", "\\xff00", "\\x0a5c"],
    "date": ["infinity", "-infinity", "0044-03-15 BC", "2024-02-29"],
    "timestamp with time zone": ["infinity", "2024-01-01 00:00:00.000001+00", "0001-01-01 BC"],
    "timestamp(3) without time zone": ["2024-01-01 00:00:00.001", "-infinity"],
    "time with time zone": ["12:00:00+02", "11:00:00+01", "24:00:00-03"],
    "interval": ["1 mon", "29 days", "-3 days 04:05:06", "-9223372036854775808us"],
    "inet": ["10.0.0.1", "10.0.0.0/8", "::1"],
    "jsonb": ['{"a": 1}', "[1]", '"x"', "null"],
    "integer[]": ["{}", "{1,NULL}", "[0:1]={1,2}", "{{1},{2}}"],
    "text[]": ['{"a\\\\b"}', '{"\t"}', "{}"],
    "int4range": ["[1,3)", "empty", "(,)"],
    "bit(3)": ["101", "000"],
    "mood": ["sad", "NULL", ""],
    "positive": ["1", "22"],
    "pair": ["(1,a)", '(2,"")', "(1,)"],
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("pg_type", KEYS)
def test_any_key_can_be_walked_along(engine: Engine, pg_type: str) -> None:
    with engine.begin() as connection:
        for statement in (
            "CREATE TYPE mood AS ENUM ('sad', '', 'NULL')",
            "CREATE DOMAIN positive AS integer CHECK (value > 0)",
            "CREATE TYPE pair AS (n integer, t text)",
        ):
            connection.exec_driver_sql(statement)
    table = sa.Table(
        "keyed",
        sa.MetaData(),
        sa.Column("k", Of(pg_type), primary_key=True),
        sa.Column("n", sa.Integer),
    )
    database = open_log(engine, table.metadata)
    with engine.begin() as connection:
        for n, text in enumerate(KEYS[pg_type]):
            connection.exec_driver_sql(
                f"INSERT INTO keyed VALUES (%s::text::{pg_type}, %s)", (text, n)
            )
    assert adopt(database, chunk_rows=1) == len(KEYS[pg_type])
    last = database.read()[-1]
    assert last.version == len(KEYS[pg_type]) + 1


@pytest.mark.parametrize("collation", ["C", "POSIX", "und-x-icu", "folding"])
def test_keys_are_walked_along_in_their_own_collation(engine: Engine, collation: str) -> None:
    with engine.begin() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'"
        ).scalar()
        if not found and collation not in ("C", "POSIX"):
            pytest.skip("this server has no ICU")
        if collation == "folding":
            connection.exec_driver_sql(
                "CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2')"
            )
        connection.exec_driver_sql(
            f'CREATE TABLE keyed (k text COLLATE "{collation}", l text, PRIMARY KEY (k, l))'
        )
        connection.exec_driver_sql(
            "INSERT INTO keyed SELECT chr(n), chr(n + 1) FROM generate_series(33, 190) n"
        )
    metadata = sa.MetaData()
    sa.Table(
        "keyed", metadata, *(sa.Column(name, sa.Text, primary_key=True) for name in ("k", "l"))
    )
    assert adopt(open_log(engine, metadata), chunk_rows=10) == 158


def test_a_composite_key_is_walked_along_its_index(engine: Engine) -> None:
    """Whose columns need not be in the table's order; sorting anew for each chunk would be."""
    metadata = sa.MetaData()
    table = sa.Table(
        "keyed",
        metadata,
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("b", sa.Text, primary_key=True),
        sa.Column("c", sa.Integer, primary_key=True),
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE keyed (a integer, b text, c integer, PRIMARY KEY (c, b, a))"
        )
        connection.exec_driver_sql(
            "INSERT INTO keyed SELECT mod(n, 3), chr(65 + mod(n, 5)), mod(n, 7) "
            "FROM generate_series(1, 105) n"
        )
    database = open_log(engine, metadata)
    assert adopt(database, chunk_rows=4) == 105
    keys = [tuple(o.key.values()) for e in database.read() for o in e.operations]
    assert keys == sorted(keys, key=lambda key: (key[2], key[1], key[0]))
    with engine.connect() as connection:
        (change,) = database.log.history(connection, table, keys[50])
    assert (change.fields["a"], change.fields["b"], change.fields["c"]) == keys[50]


def test_names_that_need_quoting(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Other schema"')
    database = open_logged(engine, names.Base)
    columns = ", ".join(["3", *("'x%%'" for _ in names.WEIRD_NAMES)])
    database.execute(
        f"INSERT INTO weird VALUES ({columns.replace('%%', '%')})",
        "INSERT INTO renamed VALUES (1, 'a', 'b', 'c'), (2, NULL, NULL, NULL)",
        'INSERT INTO "Other schema"."else" VALUES (1, \'x\')',
        'INSERT INTO "Mixed ""Case"" 100%" VALUES (1, \'x\'), (2, \'%s\')',
        "INSERT INTO pair VALUES ('n', 'r', 1), ('n', 'r', 2), ('n', 'a', 3)",
        "INSERT INTO secret VALUES (1, 'x', 'y')",
    )
    assert adopt(database, chunk_rows=1) == 10


def test_a_schema_of_the_log_with_a_percent_sign(engine: Engine) -> None:
    from oplog.schema.tables import create_statements  # noqa: PLC0415 - only here

    metadata = sa.MetaData()
    sa.Table("item", metadata, sa.Column("id", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.exec_driver_sql("INSERT INTO item VALUES (1)")
        for statement in create_statements(schema='100% "log"'):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    log = Oplog(TypeCatalog.from_models(metadata), plaintext=True, schema='100% "log"')
    with engine.connect() as connection:
        assert log.adopt(connection).rows == 1
        assert log.verify(connection).ok


@pytest.mark.sampled(20)
@pytest.mark.parametrize("pg_type", name_cases(sorted(STORED), also=READ_SINCE))
def test_values_of_any_type_are_logged_as_they_are_stored(engine: Engine, pg_type: str) -> None:
    texts = STORED[pg_type]
    metadata = sa.MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", Of(pg_type)),
    )
    with engine.begin() as connection:
        labels = ", ".join("'" + label.replace("'", "''") + "'" for label in ENUM_LABELS)
        for statement in (
            f"CREATE TYPE mood AS ENUM ({labels})",
            "CREATE DOMAIN posint AS integer CHECK (value > 0)",
            "CREATE TYPE pair AS (number integer, word text, code character(3))",
        ):
            connection.exec_driver_sql(statement)
    database = open_log(engine, metadata)
    with engine.begin() as connection:
        for text in (*texts, None):
            connection.exec_driver_sql(
                f"INSERT INTO item SELECT coalesce(max(id), 0) + 1, %s::text::{pg_type} FROM item",
                (text,),
            )
    assert adopt(database, chunk_rows=7) == len(texts) + 1


def test_excluded_columns_are_not_read_and_generated_ones_not_logged(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("secret", sa.Text),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("twice", sa.Integer, sa.Computed("id * 2", persisted=True)),
        sa.Column("name", sa.Text),
    )
    database = open_log(engine, metadata, exclude={"item.secret": "secret"})
    role = f"reader_{uuid4().hex[:8]}"
    database.execute(
        "INSERT INTO item (id, secret, name) VALUES (1, 'hush', 'x'), (2, 'hush', 'y')",
        f"CREATE ROLE {role}",
        f"GRANT SELECT (id, twice, name), UPDATE ON item TO {role}",
        *list_grants(role, RoleKind.APPLICATION, schema="oplog"),
        # Else only the owner's, who may read all columns.
        f"GRANT INSERT, UPDATE ON oplog.oplog_adoption TO {role}",
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET ROLE {role}")
        connection.commit()
        assert database.log.adopt(connection).rows == 2
        connection.exec_driver_sql("RESET ROLE")
        connection.commit()
    assert [o.fields for o in database.read()[0].operations] == [
        {"id": 1, "name": "x"},
        {"id": 2, "name": "y"},
    ]
    database.assert_replays()
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_partitioned_table(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table(
        "event",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
    )
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE event (id integer, day date) PARTITION BY RANGE (day)",
            "ALTER TABLE event ADD PRIMARY KEY (day, id)",
            "CREATE TABLE old PARTITION OF event FOR VALUES FROM (MINVALUE) TO ('2024-01-01')",
            "CREATE TABLE new PARTITION OF event FOR VALUES FROM ('2024-01-01') TO (MAXVALUE)",
            "INSERT INTO event SELECT n, date '2023-12-25' + n % 14 FROM generate_series(1, 50) n",
        ):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    database = open_log(engine, metadata)
    with engine.connect() as connection:
        report = database.log.adopt(connection, chunk_rows=7)
        assert {t.type_name: t.rows for t in report.types} == {"event": 50}
        assert database.log.verify(connection).ok


def test_an_object_in_several_tables_is_known_once_all_are_adopted(engine: Engine) -> None:
    database = open_logged(engine, family.Base)
    database.execute(
        "INSERT INTO person VALUES (1, 'manager', 'Ada')",
        "INSERT INTO employee VALUES (1, 5)",
        "INSERT INTO manager VALUES (1, '2024-01-01')",
    )
    with engine.connect() as connection:
        report = database.log.adopt(connection, [family.Manager])
    assert {t.type_name for t in report.types} == {"person", "employee", "manager"}
    adopt(database)
    entries = {e.aggregate: e.position for e in database.read()}
    with engine.connect() as connection:
        known = [
            database.log.as_of(connection, family.Manager, key=1, at=entries[f"adopted/{name}"])
            for name in ("person", "employee", "manager")
        ]
    assert known[:2] == [None, None]
    assert known[2] is not None
    assert (known[2]["name"], known[2]["salary"]) == ("Ada", 5)


def test_tables_that_refer_to_each_other(engine: Engine) -> None:
    metadata = sa.MetaData()
    for one, other in (("hen", "egg"), ("egg", "hen")):
        sa.Table(
            one,
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("of", sa.ForeignKey(f"{other}.id", name=f"{one}_of", use_alter=True)),
        )
    database = open_log(engine, metadata)
    database.execute(
        "ALTER TABLE hen DISABLE TRIGGER ALL",
        "INSERT INTO hen VALUES (1, 1)",
        "INSERT INTO egg VALUES (1, 1)",
        "ALTER TABLE hen ENABLE TRIGGER ALL",
    )
    assert adopt(database) == 2
    with engine.begin() as connection:
        assert database.log.replay(connection).rows == 2


def test_rows_that_row_security_hides_are_not_passed_over(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table("item", metadata, sa.Column("id", sa.Integer, primary_key=True))
    database = open_log(engine, metadata)
    role = f"hidden_{uuid4().hex[:8]}"
    database.execute(
        "INSERT INTO item VALUES (1), (2)",
        "ALTER TABLE item ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY half ON item USING (id = 1)",
        f"CREATE ROLE {role}",
        f"GRANT ALL ON item TO {role}",
        f"GRANT ALL ON SCHEMA oplog TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA oplog TO {role}",
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET ROLE {role}")
        connection.commit()
        with pytest.raises(DBAPIError, match="row-level security"):
            database.log.adopt(connection)
        connection.exec_driver_sql("RESET ROLE")
        connection.commit()
    assert database.read() == []
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_the_session_s_encoding_and_settings_do_not_matter(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("k", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("x", postgresql.REAL),
    )
    database = open_log(engine, metadata)
    database.execute(
        "INSERT INTO item VALUES ('日', now(), 0.1), ('é', '0001-01-01 BC', 3), ('本', NULL, NULL)"
    )
    with engine.connect() as connection:
        for statement in (
            "SET client_encoding = 'LATIN1'",
            "SET datestyle = 'SQL, DMY'",
            "SET timezone = 'Asia/Kabul'",
            "SET extra_float_digits = -3",
            "SET default_transaction_isolation = 'serializable'",
        ):
            connection.exec_driver_sql(statement)
        connection.commit()
        assert database.log.adopt(connection, chunk_rows=1).rows == 3
        assert connection.exec_driver_sql("SHOW client_encoding").scalar() == "LATIN1"
        connection.exec_driver_sql("RESET ALL")
        connection.commit()
    database.assert_replays()


@pytest.fixture
def unencoded(server_url: URL) -> Iterator[Engine]:
    name = f"oplog_ascii_{uuid4().hex[:8]}"
    administer(
        server_url,
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
    )
    engine = sa.create_engine(server_url.set(database=name), client_encoding="utf8")
    with engine.begin() as connection:
        install_log(connection)
    yield engine
    engine.dispose()
    administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_bytes_that_are_no_text_are_refused(unencoded: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text),
    )
    database = open_log(unencoded, metadata)
    database.execute(
        "INSERT INTO item VALUES (1, 'fine'), (2, E'\\xc3\\xa9'), (3, E'\\xff'), (4, 'fine')"
    )
    with unencoded.connect() as connection, pytest.raises(DataError, match="UTF8"):
        database.log.adopt(connection)
    database.assert_pool_is_clean()
    assert database.read() == []
    database.execute("UPDATE item SET name = 'mended' WHERE id = 3")
    assert adopt(database) == 4


def test_subscribers_and_readers_see_adopted_rows(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table("item", metadata, sa.Column("id", sa.Integer, primary_key=True))
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.exec_driver_sql("INSERT INTO item SELECT generate_series(1, 9)")
    with engine.connect() as connection:
        log.adopt(connection, chunk_rows=2)
    seen = []
    for batch in log.subscribe(engine, name="reader", max_entries=2):
        seen += [o.key["id"] for entry in batch for o in entry.operations]
        batch.commit()
    assert seen == list(range(1, 10))
    assert_replays(log, engine)
