"""A small application with tests of its own, written to a directory and run by pytest there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", "-rA"]
APPLICATION = '''
"""An application that commits by itself, with a log of its own."""
from oplog import Keyring, Oplog, TypeCatalog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]


Sessions = sessionmaker()
AsyncSessions = async_sessionmaker(expire_on_commit=False)
log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate(), require=("actor",))
log.attach(Sessions)


def open_account(key):
    with Sessions.begin() as session:
        session.add(Account(id=key, owner="Ada"))


def rename(key, owner):
    with Sessions() as session:
        session.get_one(Account, key).owner = owner
        session.commit()


async def open_account_async(key):
    async with AsyncSessions.begin() as session:
        session.add(Account(id=key, owner="Ada"))
'''


@dataclass(frozen=True)
class Ended:
    """A run of pytest."""

    code: int
    output: str


def run_suite(directory: Path, server: str, *arguments: str, **files: str) -> Ended:
    """Run pytest on files of a directory, by their names without `.py`; warnings are errors."""
    for name, text in {"bank": APPLICATION, **files}.items():
        (directory / f"{name}.py").write_text(text)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("OPLOG_", "PYTEST_"))}
    done = subprocess.run(
        [*PYTEST, *arguments],
        cwd=directory,
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
            "OPLOG_TEST_DATABASE_URL": server,
        },
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout)
