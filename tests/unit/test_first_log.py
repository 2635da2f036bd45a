"""What `oplog init` reads in an application's source, and the text that it writes."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from oplog.outside.first_log import (
    FirstLog,
    add_import,
    add_setting,
    write_downgrade,
    write_upgrade,
)
from oplog.outside.found_application import find_application

pytestmark = pytest.mark.unit

LINE = "import oplog.migration  # makes op.create_oplog and its siblings known"


@pytest.mark.parametrize(
    ("source", "expression"),
    [
        ("class Base(DeclarativeBase): pass", "Base"),
        ("class Base(MappedAsDataclass, orm.DeclarativeBase): pass", "Base"),
        ("Model = declarative_base(name='Model')", "Model"),
        ("Model: Any = orm.declarative_base()", "Model"),
        ("db = SQLAlchemy(app)", "db.metadata"),
    ],
)
def test_bases_are_found(tmp_path: Path, source: str, expression: str) -> None:
    (tmp_path / "src/shop").mkdir(parents=True)
    (tmp_path / "src/shop/__init__.py").write_text(f"\n{source}\n")
    (tmp_path / "broken.py").write_text("class :")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    for other in ("venv/lib", "migrations", "tests", ".hidden"):
        (tmp_path / other).mkdir(parents=True)
        (tmp_path / other / "copy.py").write_text(source)
    (tmp_path / "venv/pyvenv.cfg").touch()
    (tmp_path / "migrations/script.py.mako").touch()
    (found,) = find_application(tmp_path).models
    assert (found.module, found.expression, found.line) == ("shop", expression, 2)


def test_sessions_and_modules_with_tables_are_found(tmp_path: Path) -> None:
    (tmp_path / "db.py").write_text(
        "S = sessionmaker[Session](engine)\nA: Any = async_sessionmaker(engine)\nx = f(1)\n"
        "def make():\n    inner = sessionmaker()\n"
    )
    (tmp_path / "user.py").write_text("class U(Base):\n    __tablename__ = 'u'\n")
    (tmp_path / "link.py").write_text("link = sa.Table('link', metadata)\n")
    found = find_application(tmp_path)
    assert [one.expression for one in found.sessions] == ["S", "A"]
    assert found.tables == ("link", "user")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a\nfrom b import (\n    c,\n)\nrun()\n", 4),
        ('"""Doc."""\nrun()\n', 1),
        ("run()\n", 0),
        ("", 0),
        ("import a", 1),
        ("import a\r\nrun()\r\n", 1),
    ],
)
def test_the_line_comes_after_the_imports(source: str, expected: int) -> None:
    text = add_import(source)
    assert text is not None
    ast.parse(text)
    assert text.splitlines()[expected] == LINE
    assert text.replace(LINE, "", 1).split() == source.split()
    assert text.count("\r\n") in {0, text.count("\n")}
    assert add_import(text) is None


def test_a_future_import_stays_the_first(tmp_path: Path) -> None:
    text = add_import("from __future__ import annotations\nrun()\n")
    assert text is not None
    compile(text, "env.py", "exec")


@pytest.mark.parametrize("source", ["", "[project]\nname = 'x'", "[a]\nb = 1\n", "[a]\nb = 1\n\n"])
def test_the_setting_is_added_once(source: str) -> None:
    text = add_setting(source, "shop.log:log")
    assert text is not None
    assert tomllib.loads(text) == {
        **tomllib.loads(source),
        "tool": {"oplog": {"app": "shop.log:log"}},
    }
    assert add_setting(text, "shop.log:log") is None


def test_names_are_quoted_as_python() -> None:
    tables = {None: ["order", 'od"d\\'], "späti": ["x"]}
    for body in (write_upgrade(tables, version=1), write_downgrade(tables)):
        tree = ast.parse(f"def upgrade():\n    {body}")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}
        assert names == {"order", 'od"d\\', "x"}


def test_the_module_imports_each_name_once() -> None:
    first = FirstLog(
        "shop",
        "db.metadata",
        imported=["shop", "shop.models"],
        untracked={"v": "it has no primary key"},
        sessions=[("shop", "Sessions"), ("shop.other", "More")],
    )
    tree = ast.parse(first.write())
    assert "from shop import Sessions, db\n" in first.write()
    imported = [node.names[0].name for node in tree.body if isinstance(node, ast.Import)]
    assert imported == ["shop.models"]
    assert first.write().endswith("log.attach(Sessions)\nlog.attach(More)\n")
