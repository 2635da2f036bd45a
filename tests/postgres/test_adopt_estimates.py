"""What a dry run says of tables that nobody has analysed."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Oplog, TypeCatalog
from oplog.adoption import chunk_record
from oplog.cli.adopt_command import _show_type
from tests.logged import run

pytestmark = pytest.mark.postgres


def estimate(engine: Engine, *statements: str) -> int | None:
    metadata = sa.MetaData()
    sa.Table("thing", metadata, sa.Column("id", sa.Integer, primary_key=True))
    run(engine, *statements)
    log = Oplog(TypeCatalog.from_models(metadata), plaintext=True)
    with engine.connect() as connection:
        (found,) = log.adopt(connection, dry_run=True).types
    wanted = "unknown" if found.estimated_rows is None else str(found.estimated_rows)
    assert wanted in _show_type(found, dry_run=True)
    return found.estimated_rows


CREATE = "CREATE TABLE thing (id int PRIMARY KEY) WITH (autovacuum_enabled = off)"
FILL = "INSERT INTO thing SELECT generate_series(1, 777)"


def test_a_small_table_is_counted(engine: Engine) -> None:
    assert estimate(engine, CREATE) == 0
    assert estimate(engine, FILL) == 777


def test_statistics_of_an_empty_table_are_none(engine: Engine) -> None:
    assert estimate(engine, CREATE, "ANALYZE thing", FILL) == 777


def test_a_large_table_is_unknown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_record, "_COUNTED_BYTES", 0)
    assert estimate(engine, CREATE, FILL) is None
    assert estimate(engine, "ANALYZE thing") == 777


def test_partitions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, first: int, end: int) -> str:
        return (
            f"CREATE TABLE {name} PARTITION OF thing FOR VALUES FROM ({first}) TO ({end}) "
            "WITH (autovacuum_enabled = off)"
        )

    parent = "CREATE TABLE thing (id int PRIMARY KEY) PARTITION BY RANGE (id)"
    statements = [parent, part("thing_1", 1, 500), part("thing_2", 500, 5000)]
    assert estimate(engine, *statements) == 0
    assert estimate(engine, FILL, "ANALYZE thing_1") == 777
    monkeypatch.setattr(chunk_record, "_COUNTED_BYTES", 0)
    assert estimate(engine) is None
    assert estimate(engine, "ANALYZE thing_2") == 777
