"""Types and keys that roles register: what is stored is what the catalog of the database says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from oplog.payload.shape import Shape
from oplog.schema.tables import create_statements
from tests.models.bank import Account
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


@pytest.fixture(scope="module")
def definition() -> list[str]:
    return create_statements()


@pytest.fixture
def roles(bare_database_url: URL, definition: list[str]) -> Iterator[Roles]:
    with open_roles(bare_database_url, definition) as roles:
        with roles.open_sessions().begin() as session:
            session.add(Account(id=1, owner="ada", balance=1))
        yield roles


def read_shape(roles: Roles) -> dict[str, Any]:
    (shape,) = roles.ask("SELECT shape FROM oplog.oplog_type WHERE type_name = 'account'")
    found: dict[str, Any] = shape
    return found


def register(
    roles: Roles,
    shape: object,
    *,
    role: str = APPLICATION,
    type_name: str | None = "account",
    revision: int | None = 2,
    descriptor: bytes | None = b"",
) -> bool:
    with roles.engine(role).begin() as connection:
        done = connection.exec_driver_sql(
            "SELECT oplog.oplog_register_type(%s, %s, %s::jsonb, %b)",
            (type_name, revision, None if shape is None else json.dumps(shape), descriptor),
        )
        return bool(done.scalar_one())


def refuse(roles: Roles, shape: object, **more: Any) -> str:
    """The message and the hint of the refusal that this must meet."""
    before = roles.ask("SELECT (t.*)::text FROM oplog.oplog_type t")
    with pytest.raises(DBAPIError) as refused:
        register(roles, shape, **more)
    found: Any = refused.value.orig
    assert found.sqlstate == "22023"
    assert "oplog types sync" in found.diag.message_hint
    assert roles.ask("SELECT (t.*)::text FROM oplog.oplog_type t") == before
    return str(found.diag.message_primary)


def column(shape: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in shape["columns"] if c["name"] == name)
    return found


def alter(which: str, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda shape: column(shape, which).update(changes)


def forget(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda shape: shape["columns"].remove(column(shape, name))


ALTERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    # How an honest shape is changed, and what is said of it.
    "a field less": (lambda s: s.pop("excluded"), "fields of one"),
    "a field more": (lambda s: s.update(more=1), "fields of one"),
    "columns as text": (lambda s: s.update(columns="x"), "another type"),
    "no columns": (lambda s: s.update(columns=[]), "same name"),
    "a table as a number": (lambda s: s.update(table=1), "another type"),
    "a reason as a number": (lambda s: s.update(excluded={"x": 1}), "another type"),
    "a column as a text": (lambda s: s["columns"].append("x"), "another type"),
    "a field of a column less": (lambda s: s["columns"][0].pop("kind"), "fields of one"),
    "a field of a column more": (alter("owner", more=1), "fields of one"),
    "a name as a number": (alter("owner", name=7), "another type"),
    "a number as text": (alter("owner", number="7"), "another type"),
    "a number with a fraction": (alter("owner", number=1.5), "another type"),
    "no number": (alter("owner", number=0), "another type"),
    "a huge number": (alter("owner", number=10**30), "another type"),
    "a number far ahead": (alter("owner", number=5000), "too many out"),
    "a reserved number": (alter("owner", number=19_000), "reserved"),
    "an unknown kind": (alter("owner", kind="blob"), "another type"),
    "a key as text": (alter("id", primary_key="yes"), "another type"),
    "one number twice": (alter("owner", number=1), "same name"),
    "one field twice": (alter("owner", field="id"), "same name"),
    "one field twice in JSON": (alter("owner", field="id_"), "no derived message"),
    "a field that is no name": (alter("owner", field="a b"), "no derived message"),
    "a long field": (alter("owner", field="f" * 300), "another type"),
    "one column twice": (lambda s: s["columns"].append(s["columns"][0]), "same name"),
    "a column that is not there": (alter("owner", name="nothing"), "column nothing"),
    "another type": (alter("owner", pg_type="bigint"), "column owner"),
    "another length": (alter("owner", pg_type="character varying(3)"), "column owner"),
    "a type that is not there": (alter("owner", pg_type="nothing"), "column owner"),
    "an enum": (alter("owner", category="E"), "column owner"),
    "another key": (alter("owner", primary_key=True), "column owner"),
    "a key less": (alter("id", primary_key=False), "column id"),
    "a missing key": (forget("id"), "column id"),
    "a table that is not there": (lambda s: s.update(table="nothing"), "not in the database"),
    "a schema that is not there": (lambda s: s.update(schema="nothing"), "not in the database"),
    "a view": (lambda s: s.update(table="pg_views", schema="pg_catalog"), "not in the database"),
    "a table of the system": (
        lambda s: s.update(table="pg_class", schema="pg_catalog"),
        "may not write",
    ),
    "another table": (lambda s: s.update(table="order_line"), "column"),
}


@pytest.mark.parametrize(("change", "why"), ALTERED.values(), ids=ALTERED.keys())
def test_what_is_no_shape_of_the_table_is_refused(
    roles: Roles, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    shape = copy.deepcopy(read_shape(roles))
    change(shape)
    assert why in refuse(roles, shape)


@pytest.mark.parametrize("shape", [None, [], 1, "x", {}])
def test_what_is_no_object_is_refused(roles: Roles, shape: object) -> None:
    refuse(roles, shape)


def test_other_arguments(roles: Roles) -> None:
    shape = read_shape(roles)
    refuse(roles, shape, type_name=None)
    refuse(roles, shape, type_name="")
    refuse(roles, shape, type_name="x" * 513)
    refuse(roles, shape, descriptor=None)
    refuse(roles, shape, descriptor=b"x" * (4 * 1024 * 1024 + 1))
    refuse(roles, {**shape, "aggregate": "x" * (1024 * 1024)})
    for revision in (None, 0, -1, 3, 2**31 - 1):
        refuse(roles, shape, revision=revision)


def test_a_type_is_of_one_table(roles: Roles) -> None:
    """A role that may write both cannot make readers take one for the other."""
    shape = read_shape(roles)
    roles.run(OWNER, "CREATE TABLE account_2 (LIKE account INCLUDING ALL)")
    roles.run(OWNER, f"GRANT INSERT ON account_2 TO {roles.names[APPLICATION]}")
    assert "still there" in refuse(roles, {**shape, "table": "account_2"})
    roles.run(OWNER, "DROP TABLE account CASCADE")
    assert "not retired" in refuse(roles, {**shape, "table": "account_2"}, revision=2)
    roles.run(OWNER, "SELECT oplog.oplog_retire_missing()")
    assert register(roles, {**shape, "table": "account_2"}, revision=2)


def test_who_may_register(roles: Roles) -> None:
    shape = {**read_shape(roles), "aggregate": "other/{id}"}
    for role in (WORKER, AUDITOR, CONSUMER, STRANGER):
        with pytest.raises(DBAPIError, match="permission denied"):
            register(roles, shape, role=role)
    roles.run(OWNER, f"REVOKE ALL ON account FROM {roles.names[APPLICATION]}")
    assert "may not write" in refuse(roles, shape)
    # Some of the columns are enough, and so is what the role has that it has become.
    for revision, right in enumerate(("UPDATE (owner)", "DELETE"), 2):
        roles.run(OWNER, f"GRANT {right} ON account TO {roles.names[APPLICATION]}")
        assert register(roles, shape, revision=revision)
        # Another process was first: what it stored stays, and the caller looks at it.
        assert not register(roles, {**shape, "aggregate": right}, revision=revision)
        roles.run(OWNER, f"REVOKE ALL ON account FROM {roles.names[APPLICATION]}")
    assert register(roles, shape, role=OWNER, revision=4)


def test_an_application_cannot_store_more_types_than_readers_can_hold(roles: Roles) -> None:
    """Whoever reads the log reads all its types."""
    shape = {**read_shape(roles), "aggregate": "other/{id}"}
    assert register(roles, shape, revision=2)
    roles.run(
        OWNER,
        "INSERT INTO oplog.oplog_type (type_name, revision, shape, descriptor, change) "
        "SELECT concat('filler', n), 1, t.shape, pg_catalog.convert_to("
        "repeat('x', 4 * 1024 * 1024), 'UTF8'), t.change FROM generate_series(1, 64) AS n, "
        "oplog.oplog_type t WHERE t.type_name = 'account' AND t.revision = 1",
    )
    another = {**shape, "aggregate": "another/{id}"}
    with pytest.raises(DBAPIError, match="the types of the log have 256 MiB already"):
        register(roles, another, revision=3)
    # What is stored already is no news, and the owner may go on.
    assert not register(roles, shape, revision=2)
    assert register(roles, another, role=OWNER, revision=3)


def test_a_descriptor_that_lies_is_not_used(roles: Roles) -> None:
    """An application's role may store one, and rows are written and read as before."""
    shape = read_shape(roles)
    assert register(roles, shape, descriptor=b"\xff" * 40)
    assert not register(roles, shape, descriptor=b"\xff" * 40)
    with roles.open_sessions().begin() as session:
        session.add(Account(id=2, owner="bob", balance=1))
        session.execute(sa.text("UPDATE account SET owner = 'eve' WHERE id = 1"))
    assert roles.verifies()
    assert roles.find_problems() == []
    (newest,) = roles.ask("SELECT max(revision) FROM oplog.oplog_type WHERE type_name = 'account'")
    assert newest == 2


