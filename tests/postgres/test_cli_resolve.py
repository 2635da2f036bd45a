"""`oplog resolve`: what it says, and how it ends."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from oplog.store.commit_lookup import OutcomeStore
from tests.postgres.appending import append, make_record
from tests.postgres.shop import NOISE, Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    return shop


def test_a_record_that_is_there(shop: Shop) -> None:
    entry = shop.ask("tail")[0]
    asked = ("--entry", entry["entry_id"], "--aggregate", entry["aggregate"])
    for more in ((), ("--version", str(entry["version"]))):
        answer = shop.ask("resolve", *asked, *more)
        assert answer["outcome"] == "committed"
        assert answer["blockers"] == []
        # All that committed with it.
        assert [r["aggregate"] for r in answer["receipts"]] == [
            "account/1",
            "account/2",
            "line/7/a=b",
        ]
        assert answer["receipts"][0]["entry_hash"] == entry["entry_hash"]
    out, err = shop.call("resolve", *asked)
    assert err == NOISE
    assert out.splitlines()[:2] == [
        "committed",
        f"  account/1 version 1, entry {entry['entry_id']}",
    ]
    # The record decides, whichever of its aggregates is named.
    asked = ("--entry", entry["entry_id"], "--aggregate", "account/2")
    assert shop.ask("resolve", *asked) == answer


def test_a_record_that_is_not_there_never_will_be(shop: Shop) -> None:
    lost = uuid4()
    for _ in range(2):
        answer = shop.ask("resolve", "--entry", str(lost), "--aggregate", "account/9")
        assert answer == {"outcome": "aborted", "receipts": [], "blockers": []}
    engine = sa.create_engine(shop.url)
    with engine.connect() as connection:
        aborted = connection.exec_driver_sql(
            "SELECT record_id FROM oplog.oplog_outcome WHERE position IS NULL"
        )
        assert aborted.scalars().all() == [lost]
    engine.dispose()
    assert shop.ask("verify")["ok"]
    assert shop.ask("status")["aggregates"] == 3


def test_a_key(shop: Shop) -> None:
    assert shop.call("resolve", "never-used")[0] == "aborted\n"
    engine = sa.create_engine(shop.url)
    with engine.begin() as connection:
        OutcomeStore("oplog").lock_key(connection, "never-used")
        out, _ = shop.call("resolve", "never-used", "--wait", "0", code=1)
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        answer = shop.ask("resolve", "never-used", "--wait", "0", code=1)
    engine.dispose()
    assert out.startswith(f"pending\n  waits for process {pid}: idle in transaction")
    assert [blocker["process_id"] for blocker in answer["blockers"]] == [pid]


@pytest.mark.parametrize("commits", [True, False])
def test_a_record_that_is_being_appended(shop: Shop, *, commits: bool) -> None:
    record = make_record(["account/9"])
    asked = ("--entry", str(record.record_id), "--aggregate", "account/9")
    engine = sa.create_engine(shop.url)
    with engine.connect() as connection:
        append(connection, record)
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        answer = shop.ask("resolve", *asked, "--wait", "0", code=1)
        assert answer["outcome"] == "pending"
        assert [blocker["process_id"] for blocker in answer["blockers"]] == [pid]
        (connection.commit if commits else connection.rollback)()
    engine.dispose()
    assert shop.ask("resolve", *asked)["outcome"] == ("committed" if commits else "aborted")


@pytest.mark.parametrize(
    "arguments",
    [(), ("--entry", str(uuid4())), ("--aggregate", "a"), ("key", "--aggregate", "a")],
)
def test_what_has_to_be_said(shop: Shop, arguments: tuple[str, ...]) -> None:
    _, err = shop.call("resolve", *arguments, code=2)
    assert "give an idempotency KEY, or --entry and --aggregate" in err


def test_without_a_log(tmp_path: Path, bare_database_url: URL) -> None:
    shop = open_shop(tmp_path, bare_database_url)
    shop.call("resolve", "key", code=10)
