"""What the log holds cannot be changed or removed, not even by the owner of its tables.

Every attempt runs as the account that created the tables, once as an ordinary session and once
with `session_replication_role = replica`, which switches ordinary triggers off.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog.schema.locks import LOCK_TABLES
from oplog.schema.partitions import PARTITIONED
from oplog.schema.progress_tables import PROGRESS_TABLES
from oplog.schema.type_changes import CHANGE_TABLES
from oplog.store.commit_lookup import OutcomeStore
from oplog.store.rows import Part
from tests.databases import fill_database
from tests.postgres.appending import STORE, append, make_record

pytestmark = pytest.mark.postgres

WHOLES = tuple(f"oplog_{name}" for name in PARTITIONED)
"""Tables that have partitions."""
PARTITIONS = tuple(f"{table}_p{number}" for table in WHOLES for number in (0, 1))
FROZEN = (
    *WHOLES,
    *PARTITIONS,
    "oplog_entry",
    "oplog_outcome",
    "oplog_type",
    "oplog_type_numbers",
    "oplog_log",
    "oplog_pruned",
)
"""Tables whose rows never change at all."""
STEPPING = ("oplog_ticket", "oplog_key")
"""Tables whose rows never go, and change in one way only."""


@pytest.fixture(params=["origin", "replica"])
def connection(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Connection]:
    """Connection to a log with rows in every table, in a session of either replication role."""
    fill_database(engine, write_rows, write_rows)
    with engine.connect() as connection:
        if request.param == "replica":
            may = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
            if not connection.exec_driver_sql(may).scalar():
                pytest.skip("session_replication_role can be set by a superuser only")
            connection.exec_driver_sql("SET session_replication_role = replica")
            connection.commit()
        yield connection


def write_rows(engine: Engine) -> None:
    with engine.begin() as connection:
        _write_rows(connection)


def _write_rows(connection: Connection) -> None:
    STORE.insert_key(connection, "k1", check_value=bytes(32))
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_type (type_name, revision, shape, descriptor) "
        "VALUES ('account', 1, '{}', '')"
    )
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_type_numbers (type_name, revision, database_id, table_oid, "
        "columns) VALUES ('account', 1, '1/2', 3, '{}')"
    )
    OutcomeStore("oplog").declare_aborted(connection, uuid4())
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_pruned (number, archive_id, url, generation, sequence, chain, "
        "position, entries) VALUES (1, gen_random_uuid(), 'memory:', 0, 1, sha256(''), 1, 1)"
    )
    parts = [Part(0, b"sealed"), Part(0, b"more")]
    for names in (["account/1", "account/2"], ["account/1"]):
        append(connection, make_record(names, parts=parts, metadata=[("actor", "somebody")]))
    for table in (*FROZEN, *STEPPING):
        if not table.endswith("_p1"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM oplog.{table}").scalar()


def list_columns(connection: Connection, table: str) -> list[str]:
    # Not by SQLAlchemy's inspector, which warns that it does not know xid8.
    columns = connection.exec_driver_sql(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass "
        "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (f"oplog.{table}",),
    )
    found = [str(name) for name in columns.scalars()]
    assert found
    return found


def list_key(connection: Connection, table: str) -> str:
    """The columns of the primary key; empty if there is none."""
    columns = connection.exec_driver_sql(
        "SELECT a.attname FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) "
        "WITH ORDINALITY AS k(number, place) JOIN pg_attribute a "
        "ON a.attrelid = i.indrelid AND a.attnum = k.number "
        "WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY k.place",
        (f"oplog.{table}",),
    )
    return ", ".join(columns.scalars())


def refuse(connection: Connection, statement: str, *, table: str) -> None:
    """Assert that the statement is refused as a change to the log, and says so."""
    savepoint = connection.begin_nested()
    with pytest.raises(sa.exc.DBAPIError) as caught:
        connection.exec_driver_sql(statement)
    savepoint.rollback()
    assert isinstance(caught.value.orig, psycopg.Error)
    assert (statement, caught.value.orig.sqlstate) == (statement, "OP002")
    operation = next(w for w in ("UPDATE", "DELETE", "TRUNCATE") if w in statement)
    message = caught.value.orig.diag.message_primary
    assert message == f"oplog: {operation} on oplog.{table} is refused: the log is append-only"
    assert caught.value.orig.diag.message_hint


def merges(connection: Connection) -> bool:
    """MERGE came with PostgreSQL 15."""
    return int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) >= 150000


# -- records, what they are found by, outcomes, types and the log's identity --------------------


@pytest.mark.parametrize("table", FROZEN)
def test_no_column_can_be_updated(connection: Connection, table: str) -> None:
    for column in list_columns(connection, table):
        refuse(connection, f"UPDATE oplog.{table} SET {column} = {column}", table=table)
        refuse(connection, f"UPDATE oplog.{table} SET {column} = DEFAULT", table=table)
        refuse(connection, f"UPDATE oplog.{table} SET {column} = {column} WHERE false", table=table)


@pytest.mark.parametrize("table", FROZEN)
def test_no_column_can_be_updated_by_an_upsert(connection: Connection, table: str) -> None:
    key = list_key(connection, table)
    assert bool(key) is not table.startswith("oplog_token")
    for column in list_columns(connection, table) if key else ():
        refuse(
            connection,
            f"INSERT INTO oplog.{table} SELECT * FROM oplog.{table} "
            f"ON CONFLICT ({key}) DO UPDATE SET {column} = excluded.{column}",
            table=table,
        )


@pytest.mark.parametrize("table", FROZEN)
def test_no_column_can_be_updated_by_a_merge(connection: Connection, table: str) -> None:
    if not merges(connection):
        pytest.skip("MERGE came with PostgreSQL 15")
    first = list_columns(connection, table)[0]
    source = f"MERGE INTO oplog.{table} t USING oplog.{table} s ON t.{first} = s.{first}"
    for column in list_columns(connection, table):
        action = f"WHEN MATCHED THEN UPDATE SET {column} = s.{column}"
        refuse(connection, f"{source} {action}", table=table)
    refuse(connection, f"{source} WHEN MATCHED THEN DELETE", table=table)


@pytest.mark.parametrize("table", FROZEN + STEPPING)
def test_no_row_can_be_deleted(connection: Connection, table: str) -> None:
    refuse(connection, f"DELETE FROM oplog.{table}", table=table)
    refuse(connection, f"DELETE FROM oplog.{table} WHERE false", table=table)
    refuse(connection, f"DELETE FROM ONLY oplog.{table} USING pg_class", table=table)
    refuse(
        connection,
        f"WITH gone AS (DELETE FROM oplog.{table} RETURNING 1) SELECT count(*) FROM gone",
        table=table,
    )


@pytest.mark.parametrize("table", STEPPING)
def test_no_row_can_be_deleted_by_a_merge(connection: Connection, table: str) -> None:
    if not merges(connection):
        pytest.skip("MERGE came with PostgreSQL 15")
    key = list_key(connection, table)
    source = f"MERGE INTO oplog.{table} t USING oplog.{table} s ON t.{key} = s.{key}"
    refuse(connection, f"{source} WHEN MATCHED THEN DELETE", table=table)


@pytest.mark.parametrize("table", FROZEN + STEPPING)
def test_no_table_can_be_truncated(connection: Connection, table: str) -> None:
    refuse(connection, f"TRUNCATE oplog.{table}", table=table)
    refuse(connection, f"TRUNCATE oplog.{table} CASCADE", table=table)
    only = "" if table in WHOLES else "ONLY"
    refuse(connection, f"TRUNCATE {only} oplog.{table} RESTART IDENTITY", table=table)


def test_no_table_can_be_truncated_beside_another(connection: Connection) -> None:
    refuse(connection, "TRUNCATE oplog.oplog_consumer, oplog.oplog_entry", table="oplog_entry")


def test_no_table_can_be_truncated_through_a_foreign_key(connection: Connection) -> None:
    """A table that others own, whose TRUNCATE CASCADE would take the log with it."""
    for table in FROZEN + STEPPING:
        outer = connection.begin_nested()
        key = list_key(connection, table) or "token, position"
        connection.exec_driver_sql(
            f"CREATE TABLE bait AS SELECT DISTINCT {key} FROM oplog.{table}; "
            f"ALTER TABLE bait ADD UNIQUE ({key}); "
            f"ALTER TABLE oplog.{table} ADD FOREIGN KEY ({key}) REFERENCES bait ({key})"
        )
        refuse(connection, "TRUNCATE bait CASCADE", table=table)
        outer.rollback()


# -- tickets ------------------------------------------------------------------------------------


def test_a_ticket_can_be_redeemed(connection: Connection) -> None:
    done = connection.exec_driver_sql("UPDATE oplog.oplog_ticket SET version = version + 1")
    assert done.rowcount == 2


@pytest.mark.parametrize(
    "assignments",
    [
        "version = version",
        "version = version + 2",
        "version = version - 1",
        "version = 0",
        "version = NULL",
        "aggregate_name = aggregate_name || 'x'",
        "aggregate_name = NULL, version = version + 1",
        "aggregate_name = 'account/9', version = version + 1",
        "head_hash = 'new'",
        "head_version = version",
        "version = version + 1, head_hash = 'new'",
        "version = version + 1, head_version = version",
        "version = version + 1, head_version = 1, head_hash = 'new'",
    ],
)
def test_a_ticket_moves_in_no_other_way(connection: Connection, assignments: str) -> None:
    one = "WHERE aggregate_name = 'account/1'"
    refuse(
        connection,
        f"UPDATE oplog.oplog_ticket SET {assignments} {one}",
        table="oplog_ticket",
    )
    refuse(
        connection,
        "INSERT INTO oplog.oplog_ticket AS t "
        f"SELECT * FROM oplog.oplog_ticket {one} ON CONFLICT (aggregate_name) DO UPDATE SET "
        + assignments.replace("= version", "= t.version").replace(
            "= aggregate_name", "= t.aggregate_name"
        ),
        table="oplog_ticket",
    )
    if merges(connection):
        refuse(
            connection,
            f"MERGE INTO oplog.oplog_ticket USING (SELECT 'account/1' AS name) s "
            f"ON aggregate_name = s.name WHEN MATCHED THEN UPDATE SET {assignments}",
            table="oplog_ticket",
        )


def test_every_column_of_a_ticket_was_considered(connection: Connection) -> None:
    assert set(list_columns(connection, "oplog_ticket")) == {
        "aggregate_name",
        "version",
        "head_version",
        "head_hash",
    }


# -- keys ---------------------------------------------------------------------------------------


def test_a_key_can_be_wrapped_anew(connection: Connection) -> None:
    for value in ("'anew'", "NULL"):
        done = connection.exec_driver_sql(f"UPDATE oplog.oplog_key SET wrapped = {value}")
        assert done.rowcount == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key_id", "'k2'"),
        ("key_id", "NULL"),
        ("check_value", "'other'"),
        ("check_value", "NULL"),
        ("created_at", "now() + interval '1 day'"),
        ("created_at", "NULL"),
    ],
)
def test_nothing_else_of_a_key_changes(connection: Connection, column: str, value: str) -> None:
    for assignment in (f"{column} = {value}", f"wrapped = 'anew', {column} = {value}"):
        refuse(connection, f"UPDATE oplog.oplog_key SET {assignment}", table="oplog_key")
        refuse(
            connection,
            "INSERT INTO oplog.oplog_key SELECT * FROM oplog.oplog_key "
            f"ON CONFLICT (key_id) DO UPDATE SET {assignment}",
            table="oplog_key",
        )


def test_every_column_of_a_key_was_considered(connection: Connection) -> None:
    assert set(list_columns(connection, "oplog_key")) == {
        "key_id",
        "check_value",
        "wrapped",
        "created_at",
        "retired_at",
    }


def test_a_key_is_retired_once(connection: Connection) -> None:
    retire = "UPDATE oplog.oplog_key SET retired_at = clock_timestamp(), wrapped = 'w'"
    assert connection.exec_driver_sql(retire).rowcount == 1
    for value in ("NULL", "retired_at + interval '1 day'"):
        refuse(connection, f"UPDATE oplog.oplog_key SET retired_at = {value}", table="oplog_key")
    assert connection.exec_driver_sql("UPDATE oplog.oplog_key SET wrapped = 'again'").rowcount == 1


# -- the triggers -------------------------------------------------------------------------------


def test_every_table_of_the_log_was_considered(engine: Engine) -> None:
    tables = set(sa.inspect(engine).get_table_names("oplog"))
    # Not the record: locks, how far consumers and others came in it, what migrations declared and
    # left behind, and images that live no longer than their transaction.
    moving = {*(f"oplog_{table}" for table in PROGRESS_TABLES), "oplog_guard", "oplog_image"}
    moving |= {*LOCK_TABLES, *(f"oplog_{table}" for table in CHANGE_TABLES)}
    assert tables == {*FROZEN, *STEPPING, *moving}


@pytest.mark.parametrize("table", PARTITIONS)
def test_a_partition_is_no_way_round(connection: Connection, table: str) -> None:
    """Its own trigger refuses what the whole table's trigger does not see, and the other way."""
    whole = table[: -len("_p0")]
    for statement in ("DELETE FROM {}", "UPDATE {} SET position = position", "TRUNCATE {}"):
        for disabled, tried in ((whole, table), (table, whole)):
            outer = connection.begin_nested()
            # An ALTER TABLE of the whole would disable those of its partitions, too.
            only = "ONLY" if disabled == whole else ""
            connection.exec_driver_sql(f"ALTER TABLE {only} oplog.{disabled} DISABLE TRIGGER ALL")
            refuse(connection, statement.format(f"oplog.{tried}"), table=tried)
            outer.rollback()


def test_a_record_cannot_be_moved_to_another_partition(connection: Connection) -> None:
    for table in ("oplog_record", "oplog_record_p0"):
        refuse(connection, f"UPDATE oplog.{table} SET position = position + {1 << 22}", table=table)


def test_triggers_fire_always(engine: Engine) -> None:
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger "
            "WHERE tgname LIKE 'oplog_append_only%%'"
        ).fetchall()
    assert {row[0] for row in found} == {f"oplog.{table}" for table in FROZEN + STEPPING}
    assert {row[2] for row in found} == {"A"}
