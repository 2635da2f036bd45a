"""Rows of one table as they were at a moment, as batches with a typed column for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from oplog.archive.archive import Archive
from oplog.arrow.batches import ROWS, Batches, check_rows, cut_batches
from oplog.arrow.change_batches import find_shapes
from oplog.arrow.column_type import ColumnType, choose_types
from oplog.facade import Oplog
from oplog.facade.given_target import Readable, open_source


def rows_of(
    log: Oplog,
    connection: Readable | None,
    model: Any,
    *,
    at: int | datetime,
    as_text: Collection[str] = (),
    rows: int = ROWS,
    archive: Archive | None = None,
) -> Batches:
    """Rows of one table as they were `at` a position or a moment, in the order of their key.

    `model` is a mapped class of one table, a `Table` or a type name; its logged columns of now are
    the batches' columns, in the types that `changes_of` has. `connection`, `archive` and errors
    are as for `Oplog.moment`: of an `Engine` rows are streamed, so that memory holds one batch of
    `rows` rows; of a connection they are read first.
    """
    check_rows(rows)
    with open_source(connection, log.catalog) as inside:
        reader = log.open_reader(inside, archive=archive)
        snapshot = reader.source.read_snapshot()
        shape = next(iter(find_shapes(log, reader, model, snapshot=snapshot).values()))
    columns = choose_types(shape, as_text=as_text)
    schema = pa.schema([pa.field(name, one.type) for name, one in columns.items()])
    found = _iterate(log, connection, model, at=at, archive=archive)
    return Batches(schema, cut_batches(schema, _convert(found, columns), most=rows))


def _iterate(
    log: Oplog,
    connection: Readable | None,
    model: Any,
    *,
    at: int | datetime,
    archive: Archive | None,
) -> Iterator[Mapping[str, Any]]:
    with log.moment(connection, at=at, archive=archive) as then:
        yield from then.stored_rows(model)


def _convert(
    found: Iterator[Mapping[str, Any]], columns: Mapping[str, ColumnType]
) -> Iterator[tuple[Any, ...]]:
    for row in found:
        yield tuple(
            None if row.get(name) is None else one.convert(row[name])
            for name, one in columns.items()
        )
