"""A primary and a hot standby of it, and waiting until the one shows what the other did.

Needs `pg_basebackup` beside the server's programs: tests that use it skip without. Nothing
here judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from oplog.testing import EmbeddedServer
from oplog.testing.binaries import find_binaries
from tests.support import administer

_CAUGHT_UP = sa.text("SELECT pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn), pg_sleep(0.002)")


@dataclass(frozen=True)
class Pair:
    """Two servers; engines keep no connections, so that both may be killed."""

    primary: EmbeddedServer
    standby: EmbeddedServer
    primary_engine: Engine
    standby_engine: Engine

    def catch_up(self) -> None:
        """Wait until the standby shows everything that the primary has done by now."""
        with self.primary_engine.connect() as connection:
            lsn = connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn()::text").scalar()
        with _autocommit(self.standby_engine) as connection:
            for _ in range(10_000):
                if connection.execute(_CAUGHT_UP, {"lsn": lsn}).one()[0]:
                    return
        raise AssertionError(f"the standby never replayed {lsn}")

    def cut(self) -> None:
        """From here on the standby receives nothing of what the primary does."""
        url = make_url(self.standby.url)
        administer(url, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        with _autocommit(self.standby_engine) as connection:
            for _ in range(10_000):
                receivers = connection.exec_driver_sql(
                    "SELECT count(*), pg_sleep(0.002) FROM pg_stat_wal_receiver"
                ).one()
                if receivers[0] == 0:
                    return
        raise AssertionError("the standby went on receiving")

    def promote(self) -> None:
        """Make the standby a primary of its own, on a new timeline."""
        with _autocommit(self.standby_engine) as connection:
            assert connection.exec_driver_sql("SELECT pg_promote()").scalar() is True


def require_basebackup() -> None:
    """Skip the test where the server's programs come without the one that copies it."""
    program = find_binaries() / "pg_basebackup"
    if not program.is_file():
        pytest.skip(f"no pg_basebackup beside the server: {program}")


@contextmanager
def open_pair() -> Iterator[Pair]:
    """A primary with nothing in it and its standby; both are gone afterwards."""
    require_basebackup()
    with EmbeddedServer() as primary, EmbeddedServer(standby_of=primary) as standby:
        engines = [sa.create_engine(s.url, poolclass=NullPool) for s in (primary, standby)]
        yield Pair(primary, standby, *engines)


@contextmanager
def _autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
