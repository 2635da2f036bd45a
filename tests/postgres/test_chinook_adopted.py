"""A real database that was there before the log: adopted, then lived in for 2,000 transactions."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, OpType, TypeCatalog
from tests.postgres.test_chinook import (
    AGGREGATES,
    DATA,
    Album,
    Artist,
    Base,
    Customer,
    Employee,
    Invoice,
    InvoiceLine,
    Playlist,
    PlaylistTrack,
    Track,
    assert_replay_equals,
    read_rows,
)
from tests.support import assert_replays, install_log

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no {'/'.join(DATA.parts[-3:])} beside this"),
]

TRANSACTIONS = 2000
FIRST_NEW = 100_000


@pytest.fixture
def engine(bare_database_url: URL) -> Iterator[Engine]:
    """The database as its own script makes it, and the log's tables."""
    _, _, script = gzip.decompress(DATA.read_bytes()).decode().partition("\\c chinook_serial;")
    engine = sa.create_engine(bare_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(script, execution_options={"no_parameters": True})
        install_log(connection)
    yield engine
    engine.dispose()


class Life:
    """What people do with a music shop, at random but the same each time."""

    def __init__(self, *, seed: int) -> None:
        self.random = random.Random(seed)
        self.fresh = FIRST_NEW
        self.deeds: list[Callable[[Session], None]] = [
            self.buy,
            self.buy,
            self.refund,
            self.move_house,
            self.reprice,
            self.shuffle,
            self.release,
            self.promote,
            self.forget,
        ]

    def live(self, session: Session) -> None:
        for _ in range(self.random.randint(1, 3)):
            self.random.choice(self.deeds)(session)
            if self.random.random() < 0.3:
                session.flush()
        if self.random.random() < 0.2:
            # Thought better of: whatever happens in there did not.
            savepoint = session.begin_nested()
            self.move_house(session)
            session.flush()
            savepoint.rollback()

    def pick(self, session: Session, model: type[Base]) -> Base | None:
        """One row, or none: as likely one that is there from the start as a new one."""
        column = sa.inspect(model).primary_key[0]
        start = self.random.choice([0, FIRST_NEW]) + self.random.randint(
            1, self.random.choice([8, 60, 3000])
        )
        return session.scalars(
            sa.select(model)
            .where(column >= start)
            .order_by(*sa.inspect(model).primary_key)
            .limit(1)
        ).first()

    def draw_id(self) -> int:
        self.fresh += 1
        return self.fresh

    def buy(self, session: Session) -> None:
        customer, track = self.pick(session, Customer), self.pick(session, Track)
        if isinstance(customer, Customer) and isinstance(track, Track):
            invoice = Invoice(
                invoice_id=self.draw_id(),
                customer_id=customer.customer_id,
                invoice_date=datetime(2024, 1, self.random.randint(1, 28), 12, 30),
                billing_city=customer.city,
                total=Decimal("0.99"),
            )
            invoice.lines = [
                InvoiceLine(
                    invoice_line_id=self.draw_id(),
                    track_id=track.track_id,
                    unit_price=track.unit_price,
                    quantity=1,
                )
                for _ in range(self.random.randint(1, 4))
            ]
            session.add(invoice)

    def refund(self, session: Session) -> None:
        invoice = self.pick(session, Invoice)
        if isinstance(invoice, Invoice):
            if self.random.random() < 0.5:
                session.delete(invoice)
            else:
                invoice.lines = invoice.lines[1:]
                invoice.total = Decimal(len(invoice.lines))

    def move_house(self, session: Session) -> None:
        for model in (Customer, Employee):
            person = self.pick(session, model)
            if isinstance(person, Customer | Employee):
                person.city = self.random.choice(["Ærø", "", None, "São Paulo", "tab\there"])

    def reprice(self, session: Session) -> None:
        track = self.pick(session, Track)
        if isinstance(track, Track):
            # The database multiplies, and rounds to cents.
            track.unit_price = Track.unit_price * Decimal("1.07")

    def shuffle(self, session: Session) -> None:
        playlist, track = self.pick(session, Playlist), self.pick(session, Track)
        if isinstance(playlist, Playlist) and isinstance(track, Track):
            key = (playlist.playlist_id, track.track_id)
            found = session.get(PlaylistTrack, key)
            if found is None:
                session.add(PlaylistTrack(playlist_id=key[0], track_id=key[1]))
            else:
                session.delete(found)

    def release(self, session: Session) -> None:
        artist = Artist(artist_id=self.draw_id(), name=f"artist {self.fresh}")
        session.add(artist)
        session.flush()
        session.add(Album(album_id=self.draw_id(), title="«ÿ»", artist_id=artist.artist_id))

    def promote(self, session: Session) -> None:
        one, other = (self.pick(session, Employee) for _ in range(2))
        if isinstance(one, Employee) and isinstance(other, Employee):
            one.manager, one.title = other, f"under {other.last_name}"

    def forget(self, session: Session) -> None:
        artist = self.pick(session, Artist)
        if isinstance(artist, Artist) and artist.artist_id > FIRST_NEW:
            albums = sa.select(Album).filter_by(artist_id=artist.artist_id)
            for album in session.scalars(albums):
                session.delete(album)
            session.flush()
            session.delete(artist)


def test_a_real_database_is_adopted_and_lived_in(engine: Engine) -> None:
    log = Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), keyring=Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    life = Life(seed=7)

    def live(done: int, expected: int) -> None:
        # People do not stop living while their database is adopted.
        for _ in range(2):
            with sessions.begin() as session:
                life.live(session)

    with engine.connect() as connection:
        report = log.adopt(connection, chunk_rows=1000, progress=live)
        assert log.verify(connection).ok
    assert report.rows > 15_000
    for number in range(TRANSACTIONS):
        with sessions.begin() as session:
            log.annotate(session, number=str(number))
            life.live(session)
    with engine.connect() as connection:
        now = {t.name: read_rows(connection, t) for t in Base.metadata.sorted_tables}
        changes = log.history(connection, Employee, 2)
    kinds = [(change.kind, "adopted" in change.metadata) for change in changes]
    assert (OpType.CREATE, True) in kinds[:3]
    assert kinds.count((OpType.UPDATE, False)) > 3
    assert_replay_equals(log, engine, now)
    assert_replays(log, engine)
