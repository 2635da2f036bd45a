"""A table that a role brings runs nothing with the rights of the log's owner.

Reading a table runs functions that its owner chose: policies, and whatever the planner computes in
advance. An application may register types for tables of its own, which the log then looks at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from oplog import Finding
from oplog.schema.tables import create_statements
from tests.postgres.roles import APPLICATION, OWNER, Roles, open_roles

pytestmark = pytest.mark.postgres

LAIR = (
    "CREATE SCHEMA lair",
    "GRANT USAGE ON SCHEMA lair TO PUBLIC",
    # A refusal takes back what was written; a sequence keeps it.
    "CREATE SEQUENCE lair.spied",
    "GRANT ALL ON lair.spied TO PUBLIC",
    """CREATE FUNCTION lair.spy() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF current_user <> session_user THEN PERFORM nextval('lair.spied'); END IF;
    RETURN true; END $$""",
    # What the planner may compute in advance, and may not write: but what it calls may.
    """CREATE FUNCTION lair.constant(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN PERFORM lair.spy(); RETURN $1; END'""",
)
TABLE = "CREATE TABLE lair.box (id integer PRIMARY KEY, note text)"
TRAPS = {
    "a policy": (
        "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON {} USING (lair.spy())",
    ),
    "an index": ("CREATE INDEX ON {} ((lair.constant(1) + id))",),
    "an index of some rows": ("CREATE INDEX ON {} (id) WHERE id > lair.constant(1)",),
    "a constraint": ("ALTER TABLE {} ADD CHECK (id > lair.constant(-9))",),
    "statistics": ("CREATE STATISTICS lair.s ON id, (id + lair.constant(1)) FROM {}",),
}
SETTINGS = ("SET constraint_exclusion = on",)


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(each_bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(each_bare_database_url, definition) as roles:
        name = str(each_bare_database_url.database)
        roles.superuser(f"GRANT CREATE ON DATABASE {name} TO {roles.names[APPLICATION]}")
        roles.run(APPLICATION, *LAIR)
        yield roles


def make_shape(**columns: str) -> dict[str, Any]:
    """A shape of the table, with these columns."""
    return {
        "schema": "lair",
        "table": "box",
        "aggregate": "box/{id}",
        "message": "oplog.derived.box",
        "excluded": {},
        "columns": [
            {
                "name": name,
                "field": name,
                "number": number,
                "kind": "int" if kind == "integer" else "text",
                "pg_type": kind,
                "category": "",
                "primary_key": name == "id",
            }
            for number, (name, kind) in enumerate(columns.items(), 1)
        ],
    }


def register(roles: Roles, shape: dict[str, Any], revision: int) -> str:
    """As the application; the message of a refusal."""
    try:
        with roles.engine(APPLICATION).begin() as connection:
            for setting in SETTINGS:
                connection.exec_driver_sql(setting)
            connection.exec_driver_sql(
                "SELECT oplog.oplog_register_type('box', %s, %s::jsonb, ''::bytea)",
                (revision, json.dumps(shape)),
            )
    except DBAPIError as error:
        return str(error.orig)
    return ""


def was_sprung(roles: Roles) -> bool:
    """Whether a function of the application's ran with rights that are not its own."""
    with roles.engine(APPLICATION).connect() as connection:
        return bool(connection.exec_driver_sql("SELECT is_called FROM lair.spied").scalar_one())


def set_trap(roles: Roles, trap: str, table: str = "lair.box") -> None:
    roles.run(
        APPLICATION,
        *(statement.format(table) for statement in TRAPS[trap]),
        f"GRANT SELECT ON {table} TO {roles.names[OWNER]}",
    )


def call(roles: Roles, *statements: str) -> str:
    """As the application, which commits; the message of a refusal."""
    try:
        roles.run(APPLICATION, *SETTINGS, *statements)
    except DBAPIError as error:
        return str(error.orig)
    return ""


SHAPE = make_shape(id="integer", note="text")
FILL = "INSERT INTO lair.box VALUES (1, 'x')"
traps = pytest.mark.parametrize("trap", TRAPS)


@traps
def test_a_table_that_was_replaced(roles: Roles, trap: str) -> None:
    roles.run(APPLICATION, TABLE)
    assert register(roles, SHAPE, 1) == ""
    roles.run(APPLICATION, "DROP TABLE lair.box", TABLE)
    set_trap(roles, trap)
    # Of a table that its owner may not read, the file tells.
    assert "is not retired yet" in register(roles, make_shape(id="integer"), 2)
    roles.run(APPLICATION, FILL)
    assert "was replaced by another one" in register(roles, make_shape(id="integer"), 2)
    assert not was_sprung(roles)


@traps
def test_a_table_that_took_the_place_of_a_dropped_one(roles: Roles, trap: str) -> None:
    roles.run(APPLICATION, TABLE)
    assert register(roles, SHAPE, 1) == ""
    roles.run(APPLICATION, "DROP TABLE lair.box", TABLE, FILL)
    set_trap(roles, trap)
    retire = "DO $$ BEGIN ASSERT oplog.oplog_retire_missing() = '{}'; END $$"
    assert call(roles, retire) == ""
    assert not was_sprung(roles)


def test_a_view_that_took_the_place_of_a_dropped_table(roles: Roles) -> None:
    """A view reads its tables as its owner, and calls functions as who reads it."""
    roles.run(APPLICATION, TABLE)
    assert register(roles, SHAPE, 1) == ""
    roles.run(
        APPLICATION,
        "DROP TABLE lair.box",
        "CREATE VIEW lair.box AS SELECT 1 AS id WHERE lair.spy()",
        f"GRANT SELECT ON lair.box TO {roles.names[OWNER]}",
    )
    retire = "DO $$ BEGIN ASSERT oplog.oplog_retire_missing() = '{}'; END $$"
    assert call(roles, retire) == ""
    assert not was_sprung(roles)


@traps
def test_a_partition_that_was_attached(roles: Roles, trap: str) -> None:
    roles.run(APPLICATION, f"{TABLE} PARTITION BY RANGE (id)")
    assert register(roles, SHAPE, 1) == ""
    roles.run(
        APPLICATION, "CREATE TABLE lair.part (LIKE lair.box)", "INSERT INTO lair.part SELECT 1"
    )
    set_trap(roles, trap, "lair.part")
    roles.run(APPLICATION, "ALTER TABLE lair.box ATTACH PARTITION lair.part DEFAULT")
    describe = (
        "SELECT oplog.oplog_describe_change('box', t.shape, 'lair.box'::regclass) "
        "FROM oplog.oplog_type t WHERE t.type_name = 'box'"
    )
    for statement in (describe, "SELECT oplog.oplog_renew_state('box')"):
        assert call(roles, statement) == ""
    assert not was_sprung(roles)
    with roles.engine(APPLICATION).connect() as connection:
        change = connection.exec_driver_sql(
            "SELECT oplog.oplog_describe_change('box', %s::jsonb, 'lair.box'::regclass)",
            (json.dumps(SHAPE),),
        ).scalar_one()
    assert change["readopted"] is True


def test_doctor_tells_of_them(roles: Roles) -> None:
    def list_foreign() -> list[Finding]:
        with roles.engine(OWNER).connect() as connection:
            found = roles.open_log().diagnose(connection)
        return [f for f in found if f.what == "table-foreign"]

    roles.run(APPLICATION, f"{TABLE} PARTITION BY RANGE (id)")
    assert list_foreign() == []
    assert register(roles, SHAPE, 1) == ""
    roles.run(APPLICATION, "CREATE TABLE lair.part PARTITION OF lair.box DEFAULT")
    whole, part = list_foreign()
    assert (whole.where, part.where) == ("lair.box", "lair.part")
    assert f"belongs to {roles.names[APPLICATION]}" in whole.message
    for finding in (whole, part):
        roles.superuser(finding.hint.partition(";")[0])
    assert list_foreign() == []


READ = "SELECT oplog.oplog_read_written('{}'::regclass, '{{id}}', '{{7}}', '{{id}}')"


@traps
def test_a_guarded_table_of_another_owner(roles: Roles, trap: str) -> None:
    """Its owner is none that could become the owner of the log."""
    application = roles.names[APPLICATION]
    roles.superuser(
        f"ALTER TABLE public.account OWNER TO {application}",
        f"GRANT CREATE ON SCHEMA public TO {application}",
    )
    set_trap(roles, trap, "public.account")
    write = "INSERT INTO public.account (id, owner, balance) VALUES (7, 'x', 1)"
    assert "the owner of the log does not read" in call(roles, write, READ.format("public.account"))
    assert not was_sprung(roles)


def test_a_domain_of_another_owner(roles: Roles) -> None:
    """A key of a domain is looked up by the domain's base type: its CHECK is not the owner's."""
    roles.run(
        APPLICATION,
        "CREATE DOMAIN lair.number AS integer",
        "CREATE DOMAIN lair.longer AS lair.number",
    )
    roles.run(
        OWNER,
        "CREATE TABLE public.numbered (id lair.longer PRIMARY KEY)",
        "SELECT oplog.oplog_track_table('public.numbered', NULL)",
        f"GRANT SELECT, INSERT ON public.numbered TO {roles.names[APPLICATION]}",
    )
    roles.run(APPLICATION, "ALTER DOMAIN lair.number ADD CHECK (lair.spy())")
    with roles.engine(APPLICATION).connect() as connection:
        connection.exec_driver_sql("INSERT INTO public.numbered VALUES (7)")
        found = connection.exec_driver_sql(READ.format("public.numbered")).scalars().all()
    assert found == [("1", "{7}")]
    assert not was_sprung(roles)
