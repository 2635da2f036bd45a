"""Settings from the environment and from pyproject.toml, for the command line and the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from oplog import Keyring
from oplog.cli import main
from oplog.errors import ConfigurationError
from oplog.outside.engine_plugin import without_plugin
from oplog.outside.program_settings import read_settings

pytestmark = pytest.mark.unit


def put(directory: Path, text: str) -> Path:
    (directory / "pyproject.toml").write_text(text, encoding="utf-8")
    below = directory / "src" / "deep"
    below.mkdir(parents=True)
    return below


def test_the_environment_goes_before_the_nearest_file(tmp_path: Path) -> None:
    below = put(tmp_path, '[tool.oplog]\napp = "a:b"\nschema = "audit"\nkeyring-file = "keys"\n')
    keyring = Keyring.generate()
    keyring.save(tmp_path / "keys")
    settings = read_settings({"OPLOG_APP": "c:d", "OPLOG_ARCHIVE_URL": ""}, below)
    assert (settings.find("app"), settings.schema) == ("c:d", "audit")
    assert settings.find("archive-url") is None
    found = settings.open_keyring()
    assert found is not None
    assert found.key_ids == keyring.key_ids


def test_without_a_file(tmp_path: Path) -> None:
    settings = read_settings({}, tmp_path)
    assert settings.schema == "oplog"
    with pytest.raises(ConfigurationError, match="no keyring") as caught:
        settings.open_keyring()
    assert "OPLOG_PLAINTEXT=1" in caught.value.hint


@pytest.mark.parametrize(("text", "wanted"), [("1", True), ("TRUE", True), ("no", False)])
def test_plaintext_is_said(tmp_path: Path, text: str, *, wanted: bool) -> None:
    assert read_settings({"OPLOG_PLAINTEXT": text}, tmp_path).plaintext is wanted


def test_plaintext_in_the_file(tmp_path: Path) -> None:
    below = put(tmp_path, "[tool.oplog]\nplaintext = true\n")
    assert read_settings({}, below).open_keyring() is None
    with pytest.raises(ConfigurationError, match="neither true nor false"):
        _ = read_settings({"OPLOG_PLAINTEXT": "maybe"}, below).plaintext


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[tool.oplog\n", "cannot be read"),
        ('[tool.oplog]\nkeyring = "{}"\n', "'keyring', which is no setting"),
        ("[tool.oplog]\nschema = 7\n", "schema is not a text"),
        ('[tool.oplog]\nplaintext = "yes"\n', "plaintext is not true or false"),
        ("[tool]\noplog = 7\n", "no setting"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        read_settings({}, put(tmp_path, text))


def test_the_command_line_reads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OPLOG_APP", "OPLOG_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(put(tmp_path, '[tool.oplog]\napp = "there_is_no_such:log"\n'))
    assert main(["status"]) == 2
    assert "there_is_no_such" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").write_text("[tool.oplog]\nnothing = 1\n", encoding="utf-8")
    assert main(["status"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_a_command_is_not_logged_by_its_own_url() -> None:
    url = make_url("postgresql+psycopg://h/d?plugin=other&plugin=oplog&connect_timeout=3")
    assert without_plugin(url).query == {"plugin": ("other",), "connect_timeout": "3"}
    assert without_plugin(make_url("postgresql://h/d?plugin=oplog")).query == {}


@pytest.mark.parametrize(
    "text",
    [
        'exclude = {"user.hash" = "a secret"}\nsecret = ["user.note", "shop.order.memo"]\n',
        (
            'secret = ["user.note", "shop.order.memo"]\n'
            '[tool.oplog.exclude]\n"user.hash" = "a secret"\n'
        ),
    ],
)
def test_columns_in_the_file(tmp_path: Path, text: str) -> None:
    columns = read_settings({}, put(tmp_path, f"[tool.oplog]\n{text}")).columns
    assert columns.exclude == {"user.hash": "a secret"}
    assert columns.secret == {"user.note", "shop.order.memo"}


def test_columns_of_the_environment_go_before_the_file(tmp_path: Path) -> None:
    below = put(tmp_path, '[tool.oplog]\nexclude = {"a.b" = "known", "a.c" = "other"}\n')
    given = {"OPLOG_EXCLUDE": "a.b, x.y", "OPLOG_SECRET": "a.d"}
    columns = read_settings(given, below).columns
    assert columns.exclude == {"a.b": "known", "x.y": "the settings leave it out"}
    assert columns.secret == {"a.d"}


@pytest.mark.parametrize("text", ["7", "[7]", '{"a.b" = 7}', '{a = {b = "nested"}}', '["ab"]'])
def test_columns_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="exclude") as caught:
        read_settings({}, put(tmp_path, f"[tool.oplog]\nexclude = {text}\n"))
    assert caught.value.hint
