"""Operations, entries and tickets, and the checks of text that goes into the log.

Aggregate names and metadata are checked here, before any SQL runs: Postgres would refuse NUL and
lone surrogates in the middle of the transaction.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from oplog.errors import EntryError, InvalidMetadataError
from oplog.json_model import make_core_schema, make_json_schema
from oplog.json_value import format_time, hide, to_json_value

MAX_AGGREGATE_BYTES = 1024
"""Longest aggregate name, in UTF-8 bytes. It is part of a btree key, which may have 2704."""
MAX_METADATA_KEY_BYTES = 128
MAX_METADATA_VALUE_BYTES = 1024
SEARCH_KEY = "oplog.search"
"""Metadata key of the tokens by which values are found; reserved, and not shown as metadata."""
MAX_METADATA_VALUES = 256
"""Most metadata values of one transaction, over all its keys."""
PART_BYTES = 256 * 1024
"""A record's part is no larger, before compression and sealing, unless a single row is."""
MAX_PART_BYTES = 16 * 1024 * 1024
"""Largest part of a record, in bytes before compression and sealing: so large may a row be."""
MAX_AGGREGATES = 4_000_000
"""Most aggregates of one transaction: so many a segment of an archive can name."""
MAX_NAMES_BYTES = 96 * 1024 * 1024
"""Names of all aggregates of one transaction, in UTF-8 bytes, with 48 bytes for each."""
MAX_RECORD_BYTES = 128 * 1024 * 1024
"""All parts of a record, in bytes before compression and sealing. It is one object's part in an
archive, and a parameter in Postgres' protocol, which has a limit of 1 GB."""


