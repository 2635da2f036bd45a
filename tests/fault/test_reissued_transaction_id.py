"""After a crash the server gives a lost transaction's id to another: the resolver never asks it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from oplog import Keyring, Oplog, Outcome, TypeCatalog
from oplog.capture import transaction
from oplog.errors import CommitOutcomeUnknownError
from oplog.events import EntriesAppended, Event
from oplog.testing import EmbeddedServer
from tests.concurrency.workload import Base, Customer
from tests.support import assert_replays, install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

CRASHES = 3


def take_id(engine: Engine) -> int:
    """The id of a transaction that writes and commits."""
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES (1)")
        return int(connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar_one())


async def test_the_id_of_a_lost_transaction_is_given_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The server dies between the append and COMMIT.
    monkeypatch.setattr(transaction, "can_commit_at_once", lambda _: False)
    # What is not flushed is lost: nobody may flush it in the background.
    with EmbeddedServer(settings={"wal_writer_delay": "10s"}) as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            install_log(connection)
            Base.metadata.create_all(connection)
            connection.exec_driver_sql("CREATE TABLE note (id integer)")
        armed = False

        def crash(event: Event) -> None:
            if armed and isinstance(event, EntriesAppended):
                assert not event.committed
                server.kill9()

        log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate(), on_event=crash)
        asynchronous = create_async_engine(server.url)
        sessions = async_sessionmaker(asynchronous)
        log.attach(sessions)
        async with sessions.begin() as session:
            session.add(Customer(id=0, name="first"))
        for number in range(1, CRASHES + 1):
            armed = True
            session = sessions()
            session.add(Customer(id=number, name="lost"))
            await session.flush()
            lost_id = await session.scalar(sa.text("SELECT pg_current_xact_id()::text"))
            with pytest.raises(CommitOutcomeUnknownError) as lost:
                await session.commit()
            await session.close()
            armed = False
            await asynchronous.dispose()
            engine.dispose()
            server.restart()
            # Ids are given in order; a few before the lost one's may be free again as well.
            reissued = take_id(engine)
            assert reissued <= int(lost_id)
            while reissued < int(lost_id):
                reissued = take_id(engine)
            with engine.connect() as connection:
                told = connection.exec_driver_sql("SELECT pg_xact_status(%s::xid8)", (lost_id,))
                assert told.scalar() == "committed"
            assert log.resolve(lost.value, engine) is Outcome.ABORTED
            with engine.connect() as connection:
                assert [e.aggregate for e in log.read(connection)] == ["customer/0"]
            assert_replays(log, engine)
        engine.dispose()
        await asynchronous.dispose()
