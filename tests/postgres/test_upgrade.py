"""A log as it was first created comes to the present definition, with everything in it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.migration import UpgradeOplogOp
from oplog.schema.progress_tables import PROGRESS_TABLES
from oplog.schema.tables import create_statements, home_statement, upgrade_statements
from tests.models.bank import Account
from tests.postgres.log_schema import ODD, Described, describe
from tests.postgres.roles import APPLICATION, AUDITOR, OWNER, STRANGER, WORKER, Roles, open_roles

pytestmark = pytest.mark.postgres

FIRST = Path(__file__).with_name("data") / "first_definition.sql"
"""What the library executed when schema version 1 was first created."""
FIRST_GRANTS = {
    APPLICATION: (
        "GRANT USAGE ON SCHEMA oplog TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO {role}",
        "GRANT INSERT ON ALL TABLES IN SCHEMA oplog TO {role}",
        "GRANT UPDATE ON oplog.oplog_ticket, oplog.oplog_checkpoint TO {role}",
        "GRANT DELETE ON oplog.oplog_image TO {role}",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA oplog TO {role}",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA oplog TO {role}",
    ),
    WORKER: (
        "GRANT USAGE ON SCHEMA oplog TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO {role}",
        "GRANT INSERT, UPDATE ON oplog.oplog_checkpoint TO {role}",
    ),
    AUDITOR: (
        "GRANT USAGE ON SCHEMA oplog TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO {role}",
        "GRANT SELECT ON account TO {role}",
    ),
}
"""What `oplog grants` printed then."""
FORGED = "INSERT INTO oplog.oplog_metadata VALUES (9, 9, 'actor', 'x')"


def read_first() -> list[str]:
    text = FIRST.read_text(encoding="utf-8")
    return [statement.strip() for statement in text.split("\n--------\n")]


@pytest.fixture
def roles(bare_database_url: URL) -> Iterator[Roles]:
    """The first definition, with the roles of then, guarded tables and entries."""
    with open_roles(bare_database_url, read_first(), granted=False) as roles:
        for role, statements in FIRST_GRANTS.items():
            roles.run(OWNER, *(s.format(role=roles.names[role]) for s in statements))
        with lend_later_parts(roles):
            sessions = roles.open_sessions()
            with sessions.begin() as session:
                session.add_all([Account(id=n, owner="ada", balance=n) for n in (1, 2)])
            with sessions.begin() as session:
                session.execute(sa.text("UPDATE account SET balance = balance + 1"))
        roles.run(STRANGER, "SET LOCAL oplog.bypass = 'x'", "UPDATE account SET balance = balance")
        yield roles


@contextmanager
def lend_later_parts(roles: Roles) -> Iterator[None]:
    """What this library must have to write: its entries are those of the first one."""
    begun = 'CREATE TABLE "oplog".oplog_type_numbers'
    [numbers] = [s for s in create_statements() if s.startswith(begun)]
    roles.run(
        OWNER,
        numbers,
        home_statement(),
        "ALTER TABLE oplog.oplog_checkpoint RENAME TO set_aside",
        f"GRANT SELECT, INSERT ON oplog.oplog_type_numbers TO {roles.names[APPLICATION]}",
    )
    yield
    roles.run(
        OWNER,
        "DROP TABLE oplog.oplog_type_numbers",
        "COMMENT ON TABLE oplog.oplog_log IS NULL",
        "ALTER TABLE oplog.set_aside RENAME TO oplog_checkpoint",
    )


def upgrade(roles: Roles, *, schema: str = "oplog", version: int = 1) -> None:
    with roles.engine(OWNER).begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.invoke(UpgradeOplogOp(version, schema=schema))


def print_upgrade(*, schema: str = "oplog", dialect: str = "postgresql", version: int = 1) -> str:
    output = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=dialect, opts={"as_sql": True, "output_buffer": output}
    )
    Operations(context).invoke(UpgradeOplogOp(version, schema=schema))
    return output.getvalue()


def run_printed(roles: Roles) -> None:
    with roles.engine(OWNER).begin() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute(print_upgrade())


def read_log(roles: Roles) -> list[object]:
    tables = ("entry", "metadata", "ticket", "type", "key", "log", "guard", "fence")
    with roles.engine(OWNER).connect() as connection:
        return [
            connection.exec_driver_sql(
                f"SELECT t::text FROM oplog.oplog_{table} t ORDER BY 1"
            ).all()
            for table in tables
        ]


def describe_guards(roles: Roles) -> list[object]:
    """With their identity: a trigger that was made anew has another."""
    return roles.ask(
        "SELECT concat(oid, ' ', tgenabled, ' ', pg_get_triggerdef(oid)) FROM pg_trigger "
        "WHERE tgrelid::regclass::text IN ('account', 'order_line', '\"order\"') ORDER BY oid"
    )


@pytest.fixture
def measure(database_url: URL) -> Described:
    return describe(database_url)


@pytest.mark.parametrize("way", [upgrade, run_printed], ids=["online", "printed"])
def test_the_first_definition_becomes_the_present_one(
    roles: Roles, measure: Described, way: object
) -> None:
    assert callable(way)
    assert describe(roles.url) != measure
    log, guards = read_log(roles), describe_guards(roles)
    for _ in range(2):
        way(roles)
        assert describe(roles.url) == measure
        assert (read_log(roles), describe_guards(roles)) == (log, guards)


def test_everything_works_afterwards(roles: Roles) -> None:
    problems = {f.what for f in roles.find_problems()}
    assert problems >= {
        "function-open",
        "table-open",
        "log-function-altered",
        "log-function-missing",
        "log-index-missing",
    }
    hints = [f.hint for f in roles.find_problems()]
    assert all("op.upgrade_oplog(version=1)" in hint for hint in hints), hints
    with lend_later_parts(roles):
        before = roles.open_sessions()
        with before.begin() as session:
            session.get_one(Account, 1).note = "before"
    upgrade(roles)
    assert roles.find_problems() == []
    assert roles.find_problems(APPLICATION) == []
    # A process that was running goes on, and a new one begins.
    for number, sessions in enumerate((before, roles.open_sessions()), start=3):
        with sessions.begin() as session:
            session.get_one(Account, 1).note = f"after {number}"
            session.add(Account(id=number, owner="new", balance=1))
        with sessions.begin() as session:
            session.execute(sa.text("UPDATE account SET balance = balance * 7 WHERE id = 2"))
    assert roles.verifies()
    assert roles.find_problems() == []
    for role in (APPLICATION, WORKER, AUDITOR, STRANGER):
        assert roles.refuse(role, FORGED)[0] == "42501"
        with roles.engine(OWNER).connect() as connection:
            may = "SELECT has_function_privilege(%s, 'oplog.oplog_guard()', 'EXECUTE')"
            assert connection.exec_driver_sql(may, (roles.names[role],)).scalar() is False
    unlogged = "UPDATE account SET balance = 9"
    assert roles.refuse(STRANGER, "SET CONSTRAINTS ALL IMMEDIATE", unlogged)[0] == "OP003"
    assert roles.refuse(STRANGER, unlogged, "RESET ALL")[0] == "OP003"


def test_before_it_the_first_definition_lets_things_pass(roles: Roles) -> None:
    """So that the tests above would fail without it."""
    roles.run(APPLICATION, FORGED)
    roles.run(STRANGER, "UPDATE account SET balance = 9", "RESET ALL")
    with lend_later_parts(roles):
        assert not roles.verifies()


def test_an_entry_that_is_there_twice_is_named(roles: Roles) -> None:
    """The index cannot be made, and what it would have kept away is said."""
    again = str(uuid4())
    append = f"""SELECT oplog.oplog_append_one('a', NULL, '{again}', 'b', 'd', 2::smallint, '',
      'm', NULL, NULL, NULL, NULL, true)"""
    roles.run(APPLICATION, append, append)
    with pytest.raises(DBAPIError, match="in the log twice") as refused:
        upgrade(roles)
    assert getattr(refused.value.orig, "sqlstate", None) == "23505"
    assert describe(roles.url) != []
    assert roles.ask("SELECT count(*) FROM pg_proc WHERE proname = 'oplog_require_guard'") == [0]


def test_a_table_that_was_lost_does_not_come_back_empty(roles: Roles) -> None:
    roles.run(OWNER, "DROP TABLE oplog.oplog_metadata")
    with pytest.raises(DBAPIError, match=r'table "oplog"\.oplog_metadata is gone'):
        upgrade(roles)


OLD_ROWS = """
  ('mail', '{cursor}', 7), ('archive/x', '{cursor}', 8), ('restored', '{cursor}', 9),
  ('archive/0b9f6d1e-6f0a-4a5e-9c8e-0d6a1f3b2c4d', '{{"url": "memory://", "epoch": 3,
    "generation": 1, "sequence": 12, "chain": "00ff", "head": 5, "cursor": {text},
    "origin": ["42", 7], "owner": null}}', 12),
  ('archive/11111111-6f0a-4a5e-9c8e-0d6a1f3b2c4d', '{{"url": "file:///a", "epoch": 1,
    "generation": 0, "sequence": 0, "chain": "", "head": 0, "cursor": null,
    "origin": ["42", 7], "owner": ["41", 6]}}', 0),
  ('archive/22222222-6f0a-4a5e-9c8e-0d6a1f3b2c4d', '{{"altered": "by hand"}}', 0),
  ('adopt/account', '{{"after": {{"id": "4"}}, "rows": 4, "entries": 2, "done": false,
    "revision": 1}}', 0),
  ('adopt/order', '{{"after": null, "rows": 0, "entries": 1, "done": true}}', 0),
  ('adopt/begun', 'null', 0),
  ('follow/archive', '{{"generation": 1, "sequence": 3, "chain": "ab"}}', 4)"""
OLD_CURSOR = (
    '{"system_identifier": "42", "timeline": 1, "snapshot": "5:5:", "target": null, "after": 0}'
)
FIRST_ARCHIVE = "0b9f6d1e-6f0a-4a5e-9c8e-0d6a1f3b2c4d"
SECOND_ARCHIVE = "11111111-6f0a-4a5e-9c8e-0d6a1f3b2c4d"
ARCHIVES = [
    (FIRST_ARCHIVE, "memory://", 3, 1, 12, b"\x00\xff", 5, "5:5:", "42", 7, None, None, 12),
    (SECOND_ARCHIVE, "file:///a", 1, 0, 0, b"", 0, None, "42", 7, "41", 6, 0),
]


def fill_old_table(roles: Roles) -> None:
    """What consumers, archives, adoptions, a restore and a follower kept in one table."""
    values = OLD_ROWS.format(cursor=OLD_CURSOR, text=json.dumps(OLD_CURSOR))
    roles.run(OWNER, f"INSERT INTO oplog.oplog_checkpoint (name, cursor, position) VALUES {values}")


def read_all(roles: Roles, query: str) -> list[tuple[object, ...]]:
    with roles.engine(OWNER).connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


@pytest.mark.parametrize("way", [upgrade, run_printed], ids=["online", "printed"])
def test_the_rows_of_one_table_go_into_their_own(roles: Roles, way: object) -> None:
    """Each by what it holds: a consumer of then may have the name of another kind's row."""
    assert callable(way)
    fill_old_table(roles)
    for _ in range(2):
        way(roles)
        assert roles.ask("SELECT to_regclass('oplog.oplog_checkpoint')") == [None]
        assert read_all(
            roles,
            "SELECT name, cursor ->> 'snapshot', position FROM oplog.oplog_consumer ORDER BY 3",
        ) == [("mail", "5:5:", 7), ("archive/x", "5:5:", 8), ("restored", "5:5:", 9)]
        assert (
            read_all(
                roles,
                "SELECT archive_id::text, url, epoch, generation, sequence, chain, head, "
                "cursor ->> 'snapshot', origin_server, origin_database, owner_server, "
                "owner_database, position FROM oplog.oplog_archive ORDER BY 1",
            )
            == ARCHIVES
        )
        assert read_all(
            roles,
            "SELECT type_name, after, rows, entries, done, revision "
            "FROM oplog.oplog_adoption ORDER BY 1",
        ) == [("account", {"id": "4"}, 4, 2, False, 1), ("order", None, 0, 1, True, 0)]
        assert read_all(roles, "SELECT count(*) FROM oplog.oplog_restore") == [(0,)]
        assert read_all(
            roles, "SELECT name, generation, sequence, chain, position FROM oplog.oplog_follower"
        ) == [("archive", 1, 3, b"\xab", 4)]


