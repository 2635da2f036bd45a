"""Test suites of applications, as they are written: rolled back, asynchronous, in parallel.

The fixtures are there by being installed. Where the checkout alone is on the path, as it may be
here, `-p oplog.testing.plugin` loads them; with both nothing is different.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from tests.postgres.plugin_suite import APPLICATION, ROOT, run_suite

pytestmark = pytest.mark.postgres

PLAIN = ("-p", "oplog.testing.plugin", "-p", "no:asyncio", "-p", "no:anyio")
ASYNCIO = (
    *("-p", "oplog.testing.plugin", "-p", "no:anyio", "-o", "asyncio_mode=auto"),
    *("-o", "asyncio_default_fixture_loop_scope=function"),
)

ASYNC_IMPORT = "from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker"
ROLLED_BACK = """
import pytest
import sqlalchemy as sa
from concurrent.futures import ThreadPoolExecutor
from sqlalchemy.orm import Session
import bank
from bank import Account, Base, Sessions
from oplog import carry_context, context
from oplog.errors import MissingMetadataError
from oplog.testing import assert_logged

@pytest.fixture
def opened(open_oplog):
    return open_oplog(Base, log=bank.log, sessions=Sessions, shared=True)

@pytest.fixture(autouse=True)
def connection(opened):
    with opened.rolled_back() as connection:
        yield connection

@pytest.fixture(autouse=True)
def acting():
    with context(actor="test"):
        yield

@pytest.mark.parametrize("again", range(3))
def test_commits_are_seen_and_rolled_back(connection, opened, again):
    bank.open_account(1)
    bank.rename(1, "Bo")
    assert_logged(bank.log, connection, Account, key=1, kind="update", metadata={"actor": "test"})
    assert [c.kind.name for c in bank.log.history(connection, Account, 1)] == ["CREATE", "UPDATE"]
    assert len(list(bank.log.read(connection))) == 2
    with opened.engine.connect() as other:
        assert other.scalar(sa.text("SELECT count(*) FROM account")) == 0

def test_an_error_of_the_application_rolls_back_its_part(connection):
    bank.open_account(1)
    with pytest.raises(sa.exc.IntegrityError):
        bank.open_account(1)
    bank.open_account(2)
    assert len(list(bank.log.read(connection))) == 2

def test_in_threads_of_a_client(connection):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(carry_context(bank.open_account), 1).result()
        with pytest.raises(MissingMetadataError):
            pool.submit(bank.open_account, 2).result()
    assert_logged(bank.log, connection, Account, key=1)

def test_nothing_written(connection):
    assert Sessions().scalars(sa.select(Account)).all() == []

def test_slipped(connection):
    # No session of the application, and a transaction that the guards let pass with a reason.
    connection.exec_driver_sql("SET LOCAL oplog.bypass = 'x'")
    connection.exec_driver_sql("INSERT INTO account VALUES (3, 'Eve')")

def test_slipped_by_another_session(connection):
    with Session(bind=connection, join_transaction_mode="create_savepoint") as past:
        past.add(Account(id=4, owner="Eve"))
        past.commit()

def test_tampered_with_on_purpose(opened):
    with opened.rolled_back(verify=False) as connection:
        connection.exec_driver_sql("INSERT INTO account VALUES (3, 'Eve')")
"""


def list_outcomes(output: str, word: str) -> list[str]:
    return sorted(set(re.findall(rf"^{word} \S+?::(\w+)", output, re.MULTILINE)))


def list_names(source: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE))


def tell(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_a_suite_that_rolls_everything_back(tmp_path: Path, server_url: URL) -> None:
    ended = run_suite(tmp_path, tell(server_url), *PLAIN, test_bank=ROLLED_BACK)
    assert ended.code == 1, ended.output
    # The bodies were right; the comparison before the rollback found what they did.
    assert set(list_outcomes(ended.output, "PASSED")) == list_names(ROLLED_BACK), ended.output
    assert list_outcomes(ended.output, "ERROR") == [
        "test_slipped",
        "test_slipped_by_another_session",
    ], ended.output
    assert "public.account id=3: the table has this row, the log has not" in ended.output
    assert "public.account id=4: the table has this row, the log has not" in ended.output


SHARED = """
import pytest
from bank import Account, Base
from oplog.testing import rolled_back

names = []

@pytest.mark.parametrize("commits", [False, False, True, True, False])
def test_shared(open_oplog, commits):
    opened = open_oplog(Base, shared=True)
    names.append(opened.engine.url.database)
    if commits:
        with opened.sessions.begin() as session:
            assert session.get(Account, 1) is None
            session.add(Account(id=1, owner="Ada"))
    else:
        with opened.rolled_back(), opened.sessions.begin() as session:
            assert session.get(Account, 1) is None
            session.add(Account(id=1, owner="Ada"))

def test_only_what_was_written_to_is_replaced():
    assert [names.index(name) for name in names] == [0, 0, 0, 3, 4]
"""


def test_a_shared_database_that_is_committed_to_is_replaced(
    tmp_path: Path, server_url: URL
) -> None:
    before = list_databases(server_url)
    ended = run_suite(tmp_path, tell(server_url), *PLAIN, test_bank=SHARED)
    assert ended.code == 0, ended.output
    assert list_databases(server_url) - before == set()


ASYNC = """
import pytest
import sqlalchemy as sa
from bank import Account, AsyncSessions, Base, log, open_account_async
from oplog import context
from oplog.testing import assert_logged

@pytest.fixture
def opened(open_oplog):
    return open_oplog(Base, log=log, sessions=AsyncSessions)

