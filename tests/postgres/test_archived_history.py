"""The same real history, archived while it was written: git's commits come back from the archive.

The data is not part of the repository; where it is absent this test is skipped.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Archive, Keyring, Oplog, TypeCatalog, open_archive
from tests.postgres.restored import empty_tables
from tests.postgres.test_alembic_history import (
    DATA,
    Base,
    digest_files,
    map_positions,
    read_commits,
    write_commit,
)

RESTORES = 5

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no {'/'.join(DATA.parts[-3:])} beside this"),
]


def write_history(log: Oplog, engine: Engine, archive: Archive) -> None:
    """Every commit in a transaction; published now and then, with a snapshot in the middle."""
    sessions = sessionmaker(engine)
    log.attach(sessions)
    for number, commit in enumerate(read_commits(), 1):
        with sessions.begin() as session:
            log.annotate(session, commit=commit["commit"], time=commit["time"])
            write_commit(session, commit["changes"])
        if number % 300 == 0:
            log.sync(engine, archive)
        if number in (600, 1200):
            assert log.snapshot(engine, archive).taken
    log.sync(engine, archive)


def restore_files(
    engine: Engine, log: Oplog, archive: Archive, *, through: int | None
) -> tuple[str, str]:
    """Restore into an empty database; the digest of its files, and the restore's own."""
    # Applications that know the database are refused while it is restored.
    fresh = sa.create_engine(engine.url, poolclass=sa.NullPool)
    with fresh.connect() as connection:
        report = log.restore(archive, connection, through=through)
    with fresh.connect() as connection:
        verdict = log.verify(connection)
        assert verdict.ok, verdict.differences
        return digest_files(connection, "public"), report.digest


def test_every_chosen_commit_comes_back_from_the_archive(
    engine: Engine, spare_engine: Engine, tmp_path: Path
) -> None:
    history = read_commits()
    for one in (engine, spare_engine):
        Base.metadata.create_all(one)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
    archive = open_archive((tmp_path / "archive").as_uri())
    write_history(log, engine, archive)
    with engine.connect() as connection:
        positions = map_positions(log, connection)
    assert positions.keys() == {commit["commit"] for commit in history}

    seed = random.randrange(10**9)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with any failure below
    trees = {commit["commit"]: commit["tree"] for commit in history}
    for name in random.Random(seed).sample(sorted(positions), RESTORES):
        # As another process: one that knows the archive's address and the keys.
        reader = open_archive(archive.url)
        found, digest = restore_files(spare_engine, log, reader, through=positions[name])
        assert found == trees[name], f"commit {name}, seed {seed}"
        with engine.connect() as connection:
            replayed = log.replay(connection, into="then", through=positions[name])
            connection.rollback()
        assert digest == replayed.digest, f"commit {name}, seed {seed}"
        empty_tables(spare_engine)
    found, _ = restore_files(spare_engine, log, open_archive(archive.url), through=None)
    assert found == history[-1]["tree"]