def test_where_a_restore_ended_is_kept(roles: Roles) -> None:
    roles.run(
        OWNER,
        "INSERT INTO oplog.oplog_checkpoint (name, cursor, position) VALUES ('restored', "
        """'{"generation": 2, "sequence": 3, "chain": "ab"}', 4)""",
    )
    upgrade(roles)
    query = "SELECT generation, sequence, chain, position FROM oplog.oplog_restore"
    assert read_all(roles, query) == [(2, 3, b"\xab", 4)]


def test_who_wrote_the_old_table_goes_on(roles: Roles) -> None:
    """Consuming, adopting and publishing; a restore's state and a follower's are the owner's."""
    upgrade(roles)
    expected = {
        APPLICATION: {"SELECT", "INSERT", "UPDATE"},
        WORKER: {"SELECT", "INSERT", "UPDATE"},
        AUDITOR: {"SELECT"},
        STRANGER: set(),
    }
    for role, written in expected.items():
        for table in PROGRESS_TABLES:
            held = read_all(
                roles,
                "SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p WHERE "
                f"has_table_privilege('{roles.names[role]}', 'oplog.oplog_{table}', p)",
            )
            only_read = table in ("restore", "follower")
            assert {p for (p,) in held} == (written & {"SELECT"} if only_read else written)