def test_columns_are_where_the_catalog_has_them(roles: Roles) -> None:
    roles.run(OWNER, "ALTER TABLE account ADD COLUMN extra integer")
    with roles.open_sessions().begin() as session:
        session.add(Account(id=2, owner="bob", balance=1))
    (columns,) = roles.ask(
        "SELECT columns FROM oplog.oplog_type_numbers WHERE type_name = 'account' AND revision = 2"
    )
    rows = roles.ask(
        "SELECT attname || '/' || attnum FROM pg_attribute "
        "WHERE attrelid = 'account'::regclass AND attnum > 0"
    )
    assert {f"{name}/{number}" for name, number in columns.items()} == set(rows)


def test_types_that_are_spelled_without_their_schema(roles: Roles) -> None:
    """As a session with that schema on its search path spells them."""
    shape = read_shape(roles)
    roles.run(
        OWNER,
        "CREATE TYPE mood AS ENUM ('ok')",
        "CREATE DOMAIN short AS varchar(9)",
        "ALTER TABLE account ADD COLUMN m mood, ADD COLUMN n mood[], ADD COLUMN s short",
    )
    for number, (name, spelled, category) in enumerate(
        (("m", "mood", "E"), ("n", "public.mood[]", ""), ("s", "character varying(9)", "")), 50
    ):
        one = {**column(shape, "owner"), "name": name, "field": name, "number": number}
        shape["columns"].append({**one, "pg_type": spelled, "category": category})
    assert register(roles, shape)
    assert Shape.from_json("account", 2, shape=shape, descriptor=b"").message_class is not None


