"""Entries of all types as batches: a row for each operation, its values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from oplog.archive.archive import Archive
from oplog.arrow.batches import ROWS, Batches, check_rows, cut_batches
from oplog.arrow.log_rows import METADATA, RowSource, open_rows
from oplog.facade import Oplog
from oplog.facade.given_target import Inside
from oplog.json_value import to_json_value

SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("sequence", pa.int64()),
        pa.field("aggregate", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("recorded_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("transaction_id", pa.int64(), nullable=False),
        pa.field("metadata", METADATA, nullable=False),
        pa.field("kind", pa.string()),
        pa.field("type", pa.string()),
        pa.field("key", pa.string()),
        pa.field("fields", pa.string()),
        pa.field("quarantined", pa.string()),
    ]
)
"""Columns of `read_batches`. The last ones but one are of the operation, and null for an entry
without any."""


def read_batches(
    log: Oplog,
    connection: Inside | None,
    *,
    aggregate: str | None = None,
    metadata: Mapping[str, str | Iterable[str]] | None = None,
    after: int | datetime | None = None,
    through: int | datetime | None = None,
    rows: int = ROWS,
    archive: Archive | None = None,
) -> Batches:
    """Entries as record batches of at most `rows` rows, in causal order, from one snapshot.

    Each operation is a row with what its entry has; an entry without operations is one too. `key`
    and `fields` are JSON objects, as `Operation.to_json` gives them. Arguments are as for
    `Oplog.read`; `connection` is a connection or a session, or None with an `archive`.
    """
    check_rows(rows)
    source = open_rows(
        log,
        connection,
        aggregate=aggregate,
        metadata=metadata,
        bounds=(after, through),
        archive=archive,
    )
    return Batches(SCHEMA, cut_batches(SCHEMA, _iterate(source), most=rows))


def _iterate(source: RowSource) -> Iterator[tuple[Any, ...]]:
    for entry in source.reader.read(source.filter, snapshot=source.snapshot):
        beginning = (
            entry.position,
            entry.sequence,
            entry.aggregate,
            entry.version,
            entry.recorded_at,
            str(entry.entry_id),
            entry.transaction_id,
            list(entry.metadata.items()),
        )
        for one in entry.operations:
            yield (
                *beginning,
                one.kind.name.lower(),
                one.type_name,
                _write(one.key),
                _write(one.fields),
                None,
            )
        if not entry.operations:
            yield (*beginning, None, None, None, None, entry.quarantined)


def _write(values: Mapping[str, Any]) -> str:
    return json.dumps(to_json_value(values), ensure_ascii=False, allow_nan=False)