def test_a_log_that_was_not_upgraded_says_what_to_do(roles: Roles) -> None:
    roles.run(OWNER, home_statement())
    with pytest.raises(SchemaVersionError, match="tables of its own now") as refused:
        list(roles.open_log().subscribe(roles.engine(OWNER), name="mail"))
    assert "op.upgrade_oplog(version=1)" in refused.value.hint


@pytest.mark.sampled(2)
@pytest.mark.parametrize("table", PROGRESS_TABLES)
def test_a_table_of_the_present_that_was_lost_stays_lost(roles: Roles, table: str) -> None:
    upgrade(roles)
    roles.run(OWNER, f"DROP TABLE oplog.oplog_{table}")
    with pytest.raises(DBAPIError, match=rf'table "oplog"\.oplog_{table} is gone'):
        upgrade(roles)


COMMENTS = {
    "no log": (None, "no oplog tables"),
    "another version": ("oplog schema version 2", "at schema version 2"),
    "being restored": ("oplog schema version 1, being restored", "being restored"),
}


@pytest.mark.parametrize(("comment", "why"), COMMENTS.values(), ids=COMMENTS.keys())
def test_what_is_not_a_log_of_this_version_is_refused(
    roles: Roles, *, comment: str | None, why: str
) -> None:
    text = "NULL" if comment is None else f"'{comment}'"
    roles.run(OWNER, f"COMMENT ON TABLE oplog.oplog_entry IS {text}")
    before = describe(roles.url)
    with pytest.raises(SchemaVersionError, match=why) as refused:
        upgrade(roles)
    assert refused.value.hint
    with pytest.raises(psycopg.DatabaseError, match="does not hold a log of this version"):
        run_printed(roles)
    with pytest.raises(SchemaVersionError, match="version 2 is not known"):
        upgrade(roles, version=2)
    assert describe(roles.url) == before
    with pytest.raises(SchemaVersionError, match="no oplog tables to upgrade"):
        upgrade(roles, schema="elsewhere")