KEYS: dict[str, tuple[object, object]] = {
    "no id": (None, bytes(32)),
    "an empty id": ("", bytes(32)),
    "an id with a blank": ("a b", bytes(32)),
    "a long id": ("k" * 65, bytes(32)),
    "an id over two lines": ("k\nk", bytes(32)),
    "no check value": ("k", None),
    "a short check value": ("k", bytes(31)),
    "a long check value": ("k", bytes(33)),
}


@pytest.mark.parametrize(("key_id", "check"), KEYS.values(), ids=KEYS.keys())
def test_what_is_no_key_is_refused(roles: Roles, key_id: object, check: object) -> None:
    with roles.engine(APPLICATION).connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.exec_driver_sql("SELECT oplog.oplog_register_key(%s, %b)", (key_id, check))
    assert getattr(refused.value.orig, "sqlstate", None) == "22023"


def test_a_key_that_is_known_stays_as_it_is(roles: Roles) -> None:
    known = roles.ask("SELECT check_value FROM oplog.oplog_key")
    (key_id,) = roles.ask("SELECT key_id FROM oplog.oplog_key")
    with roles.engine(APPLICATION).begin() as connection:
        connection.exec_driver_sql("SELECT oplog.oplog_register_key(%s, %b)", (key_id, bytes(32)))
    assert roles.ask("SELECT check_value FROM oplog.oplog_key") == known
