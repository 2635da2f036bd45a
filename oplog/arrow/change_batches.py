"""Changes of one table as batches, with a typed column for each logged one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from oplog.archive.archive import Archive
from oplog.arrow.batches import ROWS, Batches, check_rows, cut_batches
from oplog.arrow.column_type import ColumnType, choose_types
from oplog.arrow.log_rows import METADATA, RowSource, list_metadata, open_rows
from oplog.entry import OpType
from oplog.errors import ConfigurationError
from oplog.facade import Oplog
from oplog.facade.given_target import Inside
from oplog.payload.effect import Effect
from oplog.payload.shape import Shape
from oplog.reading.reader import RecordReader
from oplog.reading.row_identity import find_table_types
from oplog.reading.type_match import StoredSteps
from oplog.value import Wire

_OWN = (
    pa.field("log_position", pa.int64(), nullable=False),
    pa.field("log_sequence", pa.int64()),
    pa.field("log_aggregate", pa.string(), nullable=False),
    pa.field("log_recorded_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("log_entry_id", pa.string(), nullable=False),
    pa.field("log_metadata", METADATA, nullable=False),
    pa.field("log_kind", pa.string(), nullable=False),
    pa.field("log_written", pa.list_(pa.string()), nullable=False),
)
"""What each row has of its entry, before the columns of the table."""


def changes_of(
    log: Oplog,
    connection: Inside | None,
    model: Any,
    *,
    metadata: Mapping[str, str | Iterable[str]] | None = None,
    after: int | datetime | None = None,
    through: int | datetime | None = None,
    as_text: Collection[str] = (),
    rows: int = ROWS,
    archive: Archive | None = None,
) -> Batches:
    """Changes of one table as record batches of at most `rows` rows, in causal order.

    `model` is a mapped class of one table, a `Table` or a type name. Each row is a change: columns
    that begin with `log_` say of which entry, then come the table's columns of now. The key is
    always there; another column is null if the change did not write it, or wrote NULL, and
    `log_written` names those that were written. `numeric(p,s)` is a decimal, without a precision
    it is text; so are types that Arrow does not have, and the columns `as_text`. Raises
    `ConfigurationError` for a value that its column cannot hold, such as a date of infinity.
    Other arguments are as for `read_batches`.
    """
    check_rows(rows)
    source = open_rows(
        log,
        connection,
        aggregate=None,
        metadata=metadata,
        bounds=(after, through),
        archive=archive,
    )
    types = find_shapes(log, source.reader, model, snapshot=source.snapshot)
    columns = choose_types(next(iter(types.values())), as_text=as_text)
    schema = pa.schema([*_OWN, *(pa.field(name, one.type) for name, one in columns.items())])
    return Batches(schema, cut_batches(schema, _iterate(source, types, columns), most=rows))


def find_shapes(log: Oplog, reader: RecordReader, model: Any, *, snapshot: str) -> dict[str, Shape]:
    """The newest revisions of the types of one table; the reader gives them from now on."""
    declared = log.catalog.find_types(model)
    if len(declared) > 1:
        raise ConfigurationError(
            f"{getattr(model, '__name__', model)!r:.80} has rows in several tables",
            hint="give the name of one type: "
            + ", ".join(sorted(one.type_name for one in declared)),
        )
    shape, known = find_table_types(reader, declared[0], snapshot=snapshot)
    if shape is None:
        raise ConfigurationError(
            f"nothing was logged yet of type {declared[0].type_name!r}",
            hint="its columns are known when its first row is written",
        )
    types = {shape.type_name: shape}
    types |= {name: shapes[-1] for name, shapes in known.items()}
    steps = StoredSteps(log.catalog, lambda: reader.types.latest)
    reader.read_as({name: one.revision for name, one in types.items()}, steps)
    return types


def _iterate(
    source: RowSource, types: Mapping[str, Shape], columns: Mapping[str, ColumnType]
) -> Iterator[tuple[Any, ...]]:
    for opened in source.iterate():
        stored = opened.stored
        metadata = list_metadata(stored)
        for effect in opened.effects:
            if effect.shape.type_name not in types:
                continue
            values = _list_values(effect)
            yield (
                stored.position,
                source.find_sequence(stored),
                stored.aggregates[effect.place],
                stored.recorded_at,
                str(stored.record_id),
                metadata,
                effect.kind.name.lower(),
                [] if effect.kind is OpType.DELETE else list(effect.values),
                *(
                    None if values.get(name) is None else one.convert(values[name])  # type: ignore[arg-type]
                    for name, one in columns.items()
                ),
            )


def _list_values(effect: Effect) -> dict[str, Wire | None]:
    key = dict(zip(effect.shape.key_names, effect.key, strict=True))
    return {**key, **effect.values}
