"""What several test modules need and no fixture can give."""

from __future__ import annotations

import math

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from oplog import Oplog, OpType
from oplog.postgres.quoting import (
    quote,
)
from oplog.schema.tables import (
    create_statements,
)
from oplog.value import TEXT_SETTINGS


def install_log(connection: Connection, *, schema: str = "oplog") -> None:
    """Create the log's tables."""
    for statement in create_statements(schema=schema, version=1):
        # Without this a percent sign in DDL would be taken for a placeholder.
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def administer(url: URL, *statements: str) -> None:
    """Run statements that cannot be part of a transaction, such as CREATE DATABASE."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def assert_replays(log: Oplog, engine: Engine) -> None:
    """The log alone tells every tracked table row for row, and its chains are whole.

    Folds effects by hand, so that it also judges the product's own `verify`.
    """
    with engine.connect() as connection:
        told = _fold_log(log, connection)
        live = _read_live(log, connection)
        links = log.store.list_broken_links(connection)
        verdict = log.verify(connection)
    differences = [
        f"{where}: live {live.get(where)!r}, logged {told.get(where)!r}"
        for where in sorted(live.keys() | told.keys(), key=repr)
        if live.get(where) != told.get(where)
    ]
    assert not differences, "\n".join(["the log does not tell the live rows", *differences])
    assert links == []
    assert verdict.ok, verdict.differences


Row = dict[str, str]
"""Values by column name, as `repr` of what travels: tells -0.0 from 0.0, '' from None."""


def _fold_log(log: Oplog, connection: Connection) -> dict[tuple[str, str], Row]:
    rows: dict[tuple[str, str], Row] = {}
    reader = log.open_reader(connection)
    adopting = _find_adopting(log, connection)
    for record in reader.iterate_records(log.store.read_snapshot(connection)):
        position = record.stored.position
        for effect in record.effects:
            where = (f"{effect.shape.schema}.{effect.shape.table}", repr(effect.key))
            values = {name: repr(value) for name, value in effect.values.items()}
            if effect.adopted and effect.kind is OpType.UPDATE:
                # Columns that DDL rewrote, of a row that a later effect may yet create.
                rows.get(where, {}).update(values)
            elif effect.adopted:
                rows[where] = values
            elif effect.kind is OpType.CREATE:
                assert where not in rows, f"creates what is there: {where}"
                rows[where] = values
            elif where not in rows:
                # Known or not, a row may be changed before it is adopted.
                excused = position < adopting.get(effect.shape.type_name, 0)
                assert excused, f"{effect.kind.name} of what is not there: {where}"
            elif effect.kind is OpType.DELETE:
                del rows[where]
            else:
                rows[where].update(values)
    return rows


def _find_adopting(log: Oplog, connection: Connection) -> dict[str, float]:
    """Until which position each type is being adopted, as the entries themselves say it."""
    until: dict[str, float] = {}
    for entry in log.read(connection):
        for name in entry.metadata.get("adopted", []):
            if entry.aggregate == f"adopted/{name}":
                done = "adopted_rows" in entry.metadata
                until[name] = entry.position if done else math.inf
    return until


def _read_live(log: Oplog, connection: Connection) -> dict[tuple[str, str], Row]:
    for name, value in TEXT_SETTINGS.items():
        connection.exec_driver_sql("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
    rows: dict[tuple[str, str], Row] = {}
    for shape in log.open_reader(connection).types.latest.values():
        table = f"{quote(shape.schema)}.{quote(shape.table)}"
        columns = ", ".join(f"{quote(name)}::text" for name in shape.names)
        found = connection.exec_driver_sql(
            f"SELECT {columns} FROM {table}", execution_options={"no_parameters": True}
        )
        for texts in found:
            wires = {
                name: None if text is None else shape.codecs[name].from_text(text)
                for name, text in zip(shape.names, texts, strict=True)
            }
            key = tuple(wires[name] for name in shape.key_names)
            rows[f"{shape.schema}.{shape.table}", repr(key)] = {
                name: repr(wire) for name, wire in wires.items()
            }
    return rows
