"""The Alembic environment that ships with the package, for applications that have none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import URL

import oplog.migration
from oplog.migration import migrations_path
from oplog.store import Store
from tests.postgres.log_schema import (
    Application,
    Described,
    describe,
    list_schemas,
    list_tables,
    run_script,
)

pytestmark = pytest.mark.postgres

ROOT = Path(oplog.migration.__file__).parents[2]


@pytest.fixture
def measure(database_url: URL) -> Described:
    return describe(database_url)


def own_config(**attributes: object) -> Config:
    return Config(migrations_path() / "alembic.ini", attributes=attributes)


def run_alembic(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "OPLOG_DATABASE_URL"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        capture_output=True,
        text=True,
    )


def show(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_own_environment_by_command_line(bare_database_url: URL, measure: Described) -> None:
    url = show(bare_database_url)
    ini = migrations_path() / "alembic.ini"
    # What is given on the command line wins over the environment.
    wrong = show(bare_database_url.set(database="nonexistent"))
    done = run_alembic("-c", ini, "-x", f"url={url}", "upgrade", "head", OPLOG_DATABASE_URL=wrong)
    assert done.returncode == 0, done.stderr
    assert "oplog_0001" in done.stderr
    assert describe(bare_database_url) == measure
    assert list_tables(bare_database_url) == {"oplog_alembic_version"}

    done = run_alembic("-c", ini, "downgrade", "base", OPLOG_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert "oplog" not in list_schemas(bare_database_url)


def test_own_environment_prints_without_a_database(
    bare_database_url: URL, measure: Described
) -> None:
    done = run_alembic("-c", migrations_path() / "alembic.ini", "upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    run_script(bare_database_url, done.stdout)
    assert describe(bare_database_url) == measure


def test_own_environment_says_that_it_was_told_no_database() -> None:
    done = run_alembic("-c", migrations_path() / "alembic.ini", "upgrade", "head")
    assert done.returncode != 0
    assert "OPLOG_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_own_environment_by_ini(
    bare_database_url: URL, measure: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPLOG_DATABASE_URL", raising=False)
    config = own_config()
    # A URL as other tools write it, which leaves the choice of the driver open.
    url = show(bare_database_url.set(drivername="postgresql")).replace("%", "%%")
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "head")
    assert describe(bare_database_url) == measure


def test_own_environment_in_a_transaction_of_the_caller(
    bare_database_url: URL, measure: Described
) -> None:
    engine = sa.create_engine(bare_database_url, poolclass=sa.NullPool)
    with engine.connect() as connection, connection.begin() as transaction:
        command.upgrade(own_config(connection=connection), "head")
        assert Store("oplog").read_version(connection) == 1
        transaction.rollback()
    assert "oplog" not in list_schemas(bare_database_url)
    with engine.begin() as connection:
        command.upgrade(own_config(connection=connection), "head")
    assert describe(bare_database_url) == measure


def test_own_environment_leaves_the_applications_version_alone(
    tmp_path: Path, bare_database_url: URL
) -> None:
    application = Application(tmp_path, bare_database_url)
    application.write(upgrade="pass").upgrade()
    with sa.create_engine(application.url, poolclass=sa.NullPool).begin() as connection:
        command.upgrade(own_config(connection=connection), "head")
        command.downgrade(own_config(connection=connection), "base")
        query = "SELECT version_num FROM alembic_version"
        assert connection.exec_driver_sql(query).scalars().all() == ["one"]


def test_environment_of_an_installed_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "oplog", tmp_path / "oplog")
    shutil.copytree(migrations_path(), tmp_path / "oplog" / "_migrations")
    # Site-packages may hold a directory of this name that is somebody else's.
    shutil.copytree(migrations_path(), tmp_path / "migrations")
    program = "from oplog.migration import migrations_path; print(migrations_path())"

    def find() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )

    assert find().stdout.strip() == str(tmp_path / "oplog" / "_migrations")
    shutil.rmtree(tmp_path / "oplog" / "_migrations")
    shutil.rmtree(tmp_path / "migrations")
    assert "ConfigurationError" in find().stderr
