"""Partitions made ahead: by an operator, by a worker, and by nobody who may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, Engine

from oplog import Finding, MaintenanceReport
from oplog.archive.objectstore.memory import MemoryStore
from oplog.errors import ConfigurationError, SchemaVersionError
from oplog.facade.sync_worker import SyncWorker
from oplog.schema.partitions import PARTITION_POSITIONS
from oplog.schema.tables import create_statements
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import Base
from tests.partitioned import list_firsts, shrink_partitions
from tests.postgres.roles import APPLICATION, OWNER, WORKER, open_roles
from tests.postgres.shop import NOISE, open_shop
from tests.published import open_fresh

pytestmark = pytest.mark.postgres

POSITIONS = 16


@pytest.fixture
def logged(engine: Engine) -> LoggedDatabase:
    logged = open_logged(engine, Base)
    shrink_partitions(engine, POSITIONS)
    return logged


def draw(engine: Engine, position: int) -> None:
    """Let this be the newest position."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT setval('oplog.oplog_position_seq', {position})")


def test_what_comes_next_is_made_ahead(logged: LoggedDatabase) -> None:
    engine, log = logged.engine, logged.log
    assert log.maintain(engine) == MaintenanceReport(
        made=0, position=0, through_position=31, partitions=2
    )
    draw(engine, POSITIONS - 1)
    assert log.maintain(engine).made == 0
    draw(engine, POSITIONS)
    report = log.maintain(engine)
    assert report == MaintenanceReport(made=3, position=16, through_position=47, partitions=3)
    assert log.maintain(engine) == replace(report, made=0)
    assert list_firsts(engine) == [0, 16, 32]
    # Whatever is in between is not needed.
    draw(engine, 100)
    assert log.maintain(engine).made == 6
    assert list_firsts(engine) == [0, 16, 32, 96, 112]
    assert report.to_json() == {
        "made": 3,
        "position": 16,
        "through_position": 47,
        "partitions": 3,
        "locks_removed": 0,
        "guarded": [],
        "unguarded": [],
        "checked": [],
        "broken": [],
    }


def test_nothing_is_wrong_with_what_was_made(engine: Engine) -> None:
    logged = open_logged(engine, Base)

    def diagnose() -> list[Finding]:
        with engine.connect() as connection:
            found = logged.log.diagnose(connection)
        # What is said of their owner counts the tables.
        return [one for one in found if not one.what.startswith("owner-")]

    before = diagnose()
    draw(engine, PARTITION_POSITIONS)
    assert logged.log.maintain(engine).made == 3
    assert diagnose() == before


def test_the_size_of_partitions(engine: Engine) -> None:
    assert list_firsts(engine) == [0, PARTITION_POSITIONS]


def test_a_worker_makes_them(logged: LoggedDatabase) -> None:
    draw(logged.engine, POSITIONS)
    archive = open_fresh(MemoryStore("test"))
    worker = SyncWorker(
        logged.log,
        logged.engine,
        archive,
        check_hours=None,
        listen=False,
        interval_seconds=0.01,
        on_pass=lambda _: worker.stop() if len(list_firsts(logged.engine)) == 3 else None,
    )
    worker.run()
    assert list_firsts(logged.engine) == [0, 16, 32]


def test_only_the_owner_and_not_a_worker(bare_database_url: URL) -> None:
    with open_roles(bare_database_url, create_statements()) as roles:
        log = roles.open_log()
        engine = roles.engine(OWNER)
        shrink_partitions(engine, POSITIONS)
        roles.run(OWNER, "REVOKE ALL ON FUNCTION oplog.oplog_make_partitions(bigint) FROM PUBLIC")
        draw(engine, POSITIONS)
        for role in (APPLICATION, WORKER):
            with pytest.raises(ConfigurationError, match="only the owner") as caught:
                log.maintain(roles.engine(role))
            assert "appending makes them too" in caught.value.hint
        passes: list[int] = []

        def end(_: object) -> None:
            passes.append(1)
            if len(passes) == 3:
                worker.stop()

        archive = open_fresh(MemoryStore("test"))
        worker = SyncWorker(
            log,
            roles.engine(WORKER),
            archive,
            check_hours=None,
            listen=False,
            interval_seconds=0.01,
            on_pass=end,
        )
        worker.run()
        assert list_firsts(engine) == [0, 16]
        assert log.maintain(engine).made == 3


def test_the_command(tmp_path: Path, database_url: URL) -> None:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    report = shop.ask("maintain")
    last = 2 * PARTITION_POSITIONS - 1
    assert report == {
        "made": 0,
        "position": 3,
        "through_position": last,
        "partitions": 2,
        "locks_removed": 0,
        "guarded": [],
        "unguarded": [],
        "checked": [],
        "broken": [],
    }
    out, err = shop.call("maintain")
    assert out == f"0 tables made; at position 3, with 2 partitions through {last}\n"
    assert err == NOISE
    bare = replace(shop, url=shop.url.set(database="postgres"))
    assert bare.ask("maintain", code=10)["error"] == SchemaVersionError.__name__
