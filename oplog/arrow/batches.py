"""Record batches with their schema, and where they go: tables, data frames, Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oplog.errors import ConfigurationError

ROWS = 10_000
"""Rows of a batch, unless the caller says otherwise."""


class Batches(Iterator[Any]):
    """Record batches of one `schema`, which is known before the first one, and if there is none."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def to_reader(self) -> pa.RecordBatchReader:
        """The same as a `RecordBatchReader`, which other libraries take."""
        return pa.RecordBatchReader.from_batches(self.schema, self)


def cut_batches(
    schema: pa.Schema, rows: Iterable[tuple[Any, ...]], *, most: int
) -> Iterator[pa.RecordBatch]:
    """Rows as batches of at most `most` of them, none empty; each row has a value per field."""
    columns: list[list[Any]] = [[] for _ in schema]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        if len(columns[0]) >= most:
            yield make_batch(schema, columns)
            columns = [[] for _ in schema]
    if columns[0]:
        yield make_batch(schema, columns)


def make_batch(schema: pa.Schema, columns: list[list[Any]]) -> pa.RecordBatch:
    """One batch of these columns; `ConfigurationError` for a value that its type cannot hold."""
    arrays = []
    for field, values in zip(schema, columns, strict=True):
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as cause:
            raise ConfigurationError(
                f"column {field.name!r} has a value that {field.type} cannot hold: {cause}",
                hint=f"give as_text=[{field.name!r}] to get it as PostgreSQL prints it",
            ) from cause
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def check_rows(rows: object) -> None:
    """Raise `ConfigurationError` for a number of rows that makes no batches."""
    if type(rows) is not int or rows < 1:
        raise ConfigurationError(
            f"batches of {rows!r:.40} rows", hint="give rows=1 or more, such as rows=10_000"
        )


def to_table(batches: Batches) -> pa.Table:
    """All batches as one Arrow table, in memory."""
    return pa.Table.from_batches(list(batches), schema=batches.schema)


def to_pandas(batches: Batches) -> Any:
    """All batches as one pandas DataFrame with Arrow's own types, which keep values exact.

    Needs pandas, which the extra does not bring.
    """
    import pandas as pd  # noqa: PLC0415 - installed by those who want it

    return to_table(batches).to_pandas(types_mapper=pd.ArrowDtype)


def to_polars(batches: Batches) -> Any:
    """All batches as one Polars DataFrame. Needs Polars, which the extra does not bring."""
    import polars as pl  # noqa: PLC0415 - installed by those who want it

    return pl.from_arrow(to_table(batches))


def write_parquet(batches: Batches, path: str | os.PathLike[str], **options: Any) -> int:
    """Write a Parquet file, a batch at a time, and return the number of rows.

    `options` are those of `pyarrow.parquet.ParquetWriter`. The file appears at `path` when it is
    whole: what is interrupted leaves the file that was there, if any.
    """
    target = Path(path)
    unfinished = target.with_name(f"{target.name}.unfinished")
    count = 0
    try:
        with pq.ParquetWriter(unfinished, batches.schema, **options) as writer:
            for batch in batches:
                writer.write_batch(batch)
                count += batch.num_rows
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return count
