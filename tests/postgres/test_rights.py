"""Nobody but its owner may write a log, or make its owner do something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from oplog import open_archive
from oplog.schema.grants import RoleKind
from oplog.schema.progress_tables import PROGRESS_TABLES
from oplog.schema.tables import create_statements
from tests.models.bank import Account
from tests.postgres.appending import state_append
from tests.postgres.roles import (
    APPLICATION,
    AUDITOR,
    CONSUMER,
    OWNER,
    STRANGER,
    WORKER,
    Roles,
    open_roles,
)

pytestmark = pytest.mark.postgres

PINNED = ["search_path=pg_catalog, pg_temp"]
PLANNED_ONCE = [*PINNED, "plan_cache_mode=force_generic_plan"]
FUNCTIONS: dict[str, tuple[bool, bool, set[str]]] = {
    # Runs as its owner, has a fixed search path, may be executed by whom besides the owner.
    "oplog_append": (True, True, {APPLICATION}),
    "oplog_arm": (False, False, {APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER}),
    "oplog_check_trackable": (False, True, set()),
    "oplog_declare_guard": (False, True, set()),
    "oplog_drop_guard": (False, True, set()),
    "oplog_guard": (True, True, set()),
    "oplog_guard_check": (True, True, set()),
    "oplog_guard_image": (True, True, set()),
    "oplog_guard_row": (True, True, set()),
    "oplog_guard_truncate": (True, True, set()),
    "oplog_image_update": (False, True, set()),
    "oplog_kept_columns": (False, False, set()),
    "oplog_make_partitions": (True, True, set()),
    "oplog_mark": (False, True, set()),
    "oplog_refuse_change": (False, True, set()),
    "oplog_retire_type": (False, True, set()),
    "oplog_require_guard": (False, True, set()),
    "oplog_set_text": (False, True, set()),
    "oplog_settle": (False, False, {APPLICATION}),
    "oplog_track_table": (False, True, set()),
    "oplog_try_bypass": (False, True, set()),
    "oplog_untrack_table": (False, True, set()),
    "oplog_write_mark": (False, True, set()),
}
READ = {"SELECT"}
WRITTEN = {"SELECT", "INSERT", "UPDATE"}
APPLICATION_MAY = {
    "oplog_adoption": WRITTEN,
    "oplog_archive": READ,
    "oplog_consumer": WRITTEN,
    "oplog_entry": READ,
    "oplog_follower": READ,
    "oplog_guard": READ,
    "oplog_image": {"SELECT", "DELETE"},
    "oplog_key": {"SELECT", "INSERT"},
    "oplog_log": READ,
    # And to insert one column of it.
    "oplog_outcome": READ,
    "oplog_part": READ,
    "oplog_pruned": READ,
    "oplog_record": READ,
    "oplog_restore": READ,
    "oplog_ticket": READ,
    "oplog_token": READ,
    "oplog_type": {"SELECT", "INSERT"},
    "oplog_type_numbers": {"SELECT", "INSERT"},
}
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
APPEND = state_append(p_aggregates="ARRAY['a']")


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(each_bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(each_bare_database_url, definition) as roles:
        yield roles


def read_tables(roles: Roles, role: str) -> dict[str, set[str]]:
    """What a role may do with each table of the log; nobody may with partitions."""
    with roles.engine(OWNER).connect() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT c.relname, p FROM pg_class c CROSS JOIN unnest(CAST(:all AS text[])) p "
                "WHERE c.relnamespace = 'oplog'::regnamespace AND c.relkind IN ('r', 'p') "
                "AND has_table_privilege(:role, c.oid, p)"
            ),
            {"all": list(PRIVILEGES), "role": roles.names[role]},
        ).fetchall()
    return {name: {p for n, p in rows if n == name} for name, _ in rows}


# -- what the definition gives ------------------------------------------------------------------


def test_every_function_of_the_log(roles: Roles) -> None:
    with roles.engine(OWNER).connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT oid, proname, pg_get_userbyid(proowner), prosecdef, coalesce(proconfig, '{}') "
            "FROM pg_proc WHERE pronamespace = 'oplog'::regnamespace"
        ).fetchall()
        found = {}
        for oid, name, owner, definer, settings in rows:
            assert owner == roles.names[OWNER]
            assert settings in ([], PINNED, PLANNED_ONCE)
            may = {
                role
                for role in (APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER)
                if connection.exec_driver_sql(
                    "SELECT has_function_privilege(%s, %s::oid, 'EXECUTE')",
                    (roles.names[role], oid),
                ).scalar()
            }
            found[name] = (definer, settings[:1] == PINNED, may)
    assert found == FUNCTIONS
    # Whatever runs as its owner has a path that nobody can put something into.
    assert all(pinned for definer, pinned, _ in found.values() if definer)


def test_every_table_of_the_log(roles: Roles) -> None:
    assert read_tables(roles, APPLICATION) == APPLICATION_MAY
    reads = dict.fromkeys(APPLICATION_MAY, READ)
    assert read_tables(roles, AUDITOR) == reads
    assert read_tables(roles, WORKER) == {**reads, "oplog_archive": WRITTEN}
    assert read_tables(roles, CONSUMER) == {**reads, "oplog_consumer": WRITTEN}
    assert read_tables(roles, STRANGER) == {}
    columns = roles.ask(
        "SELECT concat_ws(' ', a.attname, p) FROM pg_attribute a "
        "CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE']) p "
        "WHERE a.attrelid = 'oplog.oplog_outcome'::regclass AND a.attnum > 0 "
        f"AND has_column_privilege('{roles.names[APPLICATION]}', a.attrelid, a.attname, p)"
    )
    assert columns == ["record_id INSERT"]


def test_the_roles_can_work(roles: Roles) -> None:
    sessions = roles.open_sessions()
    with sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    with sessions.begin() as session:
        session.execute(sa.text("UPDATE account SET balance = balance + 1"))
        session.get_one(Account, 1).owner = "bob"
    with sessions.begin() as session:
        session.execute(sa.text("UPDATE account SET balance = 0"))
        session.execute(sa.text("UPDATE account SET balance = 2"))
    assert roles.verifies()
    assert roles.find_problems() == []
    assert roles.find_problems(APPLICATION) == []


def test_a_role_without_any_right_on_the_log_is_told_why(roles: Roles) -> None:
    insert = "INSERT INTO account (id, owner, balance) VALUES (1, 'x', 1)"
    sqlstate, message, hint = roles.refuse(STRANGER, insert)
    assert sqlstate == "OP003"
    assert "public.account (1 row)" in message
    assert "attached" in hint


ARCHIVE_ROW = """(archive_id, url, epoch, generation, sequence, chain, head, origin_server,
  origin_database) VALUES (gen_random_uuid(), '', 1, 0, 0, '', 0, '1', 1)"""
PROGRESS = {
    # What writes a row of the table, and who besides the owner may.
    "consumer": ("(name, cursor, position) VALUES ('x', '{}', 1)", {APPLICATION, CONSUMER}),
    "archive": (ARCHIVE_ROW, {WORKER}),
    "adoption": ("(type_name) VALUES ('x')", {APPLICATION}),
    "restore": ("(generation, sequence, chain, position) VALUES (0, 0, '', 0)", set()),
    "follower": (
        "(name, generation, sequence, chain, position) VALUES ('x', 0, 0, '', 0)",
        set(),
    ),
}


@pytest.mark.parametrize("table", PROGRESS_TABLES)
def test_each_role_writes_its_own_progress_only(roles: Roles, table: str) -> None:
    values, allowed = PROGRESS[table]
    insert = f"INSERT INTO oplog.oplog_{table} {values}"
    others = [APPLICATION, WORKER, CONSUMER, AUDITOR, STRANGER]
    roles.run(OWNER, insert, f"DELETE FROM oplog.oplog_{table}")
    for role in others:
        for statement, may in (
            (insert, allowed),
            (f"UPDATE oplog.oplog_{table} SET updated_at = now()", allowed),
            (f"DELETE FROM oplog.oplog_{table}", set()),
        ):
            if role in may:
                roles.run(role, statement)
            else:
                assert roles.refuse(role, statement)[0] == "42501"
        roles.run(OWNER, f"DELETE FROM oplog.oplog_{table}")


def test_a_consumer_and_a_worker_can_work(roles: Roles) -> None:
    sessions = roles.open_sessions()
    with sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    for batch in roles.open_log().subscribe(roles.engine(CONSUMER), name="archive/x"):
        assert len(batch) == 1
        batch.commit()
    assert roles.open_log().sync(roles.engine(WORKER), open_archive("memory://")).entries == 1
    assert roles.find_problems() == []


DIRECT = {
    "record": "INSERT INTO oplog.oplog_record SELECT * FROM oplog.oplog_record",
    "part": "INSERT INTO oplog.oplog_part VALUES (1, 1, 0, '')",
    "token": "INSERT INTO oplog.oplog_token VALUES (1, 9)",
    "entry": "INSERT INTO oplog.oplog_entry VALUES ('a', 1, 1)",
    "outcome": "INSERT INTO oplog.oplog_outcome (record_id, position) "
    "VALUES (gen_random_uuid(), 1)",
    "used key": "INSERT INTO oplog.oplog_outcome (record_id, idempotency_key) "
    "VALUES (gen_random_uuid(), 'x')",
    "other outcome": "UPDATE oplog.oplog_outcome SET position = NULL",
    "partitions": "SELECT oplog.oplog_make_partitions(1)",
    "pruned": "INSERT INTO oplog.oplog_pruned SELECT * FROM oplog.oplog_pruned",
    "guard": "DELETE FROM oplog.oplog_guard",
    "image": "INSERT INTO oplog.oplog_image (transaction_id) VALUES ('3')",
    "log": "INSERT INTO oplog.oplog_log DEFAULT VALUES",
    "ticket": "UPDATE oplog.oplog_ticket SET version = version + 1",
    "new ticket": "INSERT INTO oplog.oplog_ticket VALUES ('a', 1)",
    "position": "SELECT nextval('oplog.oplog_position_seq')",
    "track": "SELECT oplog.oplog_untrack_table('account', 'x')",
    "mark": "SELECT oplog.oplog_mark('{}', '{}')",
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("statement", DIRECT.values(), ids=DIRECT.keys())
def test_what_only_the_owner_may_do(roles: Roles, statement: str) -> None:
    for role in (APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER):
        assert roles.refuse(role, statement)[0] == "42501"


def test_the_append_sets_time_position_and_transaction(roles: Roles) -> None:
    """There is no argument for them, and its owner's rights are not lent for anything else."""
    roles.run(APPLICATION, APPEND)
    (fresh,) = roles.ask(
        "SELECT created_at BETWEEN now() - interval '1 hour' AND now() AND position = 1 "
        "AND transaction_id < pg_current_xact_id() AND transaction_id::text::int > 3 "
        "FROM oplog.oplog_record"
    )
    assert fresh
    assert roles.refuse(AUDITOR, APPEND)[0] == "42501"
    for form in ("4::smallint", "NULL"):
        assert roles.refuse(APPLICATION, state_append(p_format=form))[0] == "22023"