@pytest.fixture
async def connection(open_oplog):
    opened = open_oplog(Base, log=log, sessions=AsyncSessions, shared=True)
    async with opened.rolled_back_async() as connection:
        yield connection

@pytest.mark.parametrize("again", range(2))
async def test_a_database_of_its_own(opened, again):
    with context(actor="test"):
        await open_account_async(1)
    opened.assert_logged(Account, key=1, kind="create", metadata={"actor": "test"})

@pytest.mark.parametrize("again", range(3))
async def test_rolled_back(connection, again):
    with context(actor="test"):
        await open_account_async(1)
        await open_account_async(2)
    await connection.run_sync(lambda inside: assert_logged(log, inside, Account, key=2))
    found = await connection.stream(sa.select(Account.id).order_by(Account.id))
    assert [row.id async for row in found] == [1, 2]
    with pytest.raises(sa.exc.IntegrityError), context(actor="test"):
        await open_account_async(1)

async def test_slipped(connection):
    await connection.exec_driver_sql("INSERT INTO account VALUES (3, 'Eve')")

def test_given_back():
    assert AsyncSessions.kw.get("bind") is None
    assert "join_transaction_mode" not in AsyncSessions.kw
"""


def test_an_asynchronous_suite(tmp_path: Path, server_url: URL) -> None:
    ended = run_suite(tmp_path, tell(server_url), *ASYNCIO, test_bank=ASYNC)
    assert ended.code == 1, ended.output
    assert set(list_outcomes(ended.output, "PASSED")) == list_names(ASYNC), ended.output
    assert list_outcomes(ended.output, "ERROR") == ["test_slipped"], ended.output


ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

pytestmark = pytest.mark.anyio
"""


def test_an_asynchronous_suite_of_anyio(tmp_path: Path, server_url: URL) -> None:
    pytest.importorskip("anyio", reason="anyio comes with the extra `examples`")
    source = ASYNC + ANYIO
    ended = run_suite(tmp_path, tell(server_url), *PLAIN[:4], test_bank=source)
    assert ended.code == 1, ended.output
    assert set(list_outcomes(ended.output, "PASSED")) == list_names(ASYNC), ended.output
    assert list_outcomes(ended.output, "ERROR") == ["test_slipped"], ended.output


OWN = """
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
import oplog.migration
from bank import Account, Base, Sessions, log, open_account
from oplog import Keyring, context
from oplog.errors import ConfigurationError

made = []

def migrate(engine):
    made.append(engine.url.database)
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.create_oplog(version=1)
        Base.metadata.create_all(connection)
        operations.track_tables("account")

@pytest.mark.parametrize("again", range(3))
def test_with_the_applications_migrations(open_oplog, again):
    opened = open_oplog(log=log, sessions=Sessions, prepare=migrate)
    with context(actor="test"):
        open_account(1)
    opened.assert_logged(Account, key=1)
    assert len(made) == 1

def test_by_the_models_of_its_log(open_oplog):
    opened = open_oplog(log=log, sessions=Sessions)
    with context(actor="test"):
        open_account(1)
    opened.assert_logged(Account, key=1)

def test_its_log_is_still_attached():
    assert Sessions.kw["bind"] is None
    with Sessions() as session:
        log.annotate(session, actor="a")

def test_two_answers(open_oplog):
    with pytest.raises(ConfigurationError, match="another one is made of"):
        open_oplog(Base, log=log, keyring=Keyring.generate())
    with pytest.raises(ConfigurationError, match="what to log"):
        open_oplog()
"""


def test_an_applications_own_log_and_migrations(tmp_path: Path, server_url: URL) -> None:
    ended = run_suite(tmp_path, tell(server_url), *PLAIN, test_bank=OWN)
    assert ended.code == 0, ended.output


def test_workers_have_databases_of_their_own(tmp_path: Path, server_url: URL) -> None:
    before = list_databases(server_url)
    source = ROLLED_BACK.partition("def test_an_error_of")[0]
    ended = run_suite(
        tmp_path, tell(server_url), *PLAIN, "-n", "2", test_one=source, test_two=source
    )
    assert ended.code == 0, ended.output
    assert list_databases(server_url) - before == set()


def test_pytest_starts_without_the_package() -> None:
    """The module of the entry point imports nothing but pytest, and needs no rewriting."""
    script = (
        "import sys, pytest_oplog; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('oplog', 'sqlalchemy')]"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert "PYTEST_DONT_REWRITE" in (ROOT / "oplog/__init__.py").read_text("utf-8")


def test_the_wheel_has_what_its_entry_point_names(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as files:
        (points,) = [name for name in files.namelist() if name.endswith("/entry_points.txt")]
        assert "[pytest11]\noplog = pytest_oplog\n" in files.read(points).decode()
        assert "pytest_oplog.py" in files.namelist()


def test_an_application_without_asyncio_needs_no_greenlet(tmp_path: Path, server_url: URL) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['greenlet'] = None")
    source = SHARED.replace("from bank import", "from plain import")
    ended = run_suite(
        tmp_path,
        tell(server_url),
        *PLAIN,
        plain=APPLICATION.partition("Sessions = ")[0].replace(ASYNC_IMPORT, ""),
        test_bank=source,
    )
    assert ended.code == 0, ended.output


def list_databases(server_url: URL) -> set[str]:
    engine = sa.create_engine(server_url, poolclass=NullPool)
    with engine.connect() as connection:
        return set(
            connection.exec_driver_sql(
                "SELECT datname FROM pg_database WHERE datname ~ '^oplog_[0-9a-f]{16}$'"
            ).scalars()
        )
