"""The fixtures for applications, in a pytest of their own, as an application runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"]
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
class Base(DeclarativeBase):
    pass
class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
class Token(Base):
    __tablename__ = "token"
    __table_args__ = {"schema": "hot"}
    id: Mapped[int] = mapped_column(primary_key=True)
Sessions = sessionmaker()
"""
TESTS = """
import pytest
import sqlalchemy as sa
from models import Account, Base, Sessions, Token
from oplog.errors import UnloggedWriteError

@pytest.fixture
def opened(open_oplog):
    return open_oplog(Base, untracked={"hot.token": "short-lived"})

def unattached(opened, statement):
    # A program of its own: another engine.
    engine = sa.create_engine(opened.engine.url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)

def test_logged(opened):
    with opened.sessions.begin() as session:
        session.add(Account(id=1, owner="Ada"))
        session.add(Token(id=1))
        session.execute(sa.text("INSERT INTO account VALUES (2, 'Bo')"))
    opened.assert_logged(Account, key=2, kind="create", fields={"owner": "Bo"})

def test_each_test_has_its_own_database(opened):
    with opened.sessions() as session:
        assert session.scalars(sa.select(Account)).all() == []

def test_strict(opened):
    assert opened.log._log.writer._strict

def test_guarded(opened):
    with pytest.raises(sa.exc.DBAPIError, match="does not log them"):
        unattached(opened, "INSERT INTO account VALUES (3, 'Eve')")

def test_slipped(opened):
    unattached(opened, "SET LOCAL oplog.bypass = 'x'; INSERT INTO account VALUES (3, 'Eve')")

def test_slipped_on_purpose(open_oplog):
    opened = open_oplog(Base, untracked={"hot.token": "short-lived"}, verify=False)
    unattached(opened, "SET LOCAL oplog.bypass = 'x'; INSERT INTO account VALUES (3, 'Eve')")

def test_own_sessions(open_oplog):
    opened = open_oplog(Base, untracked={"hot.token": "short-lived"}, sessions=Sessions)
    assert opened.sessions is Sessions
    with Sessions.begin() as session:
        session.add(Account(id=1, owner="Ada"))
    opened.assert_logged(Account, key=1)

def test_tables_of_all_tenants(open_oplog):
    opened = open_oplog(Base, untracked={"hot.token": "short-lived"}, schemas=["t1", "t2"])
    for tenant in ("t1", "t2"):
        with opened.sessions.begin() as session:
            session.execute(sa.text(f"SET LOCAL search_path = {tenant}"))
            session.add(Account(id=1, owner=tenant))
    opened.assert_logged("t2.account", key=1, fields={"owner": "t2"})

def test_own_sessions_are_given_back():
    assert Sessions.kw["bind"] is None

def test_engine_alone(oplog_engine):
    with oplog_engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar() == 0
"""


def run_pytest(directory: Path, conftest: str, **environment: str) -> str:
    (directory / "models.py").write_text(MODELS)
    (directory / "conftest.py").write_text(conftest)
    (directory / "test_application.py").write_text(TESTS)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("OPLOG_", "PYTEST_"))}
    done = subprocess.run(
        [*PYTEST, "-W", "error", "-rA", "-q"],
        cwd=directory,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def check_outcome(told: str) -> None:
    passed = set(re.findall(r"^PASSED \S+::(\w+)", told, re.MULTILINE))
    # The body of that test was right, what it did was not: pytest calls it an error.
    assert passed == set(re.findall(r"^def (test_\w+)", TESTS, re.MULTILINE))
    assert re.findall(r"^ERROR \S+::(\w+)", told, re.MULTILINE) == ["test_slipped"], told
    assert "public.account id=3: the table has this row, the log has not: id=3, owner='Eve'" in told


def test_as_a_plugin_on_a_given_server(tmp_path: Path, server_url: URL) -> None:
    before = list_databases(server_url)
    shown = server_url.render_as_string(hide_password=False)
    conftest = 'pytest_plugins = ["oplog.testing.plugin"]'
    check_outcome(run_pytest(tmp_path, conftest, OPLOG_TEST_DATABASE_URL=shown))
    assert list_databases(server_url) - before == set()


def test_by_import_on_an_embedded_server(tmp_path: Path) -> None:
    check_outcome(run_pytest(tmp_path, "from oplog.testing.plugin import *"))


def list_databases(server_url: URL) -> set[str]:
    engine = sa.create_engine(server_url, poolclass=NullPool)
    with engine.connect() as connection:
        return set(
            connection.exec_driver_sql(
                "SELECT datname FROM pg_database WHERE datname ~ '^oplog_[0-9a-f]{16}$'"
            ).scalars()
        )


def test_the_package_does_not_need_pytest() -> None:
    script = "import sys; sys.modules['pytest'] = None; import oplog.testing, oplog.cli"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
