"""Types and key check values as an object: all that is needed to read records besides the keys.

It has every stored revision of every type, descriptors included, so that an archive can be read
without the database it came from. It has no wrapped keys: with a copy of the archive, only a
password would protect them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from oplog.archive.format.canonical_json import (
    MAX_DOCUMENT_BYTES,
    Document,
    Format,
    HexText,
    Positive,
    Text,
    encode_document,
    invalid,
    read_document,
)
from oplog.errors import DecodeError
from oplog.payload.column_numbers import Numbers
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape

_MOST = 1_000_000
_MOST_REVISIONS = 2**31 - 1
NumberText = Annotated[str, Meta(pattern="^[1-9][0-9]{0,8}$")]
"""A field number as the key of a JSON object."""


@dataclass(frozen=True, slots=True)
class LoggedTypes:
    """Shapes with revisions rising, and check values by key id."""

    shapes: Sequence[Shape]
    key_checks: Mapping[str, bytes]


class ColumnJson(Document, frozen=True):
    """A column of a type's revision."""

    name: Text
    pg_type: Text
    kind: Text
    field: Text
    number: Positive
    primary_key: bool
    category: Text


class ShapeJson(Document, frozen=True):
    """What the type table stores beside the descriptor."""

    schema: Text
    table: Text
    aggregate: Text
    message: Text
    excluded: dict[str, str]
    columns: Annotated[tuple[ColumnJson, ...], Meta(max_length=_MOST)]


class NumbersJson(Document, frozen=True):
    """By which numbers a database knew the columns."""

    database: Text
    table: Positive
    columns: dict[str, Positive]


class ChangeJson(Document, frozen=True):
    """What became of rows of the revision before; keys of mappings are field numbers."""

    previous: Annotated[int, Meta(ge=0, le=_MOST_REVISIONS)]
    fills: dict[NumberText, str | None]
    rewritten: Annotated[tuple[Positive, ...], Meta(max_length=_MOST)]
    labels: dict[NumberText, dict[str, str]]
    readopted: bool


class TypeJson(Document, frozen=True):
    """One revision of a type; bytes are spelled in base64."""

    name: Text
    revision: Positive
    shape: ShapeJson
    descriptor: bytes
    numbers: Annotated[tuple[NumbersJson, ...], Meta(max_length=_MOST)]
    change: ChangeJson


class TypesJson(Document, frozen=True, tag=1, tag_field="format"):
    """Types and check values, in format 1."""

    types: Annotated[tuple[TypeJson, ...], Meta(max_length=_MOST)]
    keys: dict[str, HexText]


def encode_types(types: LoggedTypes) -> bytes:
    """The object's bytes; the same types always give the same."""
    shapes = sorted(types.shapes, key=lambda shape: (shape.type_name, shape.revision))
    return encode_document(
        TypesJson(
            types=tuple(_write_shape(shape) for shape in shapes),
            keys={key_id: check.hex() for key_id, check in types.key_checks.items()},
        )
    )


def decode_types(data: bytes, *, what: str) -> LoggedTypes:
    """The inverse of `encode_types`; `ManifestInvalidError` for anything else."""
    types = read_document(data, TYPES_FORMATS, most=MAX_DOCUMENT_BYTES, what=what)
    names = {(shape.type_name, shape.revision) for shape in types.shapes}
    # The order of types, and the spelling of a kind, are not seen by the document alone.
    if len(names) != len(types.shapes) or encode_types(types) != data:
        raise invalid(what, "it is not in canonical form, or has a revision twice")
    return types


def _read_types(document: TypesJson, what: str) -> LoggedTypes:
    checks = {key_id: bytes.fromhex(check) for key_id, check in document.keys.items()}
    return LoggedTypes([_read_shape(one, what) for one in document.types], checks)


def _write_shape(shape: Shape) -> TypeJson:
    try:
        found = msgspec.convert(shape.to_json(), ShapeJson)
    except msgspec.ValidationError as cause:
        name = f"type {shape.type_name!r} revision {shape.revision}, to be written,"
        raise invalid(name, str(cause)) from cause
    return TypeJson(
        name=shape.type_name,
        revision=shape.revision,
        shape=found,
        descriptor=shape.descriptor,
        numbers=tuple(
            NumbersJson(database=one.database, table=one.table, columns=dict(one.columns))
            for one in shape.numbers
        ),
        change=msgspec.convert(shape.change.to_json(), ChangeJson),
    )


def _read_shape(document: TypeJson, what: str) -> Shape:
    try:
        return Shape.from_json(
            document.name,
            document.revision,
            shape=msgspec.to_builtins(document.shape),
            descriptor=document.descriptor,
            numbers=[Numbers(one.database, one.table, one.columns) for one in document.numbers],
            change=SchemaChange.from_json(msgspec.to_builtins(document.change)),
        )
    except (ValueError, DecodeError) as cause:
        name = f"type {document.name!r} revision {document.revision}"
        raise invalid(what, f"{name} cannot be read") from cause


TYPES_FORMATS: Mapping[int, Format[Any, LoggedTypes]] = MappingProxyType(
    {1: Format(TypesJson, _read_types)}
)
"""How types of each format are read."""
