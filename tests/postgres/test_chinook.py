"""A real database: Chinook's eleven tables, mapped as classes and loaded through a session.

Foreign keys, a self-reference, a composite key, money, timestamps, names in many languages.
The data is not part of the repository; where it is absent these tests are skipped.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String
from sqlalchemy.engine import URL, Connection, Engine, Row
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from oplog import Keyring, Oplog, TypeCatalog

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "chinook.sql.gz"
TABLES = 11

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no {'/'.join(DATA.parts[-3:])} beside this"),
]

Rows = Mapping[str, Sequence[Row[Any]]]


class Base(DeclarativeBase):
    type_annotation_map = {Decimal: sa.Numeric(10, 2), datetime: sa.DateTime()}  # noqa: RUF012


class Artist(Base):
    __tablename__ = "artist"
    artist_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(120))


class Album(Base):
    __tablename__ = "album"
    album_id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(160))
    artist_id: Mapped[int] = mapped_column(ForeignKey("artist.artist_id"))


class Genre(Base):
    __tablename__ = "genre"
    genre_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(120))


class MediaType(Base):
    __tablename__ = "media_type"
    media_type_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(120))


class Track(Base):
    __tablename__ = "track"
    track_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    album_id: Mapped[int | None] = mapped_column(ForeignKey("album.album_id"))
    media_type_id: Mapped[int] = mapped_column(ForeignKey("media_type.media_type_id"))
    genre_id: Mapped[int | None] = mapped_column(ForeignKey("genre.genre_id"))
    composer: Mapped[str | None] = mapped_column(String(220))
    milliseconds: Mapped[int]
    bytes: Mapped[int | None]
    unit_price: Mapped[Decimal]


class Person:
    """The columns that employees and customers share."""

    address: Mapped[str | None] = mapped_column(String(70))
    city: Mapped[str | None] = mapped_column(String(40))
    state: Mapped[str | None] = mapped_column(String(40))
    country: Mapped[str | None] = mapped_column(String(40))
    postal_code: Mapped[str | None] = mapped_column(String(10))
    phone: Mapped[str | None] = mapped_column(String(24))
    fax: Mapped[str | None] = mapped_column(String(24))


class Employee(Person, Base):
    __tablename__ = "employee"
    employee_id: Mapped[int] = mapped_column(primary_key=True)
    last_name: Mapped[str] = mapped_column(String(20))
    first_name: Mapped[str] = mapped_column(String(20))
    title: Mapped[str | None] = mapped_column(String(30))
    reports_to: Mapped[int | None] = mapped_column(ForeignKey("employee.employee_id"))
    birth_date: Mapped[datetime | None]
    hire_date: Mapped[datetime | None]
    email: Mapped[str | None] = mapped_column(String(60))
    manager: Mapped[Employee | None] = relationship(
        remote_side=[employee_id],
        # Two employees may swap places, which takes two statements.
        post_update=True,
    )


class Customer(Person, Base):
    __tablename__ = "customer"
    customer_id: Mapped[int] = mapped_column(primary_key=True)
    first_name: Mapped[str] = mapped_column(String(40))
    last_name: Mapped[str] = mapped_column(String(20))
    company: Mapped[str | None] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(60))
    support_rep_id: Mapped[int | None] = mapped_column(ForeignKey("employee.employee_id"))


class Invoice(Base):
    __tablename__ = "invoice"
    invoice_id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.customer_id"))
    invoice_date: Mapped[datetime]
    billing_address: Mapped[str | None] = mapped_column(String(70))
    billing_city: Mapped[str | None] = mapped_column(String(40))
    billing_state: Mapped[str | None] = mapped_column(String(40))
    billing_country: Mapped[str | None] = mapped_column(String(40))
    billing_postal_code: Mapped[str | None] = mapped_column(String(10))
    total: Mapped[Decimal]
    lines: Mapped[list[InvoiceLine]] = relationship(cascade="all, delete-orphan")


class InvoiceLine(Base):
    __tablename__ = "invoice_line"
    invoice_line_id: Mapped[int] = mapped_column(primary_key=True)
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoice.invoice_id"))
    track_id: Mapped[int] = mapped_column(ForeignKey("track.track_id"))
    unit_price: Mapped[Decimal]
    quantity: Mapped[int]


class Playlist(Base):
    __tablename__ = "playlist"
    playlist_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(120))
    tracks: Mapped[list[Track]] = relationship(secondary="playlist_track", viewonly=True)


class PlaylistTrack(Base):
    __tablename__ = "playlist_track"
    playlist_id: Mapped[int] = mapped_column(ForeignKey("playlist.playlist_id"), primary_key=True)
    track_id: Mapped[int] = mapped_column(ForeignKey("track.track_id"), primary_key=True)


AGGREGATES = {
    "invoice_line": "invoice/{invoice_id}",
    "playlist_track": "playlist/{playlist_id}",
    "genre": "reference data",
    "media_type": "reference data",
}


@pytest.fixture
def rows(bare_database_url: URL) -> Iterator[Rows]:
    """What the script makes of an empty database, table by table."""
    script = gzip.decompress(DATA.read_bytes()).decode()
    # Up to here it makes a database of its own and goes there.
    _, _, script = script.partition("\\c chinook_serial;")
    engine = sa.create_engine(bare_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})
        yield {t.name: read_rows(connection, t) for t in Base.metadata.sorted_tables}
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


@pytest.fixture
def log(sessions: sessionmaker[Session]) -> Oplog:
    catalog = TypeCatalog.from_models(Base, aggregates=AGGREGATES)
    log = Oplog(catalog, keyring=Keyring.generate())
    log.attach(sessions)
    return log


def read_rows(connection: Connection, table: sa.Table) -> Sequence[Row[Any]]:
    return connection.execute(sa.select(table).order_by(*table.primary_key)).all()


def load(log: Oplog, sessions: sessionmaker[Session], rows: Rows) -> None:
    """Invoices one by one as they were written, everything else table by table."""
    singly = {Invoice.__tablename__, InvoiceLine.__tablename__}
    classes = {mapper.local_table: mapper.class_ for mapper in Base.registry.mappers}
    for table in Base.metadata.sorted_tables:
        if table.name not in singly:
            with sessions.begin() as session:
                log.annotate(session, actor="import", table=table.name)
                session.add_all(classes[table](**row._mapping) for row in rows[table.name])
    by_invoice = sorted(rows["invoice_line"], key=lambda line: line.invoice_id)
    lines = {key: list(group) for key, group in groupby(by_invoice, lambda line: line.invoice_id)}
    for row in rows["invoice"]:
        with sessions.begin() as session:
            log.annotate(session, actor=f"customer {row.customer_id}")
            invoice = Invoice(**row._mapping)
            invoice.lines = [InvoiceLine(**line._mapping) for line in lines[row.invoice_id]]
            session.add(invoice)


def assert_replay_equals(log: Oplog, engine: Engine, expected: Rows) -> None:
    """Verified clean; live and rebuilt rows, read back in plain SQL, are the expected ones."""
    with engine.connect() as connection:
        verdict = log.verify(connection)
    assert verdict.ok, verdict.differences
    with engine.begin() as connection:
        report = log.replay(connection, into="rebuilt")
        for table in Base.metadata.sorted_tables:
            copy = table.to_metadata(sa.MetaData(), schema="rebuilt")
            assert read_rows(connection, table) == expected[table.name]
            assert read_rows(connection, copy) == expected[table.name]
    assert report.rows == sum(len(found) for found in expected.values())


def test_a_real_database_loads_and_comes_back(
    log: Oplog, sessions: sessionmaker[Session], engine: Engine, rows: Rows
) -> None:
    assert len(rows) == TABLES
    assert all(rows.values())
    load(log, sessions, rows)
    assert_replay_equals(log, engine, rows)

    with engine.connect() as connection:
        (change,) = log.history(connection, Employee, 2)
        invoice = list(log.read(connection, aggregate="invoice/1"))
    assert change.fields["reports_to"] == 1
    assert change.metadata == {"actor": ["import"], "table": ["employee"]}
    count = sum(line.invoice_id == 1 for line in rows["invoice_line"])
    assert [len(entry.operations) for entry in invoice] == [1 + count]


def test_what_happens_to_it_afterwards_comes_back_too(
    log: Oplog, sessions: sessionmaker[Session], engine: Engine, rows: Rows
) -> None:
    load(log, sessions, rows)
    with sessions.begin() as session:
        log.annotate(session, actor="the board")
        boss, second = session.get_one(Employee, 1), session.get_one(Employee, 2)
        boss.manager, second.manager = second, None
        boss.fax = None
        # Rows with a composite key, and rows that a cascade of the mapper's removes.
        for track in session.scalars(sa.select(PlaylistTrack).filter_by(playlist_id=5)):
            session.delete(track)
        session.flush()
        session.delete(session.get_one(Playlist, 5))
        session.delete(session.get_one(Invoice, 7))
    with sessions.begin() as session:
        for song in session.scalars(sa.select(Track).filter_by(genre_id=2)):
            # Multiplied by the database: what is logged is what it stored, rounded to cents.
            song.unit_price = Track.unit_price * Decimal("1.07")
        session.execute(sa.update(Album).where(Album.album_id == 9).values(title="Ærø — «ÿ»"))
    with engine.connect() as connection:
        now = {t.name: read_rows(connection, t) for t in Base.metadata.sorted_tables}
    assert len(now["playlist_track"]) < len(rows["playlist_track"])
    assert now["track"] != rows["track"]
    assert_replay_equals(log, engine, now)
    with engine.connect() as connection:
        changes = log.history(connection, Employee, 1)
    assert changes[-1].fields == {"reports_to": 2, "fax": None}
    assert changes[-1].metadata == {"actor": ["the board"]}
