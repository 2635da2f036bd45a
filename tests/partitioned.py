"""A log whose partitions are so small that a test fills several."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from oplog.schema.partitions import create_partition_statements
from oplog.store.partition_store import Partition, PartitionStore
from tests.logged import run


def shrink_partitions(engine: Engine, positions: int, *, schema: str = "oplog") -> None:
    """Give a log without records partitions of so many positions each, and the first of them.

    Appending makes no others in time: a test maintains the log between its transactions.
    """
    tables = [name for one in list_partitions(engine, schema=schema) for name in one.tables]
    run(
        engine,
        f"DROP TABLE {', '.join(tables)}",
        f'DROP FUNCTION "{schema}".oplog_make_partitions',
        *create_partition_statements(f'"{schema}"', positions=positions),
    )


def list_partitions(engine: Engine, *, schema: str = "oplog") -> list[Partition]:
    """Those that there are."""
    with engine.connect() as connection:
        return PartitionStore(schema).list_partitions(connection)


def list_firsts(engine: Engine) -> list[int]:
    """The first position of each."""
    return [one.first for one in list_partitions(engine)]
