"""Two tables that swapped their names, of which one has columns whose sizes must not be told."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.binding import bind_for_writing
from oplog.errors import SchemaChangedError
from oplog.reading.type_match import list_secret_types
from tests.logged import run, track

pytestmark = pytest.mark.postgres

SWAP = (
    "ALTER TABLE plain RENAME TO t",
    "ALTER TABLE hidden RENAME TO plain",
    "ALTER TABLE t RENAME TO hidden",
)


def open_log(engine: Engine, keyring: Keyring) -> tuple[sa.MetaData, Oplog, sessionmaker[Session]]:
    metadata = sa.MetaData()
    for name in ("plain", "hidden"):
        sa.Table(
            name, metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.Text)
        )
    catalog = TypeCatalog.from_models(metadata, secret={"hidden.a"})
    log, sessions = Oplog(catalog, keyring=keyring), sessionmaker(engine)
    log.attach(sessions)
    return metadata, log, sessions


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture
def swapped(engine: Engine, keyring: Keyring) -> tuple[sa.MetaData, Oplog, sessionmaker[Session]]:
    """A process from before the change, whose log has a row of each table."""
    run(
        engine, *(f"CREATE TABLE {n} (id integer PRIMARY KEY, a text)" for n in ("plain", "hidden"))
    )
    metadata, _, sessions = former = open_log(engine, keyring)
    track(engine, *metadata.tables.values())
    for number, table in enumerate(metadata.sorted_tables):
        with sessions.begin() as session:
            session.execute(table.insert().values(id=1, a=f"before {number}"))
    run(engine, *SWAP)
    with engine.connect() as connection:
        open_log(engine, keyring)[1].note_changes(connection)
    return former


@pytest.mark.usefixtures("swapped")
def test_each_table_is_logged_as_what_it_was(engine: Engine, keyring: Keyring) -> None:
    metadata, log, sessions = open_log(engine, keyring)
    with sessions.begin() as session:
        session.execute(metadata.tables["plain"].update().values(a="written by Core"))
    with engine.connect() as connection:
        assert log.verify(connection).ok
        binding = bind_for_writing(connection, log.catalog, store=log.store, keyring=keyring)
        shapes = log.store.list_types(connection)
    # What is called hidden now is logged as plain.
    assert binding.by_stored_name["plain"].live.name == "hidden"
    assert binding.secret_types == {"plain"}
    # The name of now counts too: whoever takes a snapshot may not have noted the change yet.
    assert list_secret_types(log.catalog, shapes) == {"hidden", "plain"}


def test_a_process_that_knows_the_names_of_before_is_asked_to_try_again(
    engine: Engine, swapped: tuple[sa.MetaData, Oplog, sessionmaker[Session]]
) -> None:
    metadata, log, sessions = swapped
    insert = metadata.tables["plain"].insert().values(id=2, a="after")
    with pytest.raises(SchemaChangedError), sessions.begin() as session:
        session.execute(insert)
    with sessions.begin() as session:
        session.execute(insert)
    with engine.connect() as connection:
        assert log.verify(connection).ok
        assert len(log.history(connection, metadata.tables["plain"], 2)) == 1
