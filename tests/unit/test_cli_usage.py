"""The command line without a database: usage, keyrings, how values and descriptors print."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import pytest
from click.testing import CliRunner

from oplog import Keyring, errors
from oplog._proto.oplog.v1 import record_pb2
from oplog.cli import main
from oplog.cli.argument import PLACE, parse_metadata
from oplog.cli.command import program
from oplog.cli.invocation import Invocation
from oplog.cli.presentation import show_value
from oplog.doctor.inspection import match_key
from oplog.errors import ConfigurationError
from oplog.json_value import to_json_value
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.proto_text import print_files
from oplog.payload.registration import register_shape
from oplog.payload.shape import Shape
from oplog.value import Kind

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    for name in ("OPLOG_APP", "OPLOG_DATABASE_URL", "OPLOG_ARCHIVE_URL", "OPLOG_KEYRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run_command(*arguments: str) -> Ended:
        code = main(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run_command


def list_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += list_commands(command, (*path, name))
    return found


COMMANDS = list_commands(program)


# -- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [(), *COMMANDS], ids=" ".join)
def test_every_command_explains_itself_in_80_columns(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(program, [*path, "--help"], terminal_width=80)
    assert done.exit_code == 0
    assert max(len(line) for line in done.output.splitlines()) <= 80
    for option in ("--json", "--debug", "--help"):
        assert option in done.output


LEAVES = [path for path in COMMANDS if not any(path == other[:-1] for other in COMMANDS)]
GIVEN = {
    "actor": ("--actor", "ada"),
    "app": ("--app", "bank:log"),
    "database": ("--database", "postgresql://h/d"),
    "archive": ("--archive", "file:///a"),
    "single_writer": ("--single-writer",),
    "accept_older": ("--accept-older",),
    "store_deadline_seconds": ("--store-deadline", "7"),
    "signing_keyring": ("--signing-keyring", "s"),
    "trust_file": ("--trust", "t"),
    "unsigned": ("--unsigned",),
    "replace_publisher": ("--replace-publisher",),
    "expect_at_least": ("--expect-at-least", f"1:{'0' * 64}"),
}
"""Options of the program, by what they set."""


def test_all_options_of_the_program_are_tried() -> None:
    known = {option for given in GIVEN.values() for option in given[:1]}
    own = {p.opts[0] for p in program.params if not getattr(p, "is_eager", False)}
    assert own == known | {"--json", "--debug"}


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_options_stand_before_and_after_the_command(path: tuple[str, ...]) -> None:
    command: click.Command = program
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    # What the command itself requires is not the question.
    bare = click.Command(path[-1], params=[p for p in command.params if not p.required])
    # Some commands mean something else by an option of this name.
    own = {"archive"} if any(p.name == "reach" for p in command.params) else set()
    own |= {"actor"} if path == ("search",) else set()
    for name, given in GIVEN.items():
        found = []
        for before, after in ((given, ()), ((), given), (given, ())):
            context = program.make_context("oplog", [*before, path[-1]])
            bare.make_context(path[-1], list(after), parent=context)
            found.append(getattr(context.find_object(Invocation), name))
        assert found[0] not in {None, "", False}, name
        assert found[0] == found[2]
        assert name in own or found[0] == found[1], name


def test_what_was_said_before_the_command_is_not_undone_after_it(run: Run) -> None:
    ended = run("--app", "os:sep", "status", "--database", "postgresql://h/d")
    assert "is a str, not an Oplog" in ended.err
    assert "'os:getcwd'" in run("--app", "os:sep", "status", "--app", "os:getcwd").err


def test_no_command_is_told_what_there_is(run: Run) -> None:
    ended = run()
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: oplog" in ended.err
    assert "verify" in ended.err


def test_version(run: Run) -> None:
    ended = run("--version")
    assert ended.code == 0
    assert re.fullmatch(r"oplog, version \d+\.\d+\.\d+\n", ended.out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["status", "--frobnicate"], "No such option '--frobnicate'"),
        (["status"], "no application: give --app"),
        (["--app", "os", "status"], "not of the form module:attr"),
        (["--app", "nowhere_at_all:log", "status"], "there is no module 'nowhere_at_all'"),
        (["--app", "os:nothing", "status"], "os has no attribute 'nothing'"),
        (["--app", "os:sep", "status"], "is a str, not an Oplog"),
        (["--app", "os:getcwd", "status"], "is a str, not an Oplog"),
        (["history", "account"], "Missing argument 'KEY...'"),
        (["tail", "--after", "yesterday"], "neither a position nor a time"),
        (["tail", "--after", "9223372036854775808"], "too large"),
        (["tail", "-n", "-1"], "-1 is not in the range"),
        (["tail", "--metadata", "actor"], "not of the form key=value"),
        (["replay", "--through", "1.5"], "neither a position nor a time"),
        (["verify", "--limit", "0"], "0 is not in the range"),
        (["keys", "generate"], "give either --file PATH or --print"),
        (["keys", "generate", "--print", "--file", "k"], "give either --file PATH or --print"),
        (["keys", "rotate"], "Missing option '--file'"),
        (["sync", "--fork", "perhaps"], "'perhaps' is not one of 'stop', 'fork'"),
        (["sync", "--interval", "2"], "--interval is for --follow"),
        (["sync", "--snapshot-hours", "1"], "--snapshot-hours is for --follow"),
        (["sync", "--follow", "--interval", "0"], "0.0 is not in the range"),
        (["sync", "--follow", "--snapshot-records", "0"], "0 is not in the range"),
        (["status", "--max-lag", "-1"], "-1.0 is not in the range"),
        (["restore", "--through", "1.5"], "neither a position nor a time"),
        (["prune"], "Missing option '--keep'"),
        (["prune", "--keep", "90"], "is not a duration such as 90d"),
        (["prune", "--keep", "-1d"], "is not a duration such as 90d"),
        (["prune", "--keep", "9999999999d"], "is too long"),
        (["check", "--sample", "101%"], "is not a share such as 5%"),
        (["collect", "--drop-log"], "--drop-log needs --keep-snapshots"),
        (["follow", "one", "two"], "unexpected extra argument (two)"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(run: Run, arguments: list[str], says: str) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    again = run(*arguments, "--json")
    assert again.code == 2
    assert says in json.loads(again.out)["message"]


def test_json_after_two_dashes_is_an_argument(run: Run) -> None:
    assert run("--app", "nowhere_at_all:log", "history", "account", "--", "--json").out == ""


APPLICATION = """
from oplog import Oplog, TypeCatalog
log = Oplog(TypeCatalog(), plaintext=True)
"""


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "no database: give --database URL"),
        ("secret word", "the database URL cannot be read"),
        ("mysql://me:secret@host/db", "needs PostgreSQL"),
        ("postgresql://me:secret@host:port/db", "the database URL cannot be read"),
    ],
)
def test_wrong_database_url(run: Run, tmp_path: Path, url: str | None, says: str) -> None:
    (tmp_path / "plain_application.py").write_text(APPLICATION)
    given = [] if url is None else ["--database", url]
    ended = run("--app", "plain_application:log", *given, "status")
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert "secret" not in ended.err


@pytest.mark.parametrize(
    "command",
    [["sync"], ["sync", "--follow"], ["snapshot"], ["restore"], ["recover"], ["follow", "--once"]],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "no archive: give --archive URL"),
        ("", "no archive: give --archive URL"),
        ("memory://", "ends with this process"),
        ("MEMORY:///", "ends with this process"),
        ("nowhere", "is not where objects are kept"),
        ("https://me:secret@host/bucket", "no user, password"),
        ("s3://me:secret@bucket/prefix", "no user, password"),
        ("s3://bucket/prefix?key=secret", "no user, password"),
        ("s3://", "does not name a bucket"),
        ("s3://bucket/../prefix", "does not name a bucket"),
        ("file://relative/path", "is not the URL of a directory"),
        ("file:///nul%00", "is not the URL of a directory"),
        ("s3://[bucket", "not a URL"),
    ],
)
def test_wrong_archive_url(
    run: Run, tmp_path: Path, command: list[str], url: str | None, says: str
) -> None:
    (tmp_path / "plain_application.py").write_text(APPLICATION)
    given = [] if url is None else ["--archive", url]
    ended = run("--app", "plain_application:log", "--database", "postgresql://", *given, *command)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert "secret" not in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("1 / 0", 1, "importing failing failed: ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", 1, "No module named 'nowhere_at_all'"),
        ("raise SystemExit(7)", 1, "importing failing failed: RuntimeError: it exited with 7"),
        ("from oplog import Keyring; Keyring.from_env()", 2, "OPLOG_KEYRING holds no keyring"),
        ("def log(): 1 / 0", 1, "calling failing:log failed: ZeroDivisionError"),
    ],
)
def test_application_that_fails(
    run: Run, tmp_path: Path, source: str, code: int, says: str
) -> None:
    (tmp_path / "failing.py").write_text(source)
    ended = run("--app", "failing:log", "keys", "list")
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    (tmp_path / "failing.py").write_text(source)
    assert "Traceback" in run("--app", "failing:log", "--debug", "keys", "list").err


def test_reference_names_every_command_and_option() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    spans = " ".join(
        span or heading for span, heading in re.findall(r"`([^`]+)`|^## (.+)", prose, re.MULTILINE)
    )
    missing = []
    for path in [(), *COMMANDS]:
        command: click.Command = program
        for name in path:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        missing += [" ".join(path)] if " ".join(path) not in spans else []
        for option in command.params:
            missing += [o for o in option.opts if o.startswith("-") and o not in spans]
    assert missing == []


def test_reference_names_every_exit_code() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {getattr(errors, name).exit_code for name in errors.__all__ if name.endswith("Error")}
    assert raised <= listed
    assert {0, 130, 141} <= listed


# -- keyrings -------------------------------------------------------------------------------


def test_keys_are_made_listed_and_rotated_in_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    made = run("keys", "generate", "--file", str(path))
    assert made.code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (first,) = Keyring.from_file(path).key_ids
    assert made.out == f"{first}  current\n"
    rotated = run("keys", "rotate", "--file", str(path), "--json")
    keyring = Keyring.from_file(path)
    assert keyring.key_ids[0] == first
    assert json.loads(rotated.out) == {
        "current": keyring.current_key_id,
        "key_ids": list(keyring.key_ids),
    }
    listed = run("keys", "list", "--file", str(path))
    assert listed.out == f"{first}\n{keyring.current_key_id}  current\n"
    text = path.read_text()
    secrets = re.findall(r'"key":"([^"]+)"', text)
    assert len(secrets) == 2
    shown = "".join(part for done in (made, rotated, listed) for part in (done.out, done.err))
    assert not any(secret in shown for secret in secrets)


def test_generated_keyring_is_never_written_over_another(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    path.write_text("precious")
    ended = run("keys", "generate", "--file", str(path))
    assert ended.code == 2
    assert "rotate" in ended.err
    assert path.read_text() == "precious"


def test_printed_keyring_is_what_the_environment_takes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = run("keys", "generate", "--print").out
    monkeypatch.setenv("OPLOG_KEYRING", text)
    assert len(Keyring.from_env().key_ids) == 1
    monkeypatch.setenv(
        "OPLOG_KEYRING", json.loads(run("keys", "generate", "--print", "--json").out)["keyring"]
    )
    assert len(Keyring.from_env().key_ids) == 1


def test_missing_keyring_file(run: Run) -> None:
    ended = run("keys", "list", "--file", "nowhere.json")
    assert ended.code == 2
    assert "there is no keyring file at nowhere.json" in ended.err


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0", 0),
        ("9223372036854775807", 2**63 - 1),
        ("20250131", 20250131),
        ("2025-01-31", datetime(2025, 1, 31, tzinfo=UTC)),
        ("2025-01-31T12:00:00.000001Z", datetime(2025, 1, 31, 12, microsecond=1, tzinfo=UTC)),
        ("2025-01-31 12:00+02:00", datetime(2025, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_places(text: str, place: int | datetime) -> None:
    assert PLACE.convert(text, None, None) == place


def test_metadata_pairs() -> None:
    assert parse_metadata(["a=1", "b=", "a=x=y"]) == {"a": ["1", "x=y"], "b": [""]}
    with pytest.raises(click.UsageError):
        parse_metadata(["=1"])


@pytest.mark.parametrize(
    ("texts", "columns", "parsed"),
    [
        (["42"], ["id"], {"id": "42"}),
        (["id=42"], ["id"], {"id": "42"}),
        (["id=id=42"], ["id"], {"id": "id=42"}),
        (["a=b"], ["id"], {"id": "a=b"}),
        (["7", "a=b"], ["order", "sku"], {"order": "7", "sku": "a=b"}),
        (["sku=x", "order=7"], ["order", "sku"], {"order": "7", "sku": "x"}),
        ([""], ["id"], {"id": ""}),
    ],
)
def test_keys_in_order_or_by_name(
    texts: list[str], columns: list[str], parsed: dict[str, str]
) -> None:
    assert match_key(texts, columns) == parsed


@pytest.mark.parametrize(
    "texts", [["1"], ["1", "2", "3"], ["order=1"], ["order=1", "2"], ["order=1", "order=2"]]
)
def test_keys_that_do_not_fit(texts: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        match_key(texts, ["order", "sku"])


# -- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "as_json", "as_text"),
    [
        (None, None, "NULL"),
        (True, True, "true"),
        (7, 7, "7"),
        (2**53, "9007199254740992", "9007199254740992"),
        (-(2**53) + 1, -(2**53) + 1, "-9007199254740991"),
        (0.5, 0.5, "0.5"),
        (float("nan"), "NaN", "NaN"),
        (float("-inf"), "-Infinity", "-Infinity"),
        ("NULL", "NULL", "'NULL'"),
        ("a\x1b[31m\n\u202e", "a\x1b[31m\n\u202e", "'a\\x1b[31m\\n\\u202e'"),
        (b"\x00\xff", "\\x00ff", "\\x00ff"),
        (bytes(17), "\\x" + "00" * 17, "\\x" + "00" * 16 + "… (17 bytes)"),
        (Decimal("1.50"), "1.50", "1.50"),
        (UUID(int=1), str(UUID(int=1)), str(UUID(int=1))),
        (date(2025, 1, 31), "2025-01-31", "2025-01-31"),
        (
            datetime(2025, 1, 31, tzinfo=timezone(timedelta(hours=1))),
            "2025-01-31T00:00:00+01:00",
            "2025-01-31T00:00:00+01:00",
        ),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02", "1 day, 0:00:02"),
        (timedelta(seconds=-1), "-1 days +23:59:59", "-1 days +23:59:59"),
        ([1, None, [b"\x01"]], [1, None, ["\\x01"]], '[1, null, ["\\\\x01"]]'),
        ({"a": float("inf")}, {"a": "Infinity"}, '{"a": "Infinity"}'),
    ],
)
def test_values(value: object, as_json: Any, as_text: str) -> None:
    assert to_json_value(value) == as_json
    json.dumps(to_json_value(value), allow_nan=False)
    assert show_value(value) == as_text


# -- descriptors ----------------------------------------------------------------------------


def derive(*columns: str, stored: list[Shape]) -> Shape:
    declared = [DeclaredColumn(name, "text", Kind.TEXT, primary_key=False) for name in columns]
    return derive_shape(
        "my type", declared, schema="public", table="t", aggregate="t", excluded={}, stored=stored
    )


def test_derived_message_is_printed_with_its_reserved_numbers() -> None:
    first = derive("a", "B c", stored=[])
    second = derive("a", "d", stored=[first])
    (text,) = print_files(second, retired=[2]).values()
    assert text == (
        'syntax = "proto3";\n\npackage oplog.derived;\n\n'
        "message MyType {\n  reserved 2;\n  optional string a = 1;\n  optional string d = 3;\n}\n"
    )


def test_registered_message_is_printed_as_its_file_says() -> None:
    shape = register_shape(
        "use",
        [DeclaredColumn("name", "text", Kind.TEXT, primary_key=True)],
        revision=1,
        schema="public",
        table="use",
        aggregate="use",
        excluded={},
        message_class=record_pb2.TypeUse,
        stored=[],
    )
    (printed,) = print_files(shape).values()
    source = (ROOT / "protos/oplog/v1/record.proto").read_text(encoding="utf-8")
    statements = [
        line.strip()
        for text in (source, printed.replace(".oplog.v1.", ""))
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith("//")
    ]
    half = len(statements) // 2
    assert sorted(statements[:half]) == sorted(statements[half:])
