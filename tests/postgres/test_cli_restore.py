"""Bringing a log back from the command line: restore, recover, follow."""

from __future__ import annotations

import json
import os
import pty
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from tests.databases import FreshDatabase
from tests.postgres.shop import DEADLINE_SECONDS, NOISE, Shop, open_shop
from tests.postgres.test_cli_archive import read_until, wait_until
from tests.postgres.test_cli_ending import read_all, wait_until_blocked

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    """A shop whose three records, of five entries, are published."""
    shop = replace(open_shop(tmp_path, database_url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    shop.call("sync")
    return shop


@pytest.fixture
def target(shop: Shop, spare_database: FreshDatabase) -> Shop:
    """The same application on an empty, migrated database, which its environment does not name."""
    shop = replace(shop, url=spare_database.url)
    shop.make_tables()
    return shop


def spell(shop: Shop) -> str:
    return shop.url.render_as_string(hide_password=False)


# -- restore ------------------------------------------------------------------------------------


def test_restore(shop: Shop, target: Shop) -> None:
    bare = replace(shop, archive="")
    report = bare.ask("restore", shop.archive, "--database", spell(target))
    assert (report["rows"], report["entries"], report["position"]) == (2, 5, 3)
    assert (report["sequence"], report["generation"]) == (3, 0)
    assert report["digest"] == target.ask("replay")["digest"] == shop.ask("replay")["digest"]
    # Restored records count as written by nobody who runs here.
    assert [{**entry, "transaction_id": 3} for entry in shop.ask("tail")] == target.ask("tail")
    assert target.ask("verify")["ok"] is True
    target.write()
    assert target.ask("sync")["entries"] == 1


def test_restore_for_people(shop: Shop, target: Shop) -> None:
    status = shop.ask("status")
    out, err = target.call("restore")
    lines = out.splitlines()
    assert lines[:3] == [
        "2 rows restored, with 5 entries",
        "through position 3, sequence 3 of generation 0",
        "from the records alone",
    ]
    assert lines[3].startswith("digest ")
    assert err == NOISE + (
        f"{shop.archive}: log {status['log_id']}, generation 0, sequence 3, last entry "
        f"{status['recorded_at']}\n"
    )


def test_restore_through_a_place(shop: Shop, target: Shop, bare_database_url: URL) -> None:
    moment = shop.ask("tail", "-n", "2")[0]["recorded_at"]
    assert target.ask("restore", "--through", moment)["position"] == 2
    assert [entry["position"] for entry in target.ask("tail")] == [1, 1, 1, 2]


def test_a_target_that_is_not_empty_is_left_alone(shop: Shop) -> None:
    before = shop.ask("tail")
    refused = shop.ask("restore", code=2)
    assert refused["error"] == "ConfigurationError"
    assert "a restore needs an empty database" in refused["message"]
    assert shop.ask("tail") == before


def test_a_target_without_tables_is_10(shop: Shop, bare_database_url: URL) -> None:
    bare = replace(shop, url=bare_database_url)
    for command in (["restore"], ["follow", "--once"]):
        assert bare.ask(*command, code=10)["error"] == "SchemaVersionError"


def test_nothing_archived_is_3(target: Shop) -> None:
    nothing = f"file://{target.directory}/nothing"
    for command in (["restore"], ["follow", "--once"], ["follow"]):
        refused = target.ask(*command, nothing, code=3)
        assert refused["error"] == "SegmentMissingError"
        assert "holds no archive" in refused["message"]


def test_keys_are_needed(shop: Shop, target: Shop) -> None:
    shop.replace_keyring()
    for command in (["restore"], ["recover"], ["follow", "--once"]):
        assert target.ask(*command, code=12)["error"] == "KeyUnavailableError"


def test_an_altered_archive_is_3(shop: Shop, target: Shop) -> None:
    (segment,) = (shop.directory / "archive" / "LOG").iterdir()
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    refused = target.ask("restore", code=3)
    assert refused["error"] == "SegmentCorruptError"
    assert segment.name in refused["message"]


def test_a_terminal_is_asked(shop: Shop, target: Shop) -> None:
    for answer, code in ((b"n\n", 130), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        process = target.start("restore", "--json", stdin=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, answer)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
        shown = b"".join(read_all(ours)).decode()
        assert process.returncode == code, shown
        assert f"restore into database {target.url.database} on " in shown
    assert json.loads(out)["rows"] == 2
    assert "restoring" in shown
    assert "100%" in shown


# -- recover ------------------------------------------------------------------------------------


def test_recover(shop: Shop, target: Shop) -> None:
    assert shop.ask("recover") == {"restored": False}
    assert target.ask("recover", f"file://{shop.directory}/nothing") == {"restored": False}
    report = target.ask("recover", shop.archive)
    assert (report["restored"], report["rows"], report["position"]) == (True, 2, 3)
    out, err = target.call("recover")
    assert out == ""
    assert err == NOISE + "nothing to restore: the database is in use, or nothing was archived\n"


# -- follow -------------------------------------------------------------------------------------


def test_follow_once(shop: Shop, target: Shop) -> None:
    report = target.ask("follow", "--once")
    assert report == {
        "entries": 5,
        "sequence": 3,
        "generation": 0,
        "position": 3,
        "rebuilt": True,
        "quarantined": [],
    }
    shop.write()
    shop.call("sync")
    bare = replace(shop, archive="")
    out, err = bare.call("follow", shop.archive, "--database", spell(target), "--once")
    assert out == "1 entry applied\nthrough sequence 4 of generation 0, position 4\n"
    assert err == NOISE
    assert target.ask("verify")["ok"] is True
    assert target.ask("replay")["digest"] == shop.ask("replay")["digest"]


def test_whoever_writes_into_a_follower_is_3(target: Shop) -> None:
    target.call("follow", "--once")
    target.write()
    assert target.ask("follow", "--once", code=3)["error"] == "LogForkedError"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_follower_ends_on_a_signal(
    shop: Shop, target: Shop, spare_engine: Engine, number: signal.Signals
) -> None:
    process = target.start("follow", "--interval", "0.05", "--json")
    wait_until(process, lambda: count_records(spare_engine) == 3)
    shop.write()
    shop.call("sync")
    wait_until(process, lambda: count_records(spare_engine) == 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["entries"], report["sequence"], report["rebuilt"]) == (6, 4, True)
    assert f"{number.name}: ending" in err


def count_records(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(
            connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record").scalar_one()
        )


def test_a_follower_waits_for_its_database(shop: Shop, target: Shop, spare_engine: Engine) -> None:
    target.call("follow", "--once")
    process = target.start("follow", "--interval", "0.05")
    read_until(process, "following")
    shop.write()
    shop.call("sync")
    with spare_engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE oplog.oplog_record")
        wait_until_blocked(spare_engine)
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'oplog'"
        )
    read_until(process, "trying again in")
    wait_until(process, lambda: count_records(spare_engine) == 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0


def test_a_follower_that_hangs_ends_within_the_time_that_it_was_given(
    shop: Shop, target: Shop, spare_engine: Engine
) -> None:
    target.call("follow", "--once")
    shop.write()
    shop.call("sync")
    with spare_engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE oplog.oplog_record")
        process = target.start("follow", "--interval", "0.05", "--stop-within", "0.1")
        wait_until_blocked(spare_engine)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert err.endswith("it did not end in time\n")
    # Nothing of what it was doing is left, and the next one does it again.
    assert count_records(spare_engine) == 3
    target.call("follow", "--once")
    assert count_records(spare_engine) == 4
