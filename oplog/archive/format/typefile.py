"""Types and key check values as an object: what is needed to read entries, but for the keys.

Pure. Holds every stored revision of every type, descriptors included, so that an archive can be
read without the database it came from. Must not hold wrapped keys: with the archive in other
hands they would be one password away.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oplog.archive.format.canonical_json import Fields, decode_document, encode_document, invalid
from oplog.archive.format.container import MAX_OBJECT_BYTES
from oplog.errors import DecodeError
from oplog.payload.column_numbers import Numbers
from oplog.payload.shape import Shape

FORMAT = 1
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class LoggedTypes:
    """Shapes with revisions rising, and check values by key id."""

    shapes: Sequence[Shape]
    key_checks: Mapping[str, bytes]


def encode_types(types: LoggedTypes) -> bytes:
    """The object's bytes; the same types always give the same."""
    shapes = sorted(types.shapes, key=lambda shape: (shape.type_name, shape.revision))
    return encode_document(
        {
            "format": FORMAT,
            "types": [
                {
                    "name": shape.type_name,
                    "revision": shape.revision,
                    "shape": shape.to_json(),
                    "descriptor": b64encode(shape.descriptor).decode(),
                    "numbers": [
                        {"database": n.database, "table": n.table, "columns": dict(n.columns)}
                        for n in shape.numbers
                    ],
                }
                for shape in shapes
            ],
            "keys": {key_id: check.hex() for key_id, check in types.key_checks.items()},
        }
    )


def decode_types(data: bytes, *, what: str) -> LoggedTypes:
    """The inverse of `encode_types`; `ManifestInvalidError` for anything else."""
    fields = Fields(decode_document(data, most=MAX_OBJECT_BYTES, what=what), what)
    fields.take_format(FORMAT)
    shapes = [_read_shape(one, what) for one in fields.take_list("types", most=_MOST)]
    keys = fields.take("keys")
    fields.finish()
    if not isinstance(keys, dict):
        raise invalid(what, "its keys are not an object")
    checks = Fields(keys, what)
    try:
        found = {key_id: bytes.fromhex(checks.take_text(key_id)) for key_id in keys}
    except ValueError as cause:
        raise invalid(what, f"a check value is not hexadecimal: {cause}") from cause
    types = LoggedTypes(shapes, found)
    names = {(shape.type_name, shape.revision) for shape in shapes}
    # Again, and compared: hexadecimal and base64 have more than one spelling of the same bytes.
    if len(names) != len(shapes) or encode_types(types) != data:
        raise invalid(what, "it is not in canonical form, or has a revision twice")
    return types


def _read_shape(document: Any, what: str) -> Shape:
    fields = Fields(document, what)
    name = fields.take_text("name")
    revision = fields.take_integer("revision", least=1)
    shape = fields.take("shape")
    text = fields.take_text("descriptor", most=MAX_OBJECT_BYTES)
    numbers = [_read_numbers(one, what) for one in fields.take_list("numbers", most=_MOST)]
    fields.finish()
    _check_shape(shape, what)
    try:
        descriptor = b64decode(text, validate=True)
        return Shape.from_json(name, revision, shape=shape, descriptor=descriptor, numbers=numbers)
    except (ValueError, DecodeError) as cause:
        raise invalid(what, f"type {name!r} revision {revision} cannot be read") from cause


def _read_numbers(document: Any, what: str) -> Numbers:
    fields = Fields(document, what)
    columns = fields.take("columns")
    taken = Fields(columns, what)
    found = Numbers(
        fields.take_text("database"),
        fields.take_integer("table", least=1),
        {name: taken.take_integer(name, least=1) for name in columns},
    )
    fields.finish()
    return found


def _check_shape(document: Any, what: str) -> None:
    """Refuse members of other kinds than a shape has, which it would not look at itself."""
    fields = Fields(document, what)
    for name in ("schema", "table", "aggregate", "message"):
        fields.take_text(name)
    excluded = fields.take("excluded")
    if not isinstance(excluded, dict) or not all(isinstance(v, str) for v in excluded.values()):
        raise invalid(what, "what is excluded from a type is not given by name and reason")
    columns = fields.take_list("columns", most=_MOST)
    fields.finish()
    for one in columns:
        column = Fields(one, what)
        for name in ("name", "pg_type", "kind", "field", "category"):
            column.take_text(name)
        column.take_integer("number", least=1)
        if type(column.take("primary_key")) is not bool:
            raise invalid(what, "a column's primary_key is neither true nor false")
        column.finish()
