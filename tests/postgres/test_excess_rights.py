"""What roles were given beyond the log's definition, and what is missing of it: doctor finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import URL

from oplog.schema.tables import create_statements, upgrade_statements
from tests.postgres.roles import APPLICATION, OWNER, STRANGER, Roles, open_roles
from tests.postgres.test_rights import (
    APPEND,
    READS_ALL,
    read_tables,
)
from tests.postgres.test_rights import (
    test_a_consumer_and_a_worker_can_work as check_that_consumers_work,
)
from tests.postgres.test_rights import (
    test_every_function_of_the_log as check_every_function,
)
from tests.postgres.test_rights import (
    test_the_roles_can_work as check_that_roles_work,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(bare_database_url, definition) as roles:
        yield roles


# -- what default privileges and other releases gave --------------------------------------------

DEFAULTS = (
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {application}, {stranger}",
    "ALTER DEFAULT PRIVILEGES GRANT INSERT ON TABLES TO PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO {application}",
    "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {stranger}, PUBLIC",
)


def test_default_privileges_give_nothing_on_the_log(
    bare_database_url: URL, definition: list[str]
) -> None:
    with open_roles(bare_database_url, definition, prepare=DEFAULTS) as roles:
        assert roles.find_problems() == []
        for role in (APPLICATION, STRANGER):
            assert read_tables(roles, role) == READS_ALL
        assert roles.refuse(STRANGER, APPEND)[0] == "42501"
        assert roles.refuse(STRANGER, "SELECT oplog.oplog_mark('{}', '{}')")[0] == "42501"


TOO_MUCH: dict[str, tuple[str, str, str, str]] = {
    # What somebody granted; the finding's code, its place, and a word of its message.
    "a definer to all": (
        "GRANT EXECUTE ON FUNCTION oplog.oplog_guard() TO PUBLIC",
        "function-open",
        "function oplog.oplog_guard",
        "PUBLIC",
    ),
    "the append to all": (
        "GRANT EXECUTE ON FUNCTION oplog.oplog_append TO PUBLIC",
        "function-open",
        "function oplog.oplog_append",
        "any role can write into",
    ),
    "a definer to a role": (
        "GRANT EXECUTE ON FUNCTION oplog.oplog_guard_truncate() TO {auditor}",
        "function-open",
        "function oplog.oplog_guard_truncate",
        "auditor_",
    ),
    "records to a role": (
        "GRANT INSERT, DELETE ON oplog.oplog_record TO {application}",
        "table-open",
        "oplog.oplog_record",
        "DELETE, INSERT",
    ),
    "columns of records": (
        "GRANT INSERT (position), UPDATE (data) ON oplog.oplog_record TO {application}",
        "table-open",
        "oplog.oplog_record",
        "INSERT, UPDATE",
    ),
    "a partition": (
        "GRANT INSERT ON oplog.oplog_record_p1 TO {application}",
        "table-open",
        "oplog.oplog_record_p1",
        "INSERT",
    ),
    "which record is a version": (
        "GRANT UPDATE (position) ON oplog.oplog_entry TO {auditor}",
        "table-open",
        "oplog.oplog_entry",
        "UPDATE",
    ),
    "outcomes": (
        "GRANT INSERT, UPDATE ON oplog.oplog_outcome TO {application}",
        "table-open",
        "oplog.oplog_outcome",
        "INSERT, UPDATE",
    ),
    "columns of outcomes": (
        "GRANT INSERT (position) ON oplog.oplog_outcome TO {application}",
        "table-open",
        "oplog.oplog_outcome",
        "INSERT",
    ),
    "keys": (
        "GRANT INSERT ON oplog.oplog_key TO {application}",
        "table-open",
        "oplog.oplog_key",
        "INSERT",
    ),
    "columns of keys": (
        "GRANT INSERT (retired_at), UPDATE (retired_at) ON oplog.oplog_key TO {application}",
        "table-open",
        "oplog.oplog_key",
        "INSERT, UPDATE",
    ),
    "archives to a consumer": (
        "GRANT DELETE ON oplog.oplog_archive TO {consumer}",
        "table-open",
        "oplog.oplog_archive",
        "DELETE",
    ),
    "a restore's place to an application": (
        "GRANT UPDATE ON oplog.oplog_restore TO {application}",
        "table-open",
        "oplog.oplog_restore",
        "UPDATE",
    ),
    "metadata to all": (
        "GRANT INSERT ON oplog.oplog_token TO PUBLIC",
        "table-open",
        "oplog.oplog_token",
        "PUBLIC",
    ),
    "triggers on entries": (
        "GRANT TRIGGER ON oplog.oplog_entry TO {worker}",
        "table-open",
        "oplog.oplog_entry",
        "TRIGGER",
    ),
    "steps of tickets": (
        "GRANT UPDATE ON oplog.oplog_ticket TO {application}",
        "table-open",
        "oplog.oplog_ticket",
        "UPDATE",
    ),
    "positions": (
        "GRANT UPDATE ON SEQUENCE oplog.oplog_position_seq TO {application}",
        "table-open",
        "oplog.oplog_position_seq",
        "UPDATE",
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("way", ["the hint's statement", "op.upgrade_oplog"])
@pytest.mark.parametrize(("grant", "what", "where", "word"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_doctor_finds_what_was_granted(
    roles: Roles, *, grant: str, what: str, where: str, word: str, way: str
) -> None:
    roles.run(OWNER, grant.format(**roles.names))
    (found,) = roles.find_problems(APPLICATION)
    assert (found.what, found.where) == (what, where)
    assert word in found.message
    assert "op.upgrade_oplog(version=1)" in found.hint
    if way == "op.upgrade_oplog":
        roles.run(OWNER, *upgrade_statements())
    else:
        roles.run(OWNER, found.hint.partition("; or ")[2])
    assert roles.find_problems() == []
    assert read_tables(roles, APPLICATION) == READS_ALL
    check_that_roles_work(roles)


REACHES: dict[str, tuple[str, str]] = {
    # What somebody granted, and a word of the finding's message.
    "create": ("GRANT CREATE ON SCHEMA oplog TO {stranger}", "it has CREATE"),
    "pg_write_all_data": ("GRANT pg_write_all_data TO {stranger}", "may write every table"),
    "pg_maintain": ("GRANT pg_maintain TO {stranger}", "may lock every table"),
}


@pytest.mark.parametrize(
    ("grant", "word"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.since(17 if name == "pg_maintain" else 14))
        for name, case in REACHES.items()
    ],
)
def test_doctor_finds_roles_that_need_no_privilege(roles: Roles, grant: str, word: str) -> None:
    roles.superuser(grant.format(**roles.names))
    (found,) = roles.find_problems(APPLICATION)
    assert (found.what, found.where) == ("role-open", f"role {roles.names[STRANGER]}")
    assert word in found.message
    roles.superuser(found.hint.partition(", then ")[2])
    assert roles.find_problems() == []


def test_roles_that_are_the_owner_anyway_are_no_finding(roles: Roles) -> None:
    roles.superuser(
        f"GRANT pg_write_all_data TO {roles.names[OWNER]}",
        f"GRANT {roles.names[OWNER]}, pg_write_all_data TO {roles.names[STRANGER]}",
    )
    assert roles.find_problems() == []
    roles.superuser(f"REVOKE pg_write_all_data FROM {roles.names[OWNER]}")


# What `oplog grants` printed for tables and functions of the definition before.
FORMER_FUNCTION = """CREATE FUNCTION oplog.oplog_append(uuid, text[], bigint[], bytea, bytea,
  integer[], bytea[], smallint, text, text[], text, bigint, boolean) RETURNS integer
