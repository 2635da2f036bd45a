"""Who chooses a text beside a secret, and sees sizes, does not learn the secret from them.

The attack tries each next character of a token beside the characters that it knows: in one name
they stand as in the token, in the other in another order. Compressed together with the token, the
right one is shorter. Somebody who sees sizes is everybody who may SELECT, and the archive's store.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Oplog, TypeCatalog
from tests.logged import LoggedDatabase, open_logged, run
from tests.postgres.archived import dump_objects, open_memory
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

TOKEN = "sk_live_7f3a91c2"
KNOWN = "sk_live_"
ALPHABET = "0123456789abcdef"
GUESSED = 4
"""Characters that the control finds, one after another."""


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    token: Mapped[str]


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


Measure = Callable[[LoggedDatabase, list[str]], list[int]]
"""Stores each name beside the token, and gives the sizes that can be seen of it."""


def size_of_last(database: LoggedDatabase) -> int:
    """Of the newest record."""
    with database.engine.connect() as connection:
        size: int = connection.exec_driver_sql(
            "SELECT octet_length(data) FROM oplog.oplog_record ORDER BY position DESC LIMIT 1"
        ).scalar_one()
    return size


def add(database: LoggedDatabase, *rows: Base) -> int:
    """Rows of one transaction, the size of its record; then they are gone again."""
    with database.sessions.begin() as session:
        session.add_all(rows)
    size = size_of_last(database)
    with database.sessions.begin() as session:
        for row in rows:
            session.delete(row)
    return size


def captured(database: LoggedDatabase, names: list[str]) -> list[int]:
    return [add(database, Person(id=2000, name=name, token=TOKEN)) for name in names]


def beside_another_type(database: LoggedDatabase, names: list[str]) -> list[int]:
    """The text is in a row of another type, which has nothing secret."""
    return [
        add(database, Person(id=2000, name="", token=TOKEN), Note(id=2000, text=name))
        for name in names
    ]


def adopted(database: LoggedDatabase, names: list[str]) -> list[int]:
    sizes = []
    for name in names:
        run(
            database.engine,
            "DELETE FROM person",
            f"INSERT INTO person VALUES (2000, '{name}', '{TOKEN}')",
        )
        with database.engine.connect() as connection:
            database.log.adopt(connection, [Person], again=True)
        sizes.append(size_of_last(database))
    return sizes


def snapshotted(database: LoggedDatabase, names: list[str]) -> list[int]:
    """The chunk with the rows of the table."""
    sizes = []
    for name in names:
        with database.sessions.begin() as session:
            person = session.get(Person, 2000) or Person(id=2000, token=TOKEN)
            person.name = name
            session.add(person)
        archive = open_memory()
        database.log.snapshot(database.engine, archive, full=True)
        chunks = [o for o in dump_objects(archive).values() if o.startswith(b"oplogsnp")]
        sizes += [len(chunk) for chunk in chunks if b'"table":"person"' in chunk]
    return sizes


WAYS: dict[str, Measure] = {
    way.__name__: way for way in (captured, beside_another_type, adopted, snapshotted)
}


def open_people(engine: Engine, **catalog: Any) -> LoggedDatabase:
    return open_logged(engine, Base, **catalog)


def probe(known: str) -> list[tuple[str, str]]:
    """For each character a name with the right order, and one with another, of equal length."""
    return [
        (f"{ascii_letters * 5}{known}{ch}~!@#", f"{ascii_letters * 5}{known}~!@#{ch}")
        for ch in ALPHABET
    ]


def guess(database: LoggedDatabase, measure: Measure, known: str) -> list[str]:
    """The characters whose right order is shorter than the other by most."""
    pairs = probe(known)
    sizes = measure(database, [name for pair in pairs for name in pair])
    assert len(sizes) == 2 * len(pairs)
    gains = [sizes[2 * n + 1] - sizes[2 * n] for n in range(len(pairs))]
    return [ch for ch, gain in zip(ALPHABET, gains, strict=True) if gain == max(gains)]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_mark_sizes_tell_the_token(engine: Engine, way: str) -> None:
    """The control: the attack works where nothing is secret."""
    database = open_people(engine)
    known = KNOWN
    for place in range(len(KNOWN), len(KNOWN) + (GUESSED if way == "captured" else 1)):
        assert guess(database, WAYS[way], known) == [TOKEN[place]]
        known += TOKEN[place]


@pytest.mark.parametrize("way", WAYS)
def test_with_a_mark_sizes_do_not_depend_on_the_guess(engine: Engine, way: str) -> None:
    database = open_people(engine, secret=["person.token"])
    names = [name for pair in probe(KNOWN) for name in pair]
    assert len(set(WAYS[way](database, names))) == 1
    with engine.connect() as connection:
        assert database.log.verify(connection).ok
    assert_replays(database.log, engine)


def test_sizes_of_sealed_rows_are_those_of_their_class(engine: Engine) -> None:
    """Neither a longer token nor a longer name shows, within a class."""
    database = open_people(engine, secret=["person.token"])
    lengths = (0, 1, 50, 180, 200, 400, 5000, 5100)
    sizes = [add(database, Person(id=2000, name="n", token="t" * length)) for length in lengths]
    overhead = 24 + 32 + 5 + 16
    assert [size - overhead for size in sizes] == [256] * 4 + [256, 512, 5120, 5632]


def test_other_types_are_compressed_as_before(engine: Engine) -> None:
    database = open_people(engine, secret=["person.token"])
    assert add(database, Note(id=1, text="a" * 4000)) < 200


def test_a_process_without_the_mark_reads_what_is_padded(engine: Engine) -> None:
    """The mark is the writer's choice, and no part of the type."""
    database = open_people(engine, secret=["person.token"])
    with database.sessions.begin() as session:
        session.add(Person(id=2000, name="ada", token=TOKEN))
    other = Oplog(TypeCatalog.from_models(Base), keyring=database.log.keyring)
    with engine.connect() as connection:
        (entry,) = other.read(connection)
        assert entry.operations[0].fields["token"] == TOKEN
        assert {shape.revision for shape in other.list_types(connection).shapes} == {1}
        assert other.verify(connection).ok


def test_an_archive_of_padded_records_is_restored(engine: Engine, spare_engine: Engine) -> None:
    database = open_people(engine, secret=["person.token"])
    archive = open_memory()
    with database.sessions.begin() as session:
        session.add(Person(id=2000, name="ada", token=TOKEN))
    database.log.snapshot(engine, archive)
    with database.sessions.begin() as session:
        session.get_one(Person, 2000).token = TOKEN * 2
    database.log.sync(engine, archive)
    assert database.log.check(archive).ok
    Base.metadata.create_all(spare_engine)
    with spare_engine.connect() as connection:
        database.log.restore(archive, connection)
        assert connection.execute(sa.select(Person.token)).scalar() == TOKEN * 2