class OpType(enum.IntEnum):
    """Kind of an operation. The numbers are part of the wire format."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3


@dataclass(frozen=True, slots=True)
class Operation:
    """The effect of a transaction on one row.

    `key` maps primary-key columns to values. `fields` maps the written columns to values:
    every column for a create, the changed ones for an update (None for NULL), none for a
    delete. Values have the natural Python type of the column's Postgres type; a value that
    Python cannot hold (infinite timestamps, dates BC) is a str in Postgres' text form.
    """

    kind: OpType
    type_name: str
    key: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls, type_name: str, *, key: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> Operation:
        """Return the create of a new row. `fields` need not repeat the key."""
        return cls(OpType.CREATE, type_name, dict(key), {**key, **fields})

    @classmethod
    def update(
        cls, type_name: str, *, key: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> Operation:
        """Return an update of some columns of an existing row."""
        return cls(OpType.UPDATE, type_name, dict(key), dict(fields))

    @classmethod
    def delete(cls, type_name: str, *, key: Mapping[str, Any]) -> Operation:
        """Return the delete of a row."""
        return cls(OpType.DELETE, type_name, dict(key), {})

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The operation as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "kind": self.kind.name.lower(),
            "type": self.type_name,
            "key": to_json_value(self.key),
            "fields": to_json_value(hide(self.fields, redact=redact)),
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return make_core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return make_json_schema(
            cls,
            ("kind", "type", "key", "fields"),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """All operations of one transaction on one aggregate, before it is stored."""

    aggregate: str
    operations: tuple[Operation, ...] = field(default=())

    def __init__(self, aggregate: str, operations: Iterable[Operation]) -> None:
        # The class is frozen, so attributes can only be set in this way.
        object.__setattr__(self, "aggregate", check_aggregate_name(aggregate))
        object.__setattr__(self, "operations", tuple(operations))
        if not self.operations:
            raise EntryError(
                f"entry for aggregate {aggregate!r} holds no operation",
                hint="give at least one operation, or do not append the entry",
            )


@dataclass(frozen=True, slots=True)
class Ticket:
    """An aggregate's version when it was read; 0 if the aggregate has no entry yet."""

    aggregate: str
    version: int


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """An entry as read back.

    `position` is that of the transaction's record, which all its entries share: it orders
    transactions causally and has gaps. `sequence` numbers records without gaps and is None until
    the record is archived. `entry_id` and `entry_hash` are the record's. `metadata` maps keys to
    lists of values. `recorded_at` is the database's clock when the record was written, shortly
    before COMMIT; never order by it. An entry whose record is quarantined has no operations:
    `quarantined` is the reason, None for any other.
    """

    position: int
    sequence: int | None
    aggregate: str
    version: int
    operations: tuple[Operation, ...]
    metadata: Mapping[str, list[str]]
    transaction_id: int
    entry_id: UUID
    entry_hash: bytes
    recorded_at: datetime
    quarantined: str | None = None

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The entry as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "position": self.position,
            "sequence": self.sequence,
            "aggregate": self.aggregate,
            "version": self.version,
            "recorded_at": format_time(self.recorded_at),
            "entry_id": str(self.entry_id),
            "entry_hash": self.entry_hash.hex(),
            "transaction_id": self.transaction_id,
            "metadata": {key: list(values) for key, values in self.metadata.items()},
            "operations": [one.to_json(redact=redact) for one in self.operations],
            "quarantined": self.quarantined,
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return make_core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return make_json_schema(
            cls,
            (
                "position",
                "sequence",
                "aggregate",
                "version",
                "recorded_at",
                "entry_id",
                "entry_hash",
                "transaction_id",
                "metadata",
                "operations",
                "quarantined",
            ),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One step in the history of a row; `fields` as in `Operation`."""

    position: int
    kind: OpType
    fields: Mapping[str, Any]
    metadata: Mapping[str, list[str]]
    recorded_at: datetime

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The step as one JSON object; `redact` hides values."""
        return {
            "position": self.position,
            "kind": self.kind.name.lower(),
            "recorded_at": format_time(self.recorded_at),
            "metadata": {key: list(values) for key, values in self.metadata.items()},
            "fields": to_json_value(hide(self.fields, redact=redact)),
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return make_core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return make_json_schema(
            cls,
            ("position", "kind", "recorded_at", "metadata", "fields"),
        )


def check_text(text: str, what: str, error: type[EntryError]) -> bytes:
    """Return the UTF-8 bytes of `text`; raise `error` if Postgres could not store it as text."""
    if not isinstance(text, str):
        raise error(
            f"{what} is a {type(text).__name__}, not a str",
            hint="convert it with str()",
        )
    if "\x00" in text:
        raise error(
            f"{what} holds a NUL character: {text!r:.80}",
            hint="Postgres text cannot hold NUL; remove or encode it",
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise error(
            f"{what} holds a lone surrogate at character {cause.start}",
            hint="the text was decoded with errors='surrogateescape'; decode it properly",
        ) from cause


def check_aggregate_name(name: str) -> str:
    """Return `name`; raise `EntryError` if it cannot name an aggregate."""
    data = check_text(name, "aggregate name", EntryError)
    if not data:
        raise EntryError(
            "the aggregate name is empty",
            hint="name the group of rows that change together, such as 'account/42'",
        )
    if len(data) > MAX_AGGREGATE_BYTES:
        raise EntryError(
            f"aggregate name has {len(data)} bytes, over {MAX_AGGREGATE_BYTES}: {name[:60]!r}…",
            hint="declare a shorter template for this table in aggregates={...}",
        )
    return name


def check_metadata(key: str, value: object) -> list[str]:
    """Return the values of `key` as a list; raise `InvalidMetadataError` for an invalid one."""
    key_bytes = check_text(key, "metadata key", InvalidMetadataError)
    if not 0 < len(key_bytes) <= MAX_METADATA_KEY_BYTES:
        raise InvalidMetadataError(
            f"metadata key of {len(key_bytes)} bytes: {key[:60]!r}",
            hint=f"use 1 to {MAX_METADATA_KEY_BYTES} bytes",
        )
    if key == SEARCH_KEY:
        raise InvalidMetadataError(
            f"metadata {key!r} is the log's own: it holds tokens of searchable columns",
            hint="choose another key; log.search finds values",
        )
    if isinstance(value, str):
        values = [value]
    # bytes and mappings are iterable too, but their items are numbers and keys, not values.
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)):
        values = list(value)
    else:
        raise InvalidMetadataError(
            f"metadata {key!r} is a {type(value).__name__}",
            hint="give a str or a list of str",
        )
    if not values:
        raise InvalidMetadataError(
            f"metadata {key!r} has no value", hint="leave the key out, or give it a value"
        )
    for item in values:
        data = check_text(item, f"metadata {key!r}", InvalidMetadataError)
        if len(data) > MAX_METADATA_VALUE_BYTES:
            raise InvalidMetadataError(
                f"metadata {key!r} has a value of {len(data)} bytes",
                hint=f"at most {MAX_METADATA_VALUE_BYTES} bytes; put long text in a table",
            )
    return values


def check_metadata_count(count: int) -> None:
    """Raise `InvalidMetadataError` when a transaction has too many metadata values."""
    if count > MAX_METADATA_VALUES:
        raise InvalidMetadataError(
            f"{count} metadata values in one transaction, the limit is {MAX_METADATA_VALUES}",
            hint="metadata describes the transaction; put lists of things into a table",
        )
