"""Keeping an archive sound from the command line: check, resync, collect, pins, forks, grants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL, Engine

from tests.databases import FreshDatabase
from tests.partitioned import shrink_partitions
from tests.postgres.shop import NOISE, Shop, open_shop
from tests.support import administer

pytestmark = pytest.mark.postgres


@pytest.fixture
def shop(tmp_path: Path, database_url: URL) -> Shop:
    """A shop whose five entries, in three records, are published."""
    shop = replace(open_shop(tmp_path, database_url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    shop.call("snapshot")
    return shop


def damage(shop: Shop) -> str:
    """Flip a bit of the first segment; its path."""
    segment = next(iter(sorted((shop.directory / "archive" / "LOG").iterdir())))
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    return f"LOG/{segment.name}"


# -- check and resync ---------------------------------------------------------------------------


def test_check(shop: Shop) -> None:
    report = shop.ask("check")
    assert (report["ok"], report["compared"], report["problems"]) == (True, True, [])
    assert (report["entries"], report["sequence"], report["generation"]) == (5, 3, 0)
    out, err = shop.call("check", "--alone", "--sample", "50%")
    assert out.startswith("sound: ")
    assert out.endswith("through sequence 3 of generation 0, not compared with a database\n")
    assert err == NOISE
    # What is not read is not taken for lost.
    assert shop.ask("check", "--sample", "0%")["ok"] is True
    (shop.directory / "keyring.json").unlink()
    assert shop.ask("--app", "worker:log", "check")["ok"] is True


def test_damage_is_3_and_is_repaired(shop: Shop) -> None:
    path = damage(shop)
    report = shop.ask("check", "--alone", code=3)
    assert [(p["path"], p["what"]) for p in report["problems"]] == [(path, "corrupt")]
    out, _ = shop.call("check", code=3)
    assert f"corrupt: {path}" in out
    assert "DAMAGED: " in out
    would = shop.ask("resync", "--dry-run")
    assert (would["repaired"], would["dry_run"]) == ([path], True)
    assert shop.ask("check", code=3)["ok"] is False
    out, err = shop.call("resync")
    assert out.splitlines() == [f"repaired: {path}", "1 problem found, 1 object repaired"]
    assert err == NOISE
    assert shop.ask("check")["ok"] is True
    assert shop.ask("resync")["found"] == []


def test_an_archive_and_another_log_are_3(shop: Shop) -> None:
    shop.execute(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER oplog_append_only",
        "UPDATE oplog.oplog_record SET record_hash = prev_hashes WHERE position = 2",
    )
    assert shop.ask("check", "--alone")["ok"] is True
    assert shop.ask("check", code=3)["problems"][0]["what"] == "diverged"


# -- collect and pins ---------------------------------------------------------------------------


def test_collect(shop: Shop) -> None:
    shop.write()
    shop.call("snapshot", "--full")
    kept = shop.ask("collect", "--keep-snapshots", "2", "--grace", "0s")
    assert kept["snapshots"] == 0
    would = shop.ask("collect", "--keep-snapshots", "1", "--grace", "0s", "--dry-run")
    assert (would["snapshots"], would["dry_run"]) == (1, True)
    assert shop.ask("status")["archive"]["published"]["snapshots"] == 2
    out, err = shop.call("collect", "--keep-snapshots", "1", "--drop-log", "--grace", "0s")
    assert "1 snapshot not kept" in out.splitlines()[-1]
    assert err == NOISE
    assert shop.ask("status")["archive"]["published"]["snapshots"] == 1
    assert shop.ask("check", "--alone")["ok"] is True


def test_pins(shop: Shop) -> None:
    assert shop.ask("pins") == {"pins": []}
    pinned = shop.ask("pin", "before-the-migration")
    assert pinned["name"] == "before-the-migration"
    assert shop.ask("pins") == {"pins": [pinned]}
    assert shop.call("pins")[0] == f"{pinned['name']}  head {pinned['head']}  {pinned['path']}\n"
    assert shop.ask("unpin", "before-the-migration") == {"pins": [pinned]}
    assert shop.ask("unpin", "before-the-migration", code=2)["error"] == "ConfigurationError"
    assert shop.ask("pin", "../../HEAD", code=3)["error"] == "ManifestInvalidError"


# -- prune --------------------------------------------------------------------------------------


def test_prune(shop: Shop) -> None:
    before = shop.ask("tail")
    digest = shop.ask("replay")["digest"]
    assert shop.ask("prune", "--keep", "90d")["entries"] == 0
    would = shop.ask("prune", "--keep", "0s", "--dry-run")
    assert (would["dry_run"], would["entries"]) == (True, 5)
    assert shop.ask("tail") == before
    out, err = shop.call("prune", "--keep", "0s")
    assert out.startswith(
        "5 entries removed\nin the archive only: through sequence 3, position 3\n"
    )
    assert err == NOISE
    assert shop.ask("tail") == []
    assert shop.ask("verify", code=2)["error"] == "PrunedError"
    reach = ("--archive", shop.archive)
    positions = [entry["position"] for entry in before]
    assert [entry["position"] for entry in shop.ask("tail", *reach)] == positions
    assert [e["position"] for e in shop.ask("tail", "-n", "2", *reach)] == positions[-2:]
    moment = before[-2]["recorded_at"]
    assert [e["position"] for e in shop.ask("tail", "--after", moment, *reach)] == positions[-1:]
    assert shop.ask("verify", *reach)["ok"] is True
    assert shop.ask("replay", *reach)["digest"] == digest
    assert len(shop.ask("history", "account", "1", *reach)["changes"]) == 2


def test_prune_tells_what_it_dropped(tmp_path: Path, engine: Engine) -> None:
    shrink_partitions(engine, 2)
    shop = replace(open_shop(tmp_path, engine.url), archive=f"file://{tmp_path}/archive")
    shop.fill()
    shop.call("sync")
    out, _ = shop.call("maintain")
    assert out == "3 tables made; at position 3, with 3 partitions through 5\n"
    dropped = [f"oplog.oplog_{table}_p{n}" for n in (0, 1) for table in ("record", "part", "token")]
    assert shop.call("prune", "--keep", "0s")[0].splitlines() == [
        "5 entries removed",
        f"dropped: {', '.join(dropped)}",
        "in the archive only: through sequence 3, position 3",
    ]
    shop.write()
    shop.call("sync")
    assert shop.ask("prune", "--keep", "0s")["dropped"] == []
    assert shop.ask("verify", "--archive", shop.archive)["ok"] is True


# -- forks --------------------------------------------------------------------------------------


@pytest.fixture
def earlier(shop: Shop, spare_database: FreshDatabase) -> Shop:
    """The same log on a server that lost the last record, which is published."""
    earlier = replace(shop, url=spare_database.url)
    earlier.make_tables()
    earlier.call("restore", "--through", "2")
    return earlier


def test_a_fork_is_inspected(shop: Shop, earlier: Shop) -> None:
    assert shop.ask("fork", "inspect")["forked"] is False
    assert shop.call("fork", "inspect")[0] == "no fork: generation 0 goes on from sequence 3\n"
    report = earlier.ask("fork", "inspect", code=3)
    assert (report["forked"], report["common_sequence"], report["lost_count"]) == (True, 2, 1)
    (lost,) = report["lost"]
    assert (lost["position"], lost["aggregate"], lost["stored_hash"]) == (3, "account/2", None)
    assert lost["archived_hash"] == shop.ask("tail", "-n", "1")[0]["entry_hash"]
    out, err = earlier.call("fork", "inspect", code=3)
    assert "lost: sequence 3, position 3, account/2 version 2\n" in out
    assert "FORKED: the database lost 1 record after sequence 2" in out
    assert "replay-lost" in err


def test_what_was_lost_is_done_again(earlier: Shop) -> None:
    report = earlier.ask("fork", "replay-lost")
    assert (report["generation"], report["replayed"], report["refused"]) == (0, 1, [])
    again = earlier.ask("tail", "-n", "1")[0]
    assert again["operations"][0]["kind"] == "delete"
    assert earlier.ask("sync")["generation"] == 1
    earlier.call("fork", "replay-lost")
    assert len(earlier.ask("tail")) == 5
    assert earlier.ask("verify")["ok"] is True


def test_what_was_lost_is_abandoned(earlier: Shop) -> None:
    report = earlier.ask("fork", "abandon")
    assert (report["lost"], report["generation"]) == (1, 1)
    assert earlier.ask("fork", "inspect")["branches"] == [
        {"generation": 0, "common_sequence": 2, "last_sequence": 3, "head": 2}
    ]
    assert earlier.ask("fork", "replay-lost", "--dry-run")["dry_run"] is True
    assert earlier.ask("fork", "replay-lost", "--generation", "7", code=2)
    assert len(earlier.ask("tail")) == 4


# -- grants -------------------------------------------------------------------------------------


@pytest.fixture
def role(server_url: URL, database_url: URL) -> Iterator[str]:
    """A role that may connect."""
    role = f"oplog_{uuid4().hex[:8]}"
    administer(server_url, f"CREATE ROLE {role} LOGIN")
    yield role
    administer(database_url, f"DROP OWNED BY {role}")
    administer(server_url, f"DROP ROLE {role}")


def grant(shop: Shop, *arguments: str) -> Shop:
    """The shop as a role sees it that was granted what the command prints."""
    out, err = shop.call("grants", *arguments)
    assert err == NOISE
    shop.execute(out)
    return replace(shop, url=shop.url.set(username=arguments[1]))


def test_a_worker_needs_what_is_granted(shop: Shop, role: str) -> None:
    worker = replace(shop, url=shop.url.set(username=role))
    shop.write()
    assert "permission denied" in worker.call("sync", code=1)[1]
    grant(shop, "worker", role)
    assert worker.ask("--app", "worker:log", "sync")["entries"] == 1
    assert worker.ask("--app", "worker:log", "status", "--max-lag", "0")["entries"] == 6
    assert worker.ask("--app", "worker:log", "check")["ok"] is True
    shop.write()
    assert "permission denied for table account" in worker.call("snapshot", code=1)[1]
    assert grant(shop, "worker", role, "--tables").ask("snapshot")["taken"] is True
    with pytest.raises(Exception, match="permission denied"):
        worker.write()


def test_an_application_and_an_auditor_need_what_is_granted(shop: Shop, role: str) -> None:
    auditor = grant(shop, "auditor", role)
    assert len(auditor.ask("tail")) == 5
    shop.write()
    assert "permission denied" in auditor.call("sync", code=1)[1]
    application = grant(shop, "application", role)
    shop.execute(f"GRANT SELECT, UPDATE ON account TO {role}")
    application.write()
    assert len(auditor.ask("tail")) == 7
    with pytest.raises(Exception, match="permission denied"):
        application.execute("UPDATE oplog.oplog_record SET data = data")


def test_grants_are_quoted(shop: Shop) -> None:
    document = shop.ask("grants", "auditor", 'a"; DROP TABLE account; --')
    assert document["statements"][0] == (
        'GRANT USAGE ON SCHEMA "oplog" TO "a""; DROP TABLE account; --";'
    )
