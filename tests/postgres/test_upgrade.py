"""A log that was damaged, or lacks what is new, comes to its definition, with everything in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.migration import UpgradeOplogOp
from oplog.schema.locks import LOCK_FUNCTIONS, LOCK_TABLES
from oplog.schema.partitions import PARTITIONED
from oplog.schema.row_checks import ROW_CHECKS
from oplog.schema.tables import create_statements, list_table_names, upgrade_statements
from oplog.schema.type_changes import CHANGE_TABLES
from oplog.schema.upgrade import FIRST_TABLES
from tests.models.bank import Account
from tests.postgres.log_schema import ODD, Described, describe
from tests.postgres.roles import APPLICATION, AUDITOR, OWNER, STRANGER, WORKER, Roles, open_roles
from tests.postgres.spoiling import allow_statement

pytestmark = pytest.mark.postgres

Way = Callable[[Roles], None]
NOTHING = "RETURNS void AS '' LANGUAGE sql"
REFUSES = "FOR EACH STATEMENT EXECUTE FUNCTION oplog.oplog_refuse_change()"
CLOSED = ", ".join(
    f"oplog.oplog_{table}"
    for table in (*PARTITIONED, "record_p0", "entry", "ticket", "log", "pruned", "restore", "guard")
)
"""Tables that no role but the owner may write."""
DAMAGES: dict[str, list[str]] = {
    "functions": [
        f"CREATE OR REPLACE FUNCTION oplog.oplog_settle(p_tally bigint) {NOTHING}",
        "ALTER FUNCTION oplog.oplog_append SECURITY INVOKER",
        "ALTER FUNCTION oplog.oplog_append RESET ALL",
        "DROP FUNCTION oplog.oplog_make_partitions",
        "DROP FUNCTION oplog.oplog_try_bypass",
    ],
    "triggers": [
        "DROP TRIGGER oplog_append_only ON oplog.oplog_entry",
        "DROP TRIGGER oplog_append_only_step ON oplog.oplog_ticket",
        "ALTER TABLE oplog.oplog_outcome DISABLE TRIGGER oplog_append_only",
        "ALTER TABLE oplog.oplog_pruned ENABLE TRIGGER oplog_append_only_declare",
        "DROP TRIGGER oplog_append_only ON oplog.oplog_record",
        "ALTER TABLE ONLY oplog.oplog_part DISABLE TRIGGER ALL",
        f"CREATE OR REPLACE TRIGGER oplog_append_only BEFORE DELETE ON oplog.oplog_type {REFUSES}",
        "ALTER TABLE oplog.oplog_type ENABLE ALWAYS TRIGGER oplog_append_only",
    ],
    "triggers of partitions": [
        "DROP TRIGGER oplog_append_only ON oplog.oplog_record_p0",
        "ALTER TABLE oplog.oplog_token_p1 DISABLE TRIGGER ALL",
    ],
    "partitions": [f"DROP TABLE oplog.oplog_{table}_p1" for table in ("record", "part", "token")],
    "indexes": [
        f"DROP INDEX oplog.oplog_{name}"
        for name in (
            "record_transaction",
            "record_created",
            "token_token",
            "outcome_idempotency",
            "outcome_kept",
        )
    ],
    "keys": [
        f"ALTER TABLE oplog.oplog_{table} DROP CONSTRAINT oplog_{table}_pkey"
        for table in ("outcome", "entry", "ticket", "record", "part", "consumer", "type_numbers")
    ],
    "constraints of rows": [allow_statement(check.name) for check in ROW_CHECKS],
    "constraints that were altered": [
        allow_statement("oplog_record_bounds"),
        "ALTER TABLE oplog.oplog_record ADD CONSTRAINT oplog_record_bounds CHECK (parts > 0)",
        allow_statement("oplog_key_form"),
        "ALTER TABLE oplog.oplog_key ADD CONSTRAINT oplog_key_form CHECK (true) NO INHERIT",
    ],
    "rights": [
        f"GRANT ALL ON {CLOSED} TO PUBLIC",
        f"GRANT ALL ON {CLOSED} TO {{stranger}}, {{auditor}} WITH GRANT OPTION",
        "GRANT UPDATE (position), INSERT ON oplog.oplog_outcome TO {application}",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA oplog TO {worker}",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA oplog TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION oplog.oplog_arm() FROM PUBLIC",
    ],
    "locks, which an older log has not": [
        *(f"DROP TABLE oplog.{table}" for table in LOCK_TABLES),
        *(f"DROP FUNCTION oplog.oplog_{function}" for function in LOCK_FUNCTIONS),
    ],
    "the home": ["COMMENT ON TABLE oplog.oplog_log IS NULL"],
    "how it is stored": [
        "ALTER TABLE oplog.oplog_record ALTER COLUMN data SET STORAGE EXTENDED",
        "ALTER SEQUENCE oplog.oplog_position_seq OWNED BY NONE",
    ],
}


@pytest.fixture
def roles(bare_database_url: URL) -> Iterator[Roles]:
    """A log with roles, guarded tables and records."""
    with open_roles(bare_database_url, create_statements()) as roles:
        sessions = roles.open_sessions()
        with sessions.begin() as session:
            session.add_all([Account(id=n, owner="ada", balance=n) for n in (1, 2)])
        with sessions.begin() as session:
            session.execute(sa.text("UPDATE account SET balance = balance + 1"))
        roles.run(STRANGER, "SET LOCAL oplog.bypass = 'x'", "UPDATE account SET balance = balance")
        yield roles


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


WAYS = pytest.mark.parametrize("way", [upgrade, run_printed], ids=["online", "printed"])


def read_log(roles: Roles) -> list[object]:
    tables = (*PARTITIONED, "entry", "outcome", "ticket", "type", "key", "log", "guard")
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


def describe_all(roles: Roles) -> tuple[Described, list[str]]:
    """The catalog, and who has which rights on tables and sequences."""
    rights = roles.ask(
        "SELECT concat_ws(' ', c.relname, a.attname, x.grantee::regrole, x.privilege_type) "
        "FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attacl IS NOT NULL "
        "CROSS JOIN LATERAL (SELECT * FROM aclexplode(c.relacl) "
        "UNION SELECT * FROM aclexplode(a.attacl)) x "
        "WHERE c.relnamespace = 'oplog'::regnamespace AND x.grantee <> c.relowner "
        # An auditor may well be given what only reads.
        "AND x.privilege_type NOT IN ('SELECT', 'USAGE') ORDER BY 1"
    )
    return describe(roles.url), rights


@WAYS
@pytest.mark.parametrize("statements", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_was_damaged_is_put_right(roles: Roles, way: Way, statements: list[str]) -> None:
    measure = describe_all(roles)
    log, guards = read_log(roles), describe_guards(roles)
    roles.superuser(*(statement.format(**roles.names) for statement in statements))
    assert describe_all(roles) != measure
    for _ in range(2):
        way(roles)
        assert describe_all(roles) == measure
        assert (read_log(roles), describe_guards(roles)) == (log, guards)
    assert roles.find_problems() == []


def test_everything_works_afterwards(roles: Roles) -> None:
    before = roles.open_sessions()
    with before.begin() as session:
        session.get_one(Account, 1).note = "before"
    everything = [s.format(**roles.names) for damage in DAMAGES.values() for s in damage]
    # The index of a partitioned table's key goes with the table's own.
    roles.superuser(*everything)
    found = roles.find_problems()
    assert {f.what for f in found} >= {
        "function-open",
        "function-closed",
        "table-open",
        "log-function-altered",
        "log-function-missing",
        "log-constraint-missing",
        "log-index-missing",
        "log-trigger-missing",
        "log-trigger-disabled",
        "log-trigger-altered",
    }
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
    for role in (APPLICATION, WORKER, AUDITOR, STRANGER):
        forged = "INSERT INTO oplog.oplog_token VALUES (9, 9)"
        assert roles.refuse(role, forged)[0] == "42501"
    unlogged = "UPDATE account SET balance = 9"
    assert roles.refuse(STRANGER, "SET CONSTRAINTS ALL IMMEDIATE", unlogged)[0] == "OP003"


@pytest.mark.parametrize("table", ["outcome", "entry"])
def test_what_is_there_twice_is_named(roles: Roles, table: str) -> None:
    """The index cannot be made, and what it would have kept away is said."""
    again = f"INSERT INTO oplog.oplog_{table} SELECT * FROM oplog.oplog_{table} LIMIT 1"
    roles.superuser(
        f"ALTER TABLE oplog.oplog_{table} DROP CONSTRAINT oplog_{table}_pkey",
        again,
        "DROP TRIGGER oplog_append_only ON oplog.oplog_record",
    )
    with pytest.raises(DBAPIError, match="is duplicated") as refused:
        upgrade(roles)
    assert getattr(refused.value.orig, "sqlstate", None) == "23505"
    # Nothing else was done either.
    assert "log-trigger-missing" in {finding.what for finding in roles.find_problems()}


# What a table of an application has triggers of is gone with it.
@pytest.mark.sampled(4)
@pytest.mark.parametrize("table", FIRST_TABLES)
def test_a_table_that_was_lost_does_not_come_back_empty(roles: Roles, table: str) -> None:
    roles.superuser(f"DROP TABLE oplog.oplog_{table} CASCADE")
    before = describe(roles.url)
    why = "no oplog tables" if table == "record" else rf'"oplog"\.oplog_{table} is gone'
    with pytest.raises((DBAPIError, SchemaVersionError), match=why):
        upgrade(roles)
    with pytest.raises(psycopg.DatabaseError):
        run_printed(roles)
    assert describe(roles.url) == before


def test_positions_do_not_begin_again(roles: Roles) -> None:
    roles.superuser("DROP SEQUENCE oplog.oplog_position_seq")
    with pytest.raises(DBAPIError, match=r"oplog_position_seq is gone"):
        upgrade(roles)


def test_every_table_is_a_first_one() -> None:
    """One that comes later is not in this list, and an upgrade creates it."""
    later = {*LOCK_TABLES, *(f"oplog_{table}" for table in CHANGE_TABLES)}
    assert {f"oplog_{table}" for table in FIRST_TABLES} == set(list_table_names()) - later


def test_a_log_without_a_home_says_what_to_do(roles: Roles) -> None:
    roles.run(OWNER, "COMMENT ON TABLE oplog.oplog_log IS NULL")
    sessions = roles.open_sessions()
    refused = pytest.raises(SchemaVersionError, match="which server it was written on")
    with refused as caught, sessions.begin() as session:
        session.add(Account(id=3, owner="ada", balance=3))
    assert "op.upgrade_oplog(version=1)" in str(caught.value.hint)
    with refused:
        roles.verifies()
    upgrade(roles)
    assert roles.verifies()


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
    roles.run(OWNER, f"COMMENT ON TABLE oplog.oplog_record IS {text}")
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
def test_a_log_in_another_schema(bare_database_url: URL, database_url: URL, schema: str) -> None:
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
    assert describe(bare_database_url, schema) == describe(database_url)


def test_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="runs on sqlite"):
        print_upgrade(dialect="sqlite")
    with pytest.raises(SchemaVersionError, match="version 2 is not known"):
        print_upgrade(version=2)


def test_each_statement_may_run_again() -> None:
    """A kind that nobody thought of is not executed as it is."""
    allowed = ("DO ", "CREATE OR REPLACE ", "ALTER ", "INSERT INTO", "REVOKE ", "GRANT ")
    for statement in upgrade_statements():
        looks = " IF NOT EXISTS " in statement.partition("\n")[0]
        assert statement.startswith(allowed) or looks or "oplog_make_partitions(" in statement
