"""Searchable columns: an index over sealed values, which finds what a scan finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, InvalidMetadataError
from oplog.reading.reader import RecordReader
from tests.logged import LoggedDatabase, open_logged
from tests.postgres.archived import open_memory, publish, reopen
from tests.postgres.pruned import open_plain

pytestmark = pytest.mark.postgres

EMAILS = ("ann@example.org", "bob@example.org", None, "")


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None]
    credit: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    note: Mapped[str | None]


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None]


SEARCHABLE = ["person.email", "person.credit"]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, Base, guarded=True, seed="", searchable=SEARCHABLE)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    positions: list[int] = []
    true_decode = RecordReader.decode

    def count(reader: RecordReader, stored: Any, **options: Any) -> Any:
        positions.append(stored.position)
        return true_decode(reader, stored, **options)

    monkeypatch.setattr(RecordReader, "decode", count)
    return positions


def write(db: LoggedDatabase, chance: random.Random, count: int) -> None:
    for _ in range(count):
        with db.sessions.begin() as session:
            db.log.annotate(session, actor=chance.choice(["ann", "bob"]))
            for _ in range(chance.randint(1, 3)):
                number = chance.randint(1, 5)
                person = session.get(Person, number)
                email = chance.choice(EMAILS)
                if person is None:
                    session.add(Person(id=number, email=email, credit=Decimal("1.50")))
                elif chance.random() < 0.2:
                    session.delete(person)
                elif chance.random() < 0.3:
                    person.note = str(chance.random())
                else:
                    person.email = email
                session.flush()
            session.add(Other(email=chance.choice(EMAILS)))


def collect(log: Oplog, connection: Any, **options: Any) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = log.search(connection, cursor=cursor, **options)
        found += page
        cursor = page.cursor
        if cursor is None:
            return found


def count_tokens(db: LoggedDatabase) -> list[int]:
    """How many tokens each record has, in the order of positions."""
    with open_plain(db.engine).connect() as connection:
        return list(
            connection.exec_driver_sql(
                "SELECT (SELECT count(*) FROM generate_series(1, cardinality(metadata), 2) n "
                "WHERE metadata[n] = 'oplog.search') FROM oplog.oplog_record ORDER BY position"
            ).scalars()
        )


@pytest.mark.parametrize("before", [0, 8])
def test_the_index_finds_what_a_scan_finds(
    db: LoggedDatabase, opened: list[int], before: int
) -> None:
    """Also what was logged before there was an index, and with the keys of before."""
    chance = random.Random(11)
    if before:
        plain = TypeCatalog.from_models(Base)
        older = Oplog(plain, keyring=db.log.keyring)
        sessions = sessionmaker(db.engine)
        older.attach(sessions)
        write(LoggedDatabase(db.engine, older, sessions), chance, before)
        older.detach(sessions)
        assert set(count_tokens(db)) == {0}
    write(db, chance, 8)
    assert db.log.keyring is not None
    db.log.keyring.rotate()
    write(db, chance, 8)
    archive = open_memory()
    publish(db.log, db.engine, reopen(archive))
    write(db, chance, 4)
    with open_plain(db.engine).connect() as connection:
        for email in (*EMAILS, "nobody@example.org"):
            asked: dict[str, Any] = {"type": Person, "column": "email", "to": email}
            opened.clear()
            scanned = list(db.log.search(connection, index=False, limit=1000, **asked))
            every = len(opened)
            opened.clear()
            assert list(db.log.search(connection, limit=1000, **asked)) == scanned
            assert len(opened) < every
            for limits in ({"limit": 1}, {"limit": 2, "scan_limit": 2}):
                assert collect(db.log, connection, **limits, **asked) == scanned
            some = {**asked, "actor": "ann"}
            assert collect(db.log, connection, limit=2, **some) == [
                one for one in scanned if one.metadata["actor"] == ["ann"]
            ]
            for place in (connection, None):
                opened.clear()
                found = collect(db.log, place, limit=3, archive=reopen(archive), **asked)
                last = max(one.position for one in found) if found else 0
                expected = [one for one in scanned if place is not None or one.position <= last]
                assert [one.position for one in found] == [one.position for one in expected]
            opened.clear()
            db.log.search(None, limit=1000, archive=reopen(archive), **asked)
            assert len(opened) < every


def test_only_records_with_the_value_are_opened(db: LoggedDatabase, opened: list[int]) -> None:
    for number in range(1, 31):
        with db.sessions.begin() as session:
            session.add(Person(id=number, email=f"p{number}@example.org", credit=Decimal(number)))
    with open_plain(db.engine).connect() as connection:
        (one,) = db.log.search(connection, type=Person, column="email", to="p7@example.org")
        assert one.key == {"id": 7}
        assert len(opened) == 1
        opened.clear()
        (one,) = db.log.search(connection, type=Person, column="credit", to=Decimal("7.000"))
        assert (one.key, len(opened)) == ({"id": 7}, 1)
        opened.clear()
        assert db.log.search(connection, type=Person, column="email", to="p77") == []
        assert opened == []
        found = db.log.search(connection, type=Other, column="email", to="p7@example.org")
        assert (found, len(opened)) == ([], 30)


def test_records_with_many_values_are_opened(db: LoggedDatabase, opened: list[int]) -> None:
    with db.sessions.begin() as session:
        session.add_all(Person(id=n, email=f"p{n}", credit=None) for n in range(1, 200))
    with db.sessions.begin() as session:
        session.execute(sa.update(Person).where(Person.id < 100).values(email="all"))
    with db.sessions.begin() as session:
        session.execute(sa.insert(Person), [{"id": n, "email": "e"} for n in range(300, 2000)])
    with db.sessions.begin() as session:
        # So many rows are kept as columns, whose values are read while they are sealed.
        session.execute(sa.text("UPDATE person SET email = 'sql' || id WHERE id >= 300"))
    with db.sessions.begin() as session:
        session.get_one(Person, 2).email = "last"
    assert max(count_tokens(db)) <= 66
    with open_plain(db.engine).connect() as connection:
        for email, count in (("p150", 1), ("all", 99), ("e", 1700), ("sql300", 1), ("last", 1)):
            asked: dict[str, Any] = {"type": Person, "column": "email", "to": email, "limit": 5000}
            assert len(db.log.search(connection, **asked)) == count
            assert db.log.search(connection, index=False, **asked) == db.log.search(
                connection, **asked
            )


def test_adopted_rows_are_found(db: LoggedDatabase) -> None:
    db.execute(
        "ALTER TABLE person DISABLE TRIGGER ALL; "
        "INSERT INTO person (id, email) SELECT n, 'p' || n FROM generate_series(1, 50) n; "
        "ALTER TABLE person ENABLE TRIGGER ALL"
    )
    with db.engine.connect() as connection:
        db.log.adopt(connection, [Person])
    assert db.log.keyring is not None
    with open_plain(db.engine).connect() as connection:
        (one,) = db.log.search(connection, type=Person, column="email", to="p7")
        assert (one.key, one.metadata["adopted"]) == ({"id": 7}, ["person"])


def test_a_restored_log_has_its_index(
    db: LoggedDatabase, spare_engine: Engine, opened: list[int]
) -> None:
    for number in range(1, 6):
        with db.sessions.begin() as session:
            session.add(Person(id=number, email=f"p{number}"))
    archive = open_memory()
    publish(db.log, db.engine, reopen(archive))
    Base.metadata.create_all(spare_engine)
    with open_plain(spare_engine).connect() as connection:
        db.log.restore(reopen(archive), connection)
    with open_plain(spare_engine).connect() as connection:
        opened.clear()
        (one,) = db.log.search(connection, type=Person, column="email", to="p3")
        assert (one.key, len(opened)) == ({"id": 3}, 1)


def test_tokens_are_not_metadata(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="ann")
        session.add(Person(id=1, email="ann@example.org"))
    with db.engine.connect() as connection:
        (entry,) = db.log.read(connection)
        assert entry.metadata == {"actor": ["ann"]}
        (change,) = db.log.history(connection, Person, 1)
        assert change.metadata == {"actor": ["ann"]}
        with pytest.raises(InvalidMetadataError, match="own"):
            db.log.read(connection, metadata={"oplog.search": "x"})
    # Of the columns, and of the values: email and credit were written.
    assert count_tokens(db) == [4]
    with db.sessions() as session, pytest.raises(InvalidMetadataError, match="own"):
        db.log.annotate(session, **{"oplog.search": "x"})
    db.assert_replays()


def test_tokens_say_nothing_without_the_key(engine: Engine, db: LoggedDatabase) -> None:
    def read_tokens() -> Iterator[set[str]]:
        with open_plain(engine).connect() as connection:
            for (metadata,) in connection.exec_driver_sql(
                "SELECT metadata FROM oplog.oplog_record ORDER BY position"
            ):
                yield set(metadata[1::2])

    assert db.log.keyring is not None
    for number, email in ((1, "a"), (2, "a"), (3, "b")):
        with db.sessions.begin() as session:
            session.add(Person(id=number, email=email, credit=Decimal(number)))
    first, same, other = read_tokens()
    # Of the two columns, and of the equal value.
    assert len(first & same) == 3
    assert len(first & other) == 2
    db.log.keyring.rotate()
    with db.sessions.begin() as session:
        session.add(Person(id=4, email="a", credit=Decimal(1)))
    *_, rotated = read_tokens()
    assert first.isdisjoint(rotated)


def test_a_cursor_is_one_of_the_same_search(db: LoggedDatabase) -> None:
    for number in (1, 2):
        with db.sessions.begin() as session:
            session.add(Person(id=number, email="a"))
    asked: dict[str, Any] = {"type": Person, "column": "email", "to": "a", "limit": 1}
    with open_plain(db.engine).connect() as connection:
        page = db.log.search(connection, **asked)
        assert page.cursor is not None
        assert page.cursor.startswith("i1:")
        with pytest.raises(ConfigurationError, match="by an index"):
            db.log.search(connection, index=False, cursor=page.cursor, **asked)


class Labelled(DeclarativeBase):
    pass


class Mood(Labelled):
    __tablename__ = "mood"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(sa.Enum("good", "bad", name="word"))


@pytest.mark.parametrize(
    ("models", "searchable", "says"),
    [
        (Base, ["person.no"], "not logged"),
        (Base, ["nothing.email"], "not a table"),
        (Labelled, ["mood.word"], "may be renamed"),
    ],
)
def test_what_cannot_be_indexed_is_refused(models: Any, searchable: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        TypeCatalog.from_models(models, searchable=searchable)
    assert TypeCatalog.from_models(Base, searchable=SEARCHABLE).types["person"].searchable == {
        "email",
        "credit",
    }


def test_a_log_in_plaintext_scans(engine: Engine) -> None:
    db = open_logged(engine, Base, seed=None, searchable=SEARCHABLE)
    db.log.detach(db.sessions)
    plain = Oplog(db.log.catalog, plaintext=True)
    plain.attach(db.sessions)
    with db.sessions.begin() as session:
        session.add(Person(id=1, email="a"))
    assert count_tokens(db) == [0]
    with open_plain(engine).connect() as connection:
        assert len(plain.search(connection, type=Person, column="email", to="a")) == 1
    assert isinstance(db.log.keyring, Keyring)
