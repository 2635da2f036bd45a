"""`oplog adopt`: what it says, what it writes, how it ends."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.postgres.shop import NOISE, Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    """Five lines and an account that no session ever wrote."""
    shop = open_shop(tmp_path, database_url)
    shop.execute(
        "CREATE TABLE account (id serial PRIMARY KEY, owner varchar NOT NULL, "
        "balance numeric(12, 2) NOT NULL, photo bytea, stars bigint)",
        "CREATE TABLE line (order_id integer, sku varchar(8), amount integer NOT NULL, "
        "PRIMARY KEY (order_id, sku))",
        "INSERT INTO account VALUES (1, 'Ann', 5, NULL, NULL)",
        "INSERT INTO line SELECT n, 'sku', n FROM generate_series(1, 5) n",
        "ANALYZE",
    )
    return shop


def test_for_people(shop: Shop) -> None:
    out, err = shop.call("adopt", "--chunk-rows", "2")
    assert err == NOISE
    assert out.splitlines() == [
        "account: 1 row adopted in 1 entry",
        "line: 5 rows adopted in 3 entries",
    ]
    assert shop.ask("verify")["ok"]
    assert shop.call("adopt", "line")[0] == "line: adopted before, 5 rows\n"
    assert "adopted: account" in shop.call("history", "account", "1")[0]


def test_for_scripts(shop: Shop) -> None:
    document = shop.ask("adopt", "line", "--chunk-rows", "2")
    assert document == {
        "dry_run": False,
        "rows": 5,
        "entries": 3,
        "types": [
            {
                "type": "line",
                "table": "public.line",
                "rows": 5,
                "entries": 3,
                "earlier_rows": 0,
                "estimated_rows": 5,
                "finished": True,
            }
        ],
    }
    again = shop.ask("adopt")
    assert [(t["type"], t["rows"], t["earlier_rows"]) for t in again["types"]] == [
        ("account", 1, 0),
        ("line", 0, 5),
    ]


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    out, err = shop.call("adopt", "--dry-run")
    assert out.splitlines() == [
        "account: to be adopted, about 1 row in all",
        "line: to be adopted, about 5 rows in all",
    ]
    assert err == f"{NOISE}nothing was written: this was a dry run\n"
    assert shop.ask("status")["entries"] == 0
    assert shop.ask("adopt", "--dry-run")["types"][1]["finished"] is False


def test_what_is_not_logged_is_refused(shop: Shop) -> None:
    out, err = shop.call("adopt", "line", "nowhere", code=1)
    assert out == ""
    assert "error: 'nowhere' is not a type of this log" in err
    assert "hint: the catalog has account, line" in err
    assert shop.ask("status")["entries"] == 0
    assert shop.ask("adopt", "--chunk-rows", "1000000", code=2)["error"] == "ConfigurationError"
    assert "0 is not in the range" in shop.call("adopt", "--chunk-rows", "0", code=2)[1]


def test_a_database_without_the_log_is_10(tmp_path: Path, bare_database_url: URL) -> None:
    shop = open_shop(tmp_path, bare_database_url)
    assert "op.create_oplog(version=1)" in shop.call("adopt", code=10)[1]
    assert "op.create_oplog(version=1)" in shop.call("adopt", "--dry-run", code=10)[1]


def read_terminal(file: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(file, 4096)
        except OSError:
            return  # Linux says EIO where a pipe would say end of file
        if not data:
            return
        yield data


def test_a_bar_on_a_terminal_and_data_on_stdout(shop: Shop) -> None:
    ours, theirs = pty.openpty()
    with shop.start("adopt", "--chunk-rows", "1", stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(read_terminal(ours))
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert (process.returncode, "line: 5 rows adopted in 6 entries" in out) == (0, True)
    assert b"adopting" in shown
    assert b"100%" in shown


def test_interrupted_it_goes_on_later(shop: Shop) -> None:
    shop.execute("INSERT INTO line SELECT n, 'more', n FROM generate_series(6, 40000) n")
    ours, theirs = pty.openpty()
    with shop.start("adopt", "--chunk-rows", "10", stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        for data in read_terminal(ours):
            seen += data
            if b"adopting" in seen and process.poll() is None and seen.count(b"\r") > 3:
                process.send_signal(signal.SIGINT)
                break
        for _ in read_terminal(ours):
            pass
    os.close(ours)
    assert process.returncode == 130
    begun = shop.ask("adopt", "line", "--dry-run")["types"][0]
    assert not begun["finished"]
    assert begun["earlier_rows"] % 10 == 0
    rest = shop.ask("adopt", "line")["types"][0]
    assert rest["rows"] + begun["earlier_rows"] == 40000
    assert rest["finished"]
    assert shop.ask("verify")["ok"]