@pytest.mark.parametrize("schema", ["public", ODD])
def test_a_log_in_another_schema(bare_database_url: URL, measure: Described, schema: str) -> None:
    engine = sa.create_engine(bare_database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in create_statements(schema):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        connection.exec_driver_sql("CREATE TABLE public.oplog_theirs (id integer)")
        connection.exec_driver_sql("GRANT INSERT ON public.oplog_theirs TO PUBLIC")
        operations = Operations(MigrationContext.configure(connection))
        operations.invoke(UpgradeOplogOp(1, schema=schema))
        # Whatever else is called so belongs to somebody else.
        kept = "SELECT relacl::text LIKE '%%=a/%%' FROM pg_class WHERE relname = 'oplog_theirs'"
        assert connection.exec_driver_sql(kept).scalar() is True
        connection.exec_driver_sql("DROP TABLE public.oplog_theirs")
    assert describe(bare_database_url, schema) == measure


def test_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="runs on sqlite"):
        print_upgrade(dialect="sqlite")
    with pytest.raises(SchemaVersionError, match="version 2 is not known"):
        print_upgrade(version=2)


def test_each_statement_may_run_again() -> None:
    """A kind that nobody thought of is not executed as it is."""
    allowed = ("DO ", "CREATE OR REPLACE ", "ALTER ", "INSERT INTO", "REVOKE ", "GRANT ")
    for statement in upgrade_statements():
        assert statement.startswith(allowed) or " IF NOT EXISTS " in statement.partition("\n")[0]


def test_a_log_that_was_not_upgraded_is_refused_by_name(roles: Roles) -> None:
    sessions = roles.open_sessions()
    refused = pytest.raises(SchemaVersionError, match="created by an earlier library")
    with refused as caught, sessions.begin() as session:
        session.add(Account(id=3, owner="ada", balance=3))
    assert "op.upgrade_oplog(version=1)" in str(caught.value.hint)
    with pytest.raises(SchemaVersionError, match="created by an earlier library"):
        roles.verifies()


def test_columns_are_numbered_so_that_later_renames_show(roles: Roles) -> None:
    upgrade(roles)
    assert roles.ask(
        "SELECT concat(type_name, ' ', revision, ' ', columns->>'balance') "
        "FROM oplog.oplog_type_numbers WHERE type_name = 'account'"
    ) == ["account 1 3"]
    upgrade(roles)
    assert roles.find_problems() == []
    roles.run(
        OWNER,
        "ALTER TABLE account RENAME balance TO total",
        "ALTER TABLE account ADD COLUMN balance bigint",
    )
    assert "column-identity" in {finding.what for finding in roles.find_problems()}
