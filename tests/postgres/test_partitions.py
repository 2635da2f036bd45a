"""Partitions of the log's large tables: made long before they are needed, and protected alike."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.postgres.quoting import quote
from oplog.schema.partitions import AHEAD, PARTITION_POSITIONS, PARTITIONED
from oplog.schema.tables import create_statements, upgrade_statements
from oplog.store.rows import Part
from tests.postgres.appending import (
    append,
    append_apart,
    append_names,
    assert_whole,
    make_record,
    sqlstate,
)
from tests.postgres.log_schema import ODD
from tests.postgres.roles import APPLICATION, OWNER, STRANGER, Roles, open_roles

pytestmark = pytest.mark.postgres

EVERY = 1024
"""One in so many positions looks whether there are enough."""


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def list_numbers(connection: Connection) -> list[int]:
    """The numbers of the partitions, which each of the tables has."""
    rows = connection.exec_driver_sql(
        "SELECT p.relname, substring(c.relname from '_p([0-9]+)$')::integer FROM pg_inherits i "
        "JOIN pg_class p ON p.oid = i.inhparent JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE p.relkind = 'p' AND p.relnamespace = 'oplog'::regnamespace ORDER BY 1, 2"
    )
    found: dict[str, list[int]] = {}
    for table, number in rows:
        found.setdefault(table, []).append(number)
    assert set(found) == {f"oplog_{name}" for name in PARTITIONED}
    numbers = found["oplog_record"]
    assert all(one == numbers for one in found.values())
    return numbers


def go_to(connection: Connection, position: int) -> None:
    """The next position that is drawn."""
    connection.exec_driver_sql(
        "SELECT setval('oplog.oplog_position_seq', %s, false)", (position,)
    ).close()
    connection.commit()


def test_there_are_partitions_from_the_start(connection: Connection) -> None:
    assert list_numbers(connection) == list(range(AHEAD))


@pytest.mark.parametrize(
    ("position", "numbers"),
    [
        (EVERY, [0, 1]),
        (PARTITION_POSITIONS - 1, [0, 1]),
        (PARTITION_POSITIONS, [0, 1, 2]),
        (PARTITION_POSITIONS + 1, [0, 1]),
        (PARTITION_POSITIONS + 7 * EVERY, [0, 1, 2]),
        (2 * PARTITION_POSITIONS - EVERY, [0, 1, 2]),
        (2 * PARTITION_POSITIONS - 1, [0, 1]),
    ],
)
def test_an_append_makes_the_next_one(
    connection: Connection, position: int, numbers: list[int]
) -> None:
    """One in 1,024 does, as soon as positions of the newest are drawn."""
    go_to(connection, position)
    append_names(connection, "a", metadata=[("k", "v")])
    assert list_numbers(connection) == numbers
    (record,) = assert_whole(connection)
    assert record.position == position


def test_a_partition_begins_with_its_first_position(connection: Connection) -> None:
    """A record and what belongs to it are together, on either side of the border."""
    go_to(connection, PARTITION_POSITIONS - 1)
    parts = [Part(0, b"zero"), Part(0, b"one")]
    for number in range(3):
        record = make_record(["a"], parts=parts, metadata=[("n", str(number))])
        append(connection, record)
    connection.commit()
    found = [record.position for record in assert_whole(connection)]
    assert found == [PARTITION_POSITIONS + n for n in (-1, 0, 1)]
    for table in PARTITIONED:
        rows = [
            connection.exec_driver_sql(f"SELECT position FROM oplog.oplog_{table}_p{n}").scalars()
            for n in (0, 1)
        ]
        assert [sorted(row) for row in rows] == [found[:1], found[1:]], table


def test_what_is_there_is_not_made_again(connection: Connection) -> None:
    def make(position: int) -> int:
        asked = connection.exec_driver_sql("SELECT oplog.oplog_make_partitions(%s)", (position,))
        return int(asked.scalar_one())

    assert [make(1), make(PARTITION_POSITIONS - 1)] == [0, 0]
    assert [make(PARTITION_POSITIONS), make(PARTITION_POSITIONS)] == [len(PARTITIONED), 0]
    connection.exec_driver_sql("DROP TABLE oplog.oplog_part_p1")
    assert [make(1), make(1)] == [1, 0]
    assert list_numbers(connection) == [0, 1, 2]


def test_two_at_once_do_not_wait_for_each_other(engine: Engine) -> None:
    with engine.connect() as connection:
        go_to(connection, PARTITION_POSITIONS)
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        append(first, make_record(["a"]))
        go_to(third, PARTITION_POSITIONS + EVERY)
        second.exec_driver_sql("SET lock_timeout = 1")
        append(second, make_record(["b"]))
        second.commit()
        assert list_numbers(third) == [0, 1]
        third.commit()
        first.commit()
        assert list_numbers(third) == [0, 1, 2]


def test_what_was_rolled_back_is_made_by_another(engine: Engine) -> None:
    with engine.connect() as connection:
        go_to(connection, PARTITION_POSITIONS)
        append(connection, make_record(["a"]))
        assert list_numbers(connection) == [0, 1, 2]
        connection.rollback()
        assert list_numbers(connection) == [0, 1]
        go_to(connection, PARTITION_POSITIONS + EVERY)
        append_names(connection, "a")
        assert list_numbers(connection) == [0, 1, 2]


def test_nobody_is_disturbed(engine: Engine) -> None:
    """Others read and write meanwhile, and it does not wait for them."""
    append_apart(engine, ["x"])
    with engine.connect() as reader, engine.connect() as writer, engine.connect() as making:
        snapshot = reader.execution_options(isolation_level="REPEATABLE READ")
        assert len(assert_whole(snapshot)) == 1
        append(writer, make_record(["y"], metadata=[("k", "v")]))
        go_to(making, PARTITION_POSITIONS)
        making.exec_driver_sql("SET lock_timeout = 1")
        append(making, make_record(["a"]))
        for connection in (reader, writer):
            connection.exec_driver_sql("SET LOCAL lock_timeout = 1")
        assert len(assert_whole(snapshot)) == 1
        append(writer, make_record(["y"], metadata=[("k", "v")]))
        making.commit()
        append(writer, make_record(["y"]))
        writer.commit()
    with engine.connect() as connection:
        assert len(assert_whole(connection)) == 5


def test_many_cross_the_border_at_once(engine: Engine) -> None:
    """However they interleave, each record has its place, and nobody fails."""
    with engine.connect() as connection:
        go_to(connection, PARTITION_POSITIONS - 60)

    def work(number: int) -> None:
        for step in range(20):
            append_apart(engine, ["a", f"b/{number}/{step}"], metadata=[("k", "v")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    with engine.connect() as connection:
        records = assert_whole(connection)
        assert list_numbers(connection) == [0, 1, 2]
    assert len(records) == 120
    assert records[-1].position == PARTITION_POSITIONS + 59


def test_a_record_without_a_partition_is_refused(connection: Connection) -> None:
    """A sequence that somebody moved by hand: nothing is lost, and making them helps."""
    go_to(connection, 9 * PARTITION_POSITIONS + 1)
    with pytest.raises(DBAPIError, match="no partition of relation") as refused:
        append(connection, make_record(["a"]))
    assert sqlstate(refused) == "23514"
    connection.rollback()
    connection.exec_driver_sql(
        "SELECT oplog.oplog_make_partitions(%s)", (9 * PARTITION_POSITIONS,)
    ).close()
    append_names(connection, "a")
    assert list_numbers(connection) == [0, 1, 9, 10]


# -- rights -------------------------------------------------------------------------------------


@pytest.fixture
def roles(bare_database_url: URL) -> Iterator[Roles]:
    """With default privileges that give everything to everybody."""
    generous = [
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {whom}"
        for whom in ("PUBLIC", "{application} WITH GRANT OPTION", "{stranger}")
    ]
    with open_roles(bare_database_url, create_statements(), prepare=generous) as roles:
        yield roles


def write_first_of_next(roles: Roles) -> None:
    """Have the application make the partitions with number 2."""
    roles.superuser(f"SELECT setval('oplog.oplog_position_seq', {PARTITION_POSITIONS}, false)")
    with roles.engine(APPLICATION).begin() as connection:
        append(connection, make_record(["a"]))


def test_nobody_but_the_owner_has_rights(roles: Roles) -> None:
    write_first_of_next(roles)
    owner = roles.names[OWNER]
    found = roles.ask(
        "SELECT concat_ws(' ', c.relname, x.grantee::regrole, x.privilege_type) FROM pg_class c "
        "LEFT JOIN LATERAL aclexplode(c.relacl) x ON x.grantee <> c.relowner "
        "WHERE c.relispartition AND c.relkind = 'r' AND c.relnamespace = 'oplog'::regnamespace "
        f"AND c.relowner = '{owner}'::regrole ORDER BY 1"
    )
    assert found == sorted(f"oplog_{table}_p{n}" for table in PARTITIONED for n in (0, 1, 2))
    assert roles.find_problems() == []


@pytest.mark.parametrize("role", [APPLICATION, STRANGER])
@pytest.mark.parametrize("number", [0, 2])
def test_nobody_goes_past_the_whole_table(roles: Roles, role: str, number: int) -> None:
    write_first_of_next(roles)
    for table in PARTITIONED:
        name = f"oplog.oplog_{table}_p{number}"
        for statement in (
            f"SELECT FROM {name}",
            f"INSERT INTO {name} SELECT * FROM oplog.oplog_{table}",
            f"UPDATE {name} SET position = position",
            f"DELETE FROM {name}",
            f"TRUNCATE {name}",
            f"DROP TABLE {name}",
            f"ALTER TABLE oplog.oplog_{table} DETACH PARTITION {name}",
            f"ALTER TABLE {name} DISABLE TRIGGER ALL",
            f"DROP TRIGGER oplog_append_only ON {name}",
            "SELECT oplog.oplog_make_partitions(1)",
        ):
            sqlstate, message, _ = roles.refuse(role, statement)
            assert sqlstate == "42501", (statement, message)


def test_a_superuser_makes_them_for_the_owner(roles: Roles) -> None:
    roles.superuser(f"SELECT oplog.oplog_make_partitions({PARTITION_POSITIONS})")
    owners = roles.ask(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relispartition "
        "AND relnamespace = 'oplog'::regnamespace"
    )
    assert owners == [roles.names[OWNER]]


# -- upgrades -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["oplog", ODD])
def test_an_upgrade_protects_them_again(bare_database_url: URL, schema: str) -> None:
    engine = sa.create_engine(bare_database_url, poolclass=sa.NullPool)
    s = quote(schema)

    def run(*statements: str) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def read() -> list[tuple[str, str, str]]:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET search_path = ''")
            rows = connection.exec_driver_sql(
                "SELECT tgrelid::regclass::text, tgenabled::text, pg_get_triggerdef(oid) "
                "FROM pg_trigger WHERE NOT tgisinternal AND tgname = 'oplog_append_only' ORDER BY 1"
            )
            return [(row[0], row[1], row[2]) for row in rows]

    run(*create_statements(schema))
    before = read()
    assert sum("_p0" in row[0] or "_p1" in row[0] for row in before) == 2 * len(PARTITIONED)
    run(
        f"DROP TRIGGER oplog_append_only ON {s}.oplog_record_p0",
        f"ALTER TABLE {s}.oplog_part_p1 DISABLE TRIGGER oplog_append_only",
        f"ALTER TABLE {s}.oplog_token_p0 ENABLE TRIGGER oplog_append_only",
        f"CREATE OR REPLACE TRIGGER oplog_append_only BEFORE UPDATE ON {s}.oplog_token_p1 "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {s}.oplog_refuse_change()",
    )
    assert read() != before
    run(*upgrade_statements(schema))
    assert read() == before
    # Those of the beginning that were pruned do not come back; those of the present do.
    run(
        f"SELECT {s}.oplog_make_partitions({5 * PARTITION_POSITIONS})",
        f"SELECT setval('{s}.oplog_position_seq', {5 * PARTITION_POSITIONS})",
        *(f"DROP TABLE {s}.oplog_{table}_p{n}" for table in PARTITIONED for n in (0, 6)),
    )
    run(*upgrade_statements(schema))
    left = {name.rpartition("_p")[2].rstrip('"') for name, *_ in read() if "_p" in name}
    assert {one for one in left if one.isdecimal()} == {"1", "5", "6"}
