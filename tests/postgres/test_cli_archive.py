"""Publishing from the command line: sync, snapshot, and what status says of the archive."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from oplog import open_archive
from oplog.store.export import ExportStore, Lease
from tests.databases import FreshDatabase
from tests.postgres.shop import DEADLINE_SECONDS, NOISE, Shop, open_shop
from tests.postgres.test_cli_ending import wait_until_blocked

pytestmark = pytest.mark.postgres
UNSIGNED = "{} begins unsigned: everybody who can write to it may decide what is restored from it. "


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    """A shop of five entries in three records, with an archive that holds nothing yet."""
    shop = replace(open_shop(tmp_path, database_url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    return shop


def count_heads(shop: Shop) -> int:
    head = open_archive(shop.archive).find_head()
    return 0 if head is None else head.number


# -- one pass -----------------------------------------------------------------------------------


def test_a_pass_publishes_what_is_new(shop: Shop) -> None:
    report = shop.ask("sync")
    assert (report["entries"], report["segments"], report["lost"]) == (5, 1, 0)
    assert (report["position"], report["sequence"], report["generation"]) == (3, 3, 0)
    assert report["bytes"] > 0
    assert shop.ask("sync") == {**report, "entries": 0, "segments": 0, "bytes": 0}
    assert count_heads(shop) == 1
    shop.write()
    out, err = shop.call("sync")
    first, second, third = out.splitlines()
    assert first.startswith("1 entry published in 1 segment, ")
    assert second == "through sequence 4 of generation 0, position 4"
    assert third == f"expect at least {shop.ask('sync')['expect_at_least']}"
    assert err == NOISE
    assert shop.call("sync")[0].splitlines() == ["nothing new", second, third]


def test_the_archive_is_named_anywhere(shop: Shop) -> None:
    elsewhere = f"file://{shop.directory}/elsewhere"
    assert shop.ask("--archive", elsewhere, "sync")["entries"] == 5
    assert shop.ask("sync", "--archive", elsewhere)["entries"] == 0
    assert shop.ask("--archive", "file:///nowhere", "sync", "--archive", elsewhere)["entries"] == 0
    assert count_heads(shop) == 0


def test_a_worker_needs_no_keys(shop: Shop) -> None:
    (shop.directory / "keyring.json").unlink()
    assert shop.ask("--app", "worker:log", "sync")["entries"] == 5
    assert shop.ask("--app", "worker:log", "status")["archive"]["published"]["sequence"] == 3


def test_missing_tables_are_10(shop: Shop, bare_database_url: URL) -> None:
    bare = replace(shop, url=bare_database_url)
    for command in (["sync"], ["sync", "--follow"], ["snapshot"]):
        assert bare.ask(*command, code=10)["error"] == "SchemaVersionError"
    assert not (shop.directory / "archive").exists()


def test_another_worker_is_11(shop: Shop, engine: Engine) -> None:
    shop.call("sync")
    shop.write()
    with hold_lease(shop, engine):
        assert shop.ask("sync", code=11)["error"] == "LeaseHeldError"
    assert shop.ask("sync")["entries"] == 1


def test_a_store_that_refuses_is_13(shop: Shop) -> None:
    (shop.directory / "archive").write_text("in the way")
    for command in (["sync"], ["snapshot"], ["restore", "--yes"]):
        out, err = shop.call(*command, code=13)
        assert out == ""
        assert "error: " in err
    # What can be told without the archive is told.
    status = shop.ask("status", code=13)
    assert status["entries"] == 5
    assert status["archive"]["error"]["exit_code"] == 13
    assert "archive:" in shop.call("status", code=13)[0]


def test_a_store_that_does_not_answer_is_13(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    out, err = shop.call(
        "--archive", "s3://bucket/prefix", "--store-deadline", "0.5", "sync", code=13
    )
    assert out == ""
    assert re.search(r"given up after \d+ attempts? in 0\.\d s", err)
    assert "nothing" not in err.replace("nothing was", "")


def test_a_lost_commit_is_3_until_it_is_a_fork(shop: Shop, spare_database: FreshDatabase) -> None:
    shop.call("sync")
    earlier = replace(shop, url=spare_database.url)
    earlier.make_tables()
    earlier.call("restore", "--through", "2")
    refused = earlier.ask("sync", code=3)
    assert refused["error"] == "LogForkedError"
    assert count_heads(shop) == 1
    report = earlier.ask("sync", "--fork", "fork")
    assert (report["lost"], report["generation"], report["sequence"]) == (1, 1, 2)
    assert "sequence 2 of generation 1, position 2" in earlier.call("status")[0]


# -- snapshots and status -----------------------------------------------------------------------


def test_snapshot(shop: Shop) -> None:
    report = shop.ask("snapshot")
    assert (report["taken"], report["sequence"], report["rows"]) == (True, 3, 2)
    assert report["bytes"] > 0
    again = shop.ask("snapshot")
    assert (again["taken"], again["sequence"]) == (False, 3)
    shop.write()
    out, err = shop.call("snapshot", "--full")
    assert out.startswith("2 rows at sequence 4: ")
    assert err == NOISE
    assert shop.call("snapshot")[0] == "nothing has changed since the snapshot at sequence 4\n"


def test_a_snapshot_of_a_sealed_log_needs_its_key(shop: Shop) -> None:
    assert shop.ask("--app", "worker:log", "snapshot", code=12)["error"] == "KeyUnavailableError"
    assert find_snapshot(shop) == 0


def test_status_says_how_far_the_archive_is_behind(shop: Shop) -> None:
    assert "archive" not in replace(shop, archive="").ask("status")
    nothing = shop.ask("status")["archive"]
    assert (nothing["published"], nothing["error"]) == (None, None)
    assert nothing["lag"]["entries"] == 5
    assert nothing["lag"]["seconds"] >= 0
    assert "nothing published yet" in shop.call("status")[0]
    shop.call("snapshot")
    shop.write()
    archive = shop.ask("status")["archive"]
    published = archive["published"]
    assert archive["lag"]["entries"] == 1
    assert (published["sequence"], published["generation"], published["position"]) == (3, 0, 3)
    assert published["snapshot"]["sequence"] == 3
    assert published["recorded_at"] == shop.ask("tail", "--through", "3")[-1]["recorded_at"]
    out, _ = shop.call("status")
    for part in ("behind by 1 entry", "newest snapshot at sequence 3", "sequence 3 of generation"):
        assert part in out
    assert max(map(len, out.splitlines())) <= max(80, len(shop.archive) + 13)


def test_lag_over_its_limit_is_4(shop: Shop) -> None:
    assert shop.ask("status", "--max-lag", "0", code=4)["archive"]["lag"]["entries"] == 5
    assert shop.ask("status", "--max-lag", "3600")["archive"]["lag"]["entries"] == 5
    shop.call("sync")
    assert shop.ask("status", "--max-lag", "0")["archive"]["lag"]["seconds"] == 0
    told = replace(shop, archive="").call("status", "--max-lag", "0", code=2)[1]
    assert "no archive: give --archive URL" in told


def test_status_knows_an_archive_of_another_log(shop: Shop, spare_database: FreshDatabase) -> None:
    shop.call("sync")
    other = replace(shop, url=spare_database.url)
    other.execute(
        "ALTER TABLE oplog.oplog_log DISABLE TRIGGER ALL",
        "UPDATE oplog.oplog_log SET log_id = gen_random_uuid()",
    )
    status = other.ask("status", code=2)
    assert status["archive"]["error"]["name"] == "ConfigurationError"
    assert "holds log" in other.call("status", code=2)[1]


# -- until stopped ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_on_a_signal_with_what_it_made(shop: Shop, number: signal.Signals) -> None:
    process = shop.start(
        *("sync", "--follow", "--json", "--interval", "0.05", "--snapshot-records", "100")
    )
    wait_until(process, lambda: find_snapshot(shop) == 3)
    shop.write()
    wait_until(process, lambda: find_sequence(shop) == 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["entries"], report["sequence"], report["position"]) == (6, 4, 4)
    noise, publishing, unsigned, ending = err.splitlines()
    assert (noise, publishing) == (NOISE.strip(), f"publishing to {shop.archive}")
    assert unsigned.startswith(UNSIGNED.format(shop.archive))
    assert ending == f"{number.name}: ending; a second signal ends at once"
    assert shop.ask("sync")["entries"] == 0


def test_a_second_signal_ends_at_once(shop: Shop, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE oplog.oplog_record")
        process = shop.start("sync", "--follow")
        wait_until_blocked(engine)
        process.send_signal(signal.SIGTERM)
        read_until(process, "ending")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert shop.ask("sync")["entries"] == 5


def test_one_signal_is_enough_for_work_that_hangs(shop: Shop, engine: Engine) -> None:
    """It may be killed at any instant, and a request that hangs may hang for a minute."""
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE oplog.oplog_record")
        process = shop.start("sync", "--follow", "--stop-within", "0.1")
        wait_until_blocked(engine)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert err.endswith("it did not end in time\n")
    assert shop.ask("sync")["entries"] == 5


def test_a_worker_waits_while_another_one_publishes(shop: Shop, engine: Engine) -> None:
    shop.call("sync")
    shop.write()
    with hold_lease(shop, engine):
        process = shop.start("sync", "--follow", "--interval", "0.05")
        read_until(process, "publishing to")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (0, "nothing new\n")
    assert find_sequence(shop) == 3


@contextlib.contextmanager
def hold_lease(shop: Shop, engine: Engine) -> Iterator[None]:
    """What a worker in the middle of its pass holds."""
    head = open_archive(shop.archive).read_head()
    with engine.begin() as connection:
        assert ExportStore("oplog").try_lease(connection, head.archive_id) is Lease.OURS
        yield


def read_until(process: subprocess.Popen[str], part: str) -> None:
    """Read what the process says until it says `part`."""
    assert process.stderr is not None
    line = process.stderr.readline()
    while part not in line:
        assert line, "it ended without a word of it"
        line = process.stderr.readline()


def find_sequence(shop: Shop) -> int:
    head = open_archive(shop.archive).find_head()
    return 0 if head is None else head.sequence


def find_snapshot(shop: Shop) -> int:
    head = open_archive(shop.archive).find_head()
    return head.snapshots[-1].sequence if head and head.snapshots else 0


def wait_until(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    """Look until it is so, while the process lives."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not seen():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[1])
        time.sleep(0.01)


# -- what could not be restored -----------------------------------------------------------------


def test_a_table_that_is_gone_is_3_everywhere(shop: Shop) -> None:
    shop.execute("DROP TABLE line")
    for command in ("sync", "snapshot"):
        report = shop.ask(command, code=3)
        assert [problem["what"] for problem in report["problems"]] == ["type-table-missing"]
        err = shop.call(command, code=3)[1]
        assert "problem: public.line: the log has the type 'line', and its table was dropped" in err
        assert "hint: run `oplog types sync`" in err
    assert "schema" in {problem["what"] for problem in shop.ask("check", code=3)["problems"]}
    assert "type-table-missing" in {f["what"] for f in shop.ask("doctor", code=3)["findings"]}


def test_a_renamed_column_is_published_and_noted(shop: Shop) -> None:
    shop.execute("ALTER TABLE account RENAME owner TO holder")
    assert shop.ask("sync")["problems"] == []
    error = shop.ask("snapshot", code=1)
    assert error["error"] == "SchemaDriftError"
    assert "oplog types sync" in error["hint"]
    assert "table-differs" in {f["what"] for f in shop.ask("doctor", code=3)["findings"]}
    assert "schema" in {problem["what"] for problem in shop.ask("check", code=3)["problems"]}
