"""A real history: 1,759 commits in as many transactions, and an oracle for each of them.

The data is not part of the repository; where it is absent these tests are skipped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from oplog import Keyring, Oplog, OpType, TypeCatalog

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "alembic-history.jsonl.gz"
REPLAYS = 20

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no {'/'.join(DATA.parts[-3:])} beside this"),
]


class Base(DeclarativeBase):
    pass


class TrackedFile(Base):
    __tablename__ = "file"
    path: Mapped[str] = mapped_column(primary_key=True)
    blob: Mapped[str]
    size: Mapped[int]
    mode: Mapped[str]


def read_commits() -> list[dict[str, Any]]:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_commit(session: Session, changes: Sequence[Sequence[Any]]) -> None:
    touched = [path for kind, path, *_ in changes if kind != "A"]
    found = session.scalars(sa.select(TrackedFile).where(TrackedFile.path.in_(touched)))
    files = {file.path: file for file in found}
    for kind, path, blob, size, mode in changes:
        if kind == "A":
            session.add(TrackedFile(path=path, blob=blob, size=size, mode=mode))
        elif kind == "D":
            session.delete(files[path])
        else:
            file = files[path]
            file.blob, file.size, file.mode = blob, size, mode


def digest_files(connection: Connection, schema: str) -> str:
    table = Base.metadata.tables["file"].to_metadata(sa.MetaData(), schema=schema)
    rows = connection.execute(sa.select(table.c.path, table.c.mode, table.c.blob)).all()
    digest = hashlib.sha256()
    for path, mode, blob in sorted(rows, key=lambda row: row.path.encode()):
        digest.update(f"{mode} {blob} {path}\n".encode())
    return digest.hexdigest()


def map_positions(log: Oplog, connection: Connection) -> Mapping[str, int]:
    """The last position of each commit, known by its metadata."""
    return {entry.metadata["commit"][0]: entry.position for entry in log.read(connection)}


def test_every_chosen_commit_comes_back_as_git_had_it(engine: Engine) -> None:
    history = read_commits()
    assert len(history) == 1759
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
    log.attach(sessions)
    for commit in history:
        with sessions.begin() as session:
            log.annotate(session, commit=commit["commit"], time=commit["time"])
            write_commit(session, commit["changes"])

    with engine.connect() as connection:
        positions = map_positions(log, connection)
        check_entries(log, connection, history)
    assert positions.keys() == {commit["commit"] for commit in history}

    seed = random.randrange(10**9)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with any failure below
    trees = {commit["commit"]: commit["tree"] for commit in history}
    chosen = random.Random(seed).sample(sorted(positions), REPLAYS)
    with engine.begin() as connection:
        for name in chosen:
            log.replay(connection, into="then", through=positions[name])
            assert digest_files(connection, "then") == trees[name], f"commit {name}, seed {seed}"
        log.replay(connection, into="then")
        assert digest_files(connection, "then") == history[-1]["tree"]
    with engine.connect() as connection:
        assert digest_files(connection, "public") == history[-1]["tree"]
    with engine.connect() as connection:
        verdict = log.verify(connection)
    assert verdict.ok, verdict.differences


def check_entries(log: Oplog, connection: Connection, history: list[dict[str, Any]]) -> None:
    """The log says what happened: kind and path of each change, commit after commit."""
    letters = {OpType.CREATE: "A", OpType.UPDATE: "M", OpType.DELETE: "D"}
    logged = []
    for _, group in groupby(log.read(connection), key=attrgetter("position")):
        entries = list(group)
        operations = [operation for entry in entries for operation in entry.operations]
        changes = sorted((o.key["path"], letters[o.kind]) for o in operations)
        logged.append((entries[0].metadata["commit"], changes))
    assert logged == [
        ([commit["commit"]], sorted((path, kind) for kind, path, *_ in commit["changes"]))
        for commit in history
    ]
