"""An application in a directory of its own, and the command line run on it.

The application prints when it is imported, as some do: none of that may reach stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy.engine import URL

from oplog import Keyring
from oplog.cli import main

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60
NOISE = "noise from the application\n"

APPLICATION = '''
"""An application with a log."""
import os
from decimal import Decimal
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from oplog import Keyring, Oplog, TypeCatalog

print("noise from the application")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[Decimal] = mapped_column(sa.Numeric(12, 2))
    photo: Mapped[bytes | None]
    stars: Mapped[int | None] = mapped_column(sa.BigInteger)


class Line(Base):
    __tablename__ = "line"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    amount: Mapped[int]


log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.from_file("keyring.json"))


def make_log():
    return log
'''
WORKER = """
from oplog import Oplog, TypeCatalog

log = Oplog(TypeCatalog(), keyring=None, plaintext=True)
"""
TABLES = """
from shop import *
engine = sa.create_engine(os.environ["OPLOG_DATABASE_URL"])
Base.metadata.create_all(engine)
engine.dispose()
"""
WRITE = """
from shop import *
engine = sa.create_engine(os.environ["OPLOG_DATABASE_URL"])
Sessions = sessionmaker(engine)
log.attach(Sessions)
try:
    with Sessions.begin() as session:
        session.get(Account, 1).balance += 1
finally:
    engine.dispose()
"""
FILL = """
from shop import *
engine = sa.create_engine(os.environ["OPLOG_DATABASE_URL"])
Base.metadata.create_all(engine)
Sessions = sessionmaker(engine)
log.attach(Sessions)
with Sessions.begin() as session:
    log.annotate(session, actor="ann", reason=["import", "night"])
    session.add(Account(id=1, owner="Ann \\x1b[31m", balance=5, photo=bytes(20), stars=2**62))
    session.add(Account(id=2, owner="Bo", balance=7))
    session.add(Line(order_id=7, sku="a=b", amount=3))
with Sessions.begin() as session:
    log.annotate(session, actor="bob")
    session.get(Account, 1).balance += 1
with Sessions.begin() as session:
    session.delete(session.get(Account, 2))
engine.dispose()
"""


@dataclass(frozen=True)
class Shop:
    """The application's directory and its database."""

    directory: Path
    url: URL
    archive: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "OPLOG_APP": "shop:log",
            "OPLOG_ARCHIVE_URL": self.archive,
            "OPLOG_DATABASE_URL": self.url.render_as_string(hide_password=False),
        }

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """The real command, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "oplog", *arguments],
            cwd=self.directory,
            env=self.environment,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """What the real command prints on stdout and on stderr, after it ended with `code`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out, err

    def call(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """The same in this process, a second faster."""
        out, err = io.StringIO(), io.StringIO()
        with (
            self._at_home(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            ended = main(arguments)
        assert ended == code, err.getvalue()
        assert "Traceback" not in err.getvalue()
        return out.getvalue(), err.getvalue()

    def ask(self, *arguments: str, code: int = 0) -> Any:
        """The one JSON document that the command prints."""
        return json.loads(self.call(*arguments, "--json", code=code)[0])

    def fill(self) -> None:
        """Make the tables, and write three transactions of five entries."""
        with self._at_home(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(FILL, "fill.py", "exec"), {})

    def write(self) -> None:
        """One more transaction, of one entry."""
        with self._at_home(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(WRITE, "write.py", "exec"), {})

    def make_tables(self) -> None:
        """The tables without rows, as migrations leave them."""
        with self._at_home(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(TABLES, "tables.py", "exec"), {})

    def replace_keyring(self) -> None:
        """Lose the key."""
        path = self.directory / "keyring.json"
        path.unlink(missing_ok=True)
        Keyring.generate().save(path)

    def execute(self, *statements: str) -> None:
        """Work on the database behind everybody's back."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        path = [str(self.directory), *sys.path]
        with (
            contextlib.chdir(self.directory),
            mock.patch.dict(os.environ, self.environment),
            mock.patch.object(sys, "path", path),
        ):
            try:
                yield
            finally:
                sys.modules.pop("shop", None)
                sys.modules.pop("worker", None)


def open_shop(directory: Path, url: URL) -> Shop:
    """The application with a keyring, on a database that has the log's tables only."""
    (directory / "shop.py").write_text(APPLICATION)
    (directory / "worker.py").write_text(WORKER)
    shop = Shop(directory, url)
    shop.replace_keyring()
    return shop
