"""`oplog init` in an application that has never heard of a log, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import URL

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
SOURCES = {
    "shop/__init__.py": "",
    "shop/base.py": """
from sqlalchemy.orm import DeclarativeBase
class Base(DeclarativeBase):
    pass
""",
    "shop/models.py": """
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column
from shop.base import Base
class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
visits = sa.Table("visits", Base.metadata, sa.Column("at", sa.DateTime))
""",
    "shop/db.py": """
import os
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker
engine = sa.create_engine(os.environ["DATABASE_URL"])
Sessions: sessionmaker = sessionmaker(engine)
""",
    "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n',
}
CREATE = """
from shop.db import engine
from shop.models import Article, Base
Base.metadata.create_all(engine)
from shop.db import Sessions
with Sessions.begin() as session:
    session.add(Article(id=1, name="before"))
"""
WRITE = """
import shop.log
from shop.db import Sessions
from shop.models import Article
with Sessions.begin() as session:
    session.add(Article(id=2, name="after"))
"""
UNLOGGED = """
from shop.db import Sessions
from shop.models import Article
with Sessions.begin() as session:
    session.add(Article(id=3, name="nobody logs this"))
"""


class Newcomer:
    """A directory with an application, and a shell in it."""

    def __init__(self, directory: Path, url: URL) -> None:
        self.directory = directory
        shown = url.render_as_string(hide_password=False)
        given = {"DATABASE_URL": shown, "OPLOG_DATABASE_URL": shown, "PYTHONPATH": str(ROOT)}
        home = {"HOME": str(directory / "home"), "XDG_CONFIG_HOME": ""}
        self.environment: Mapping[str, str] = {**os.environ, **home, **given}
        for name, text in SOURCES.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def add_alembic(self) -> None:
        """What `alembic init migrations` makes."""
        ini = self.directory / "alembic.ini"
        configuration = Config(str(ini))
        command.init(configuration, str(self.directory / "migrations"))
        url = self.environment["DATABASE_URL"].replace("%", "%%")
        text = ini.read_text().replace("driver://user:pass@localhost/dbname", url)
        ini.write_text(text)

    def run(
        self, *arguments: str, fails: bool = False, given: Mapping[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**self.environment, **(given or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def list_files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


@pytest.fixture
def newcomer(tmp_path: Path, bare_database_url: URL) -> Newcomer:
    directory = tmp_path / "shop-project"
    directory.mkdir()
    return Newcomer(directory, bare_database_url)


def test_an_application_is_logged_after_the_steps_that_init_names(newcomer: Newcomer) -> None:
    newcomer.add_alembic()
    newcomer.run("-c", CREATE)
    report = json.loads(newcomer.run("-m", "oplog", "init", "--json"))
    keyring = newcomer.directory / "home/.config/oplog/shop-project.keyring"
    assert report["written"] == [
        "shop/log.py",
        "pyproject.toml",
        "migrations/env.py",
        "home/.config/oplog/shop-project.keyring",
        "a revision beside migrations/env.py",
    ]
    assert keyring.stat().st_mode & 0o777 == 0o600
    given = {"OPLOG_KEYRING": str(keyring)}
    newcomer.run("-m", "alembic", "upgrade", "head", given=given)
    newcomer.run("-m", "oplog", "adopt", given=given)
    newcomer.run("-c", WRITE, given=given)
    assert "oplog_guard_check" in newcomer.run("-c", UNLOGGED, fails=True, given=given)
    assert "equal: 2 rows" in newcomer.run("-m", "oplog", "verify", given=given)
    assert "create article id=2" in newcomer.run("-m", "oplog", "tail", given=given)
    assert 'untracked={\n        "visits": "it has no primary key",' in (
        newcomer.directory / "shop/log.py"
    ).read_text(encoding="utf-8")
    newcomer.run("-m", "alembic", "downgrade", "base", given=given)


def test_a_second_run_changes_nothing(newcomer: Newcomer) -> None:
    newcomer.add_alembic()
    newcomer.run("-m", "oplog", "init")
    before = newcomer.list_files()
    report = json.loads(newcomer.run("-m", "oplog", "init", "--json"))
    assert report["written"] == []
    assert {"shop/log.py", "migrations/env.py"} < set(report["kept"])
    assert newcomer.list_files() == before


def test_a_dry_run_writes_nothing(newcomer: Newcomer) -> None:
    newcomer.add_alembic()
    before = newcomer.list_files()
    assert "wrote" not in newcomer.run("-m", "oplog", "init", "--dry-run")
    assert newcomer.list_files() == before


def test_without_alembic_the_rest_is_written(newcomer: Newcomer) -> None:
    shown = newcomer.run("-m", "oplog", "init")
    assert "op.create_oplog(version=1)" in shown
    assert (newcomer.directory / "shop/log.py").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ({"shop/base.py": ""}, (), "no SQLAlchemy models were found"),
        (
            {"other.py": SOURCES["shop/base.py"]},
            (),
            "several bases of models here: other:Base, shop.base:Base",
        ),
        ({"shop/log.py": "level = 'info'\n"}, (), "shop/log.py is there already, and makes no log"),
        ({}, ("--models", "shop.nowhere:Base"), "there is no module 'shop.nowhere'"),
        ({}, ("--models", "shop.db:engine"), "declares no table"),
    ],
)
def test_what_cannot_be_begun_is_refused_and_nothing_is_written(
    newcomer: Newcomer, change: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    newcomer.add_alembic()
    for name, text in change.items():
        (newcomer.directory / name).write_text(text)
    if change.get("shop/base.py") == "":
        (newcomer.directory / "shop/models.py").unlink()
    before = newcomer.list_files()
    assert says in newcomer.run("-m", "oplog", "init", *arguments, fails=True)
    assert newcomer.list_files() == before


def test_several_heads_are_refused_before_anything_is_written(newcomer: Newcomer) -> None:
    newcomer.add_alembic()
    for name in ("one", "two"):
        newcomer.run("-m", "alembic", "revision", "--head", "base", "--splice", "-m", name)
    before = newcomer.list_files()
    assert "several heads" in newcomer.run("-m", "oplog", "init", fails=True)
    assert newcomer.list_files() == before


def test_several_bases_are_no_question_once_one_is_named(newcomer: Newcomer) -> None:
    (newcomer.directory / "other.py").write_text(SOURCES["shop/base.py"])
    newcomer.run("-m", "oplog", "init", "--models", "shop.base:Base", "--log", "audit.py")
    assert "from shop.base import Base" in (newcomer.directory / "audit.py").read_text()
    assert 'app = "audit:log"' in (newcomer.directory / "pyproject.toml").read_text()
