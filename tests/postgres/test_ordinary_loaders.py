"""Drivers that an application has set up its own way: what they read is not what we take it for."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.adapt import Buffer, Loader
from psycopg.types.json import set_json_loads
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Keyring, Oplog, Outcome, TypeCatalog
from oplog.errors import ConfigurationError, NotCapturableError
from tests.logged import track
from tests.postgres.archived import open_memory

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sa.func.gen_random_uuid())
    name: Mapped[str]
    price: Mapped[Decimal | None]
    at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.clock_timestamp()
    )
    document: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    raw: Mapped[bytes | None]
    big: Mapped[int | None] = mapped_column(sa.BigInteger)
    done: Mapped[bool] = mapped_column(default=False)


class AsText(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


class AsFloat(Loader):
    def load(self, data: Buffer) -> float:
        return float(bytes(data))


class AsMemory(Loader):
    def load(self, data: Buffer) -> memoryview:
        return memoryview(bytes.fromhex(bytes(data)[2:].decode()))


def register(name: str, loader: type[Loader]) -> Callable[[Any], None]:
    return lambda raw: raw.adapters.register_loader(name, loader)


def read_decimals(raw: Any) -> None:
    set_json_loads(lambda data: json.loads(data, parse_float=Decimal), raw)


SETUPS: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None]] = {
    "client-side cursors": ({"cursor_factory": psycopg.ClientCursor}, None),
    "prepared at once": ({"prepare_threshold": 0}, None),
    "never prepared": ({"prepare_threshold": None}, None),
    "uuid as text": ({}, register("uuid", AsText)),
    "numeric as float": ({}, register("numeric", AsFloat)),
    "time as text": ({}, register("timestamptz", AsText)),
    "bytes as memory": ({}, register("bytea", AsMemory)),
    "numbers of documents as Decimal": ({}, read_decimals),
    "another encoding": ({"client_encoding": "latin1"}, None),
    "another time zone": ({"options": "-c timezone=Asia/Kolkata"}, None),
    "a name with quotes": ({"application_name": "o'x\"y"}, None),
}


class Program:
    """An engine that is set up its own way, attached to a log."""

    def __init__(self, engine: Engine, setup: str, *, guarded: bool) -> None:
        Base.metadata.create_all(engine)
        if guarded:
            track(engine, Base.metadata.tables["item"])
        arguments, prepare = SETUPS.get(setup, ({}, None))
        self.engine = sa.create_engine(engine.url, connect_args=arguments)
        if prepare is not None:
            sa.event.listen(self.engine, "connect", lambda raw, _: prepare(raw))
        self.log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
        self.sessions = sessionmaker(self.engine)
        self.log.attach(self.sessions)


def write(program: Program) -> None:
    with program.sessions.begin() as session:
        for n in range(3):
            price, document = Decimal("1.50"), {"x": 1.25, "n": [n]}
            item = Item(name=f"Zoë {n}", price=price, document=document, raw=b"\x00\xff", big=2**40)
            session.add(item)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "no guard"])
@pytest.mark.parametrize("setup", SETUPS)
def test_what_is_logged_is_what_is_stored(engine: Engine, setup: str, *, guarded: bool) -> None:
    program = Program(engine, setup, guarded=guarded)
    if setup == "uuid as text" and not guarded:
        # A key that the database makes: what text a loader gives for it is the application's.
        with pytest.raises(NotCapturableError, match="key column id"):
            write(program)
        program.engine.dispose()
        return
    write(program)
    if guarded:
        with program.sessions.begin() as session:
            session.execute(sa.text("UPDATE item SET name = name || '!', price = price * 1.1"))
        with program.sessions.begin() as session:
            session.execute(sa.update(Item).values(at=sa.func.now(), big=Item.big + 1))
    archive = open_memory()
    program.log.sync(program.engine, archive)
    own = [program.engine, engine]
    for one in own:
        with one.connect() as connection:
            assert program.log.verify(connection).ok
            assert len(list(program.log.read(connection))) == (9 if guarded else 3)
    with program.sessions.begin() as session:
        session.add(Item(name="last"))
        session.flush()
    (written,) = program.log.receipts(session)
    assert program.log.resolve(written, program.engine) is Outcome.COMMITTED
    for batch in program.log.subscribe(program.engine, name="x"):
        batch.commit()
    program.engine.dispose()


@pytest.mark.parametrize("name", ["bool", "int2", "int4", "int8"])
def test_what_the_log_itself_cannot_read_is_refused_first(engine: Engine, name: str) -> None:
    program = Program(engine, "", guarded=True)

    class Odd(Loader):
        def load(self, data: Buffer) -> list[bytes]:
            return [bytes(data)]

    sa.event.listen(
        program.engine, "connect", lambda raw, _: raw.adapters.register_loader(name, Odd)
    )
    with (
        pytest.raises(ConfigurationError, match=r"reads \w+ as list, by the loader .*Odd"),
        program.sessions.begin() as session,
    ):
        session.execute(sa.insert(Item).values(name="x"))
    with (
        program.engine.connect() as connection,
        pytest.raises(ConfigurationError, match="as list"),
    ):
        program.log.verify(connection)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Item)) == 0
    program.engine.dispose()
