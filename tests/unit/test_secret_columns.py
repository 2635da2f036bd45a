"""Columns marked secret: names are checked when they are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from oplog import TypeCatalog
from oplog._proto.oplog.v1 import archive_pb2
from oplog.errors import ConfigurationError

pytestmark = pytest.mark.unit

METADATA = sa.MetaData()
PERSON = sa.Table(
    "person",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.String),
    sa.Column("length", sa.Integer, sa.Computed("length(token)")),
)
OTHER = sa.Table("person", METADATA, sa.Column("id", sa.Integer, primary_key=True), schema="other")


def declare(**options: Any) -> TypeCatalog:
    return TypeCatalog.from_models(METADATA, **options)


def test_nothing_is_secret_unless_it_is_said() -> None:
    catalog = declare()
    assert catalog.secret_types == frozenset()
    assert all(declared.secret == frozenset() for declared in catalog.types.values())


@pytest.mark.parametrize("names", [["person.token"], ("person.token",), {"person.token"}])
def test_a_column_is_marked(names: Any) -> None:
    catalog = declare(secret=names)
    assert catalog.secret_types == {"person"}
    assert catalog.types["person"].secret == {"token"}
    assert catalog.narrow(["person"]).secret_types == {"person"}
    assert catalog.narrow(["other.person"]).secret_types == frozenset()


def test_a_key_may_be_secret_where_no_name_has_it() -> None:
    catalog = declare(secret=["other.person.id"], aggregates={"other.person": "everybody"})
    assert catalog.types["other.person"].secret == {"id"}


BAD: dict[str, tuple[Callable[[], object], str, str]] = {
    "an unknown table": (
        lambda: declare(secret=["pers.token"]),
        "'pers' is not a table of the models",
        "write 'table.column'",
    ),
    "no table": (
        lambda: declare(secret=["token"]),
        "'' is not a table of the models",
        "write 'table.column'",
    ),
    "an unknown column": (
        lambda: declare(secret=["person.tokn"]),
        "secret names person.tokn, which is not logged",
        "its logged columns are id, token",
    ),
    "an excluded column": (
        lambda: declare(secret=["person.token"], exclude={"person.token": "never logged"}),
        "secret names person.token, which is not logged",
        "its logged columns are id",
    ),
    "a computed column": (
        lambda: declare(secret=["person.length"]),
        "secret names person.length, which is not logged",
        "its logged columns",
    ),
    "a column of the aggregate's name": (
        lambda: declare(secret=["person.id"]),
        r"person.id, which is in the name of the row's aggregate \('person/\{id\}'\)",
        "aggregates=",
    ),
    "a text": (
        lambda: declare(secret="person.token"),
        "secret is the text 'person.token', not a list",
        r"secret=\['person.token'\]",
    ),
}


@pytest.mark.parametrize(("build", "why", "hint"), BAD.values(), ids=BAD.keys())
def test_names_are_checked(build: Callable[[], object], why: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        build()
    assert refused.match(hint)


def test_a_registered_type_keeps_what_is_secret_and_adds_to_it() -> None:
    table = sa.Table(
        "pair",
        sa.MetaData(),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.String),
    )
    options: dict[str, Any] = {"message": archive_pb2.MetadataPair, "aggregate": "pairs"}
    catalog = TypeCatalog.from_models(table.metadata, secret=["pair.value"])
    with pytest.raises(ConfigurationError, match=r"pair.nothing, which is not logged"):
        catalog.register("pair", table, secret=["nothing"], **options)
    catalog = TypeCatalog.from_models(table.metadata, secret=["pair.value"])
    catalog.register("Pair", table, **options)
    assert catalog.types["Pair"].secret == {"value"}
    catalog.register("Pair", table, secret=["key"], **options)
    assert catalog.types["Pair"].secret == {"key", "value"}
    with pytest.raises(ConfigurationError, match="secret is the text 'key'"):
        catalog.register("Pair", table, secret="key", **options)
