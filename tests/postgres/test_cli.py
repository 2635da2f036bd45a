"""What the commands answer, on a real database, for people and for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from oplog import Keyring
from tests.postgres.shop import NOISE, Shop, open_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def empty_shop(tmp_path: Path, database_url: URL) -> Shop:
    return open_shop(tmp_path, database_url)


@pytest.fixture
def shop(empty_shop: Shop) -> Shop:
    empty_shop.fill()
    return empty_shop


# -- status, tail, history ----------------------------------------------------------------------


def test_status(shop: Shop) -> None:
    status = shop.ask("status")
    (key_id,) = Keyring.from_file(shop.directory / "keyring.json").key_ids
    assert (status["schema"], status["schema_version"]) == ("oplog", 1)
    assert (status["entries"], status["aggregates"], status["position"]) == (5, 3, 3)
    (key,) = status["keys"]
    assert (key["key_id"], key["state"], key["age_days"]) == (key_id, "current", 0)
    assert (key["registered_at"][-1], key["retired_at"]) == ("Z", None)
    assert status["types"][0] == {"name": "account", "revisions": [1], "table": "public.account"}
    assert status["append_only"] == {"ok": True, "problems": []}
    assert status["server"]["standby"] is False
    assert status["server"]["database"] == shop.url.database
    assert status["bytes"] > 0
    out, err = shop.call("status")
    assert err == NOISE
    for part in (status["log_id"], status["recorded_at"], "5 of 3 aggregates", key_id, "line"):
        assert part in out
    assert max(map(len, out.splitlines())) <= 80


def test_status_warns_of_a_broken_guard_and_of_a_missing_key(shop: Shop) -> None:
    shop.execute("ALTER TABLE oplog.oplog_token DISABLE TRIGGER oplog_append_only")
    shop.replace_keyring()
    out, err = shop.call("status")
    assert "append-only: NO" in out
    assert "missing" in out
    assert "warning: trigger oplog_append_only on oplog_token is disabled" in err


def test_tail_for_people(shop: Shop) -> None:
    out, err = shop.call("tail", "-n", "2")
    assert err == NOISE
    first, *rest = out.splitlines()
    assert first.startswith("2  20")
    assert first.endswith("Z  account/1  version 2")
    assert rest[:3] == ["  actor: bob", "  update account id=1", "    balance = 6.00"]
    assert rest[4:] == ["  delete account id=2"]
    whole, _ = shop.call("tail")
    assert "owner = 'Ann \\x1b[31m'" in whole
    assert "\x1b" not in whole
    assert f"photo = \\x{'00' * 16}… (20 bytes)" in whole
    assert "  reason: import, night\n" in whole
    assert "sku = 'a=b'" in whole


def test_tail_for_scripts(shop: Shop) -> None:
    entries = shop.ask("tail")
    assert [entry["position"] for entry in entries] == [1, 1, 1, 2, 3]
    assert entries[0]["metadata"] == {"actor": ["ann"], "reason": ["import", "night"]}
    assert entries[0]["operations"] == [
        {
            "kind": "create",
            "type": "account",
            "key": {"id": 1},
            "fields": {
                "id": 1,
                "owner": "Ann \x1b[31m",
                "balance": "5.00",
                "photo": "\\x" + "00" * 20,
                "stars": "4611686018427387904",
            },
        }
    ]
    # The entries of one transaction are those of one record.
    assert [e["entry_id"] for e in entries].count(entries[0]["entry_id"]) == 3
    assert len({e["entry_hash"] for e in entries}) == 3
    assert entries[4]["operations"] == [
        {"kind": "delete", "type": "account", "key": {"id": 2}, "fields": {}}
    ]


def test_tail_filters(shop: Shop) -> None:
    def positions(*arguments: str) -> list[int]:
        return [entry["position"] for entry in shop.ask("tail", *arguments)]

    assert positions("-n", "1") == [3]
    assert positions("-n", "0", "--after", "1") == [2, 3]
    assert positions("-n", "1", "--through", "1") == [1]
    assert positions("--aggregate", "account/1") == [1, 2]
    assert positions("-n", "1", "--aggregate", "account/1", "--through", "1") == [1]
    assert positions("--metadata", "reason=night", "--metadata", "actor=ann") == [1, 1, 1]
    assert positions("-n", "2", "--metadata", "actor=ann") == [1, 1]
    assert positions("--metadata", "actor=ann", "--metadata", "reason=day") == []
    moment = shop.ask("tail", "-n", "2")[0]["recorded_at"]
    assert positions("--through", moment) == [1, 1, 1, 2]
    assert positions("--after", moment) == [3]
    assert positions("--through", "2001-01-01") == []


def test_history(shop: Shop) -> None:
    document = shop.ask("history", "account", "01")
    assert (document["type"], document["key"]) == ("account", {"id": 1})
    first, second = document["changes"]
    assert (first["kind"], first["position"]) == ("create", 1)
    assert (second["kind"], second["fields"]) == ("update", {"balance": "6.00"})
    assert second["metadata"] == {"actor": ["bob"]}
    by_order = shop.call("history", "line", "7", "a=b")[0]
    assert by_order == shop.call("history", "line", "sku=a=b", "order_id=7")[0]
    assert by_order.splitlines()[1:] == [
        "  actor: ann",
        "  reason: import, night",
        "  order_id = 7",
        "  sku = 'a=b'",
        "  amount = 3",
    ]
    out, err = shop.call("history", "account", "99")
    assert out == ""
    assert "the log has nothing about account id=99" in err


def test_history_of_what_cannot_be(shop: Shop) -> None:
    assert "'coat' is not a type of this log" in shop.call("history", "coat", "1", code=1)[1]
    out, err = shop.call("history", "account", "one", code=2)
    assert out == ""
    assert 'invalid input syntax for type integer: "one"' in err
    assert "its primary key is (id integer)" in err
    assert "value too long" in shop.call("history", "line", "7", "123456789", code=2)[1]
    assert "the primary key is: order_id sku" in shop.call("history", "line", "7", code=2)[1]


def test_pages_and_newest_first(shop: Shop) -> None:
    entries = shop.ask("tail", "--last", "3")
    assert shop.ask("tail", "--limit", "3", "--newest-first") == entries[::-1]
    whole = shop.ask("history", "account", "1")["changes"]
    first = shop.ask("history", "account", "1", "--limit", "1", "--newest-first")
    assert first["changes"] == whole[-1:]
    rest = shop.ask("history", "account", "1", "--newest-first", "--cursor", first["cursor"])
    assert (rest["changes"], rest["cursor"]) == (whole[:-1], None)
    _, err = shop.call("history", "account", "1", "--limit", "1")
    assert "there is more: --cursor op1" in err
    assert "is no cursor" in shop.call("history", "account", "1", "--cursor", "x", code=2)[1]
    assert shop.ask("history", "account", "1", "--after", "1")["changes"] == whole[1:]


def test_search(shop: Shop) -> None:
    found = shop.ask("search", "account", "--column", "balance", "--to", "6")
    (change,) = found["changes"]
    assert (change["kind"], change["fields"]) == ("update", {"balance": "6.00"})
    assert (change["metadata"], change["key"]) == ({"actor": ["bob"]}, {"id": 1})
    assert (found["cursor"], found["complete"]) == (None, True)
    asked = ("search", "account", "--column", "balance", "--before", "+05.0")
    out, err = shop.call(*asked)
    assert out.splitlines()[0].startswith("2  20")
    assert out.splitlines()[0].endswith("  update account id=1")
    assert out.splitlines()[1:] == ["  actor: bob", "  balance was 5.00", "  balance = 6.00"]
    for form in ([], ["--json"]):
        assert "5.00" not in shop.call(*asked, "--redact", *form)[0]
    page = shop.ask("search", "--limit", "1", "--actor", "ann")
    assert len(page["changes"]) == 1
    out, err = shop.call("search", "--actor", "ann", "--limit", "1", "--cursor", page["cursor"])
    assert "there is more: --cursor a:" in err
    assert len(shop.ask("search", "--kind", "delete")["changes"]) == 1
    nothing = ("search", "account", "--column", "owner", "--to", "nobody")
    assert "nothing found" in shop.call(*nothing)[1]
    _, err = shop.call(*nothing, "--scan-limit", "1")
    assert "1 record opened, down to position 3" in err
    assert "there is more: --cursor" in err


def test_search_of_what_cannot_be(shop: Shop) -> None:
    asked = ("search", "account", "--column", "balance", "--to")
    assert "invalid input syntax for type numeric" in shop.call(*asked, "x", code=2)[1]
    assert "needs TYPE and --column" in shop.call("search", "--to", "x", code=2)[1]
    missing = ("search", "account", "--column", "no", "--to", "x")
    assert "has no column 'no'" in shop.call(*missing, code=2)[1]
    assert "'coat' is not a type" in shop.call("search", "coat", code=1)[1]
    null = ("search", "account", "--column", "owner", "--to", "NULL")
    assert shop.ask(*null, "--null")["changes"] == shop.ask(*null)["changes"] == []


def test_redacted_values_are_nowhere(shop: Shop) -> None:
    shop.execute("UPDATE account SET owner = 'Eve' WHERE id = 1")
    shop.execute("INSERT INTO line VALUES (8, 'secret', 4711)", "DELETE FROM line WHERE amount = 3")
    for command in (["tail"], ["history", "account", "1"], ["verify"]):
        code = 3 if command == ["verify"] else 0
        for form in ([], ["--json"]):
            out, err = shop.call(*command, "--redact", *form, code=code)
            assert "***" in out
            for value in ("Ann", "Eve", "4711", "6.00", "5.00"):
                assert value not in out + err


# -- replay and verify --------------------------------------------------------------------------


def test_replay(shop: Shop) -> None:
    report = shop.ask("replay", "--into", "again")
    assert (report["into"], report["rows"], report["entries"]) == ("again", 2, 5)
    assert report["position"] == 3
    out, _ = shop.call("replay", "--into", "again")
    assert f"digest {report['digest']}\n" in out
    moment = shop.ask("tail", "-n", "3")[0]["recorded_at"]
    by_position = shop.ask("replay", "--into", "before", "--through", "1")
    assert (by_position["rows"], by_position["entries"]) == (3, 3)
    assert shop.ask("replay", "--into", "before", "--through", moment) == by_position
    shop.execute("DO $$ BEGIN ASSERT (SELECT balance FROM before.account WHERE id = 1) = 5; END $$")
    _, err = shop.call("replay", "--into", "public", code=2)
    assert "it holds the live tables" in err


def test_verify(shop: Shop) -> None:
    out, err = shop.call("verify")
    assert out == "equal: 2 rows from 5 entries through position 3\n"
    assert err == NOISE
    assert shop.ask("verify") == {
        "ok": True,
        "count": 0,
        "rows": 2,
        "entries": 5,
        "position": 3,
        "differences": [],
        "quarantined": [],
        "unnoted": [],
    }


def test_verify_shows_every_difference_and_ends_with_3(shop: Shop) -> None:
    shop.execute(
        "UPDATE account SET balance = 99, photo = NULL WHERE id = 1",
        "UPDATE line SET order_id = 9",
    )
    out, _ = shop.call("verify", code=3)
    assert out == (
        "public.account id=1 column balance\n  live:   99.00\n  logged: 6.00\n"
        f"public.account id=1 column photo\n  live:   NULL\n  logged: \\x{'00' * 16}… (20 bytes)\n"
        "public.line order_id=7, sku='a=b': the log has this row, the table has not\n"
        "  logged: order_id = 7\n  logged: sku = 'a=b'\n  logged: amount = 3\n"
        "public.line order_id=9, sku='a=b': the table has this row, the log has not\n"
        "  live: order_id = 9\n  live: sku = 'a=b'\n  live: amount = 3\n"
        "DIFFERENT: 4 differences; the log has 2 rows from 5 entries through position 3\n"
    )
    document = shop.ask("verify", code=3)
    assert (document["ok"], document["count"]) == (False, 4)
    balance, _photo, missing, extra = document["differences"]
    assert balance == {
        "table": "public.account",
        "key": {"id": 1},
        "column": "balance",
        "kind": "changed",
        "live": "99.00",
        "logged": "6.00",
    }
    assert (missing["kind"], missing["column"], missing["live"]) == ("missing", None, None)
    assert (extra["kind"], extra["logged"], extra["live"]["amount"]) == ("extra", None, 3)
    out, err = shop.call("verify", "--limit", "1", code=3)
    assert "DIFFERENT: 4 differences" in out
    assert "3 more differences not shown" in err


# -- types --------------------------------------------------------------------------------------


def test_types(empty_shop: Shop) -> None:
    out, err = empty_shop.call("types", "list")
    assert out == ""
    assert "declared and not stored yet: account, line" in err
    assert "log has no type 'line'" in empty_shop.call("types", "proto", "line", code=1)[1]
    empty_shop.call("--app", "shop:make_log", "types", "sync", code=1)
    empty_shop.execute(
        "CREATE TABLE line (order_id integer, sku varchar(8), amount integer NOT NULL, "
        "PRIMARY KEY (order_id, sku))",
        "CREATE TABLE account (id integer PRIMARY KEY, owner text NOT NULL, "
        "balance numeric(12,2) NOT NULL, photo bytea, stars bigint)",
    )
    would = empty_shop.ask("types", "sync", "--dry-run")
    assert [t["name"] for t in would["stored"]] == ["account", "line"]
    assert empty_shop.ask("types", "list")["not_stored"] == ["account", "line"]
    assert empty_shop.ask("types", "sync")["stored"] == would["stored"]
    assert empty_shop.ask("types", "sync")["stored"] == []
    assert empty_shop.ask("types", "list") == {"types": would["stored"], "not_stored": []}
    assert "    2  sku  character varying(8)  key\n" in empty_shop.call("types", "list")[0]
    out, _ = empty_shop.call("types", "proto", "line")
    assert "  optional sint64 order_id = 1;\n  optional string sku = 2;\n" in out


# -- keys ---------------------------------------------------------------------------------------


def test_a_key_is_retired(shop: Shop) -> None:
    path = shop.directory / "keyring.json"
    (before,) = Keyring.from_file(path).key_ids
    error = shop.ask("keys", "retire", before, code=2)
    assert "current one of this application's keyring" in error["message"]
    shop.ask("keys", "rotate", "--file", str(path))
    error = shop.ask("keys", "retire", before, code=2)
    assert "the last that may seal" in error["message"]
    assert shop.ask("keys", "retire", "elsewhere", code=2)["error"] == "ConfigurationError"
    shop.ask("types", "sync")
    assert [f["what"] for f in shop.ask("doctor", code=3)["findings"]].count("key-superseded") == 1
    retired = shop.ask("keys", "retire", before)
    assert (retired["key_id"], retired["retired_at"][-1]) == (before, "Z")
    out, err = shop.call("keys", "retire", before)
    assert out == f"{before}  retired {retired['retired_at']}\n"
    assert "keep the key in the keyring" in err
    old, new = shop.ask("keys", "list", "--log")["keys"]
    assert (old["state"], old["retired_at"]) == ("held", retired["retired_at"])
    assert (new["state"], new["retired_at"]) == ("current", None)
    out, _ = shop.call("keys", "list", "--log")
    first, second = out.splitlines()
    assert first.endswith(f", 0 days  retired {retired['retired_at']}")
    assert second.startswith(f"{new['key_id']}  current  since {new['registered_at']}")
    out, _ = shop.call("status")
    assert f"{before}  held, retired" in out
    assert shop.ask("verify")["ok"]


def test_keys_of_one_place_are_listed(shop: Shop) -> None:
    error = shop.ask("keys", "list", "--log", "--file", "keyring.json", code=2)
    assert error["message"] == "give either --file PATH or --log"
