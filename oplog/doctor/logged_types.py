"""The types that a log knows: listed, printed as .proto text, and stored ahead of a deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.catalog import TypeCatalog
from oplog.errors import UnknownTypeError
from oplog.payload.proto_text import print_files
from oplog.payload.shape import Shape
from oplog.store import Store


@dataclass(frozen=True, slots=True)
class TypesReport:
    """Every stored revision of every type; `not_stored` are declared and not in the log yet."""

    shapes: Sequence[Shape]
    not_stored: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "types": [_describe(shape) for shape in self.shapes],
            "not_stored": list(self.not_stored),
        }


@dataclass(frozen=True, slots=True)
class ProtoReport:
    """A revision of a type as .proto text: the text of each file by its name."""

    shape: Shape
    files: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "type": self.shape.type_name,
            "revision": self.shape.revision,
            "message": self.shape.message_name,
            "files": dict(self.files),
        }


def list_logged_types(connection: Connection, store: Store, catalog: TypeCatalog) -> TypesReport:
    """List the log's types, and those of `catalog` that it does not have."""
    store.require_current(connection)
    shapes = store.list_types(connection)
    stored = {shape.type_name for shape in shapes}
    return TypesReport(shapes, sorted(set(catalog.types) - stored))


def print_proto(
    connection: Connection, store: Store, *, type_name: str, revision: int | None
) -> ProtoReport:
    """A stored revision, the newest unless it is given; `UnknownTypeError` if there is none."""
    store.require_current(connection)
    shapes = store.list_types(connection)
    found = [s for s in shapes if s.type_name == type_name and revision in (None, s.revision)]
    if not found:
        names = sorted({shape.type_name for shape in shapes})
        which = f"{type_name!r}" if revision is None else f"{type_name!r} revision {revision}"
        raise UnknownTypeError(
            f"the log has no type {which}",
            hint=f"it has {', '.join(names) or 'no types'}; oplog types sync stores new ones",
        )
    shape = found[-1]
    return ProtoReport(shape, print_files(shape, retired=_list_retired(shape, shapes)))


def _list_retired(shape: Shape, shapes: Sequence[Shape]) -> list[int]:
    """Field numbers of columns that only other revisions of the type have."""
    used = {
        number
        for other in shapes
        if other.type_name == shape.type_name
        for number in other.by_number
    }
    return sorted(used - {field.number for field in shape.columns})


def _describe(shape: Shape) -> Mapping[str, Any]:
    return {"name": shape.type_name, "revision": shape.revision, **shape.to_json()}
