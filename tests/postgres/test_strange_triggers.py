"""Triggers that call the log's functions and are not the log's: they make its owner do nothing.

Nobody may make one any more. Here PUBLIC may execute the functions for a moment, as it could in
logs that were created earlier, and what was made then still stands.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import URL

from oplog.schema.mark_names import BYPASS_AGGREGATE
from oplog.schema.tables import create_statements, upgrade_statements
from tests.postgres.roles import APPLICATION, OWNER, STRANGER, Roles, open_roles

pytestmark = pytest.mark.postgres

OPEN = "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA oplog TO PUBLIC"
EVIL = """CREATE FUNCTION lair.evil() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN
  EXECUTE 'CREATE TABLE public.taken AS SELECT current_user'; RETURN 1; END $$"""
OWN_TYPE = (
    "CREATE TYPE lair.thing AS (a integer)",
    """CREATE FUNCTION lair.show(lair.thing) RETURNS text LANGUAGE plpgsql AS $$
  BEGIN PERFORM lair.evil(); RETURN 'x'; END $$""",
    "CREATE CAST (lair.thing AS text) WITH FUNCTION lair.show(lair.thing)",
    "CREATE DOMAIN lair.disguised AS lair.thing",
)
PLAIN = "CREATE TABLE lair.t (id integer PRIMARY KEY)"
TEMPORARY = "CREATE TEMP TABLE t (id integer PRIMARY KEY)"
ARMED = """CREATE CONSTRAINT TRIGGER oplog_guard_armed AFTER INSERT ON lair.t
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (oplog.oplog_arm())
  EXECUTE FUNCTION oplog.oplog_guard_check()"""
COUNTED = """CREATE TRIGGER oplog_guard_insert AFTER INSERT ON lair.t
  REFERENCING NEW TABLE AS oplog_new FOR EACH STATEMENT EXECUTE FUNCTION oplog.oplog_guard('x')"""
BLIND = COUNTED.replace("REFERENCING NEW TABLE AS oplog_new", "")
TRUNCATED = """CREATE TRIGGER oplog_guard_truncate BEFORE TRUNCATE ON lair.t
  EXECUTE FUNCTION oplog.oplog_guard_truncate()"""
SHADOW = "CREATE TEMP VIEW oplog_new AS SELECT lair.evil() AS id"
BY_HAND = "SELECT oplog.oplog_arm()"
BYPASS = "SET LOCAL oplog.bypass = 'greetings'"


def on_temporary(trigger: str) -> str:
    return trigger.replace("lair.t", "t")


WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str]] = {
    # What stood before, what is done now, the refusal's SQLSTATE and a word of it.
    "a view takes the place of a transition table": (
        (),
        (TEMPORARY, on_temporary(BLIND), SHADOW, "INSERT INTO t VALUES (1)"),
        "OP007",
        "it is temporary",
    ),
    "the same on a table that stays": (
        (PLAIN, BLIND),
        (SHADOW, BY_HAND, "INSERT INTO lair.t VALUES (1)"),
        "OP007",
        "trigger oplog_guard_insert is not one of a guard",
    ),
    "the same under another name": (
        (PLAIN, ARMED, COUNTED.replace("oplog_guard_insert", "mine")),
        ("INSERT INTO lair.t VALUES (1)",),
        "OP007",
        "trigger mine is not one of a guard",
    ),
    "a trigger without the one that checks": (
        (PLAIN, COUNTED),
        ("INSERT INTO lair.t VALUES (1)",),
        "OP007",
        "oplog_guard_armed is missing or disabled",
    ),
    "a check that does not wait": (
        (PLAIN, ARMED.replace("DEFERRABLE INITIALLY DEFERRED", ""), COUNTED),
        ("INSERT INTO lair.t VALUES (1)",),
        "OP003",
        "before the change",
    ),
    "a cast to text": (
        (PLAIN.replace("integer", "lair.thing"), ARMED, COUNTED),
        ("INSERT INTO lair.t VALUES (ROW(1))",),
        "OP007",
        "a cast to text",
    ),
    "a cast to text of what a domain is of": (
        (PLAIN.replace("id integer", "id integer, v lair.disguised"), ARMED, COUNTED),
        ("INSERT INTO lair.t VALUES (1, ROW(1))",),
        "OP007",
        "column v",
    ),
    "a cast in a trigger for each row": (
        (
            PLAIN.replace("integer", "lair.thing"),
            ARMED,
            """CREATE TRIGGER oplog_guard_row AFTER INSERT ON lair.t FOR EACH ROW
  EXECUTE FUNCTION oplog.oplog_guard_row('x')""",
        ),
        ("INSERT INTO lair.t VALUES (ROW(1))",),
        "OP007",
        "a cast to text",
    ),
    "a trigger for each row of a temporary table": (
        (),
        (
            TEMPORARY.replace("integer", "lair.thing"),
            """CREATE TRIGGER oplog_guard_row AFTER INSERT ON t FOR EACH ROW
  EXECUTE FUNCTION oplog.oplog_guard_row('x')""",
            BY_HAND,
            "INSERT INTO t VALUES (ROW(1))",
        ),
        "OP007",
        "it is temporary",
    ),
    "a check of a temporary table": (
        (),
        (TEMPORARY, on_temporary(ARMED), BYPASS, "INSERT INTO t VALUES (1)"),
        "OP007",
        "it is temporary",
    ),
    "a mark by a temporary table": (
        (),
        (TEMPORARY, on_temporary(TRUNCATED), BYPASS, "TRUNCATE t"),
        "OP007",
        "it is temporary",
    ),
    "a mark by a table of one's own": (
        (PLAIN, TRUNCATED),
        (BYPASS, "TRUNCATE lair.t"),
        "OP007",
        "oplog_guard_armed is missing or disabled",
    ),
    "a mark by a whole guard that nobody declared": (
        (PLAIN, ARMED, COUNTED, TRUNCATED),
        (BYPASS, "TRUNCATE lair.t"),
        "OP003",
        "TRUNCATE",
    ),
    "a mark at COMMIT by a guard that nobody declared": (
        (PLAIN, ARMED, COUNTED),
        (BYPASS, "INSERT INTO lair.t VALUES (1)"),
        "OP003",
        "lair.t (1 row)",
    ),
}


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(each_bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(each_bare_database_url, definition) as roles:
        roles.superuser(
            f'GRANT CREATE, TEMPORARY ON DATABASE "{roles.url.database}" TO {roles.names[STRANGER]}'
        )
        roles.run(
            STRANGER,
            "CREATE SCHEMA lair",
            "GRANT USAGE ON SCHEMA lair TO PUBLIC",
            EVIL,
            *OWN_TYPE,
        )
        roles.run(OWNER, f"GRANT USAGE ON SCHEMA oplog TO {roles.names[STRANGER]}")
        yield roles


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("before", "now", "sqlstate", "word"), WAYS.values(), ids=WAYS.keys())
def test_the_owner_does_nothing_for_others(
    roles: Roles,
    *,
    before: tuple[str, ...],
    now: tuple[str, ...],
    sqlstate: str,
    word: str,
) -> None:
    roles.run(OWNER, OPEN)
    roles.run(STRANGER, *before)
    # Temporary tables are gone with their session: those ways need the right to the end.
    if before:
        roles.run(OWNER, *upgrade_statements())
    told, message, hint = roles.refuse(STRANGER, *now)
    assert (told, word in message) == (sqlstate, True), message
    assert hint
    assert roles.ask("SELECT to_regclass('public.taken')") == [None]
    assert roles.ask(
        f"SELECT count(*) FROM oplog.oplog_entry WHERE aggregate_name = '{BYPASS_AGGREGATE}'"
    ) == [0]


@pytest.mark.parametrize(
    "trigger", [BLIND, COUNTED, TRUNCATED, ARMED], ids=["blind", "count", "truncate", "armed"]
)
def test_nobody_else_makes_such_a_trigger(roles: Roles, trigger: str) -> None:
    for statements in ((PLAIN, trigger), (TEMPORARY, on_temporary(trigger))):
        assert roles.refuse(STRANGER, *statements)[0] == "42501"


def test_doctor_finds_triggers_that_are_not_part_of_a_guard(roles: Roles) -> None:
    roles.run(OWNER, OPEN)
    mine = COUNTED.replace("oplog_guard_insert", '"my own"')
    roles.run(STRANGER, PLAIN, mine)
    roles.run(OWNER, *upgrade_statements())
    (found,) = [f for f in roles.find_problems(APPLICATION) if f.what != "guard-missing"]
    assert (found.what, found.where) == ("trigger-stray", 'lair.t trigger "my own"')
    roles.run(STRANGER, found.hint.partition(", then ")[2])
    assert roles.find_problems() == []


def test_doctor_finds_them_on_temporary_tables(roles: Roles) -> None:
    roles.run(OWNER, OPEN)
    with roles.engine(STRANGER).connect() as connection:
        for statement in (TEMPORARY, on_temporary(COUNTED)):
            connection.exec_driver_sql(statement)
        connection.commit()
        roles.run(OWNER, *upgrade_statements())
        (found,) = roles.find_problems()
        assert found.what == "trigger-stray"
        assert "temporary" in found.message
    assert roles.find_problems() == []


# -- the log's own guards go on ------------------------------------------------------------------


def test_a_guarded_table_that_was_renamed(roles: Roles) -> None:
    """Its guard goes with it. Who may pass unlogged was said of the old name."""
    insert = "INSERT INTO bill (id, owner, balance) VALUES (1, 'x', 1)"
    roles.run(OWNER, "ALTER TABLE account RENAME TO bill")
    assert roles.refuse(APPLICATION, insert)[0] == "OP003"
    assert roles.refuse(APPLICATION, BYPASS, insert)[0] == "OP003"
    roles.run(OWNER, "SELECT oplog.oplog_track_table('bill'::regclass, NULL)")
    roles.run(APPLICATION, BYPASS, insert)


def test_a_table_of_a_role_that_is_not_the_logs_owner(roles: Roles) -> None:
    """A type whose cast is somebody else's cannot be printed by the owner; any other can."""
    roles.run(STRANGER, PLAIN, "CREATE TABLE lair.odd (id integer PRIMARY KEY, v lair.thing)")
    # Both roles' rights are needed: to write what the log keeps, and to alter the table.
    roles.superuser(
        "SELECT oplog.oplog_track_table('lair.t'::regclass, NULL)",
        "SELECT oplog.oplog_track_table('lair.odd'::regclass, NULL)",
    )
    told, message, _ = roles.refuse(STRANGER, "INSERT INTO lair.t VALUES (1)")
    assert (told, "lair.t (1 row)" in message) == ("OP003", True)
    told, message, _ = roles.refuse(STRANGER, "INSERT INTO lair.odd VALUES (1, ROW(1))")
    assert (told, "column v" in message) == ("OP007", True)


def test_a_temporary_relation_of_the_same_name_harms_nobody(roles: Roles) -> None:
    """The rows that were changed are read, whatever else is called so."""
    roles.run(OWNER, "GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO PUBLIC")
    sqlstate, message, _ = roles.refuse(
        STRANGER, SHADOW, "INSERT INTO account (id, owner, balance) VALUES (1, 'x', 1)"
    )
    assert (sqlstate, "public.account (1 row)" in message) == ("OP003", True)
    assert roles.ask("SELECT to_regclass('public.taken')") == [None]


def test_who_may_bypass_is_asked_of_the_whole_table(roles: Roles) -> None:
    """TRUNCATE of a partition passed before, whoever asked."""
    keeper = roles.names[OWNER]
    roles.run(
        OWNER,
        "CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF whole DEFAULT",
        f"SELECT oplog.oplog_track_table('whole'::regclass, '{keeper}')",
        f"GRANT TRUNCATE ON part TO {roles.names[STRANGER]}",
    )
    assert roles.refuse(STRANGER, BYPASS, "TRUNCATE part")[0] == "OP003"
    roles.run(OWNER, BYPASS, "TRUNCATE part")
