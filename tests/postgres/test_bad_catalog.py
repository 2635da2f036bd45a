"""What cannot be logged is refused when it is declared, attached or first met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, NotCapturableError, OplogError, UnknownTypeError
from tests.models.bank import Account, Base

pytestmark = pytest.mark.postgres

BAD_CATALOGS: dict[str, tuple[type[OplogError], Callable[[], object]]] = {
    "exclude of an unknown column": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, exclude={"account.pasword": "secret"}),
    ),
    "exclude of an unknown table": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, exclude={"acount.owner": "secret"}),
    ),
    "exclude without a column": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, exclude={"account": "secret"}),
    ),
    "exclude of a key": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, exclude={"account.id": "secret"}),
    ),
    "untracked unknown table": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, untracked={"acount": "x"}),
    ),
    "template of an unknown table": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, aggregates={"acount": "x"}),
    ),
    "template with an unknown column": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, aggregates={"account": "a/{ident}"}),
    ),
    "template with an excluded column": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(
            Base, aggregates={"account": "a/{owner}"}, exclude={"account.owner": "x"}
        ),
    ),
    "template with a format": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, aggregates={"account": "a/{id:05}"}),
    ),
    "template with a lone brace": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, aggregates={"account": "a/{id"}),
    ),
    "empty template": (
        ConfigurationError,
        lambda: TypeCatalog.from_models(Base, aggregates={"account": ""}),
    ),
    "a column without a type": (
        NotCapturableError,
        lambda: TypeCatalog.from_models(with_column(sa.Column("thing"))),
    ),
    "an unmapped class": (
        NotCapturableError,
        lambda: TypeCatalog().find_types(object),
    ),
    "a mapped class of another catalog": (
        UnknownTypeError,
        lambda: TypeCatalog().find_types(Account),
    ),
}


def with_column(column: sa.Column[Any]) -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("thing", metadata, sa.Column("id", sa.Integer, primary_key=True), column)
    return metadata


@pytest.mark.parametrize(("error", "build"), BAD_CATALOGS.values(), ids=BAD_CATALOGS.keys())
def test_bad_catalogs(error: type[OplogError], build: Callable[[], object]) -> None:
    with pytest.raises(error) as caught:
        build()
    assert caught.value.hint


def test_a_table_without_a_key_is_refused_at_attach() -> None:
    metadata = sa.MetaData()
    sa.Table("note", metadata, sa.Column("text", sa.String))
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
    with pytest.raises(NotCapturableError, match="note") as caught:
        log.attach(sessionmaker())
    assert "untracked" in caught.value.hint


@pytest.mark.parametrize("column_type", [pg.MONEY, pg.REGCLASS])
def test_a_column_without_an_exact_form_is_refused_by_name(
    engine: Engine, column_type: type[sa.types.TypeEngine[Any]]
) -> None:
    metadata = with_column(sa.Column("price", column_type))
    metadata.create_all(engine)
    sessions = sessionmaker(engine)
    Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate()).attach(sessions)
    with (
        pytest.raises(NotCapturableError, match=r"thing\.price") as caught,
        sessions.begin() as session,
    ):
        session.execute(metadata.tables["thing"].insert().values(id=1))
    assert "exclude" in caught.value.hint