LANGUAGE sql AS 'SELECT 1'"""
FORMER = (
    "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA oplog FROM {application}, {worker}, {consumer}",
    FORMER_FUNCTION,
    "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA oplog FROM PUBLIC",
    """DROP FUNCTION oplog.oplog_append(uuid, text[], bigint[], bytea, integer[], bytea[],
  smallint, text, text[], text, bigint, oid[], oid[], bigint, bigint, boolean)""",
    "GRANT EXECUTE ON FUNCTION oplog.oplog_append, oplog.oplog_settle TO {application}",
    "GRANT INSERT ON oplog.oplog_type, oplog.oplog_type_numbers, oplog.oplog_key TO {application}",
    "GRANT INSERT (record_id) ON oplog.oplog_outcome TO {application}",
    "GRANT DELETE ON oplog.oplog_image TO {application}",
    "GRANT INSERT, UPDATE ON oplog.oplog_consumer TO {application}, {consumer}",
    "GRANT INSERT, UPDATE ON oplog.oplog_adoption TO {application}",
    "GRANT INSERT, UPDATE ON oplog.oplog_archive TO {worker}",
    # These never did anything for the log.
    "GRANT INSERT, UPDATE, DELETE ON oplog.oplog_consumer TO {stranger}",
    "GRANT INSERT ON oplog.oplog_key TO {auditor}",
)


@pytest.mark.parametrize("check", [check_that_roles_work, check_that_consumers_work])
def test_roles_of_an_earlier_definition_go_on_working(
    roles: Roles, check: Callable[[Roles], None]
) -> None:
    roles.run(OWNER, *(statement.format(**roles.names) for statement in FORMER))
    roles.run(OWNER, *upgrade_statements())
    assert roles.find_problems() == []
    check_every_function(roles)
    assert read_tables(roles, APPLICATION) == READS_ALL
    check(roles)


def test_doctor_finds_a_condition_that_not_everybody_may_ask(roles: Roles) -> None:
    roles.run(OWNER, "REVOKE EXECUTE ON FUNCTION oplog.oplog_arm() FROM PUBLIC")
    (found,) = roles.find_problems()
    assert (found.what, found.where) == ("function-closed", "function oplog.oplog_arm")
    roles.run(OWNER, found.hint)
    assert roles.find_problems() == []


INDEXES = {
    "oplog_outcome_pkey": ("ALTER TABLE oplog.oplog_outcome DROP CONSTRAINT {}", "an old record"),
    "oplog_outcome_idempotency": ("DROP INDEX oplog.{}", "an idempotency key"),
    "oplog_entry_pkey": ("ALTER TABLE oplog.oplog_entry DROP CONSTRAINT {}", "an aggregate"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_doctor_misses_what_keeps_something_unique(roles: Roles, name: str) -> None:
    statement, what = INDEXES[name]
    roles.run(OWNER, statement.format(name))
    (found,) = roles.find_problems()
    assert (found.what, found.where) == ("log-index-missing", f"oplog.{name}")
    assert what in found.message
    assert "op.upgrade_oplog(version=1)" in found.hint
    roles.run(OWNER, *upgrade_statements())
    assert roles.find_problems() == []


PARTITION = "oplog_part_p1"
TRIGGERS = {
    "missing": "DROP TRIGGER oplog_append_only ON oplog.{}",
    "disabled": "ALTER TABLE oplog.{} DISABLE TRIGGER oplog_append_only",
}


@pytest.mark.parametrize("kind", TRIGGERS)
@pytest.mark.parametrize("table", [PARTITION, "oplog_record_p0", "oplog_outcome"])
def test_doctor_misses_a_trigger(roles: Roles, kind: str, table: str) -> None:
    roles.run(OWNER, TRIGGERS[kind].format(table))
    (found,) = roles.find_problems(APPLICATION)
    assert found.what == f"log-trigger-{kind}"
    assert found.where == f"oplog.{table} trigger oplog_append_only"
    with roles.engine(OWNER).connect() as connection:
        (problem,) = roles.open_log().status(connection).guard_problems
    assert f"trigger oplog_append_only on {table} is {kind}" == problem
    roles.run(OWNER, *upgrade_statements())
    assert roles.find_problems() == []


def test_doctor_looks_at_every_partition(roles: Roles) -> None:
    """Also at one that was made later, and one that was detached with what is in it."""
    roles.run(
        OWNER,
        f"SELECT oplog.oplog_make_partitions({1 << 40})",
        f"DROP TRIGGER oplog_append_only ON oplog.oplog_token_p{(1 << 40) >> 22}",
        f"ALTER TABLE oplog.oplog_part DETACH PARTITION oplog.{PARTITION}",
        f"ALTER TABLE oplog.{PARTITION} DISABLE TRIGGER ALL",
    )
    found = {(finding.what, finding.where.split()[0]) for finding in roles.find_problems()}
    assert found == {
        ("log-trigger-missing", f"oplog.oplog_token_p{(1 << 40) >> 22}"),
        ("log-trigger-disabled", f"oplog.{PARTITION}"),
    }
