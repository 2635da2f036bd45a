"""`oplog as-of` and `oplog diff`: what an operator sees of earlier states."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tests.postgres.shop import Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    return shop


def test_a_table_as_it_was(shop: Shop) -> None:
    document = shop.ask("as-of", "account", "--at", "1")
    assert (document["type"], document["position"], document["more"]) == ("account", 1, False)
    assert [(row["id"], row["balance"]) for row in document["rows"]] == [(1, "5.00"), (2, "7.00")]
    assert document["rows"][0]["stars"] == str(2**62)
    out, err = shop.call("as-of", "account", "--at", "1")
    assert out.splitlines()[1] == "id=2, owner='Bo', balance=7.00, photo=NULL, stars=NULL"
    assert "\x1b" not in out
    assert "more than" not in err
    moment = shop.ask("history", "account", "1")["changes"][1]["recorded_at"]
    assert [row["balance"] for row in shop.ask("as-of", "account", "--at", moment)["rows"]] == [
        "6.00",
        "7.00",
    ]


def test_as_many_rows_as_are_asked_for(shop: Shop) -> None:
    out, err = shop.call("as-of", "account", "--at", "1", "--limit", "1")
    assert len(out.splitlines()) == 1
    assert "more than 1 row; --limit 0 shows all" in err
    document = shop.ask("as-of", "account", "--at", "1", "--limit", "1")
    assert (len(document["rows"]), document["more"]) == (1, True)
    assert len(shop.call("as-of", "account", "--at", "1", "--limit", "0")[0].splitlines()) == 2


def test_rows_as_csv(shop: Shop) -> None:
    out, _ = shop.call("as-of", "line", "--at", "3", "--csv")
    assert list(csv.DictReader(out.splitlines())) == [
        {"order_id": "7", "sku": "a=b", "amount": "3"}
    ]
    rows = list(csv.DictReader(shop.call("as-of", "account", "--at", "1", "--csv")[0].splitlines()))
    assert (rows[0]["photo"], rows[1]["photo"]) == ("\\x" + "00" * 20, "")
    assert "not both" in shop.call("as-of", "line", "--at", "3", "--csv", "--json", code=2)[0]


def test_one_row_as_it_was(shop: Shop) -> None:
    document = shop.ask("as-of", "account", "2", "--at", "2")
    assert (document["key"], document["row"]["owner"]) == ({"id": 2}, "Bo")
    assert shop.ask("as-of", "account", "2", "--at", "3")["row"] is None
    out, err = shop.call("as-of", "account", "2", "--at", "3")
    assert (out, "there was no account id=2" in err) == ("", True)
    assert (
        shop.call("as-of", "line", "sku=a=b", "order_id=7", "--at", "2", "--then")[0]
        == "order_id=7, sku='a=b', amount=3\n"
    )


def test_what_changed_between(shop: Shop) -> None:
    document = shop.ask("diff", "account", "--before", "1")
    changed, deleted = document["rows"]
    assert changed["changes"] == {"balance": {"from": "5.00", "to": "6.00"}}
    assert [(r["position"], r["metadata"]) for r in changed["records"]] == [(2, {"actor": ["bob"]})]
    assert (deleted["kind"], deleted["after"], deleted["before"]["owner"]) == (
        "deleted",
        None,
        "Bo",
    )
    lines = shop.call("diff", "account", "--before", "1", "--after", "2")[0].splitlines()
    assert lines[:2] == ["changed  id=1", "  balance = 5.00 -> 6.00"]
    assert lines[2].startswith("  by 2  ")
    assert lines[3:] == ["    actor: bob"]
    assert [r["kind"] for r in shop.ask("diff", "account", "2", "--before", "1")["rows"]] == [
        "deleted"
    ]
    out, err = shop.call("diff", "account", "--before", "1", "--limit", "1")
    assert len([line for line in out.splitlines() if not line.startswith(" ")]) == 1
    assert "more than 1 row" in err
    assert shop.ask("diff", "line", "--before", "1")["rows"] == []


def test_what_cannot_be_asked(shop: Shop) -> None:
    assert "in the future" in shop.call("as-of", "account", "--at", "99", code=2)[1]
    assert (
        "first record has position 1"
        in shop.call("as-of", "account", "--at", "2001-01-01", code=2)[1]
    )
    assert "lies before" in shop.call("diff", "account", "--before", "3", "--after", "1", code=2)[1]
    assert "is not a type" in shop.call("as-of", "coat", "--at", "1", code=1)[1]
    assert "is not a type" in shop.call("diff", "coat", "--before", "1", code=1)[1]
    assert "Missing option '--at'" in shop.call("as-of", "account", code=2)[1]


def test_values_can_be_hidden(shop: Shop) -> None:
    for command in (
        ["as-of", "account", "--at", "1"],
        ["as-of", "account", "1", "--at", "1"],
        ["as-of", "account", "--at", "1", "--csv"],
        ["diff", "account", "--before", "1"],
    ):
        for form in ([], ["--json"] if "--csv" not in command else []):
            out, err = shop.call(*command, "--redact", *form)
            assert "***" in out
            for value in ("Ann", "Bo", "5.00", "6.00"):
                assert value not in out + err
