"""Functions and operators that fit better than the server's are not taken for them.

Before PostgreSQL 15 every role may create objects in the schema public. Whoever reads the log with
that schema on the search path would run them with its own rights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError

from oplog import Oplog
from oplog.schema.tables import create_statements
from tests.models.bank import Account
from tests.postgres.roles import OWNER, STRANGER, Roles, open_roles

pytestmark = pytest.mark.postgres

FOR_ANY = {"any": ("text[]", "bigint", "text"), "anyarray": ("text[]",), "anyelement": ("text",)}
COMPARED = ("oid", "bigint", "integer", "name", "text", "character varying")
BODY = (
    "LANGUAGE plpgsql AS $$ BEGIN IF current_user <> '{stranger}' THEN "
    "RAISE WARNING 'trapped'; END IF; RETURN {result}; END $$"
)


@pytest.fixture
def roles(bare_database_url: URL) -> Iterator[Roles]:
    with open_roles(bare_database_url, create_statements()) as roles:
        with roles.open_sessions().begin() as session:
            session.add(Account(id=1, owner="ada", balance=1))
        roles.superuser("GRANT CREATE ON SCHEMA public TO PUBLIC")
        yield roles


def list_overloads(connection: Connection, stranger: str) -> Iterator[str]:
    """Statements that create functions and operators; some cannot be."""
    body = BODY.replace("{stranger}", stranger)
    rows = connection.exec_driver_sql(
        "SELECT p.proname, ARRAY(SELECT btrim(format_type(t, NULL), '\"') "
        "FROM unnest(p.proargtypes::oid[]) t), format_type(p.prorettype, NULL) FROM pg_proc p "
        "WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND EXISTS ("
        "SELECT FROM unnest(p.proargtypes::oid[]) t WHERE t IN ('\"any\"'::regtype, "
        "'anyelement'::regtype, 'anyarray'::regtype)) ORDER BY p.oid"
    ).fetchall()
    for name, arguments, result in rows:
        returned = "text" if result.strip('"').startswith("any") else result
        for combined in itertools.product(*(FOR_ANY.get(one, (one,)) for one in arguments)):
            yield (
                f"CREATE FUNCTION public.{name}({', '.join(combined)}) RETURNS {returned} "
                + body.replace("{result}", "NULL")
            )
    for number, (left, right) in enumerate(itertools.permutations(COMPARED, 2)):
        yield f"CREATE FUNCTION public.compare_{number}({left}, {right}) RETURNS boolean " + (
            body.replace("{result}", "true")
        )
        for operator in ("=", "<>", "<", ">"):
            yield (
                f"CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, "
                f"FUNCTION = public.compare_{number})"
            )


def lay_traps(roles: Roles) -> int:
    engine = roles.engine(STRANGER)
    options = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
    with engine.execution_options(**options).connect() as connection:
        laid = 0
        for statement in list_overloads(connection, roles.names[STRANGER]):
            try:
                connection.exec_driver_sql(statement)
            except DBAPIError:
                continue
            laid += 1
    return laid


def consume(read: Callable[[Connection], object], roles: Roles) -> list[str]:
    """What the owner's session ran of them, while it read."""
    told: list[str] = []
    with roles.engine(OWNER).connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
        read(connection)
    return [message for message in told if message == "trapped"]


READS: dict[str, Callable[[Oplog, Connection], object]] = {
    "doctor": lambda log, connection: log.diagnose(connection),
    "verify": lambda log, connection: log.verify(connection),
    "read": lambda log, connection: list(log.read(connection)),
    "types sync": lambda log, connection: log.store_types(connection),
    "types check": lambda log, connection: log.check_types(connection),
    "replay": lambda log, connection: log.replay(connection, into="replayed"),
    "history": lambda log, connection: list(log.history(connection, Account, 1)),
}


def test_nobody_runs_them(roles: Roles) -> None:
    assert lay_traps(roles) > 200
    log = roles.open_log()
    told = {name: consume(partial(read, log), roles) for name, read in READS.items()}
    assert told == {name: [] for name in READS}
    with roles.open_sessions(OWNER).begin() as session:
        raw = session.connection().connection.driver_connection
        assert raw is not None
        caught: list[str] = []
        raw.add_notice_handler(lambda notice: caught.append(str(notice.message_primary)))
        session.add(Account(id=2, owner="bob", balance=2))
    assert "trapped" not in caught


def test_the_traps_work(roles: Roles) -> None:
    lay_traps(roles)
    assert consume(lambda c: c.exec_driver_sql("SELECT 1 FROM pg_class WHERE oid = 0"), roles)
    assert consume(lambda c: c.exec_driver_sql("SELECT pg_column_size('x'::text)"), roles)
