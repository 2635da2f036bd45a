"""A disk that is full: nothing half-written, nothing acknowledged is lost, and it goes on.

The disks are small memory file systems, which only root may mount; a file of ballast fills one
to the last byte, whenever the test says so.
"""

from __future__ import annotations

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
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


@pytest.mark.parametrize("full", ["picture", "oplog.oplog_entry"])
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
