"""A disk that is full: nothing half-written, nothing acknowledged is lost, and it goes on.

The disks are small memory file systems, which only root may mount; a file of ballast fills one
to the last byte, whenever the test says so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Outcome, Receipt
from oplog.errors import CommitOutcomeUnknownError
from oplog.testing import EmbeddedServer
from tests.logged import LoggedDatabase, open_logged
from tests.support import install_log

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

DISK_FULL = "53100"


class Base(DeclarativeBase):
    pass


class Picture(Base):
    __tablename__ = "picture"
    id: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class SmallDisk:
    """A mounted file system that can be filled and freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave not a single block."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as full:
                    assert full.strerror == "No space left on device"  # noqa: PT017
        assert shutil.disk_usage(self.path).free == 0

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with mount_small_disk() as disk:
        yield disk


@contextmanager
def mount_small_disk(*, megabytes: int = 64) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system, on Linux")
    # Not below pytest's own directory, which the server's account may not enter.
    path = Path(tempfile.mkdtemp(prefix="oplog-disk-"))
    path.chmod(0o755)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        try:
            yield SmallDisk(path)
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
    finally:
        path.rmdir()


def open_pictures(engine: Engine) -> LoggedDatabase:
    with engine.begin() as connection:
        install_log(connection)
    return open_logged(engine, Base, guarded=True)


def make_picture(number: int, *, kilobytes: int = 100) -> Picture:
    # Nothing that could be compressed: it has to take its place on the disk.
    return Picture(id=number, data=os.urandom(kilobytes * 1024))


def assert_whole(db: LoggedDatabase, *, rows: int) -> None:
    assert db.count("picture") == rows
    assert len(db.read()) == rows
    db.assert_replays()


@pytest.mark.parametrize("full", ["picture", "oplog.oplog_record_p0"])
def test_full_of_data(disk: SmallDisk, full: str) -> None:
    """What is refused is the flush, or COMMIT with the entry; it is certain and leaves nothing."""
    with EmbeddedServer() as server:
        place = disk.path / "space"
        place.mkdir(mode=0o700)
        shutil.copystat(server.directory / "data", place)
        owner = (server.directory / "data").stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        db = open_pictures(create_engine(server.url))
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"CREATE TABLESPACE small LOCATION '{place}'")
            connection.exec_driver_sql(f"ALTER TABLE {full} SET TABLESPACE small")
        with db.sessions.begin() as session:
            session.add(make_picture(1))
        disk.fill()
        for kilobytes in (2000, 100):
            session = db.sessions()
            session.add(make_picture(2, kilobytes=kilobytes))
            with pytest.raises(OperationalError) as refused:
                session.commit()
            session.close()
            assert getattr(refused.value.orig, "sqlstate", None) == DISK_FULL
            assert refused.value.connection_invalidated is False
            assert_whole(db, rows=1)
            db.assert_pool_is_clean()
        disk.free()
        with db.sessions.begin() as session:
            session.add(make_picture(2))
        assert_whole(db, rows=2)
        db.engine.dispose()


# -- the write-ahead log ------------------------------------------------------------------------

QUIET = {
    # COMMIT itself has to be what meets the full disk, not a process in the background.
    "wal_buffers": "16MB",
    "wal_writer_delay": "10s",
    "checkpoint_timeout": "1h",
    "min_wal_size": "32MB",
    "max_wal_size": "32MB",
    "restart_after_crash": "off",
}


def move_wal(server: EmbeddedServer, disk: SmallDisk) -> None:
    """Put the write-ahead log on the small disk."""
    wal, place = server.directory / "data" / "pg_wal", disk.path / "pg_wal"
    owner = wal.stat()
    server.kill9()
    shutil.copytree(wal, place)
    for path in (place, *place.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    shutil.rmtree(wal)
    wal.symlink_to(place)
    server.restart()


def write_until_lost(db: LoggedDatabase, acknowledged: list[Receipt]) -> CommitOutcomeUnknownError:
    for number in range(1, 1000):
        session = db.sessions()
        session.add(make_picture(number, kilobytes=500))
        try:
            session.commit()
        except CommitOutcomeUnknownError as lost:
            session.close()
            return lost
        acknowledged += db.log.receipts(session)
        session.close()
    raise AssertionError("the disk never was full")


async def write_until_lost_async(
    db: LoggedDatabase, acknowledged: list[Receipt]
) -> CommitOutcomeUnknownError:
    engine = create_async_engine(db.engine.url)
    sessions = async_sessionmaker(engine)
    db.log.attach(sessions)
    try:
        for number in range(1, 1000):
            session = sessions()
            session.add(make_picture(number, kilobytes=500))
            try:
                await session.commit()
            except CommitOutcomeUnknownError as lost:
                await session.close()
                return lost
            acknowledged += db.log.receipts(session)
            await session.close()
    finally:
        await engine.dispose()
    raise AssertionError("the disk never was full")


@pytest.mark.parametrize("way", ["together with COMMIT", "before COMMIT"])
def test_full_of_write_ahead_log(disk: SmallDisk, way: str) -> None:
    """The server dies of it in COMMIT, and what it says last is not whether it committed."""
    with EmbeddedServer(settings=QUIET) as server:
        db = open_pictures(create_engine(server.url))
        move_wal(server, disk)
        db.engine.dispose()
        disk.fill()
        acknowledged: list[Receipt] = []
        if way == "before COMMIT":
            lost = asyncio.run(write_until_lost_async(db, acknowledged))
            # An SQLSTATE, and yet it decides nothing: the connection is dead.
            assert getattr(lost.__cause__, "sqlstate", None) == DISK_FULL
        else:
            lost = write_until_lost(db, acknowledged)
        assert "No space left on device" in (server.directory / "log").read_text()
        assert len(acknowledged) > 0
        with pytest.raises(OperationalError):  # no server, no answer
            db.log.resolve(lost, db.engine)
        disk.free()
        db.engine.dispose()
        server.restart()
        outcome = db.log.resolve(lost, db.engine)
        entries = {entry.entry_id: entry for entry in db.read()}
        for receipt in acknowledged:
            assert entries.pop(receipt.entry_id).entry_hash == receipt.entry_hash
        # And at most the one whose answer was lost, exactly if the log says so.
        assert lost.receipt is not None
        expected = {lost.receipt.entry_id} if outcome is Outcome.COMMITTED else set()
        assert set(entries) == expected
        assert outcome in (Outcome.COMMITTED, Outcome.ABORTED)
        assert_whole(db, rows=len(acknowledged) + len(expected))
        with db.sessions.begin() as session:
            session.add(make_picture(1001))
        assert_whole(db, rows=len(acknowledged) + len(expected) + 1)
        db.engine.dispose()