# The caller's own schema comes first: what is in it would run as the owner.
HIJACK = (
    "CREATE SCHEMA AUTHORIZATION CURRENT_USER",
    """CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$
  BEGIN RAISE EXCEPTION 'hijacked by %', current_user; END $$""",
    """CREATE FUNCTION differs(text, text) RETURNS boolean LANGUAGE plpgsql AS $$
  BEGIN RAISE EXCEPTION 'hijacked by %', current_user; END $$""",
    "CREATE OPERATOR = (FUNCTION = differs, LEFTARG = text, RIGHTARG = text)",
    'SET LOCAL search_path = "$user", pg_catalog',
)


def test_the_append_finds_nothing_of_its_callers(roles: Roles) -> None:
    database = roles.url.database
    roles.superuser(f'GRANT CREATE ON DATABASE "{database}" TO {roles.names[APPLICATION]}')
    assert "hijacked" in roles.refuse(APPLICATION, *HIJACK, "SELECT 'a'::text = 'b'::text")[1]
    roles.run(APPLICATION, *HIJACK, APPEND)
    assert roles.ask("SELECT count(*) FROM oplog.oplog_entry") == [1]


BOUNDS = {
    # The constraint, or what is said where no partition can be.
    "the last position": ("position = 9223372036854775807", "no partition"),
    "a negative position": ("position = -1", "no partition"),
    "no position": ("position = 0", "oplog_record_bounds"),
    "a position over the bound": (f"position = {1 << 62}", "oplog_record_bounds"),
    "a time without end": ("created_at = 'infinity'", "oplog_record_bounds"),
    "a time without beginning": ("created_at = '-infinity'", "oplog_record_bounds"),
    "no parts": ("parts = 0", "oplog_record_bounds"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("change", "why"), BOUNDS.values(), ids=BOUNDS.keys())
def test_rows_that_no_record_can_be(roles: Roles, change: str, why: str) -> None:
    """Not even the owner inserts them."""
    roles.run(APPLICATION, APPEND)
    move = (
        f"SELECT oplog.oplog_make_partitions({1 << 62})",
        "CREATE TEMP TABLE moved AS SELECT * FROM oplog.oplog_record",
        "UPDATE moved SET position = position + 1, record_id = gen_random_uuid()",
        f"UPDATE moved SET {change}",
    )
    sqlstate, message, _ = roles.refuse(
        OWNER, *move, "INSERT INTO oplog.oplog_record SELECT * FROM moved"
    )
    assert (sqlstate, why in message) == ("23514", True)


def test_rows_that_no_version_can_be(roles: Roles) -> None:
    for table, values in (
        ("entry", "('a', 0, 1)"),
        ("entry", "('a', 1, -1)"),
        ("ticket", "('a', -1)"),
    ):
        insert = f"INSERT INTO oplog.oplog_{table} VALUES {values}"
        assert roles.refuse(OWNER, insert)[0] == "23514"


# -- beside what was granted --------------------------------------------------------------------


def test_grants_name_everything(roles: Roles) -> None:
    """What stands beside the log in the same schema is not given with it."""
    roles.run(
        OWNER,
        "CREATE TABLE oplog.theirs (id integer)",
        "CREATE FUNCTION oplog.theirs() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "REVOKE EXECUTE ON FUNCTION oplog.theirs() FROM PUBLIC",
    )
    roles.grant(APPLICATION, RoleKind.APPLICATION)
    assert roles.refuse(APPLICATION, "SELECT * FROM oplog.theirs")[0] == "42501"
    assert roles.refuse(APPLICATION, "SELECT oplog.theirs()")[0] == "42501"


@pytest.mark.parametrize("aggregate", ["adopted/account", "adopted/x"])
def test_only_the_owner_says_that_a_type_is_gone(roles: Roles, aggregate: str) -> None:
    """A mark there makes replay and restore do without all rows of the type."""
    mark = {
        "p_format": "3::smallint",
        "p_key_id": "''",
        "p_data": "''::bytea",
        "p_metadata": "ARRAY['retired', 'account']",
    }
    for names in (f"ARRAY['{aggregate}']", f"ARRAY['a', '{aggregate}']"):
        statement = state_append(p_aggregates=names, **mark)
        state, message, hint = roles.refuse(APPLICATION, statement)
        assert (state, hint) == ("42501", "op.retire_type in a migration")
        assert "only the owner of the log" in message
        roles.run(OWNER, statement)
