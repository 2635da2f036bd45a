"""How the real command ends: progress, pipes, signals, and a code for every failure."""

from __future__ import annotations

import json
import os
import pty
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from tests.postgres.shop import DEADLINE_SECONDS, NOISE, Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def empty_shop(tmp_path: Path, database_url: URL) -> Shop:
    return open_shop(tmp_path, database_url)


@pytest.fixture
def shop(empty_shop: Shop) -> Shop:
    empty_shop.fill()
    return empty_shop


# -- the real command ---------------------------------------------------------------------------


def test_data_goes_to_stdout_and_talk_to_stderr(shop: Shop) -> None:
    for command in (["status"], ["tail"], ["history", "account", "1"], ["replay"], ["verify"]):
        out, err = shop.run(*command, "--json")
        json.loads(out)
        assert err == NOISE
    shop.execute("UPDATE account SET owner = 'Eve'")
    out, err = shop.run("verify", code=3)
    assert "  live:   'Eve'\n  logged: 'Ann \\x1b[31m'\n" in out
    assert err == NOISE


def test_progress_is_for_terminals(shop: Shop) -> None:
    reader, terminal = pty.openpty()
    process = shop.start("verify", "--json", stderr=terminal)
    os.close(terminal)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    shown = b"".join(read_all(reader)).decode()
    assert process.returncode == 0, shown
    assert json.loads(out)["ok"] is True
    assert "verifying" in shown
    assert "100%" in shown


def read_all(terminal: int) -> Iterator[bytes]:
    with os.fdopen(terminal, "rb", buffering=0) as file:
        try:
            while data := file.read(4096):
                yield data
        except OSError:
            return  # Linux says EIO where a pipe would say end of file


# -- failures -----------------------------------------------------------------------------------


def test_missing_tables_are_10(empty_shop: Shop, bare_database_url: URL) -> None:
    bare = Shop(empty_shop.directory, bare_database_url)
    for command in (["status"], ["tail"], ["history", "line", "1", "x"], ["replay"], ["verify"]):
        out, err = bare.call(*command, code=10)
        assert out == ""
        assert "hint: add this line to a migration: op.create_oplog(version=1)" in err
    document = bare.ask("verify", code=10)
    assert document["error"] == "SchemaVersionError"
    assert "op.create_oplog(version=1)" in document["hint"]


def test_wrong_keyring_is_12(shop: Shop) -> None:
    shop.replace_keyring()
    for command in (["tail"], ["history", "account", "1"], ["replay"], ["verify"]):
        out, err = shop.call(*command, code=12)
        assert out == ""
        assert "error: no key" in err
    assert shop.ask("tail", code=12)["error"] == "KeyUnavailableError"


def test_altered_log_is_3(shop: Shop) -> None:
    shop.execute(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER oplog_append_only",
        "UPDATE oplog.oplog_record SET data = '\\x00' WHERE position = 2",
    )
    out, err = shop.run("verify", code=3)
    assert out == ""
    assert "position 2 (aggregate 'account/1' version 2) does not match its hash" in err
    assert shop.ask("tail", code=3)["error"] == "ChainBrokenError"


def test_database_errors_are_one_line(shop: Shop, engine: Engine) -> None:
    nowhere = shop.url.set(database="nowhere", password="secret")
    out, err = shop.run("--database", nowhere.render_as_string(hide_password=False), "tail", code=1)
    assert out == ""
    _, said, hint = err.splitlines()
    assert said.startswith("error: the database says: ")
    assert 'database "nowhere" does not exist' in said
    assert hint.startswith("hint: check --database")
    assert "secret" not in err
    process = shop.start("--debug", "--database", f"{nowhere}", "tail")
    assert "Traceback" in process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert process.returncode == 1
    shop.execute("DROP TABLE oplog.oplog_key")
    _, err = shop.run("tail", code=1)
    assert 'relation "oplog.oplog_key" does not exist' in err


def test_closed_pipe_is_quiet(shop: Shop) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = shop.start("tail", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert err == NOISE
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_full_disk_is_a_failure(shop: Shop) -> None:
    with Path("/dev/full").open("w") as full:
        process = shop.start("tail", stdout=full)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert "error: the output cannot be written: No space left on device" in err
    assert process.returncode == 1


def test_interrupt_is_130(shop: Shop, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE oplog.oplog_entry")
        process = shop.start("verify", "--json", start_new_session=True)
        wait_until_blocked(engine)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def wait_until_blocked(engine: Engine) -> None:
    """Wait for a session that waits for a lock in this database."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while time.monotonic() < deadline:
            # The server pauses, so that this asks a hundred times a second, not without end.
            connection.exec_driver_sql("SELECT pg_sleep(0.01)")
            if connection.exec_driver_sql(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'oplog' AND wait_event_type = 'Lock'"
            ).scalar():
                return
    pytest.fail("nobody waits for the lock")
