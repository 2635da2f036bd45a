"""Who ran a command: in the metadata of every record that it writes."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from oplog import context, current_context
from oplog.cli.actor import find_os_user
from tests.postgres.shop import Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    """A row that no session ever wrote."""
    shop = open_shop(tmp_path, database_url)
    shop.execute(
        "CREATE TABLE account (id serial PRIMARY KEY, owner varchar NOT NULL, "
        "balance numeric(12, 2) NOT NULL, photo bytea, stars bigint)",
        "CREATE TABLE line (order_id integer, sku varchar(8), amount integer NOT NULL, "
        "PRIMARY KEY (order_id, sku))",
        "INSERT INTO account VALUES (1, 'Ann', 5, NULL, NULL)",
        "ANALYZE",
    )
    return shop


def read_metadata(shop: Shop) -> list[dict[str, list[str]]]:
    return [entry["metadata"] for entry in shop.ask("tail")]


@pytest.mark.parametrize(
    "arguments",
    [("--actor", "ann", "adopt", "account"), ("adopt", "account", "--actor", "ann")],
    ids=["before the command", "after it"],
)
def test_an_adoption_says_who_adopted(shop: Shop, arguments: tuple[str, ...]) -> None:
    shop.call(*arguments)
    (said,) = read_metadata(shop)
    assert (said["actor"], said["command"]) == (["ann"], ["oplog adopt"])
    assert said["adopted"] == ["account"]
    assert current_context() == {}


def test_by_default_it_is_the_account_of_the_process(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "somebody else")
    monkeypatch.setenv("USER", "somebody else")
    shop.call("adopt", "account")
    (said,) = read_metadata(shop)
    assert said["actor"] == [pwd.getpwuid(os.getuid()).pw_name]


def test_an_account_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert find_os_user() == "uid 4000000"


@pytest.mark.parametrize("actor", ["", " ", "x" * 2000, "nul\0"])
def test_a_name_that_cannot_be_stored_is_refused_at_once(shop: Shop, actor: str) -> None:
    assert "--actor" in shop.call("adopt", "--actor", actor, code=2)[1]
    assert shop.ask("tail") == []


def test_an_adoption_is_not_ended_by_what_somebody_says_of_it(shop: Shop) -> None:
    """The last chunk is known by keys of its metadata, which a context may have, too."""
    shop.execute("INSERT INTO account SELECT n, 'x', 0 FROM generate_series(2, 5) n")
    with context(adopted_rows="1", adopted_revision="1", retired="account", actor="ann"):
        shop.call("adopt", "account", "--chunk-rows", "2")
    said = read_metadata(shop)
    assert [one.get("adopted_rows") for one in said] == [None, None, ["5"]]
    assert all("retired" not in one for one in said)
    assert shop.ask("verify")["ok"]
