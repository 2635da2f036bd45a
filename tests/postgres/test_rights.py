"""Nobody but its owner may write a log, or make its owner do something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from oplog import open_archive
from oplog.schema.grants import RoleKind, list_grants
from oplog.schema.tables import create_statements
from oplog.value import TEXT_SETTINGS
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
WITHOUT_POLICIES = [*PINNED, "row_security=off"]
IMPATIENT = [*PINNED, "lock_timeout=10ms"]
AS_TEXT = [*PINNED, *(f"{name}={value}".lower() for name, value in TEXT_SETTINGS.items())]
FUNCTIONS: dict[str, tuple[bool, bool, str, set[str]]] = {
    # Runs as its owner, has a fixed search path, how volatile it is, and who may execute it
    # besides the owner.
    "oplog_acknowledge": (True, True, "v", {WORKER}),
    "oplog_append": (True, True, "v", {APPLICATION}),
    "oplog_append_mark": (False, True, "v", set()),
    "oplog_arm": (False, False, "v", {APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER}),
    "oplog_check_trackable": (False, True, "v", set()),
    "oplog_claim": (True, True, "v", {APPLICATION}),
    "oplog_collect_images": (True, True, "v", {APPLICATION}),
    "oplog_declare_aborted": (True, True, "v", {APPLICATION}),
    "oplog_declare_guard": (False, True, "v", set()),
    "oplog_describe_change": (True, True, "s", {APPLICATION, AUDITOR, CONSUMER, WORKER}),
    "oplog_drop_guard": (False, True, "v", set()),
    "oplog_find_database": (False, True, "s", set()),
    "oplog_guard": (True, True, "v", set()),
    "oplog_guard_check": (True, True, "v", set()),
    "oplog_guard_image": (True, True, "v", set()),
    "oplog_guard_row": (True, True, "v", set()),
    "oplog_guard_truncate": (True, True, "v", set()),
    "oplog_hold": (True, True, "v", set()),
    "oplog_image_update": (False, True, "s", set()),
    "oplog_is_filled": (False, True, "s", set()),
    "oplog_is_marked": (True, True, "s", {APPLICATION, AUDITOR, CONSUMER, WORKER}),
    "oplog_is_retired": (True, True, "s", {APPLICATION, AUDITOR, CONSUMER, WORKER}),
    "oplog_judge_columns": (False, True, "s", set()),
    "oplog_judge_identity": (False, True, "s", set()),
    "oplog_judge_numbers": (False, True, "s", set()),
    "oplog_judge_shape": (False, True, "s", set()),
    "oplog_judge_succession": (False, True, "s", set()),
    "oplog_keep_state": (False, True, "v", set()),
    "oplog_kept_columns": (False, False, "s", set()),
    "oplog_lease": (True, True, "v", {WORKER}),
    "oplog_list_columns": (False, True, "s", set()),
    "oplog_list_made": (False, True, "s", set()),
    "oplog_list_files": (False, True, "s", set()),
    "oplog_lock": (True, True, "v", {APPLICATION}),
    "oplog_make_partitions": (True, True, "v", set()),
    "oplog_may_read": (False, True, "s", set()),
    "oplog_mark": (False, True, "v", set()),
    "oplog_mark_change": (True, True, "v", {APPLICATION}),
    "oplog_raise_epoch": (False, True, "v", set()),
    "oplog_read_written": (True, True, "v", {APPLICATION}),
    "oplog_refuse_change": (False, True, "v", set()),
    "oplog_register_key": (True, True, "v", {APPLICATION}),
    "oplog_register_type": (True, True, "v", {APPLICATION}),
    "oplog_renew_state": (True, True, "v", {APPLICATION}),
    "oplog_replace_type": (False, True, "v", set()),
    "oplog_require_guard": (False, True, "v", set()),
    "oplog_retire_key": (True, True, "v", set()),
    "oplog_retire_missing": (True, True, "v", {APPLICATION}),
    "oplog_retire_type": (False, True, "v", set()),
    "oplog_save_cursor": (True, True, "v", {APPLICATION, CONSUMER}),
    "oplog_set_text": (False, True, "v", set()),
    "oplog_settle": (False, False, "v", {APPLICATION}),
    "oplog_store_type": (False, True, "v", set()),
    "oplog_take_epoch": (True, True, "v", {WORKER}),
    "oplog_track_table": (False, True, "v", set()),
    "oplog_try_bypass": (False, True, "v", set()),
    "oplog_try_lock": (True, True, "v", set()),
    "oplog_untrack_table": (False, True, "v", set()),
    "oplog_write_mark": (False, True, "v", set()),
}
TABLES = {
    f"oplog_{name}"
    for name in (
        *("adoption", "archive", "consumer", "entry", "follower", "guard", "image", "key", "log"),
        *("outcome", "part", "pruned", "record", "restore", "ticket", "token", "type"),
        *("type_numbers", "type_state", "epoch"),
    )
}
READS_ALL = {table: {"SELECT"} for table in TABLES}
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
            "SELECT oid, proname, pg_get_userbyid(proowner), prosecdef, "
            "coalesce(proconfig, '{}'), provolatile::text "
            "FROM pg_proc WHERE pronamespace = 'oplog'::regnamespace"
        ).fetchall()
        found = {}
        for oid, name, owner, definer, settings, volatility in rows:
            assert owner == roles.names[OWNER]
            # The server spells names in its own way.
            spelled = [setting.lower() for setting in settings]
            assert spelled in ([], PINNED, PLANNED_ONCE, IMPATIENT, AS_TEXT, WITHOUT_POLICIES)
            may = {
                role
                for role in (APPLICATION, WORKER, AUDITOR, CONSUMER, STRANGER)
                if connection.exec_driver_sql(
                    "SELECT has_function_privilege(%s, %s::oid, 'EXECUTE')",
                    (roles.names[role], oid),
                ).scalar()
            }
            found[name] = (definer, settings[:1] == PINNED, volatility, may)
    assert found == FUNCTIONS
    # Whatever runs as its owner has a path that nobody can put something into.
    assert all(pinned for definer, pinned, *_ in found.values() if definer)


def test_every_table_of_the_log(roles: Roles) -> None:
    """Roles read all of them, and write none: what they write, a function writes for them."""
    for role in (APPLICATION, WORKER, AUDITOR, CONSUMER):
        assert read_tables(roles, role) == READS_ALL
    assert read_tables(roles, STRANGER) == {}
    columns = roles.ask(
        "SELECT DISTINCT a.attrelid::regclass FROM pg_attribute a "
        "JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = 'oplog'::regnamespace "
        "AND a.attacl IS NOT NULL"
    )
    assert columns == []
    owners = roles.ask(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class "
        "WHERE relnamespace = 'oplog'::regnamespace"
    )
    assert owners == [roles.names[OWNER]]


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


@pytest.mark.parametrize("table", sorted(TABLES))
def test_no_role_but_the_owner_writes_a_table(roles: Roles, table: str) -> None:
    (column,) = roles.ask(
        "SELECT attname FROM pg_attribute WHERE attnum BETWEEN 1 AND 2 "
        f"AND attrelid = 'oplog.{table}'::regclass ORDER BY attnum DESC LIMIT 1"
    )
    statements = (
        f"INSERT INTO oplog.{table} OVERRIDING SYSTEM VALUE SELECT * FROM oplog.{table}",
        f"UPDATE oplog.{table} SET {column} = {column}",
        f"DELETE FROM oplog.{table}",
        f"TRUNCATE oplog.{table}",
        f"SELECT FROM oplog.{table} FOR KEY SHARE",
        f"LOCK TABLE oplog.{table} IN ROW EXCLUSIVE MODE",
        f"CREATE TRIGGER t AFTER INSERT ON oplog.{table} EXECUTE FUNCTION oplog.oplog_guard()",
        f"ALTER TABLE oplog.{table} DISABLE TRIGGER ALL",
        f"COPY oplog.{table} FROM PROGRAM 'true'",
    )
    for role in (APPLICATION, WORKER, CONSUMER, AUDITOR, STRANGER):
        for statement in statements:
            assert roles.refuse(role, statement)[0] == "42501", statement


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
    "claim": "INSERT INTO oplog.oplog_claim VALUES ('')",
    "lock": "SELECT FROM oplog.oplog_lock FOR UPDATE",
    "lock by name": "SELECT oplog.oplog_hold('prune')",
    "try lock by name": "SELECT oplog.oplog_try_lock('restore')",
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


def test_nobody_else_writes_where_readers_look_for_marks(roles: Roles) -> None:
    for names in ("ARRAY['oplog/quarantine']", "ARRAY['a', 'oplog/quarantine', 'z']"):
        state, _, _ = roles.refuse(APPLICATION, state_append(p_aggregates=names))
        assert state == "42501"
    roles.run(APPLICATION, state_append(p_aggregates="ARRAY['oplog/quarantined']"))


def test_an_owner_and_a_restorer(roles: Roles) -> None:
    """What is printed for them is enough: to make a log, and to fill one."""
    tables = [(None, "account")]
    owner, restorer = roles.names[STRANGER], roles.names[CONSUMER]
    roles.superuser(*list_grants(owner, RoleKind.OWNER, schema="other", tables=tables))
    roles.run(STRANGER, *create_statements("other"))
    roles.run(STRANGER, "SELECT other.oplog_track_table('account'::regclass, NULL)")
    roles.superuser(*list_grants(restorer, RoleKind.RESTORER, schema="other"))
    roles.run(CONSUMER, "INSERT INTO other.oplog_restore VALUES (true, 0, 0, '', 0)")
    assert roles.refuse(AUDITOR, "SELECT FROM other.oplog_record")[0] == "42501"


def test_no_role_locks_a_table_of_the_log(roles: Roles) -> None:
    """The right to maintain a table, of PostgreSQL 17 and newer, is one to lock it."""
    with roles.engine(OWNER).connect() as connection:
        (version,) = connection.exec_driver_sql("SHOW server_version_num").one()
    if int(version) < 170000:
        pytest.skip("a right of PostgreSQL 17")
    roles.run(OWNER, f"GRANT MAINTAIN ON oplog.oplog_record TO {roles.names[AUDITOR]}")
    (found,) = roles.find_problems()
    assert (found.what, found.where) == ("table-open", "oplog.oplog_record")
    roles.run(OWNER, found.hint.partition("; or ")[2])
    assert roles.find_problems() == []
