"""The types that a log has stored, loaded once for a reader and all that use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oplog.errors import UnknownTypeError
from oplog.payload.shape import Shape
from oplog.store import LogSource


class ShapeTable:
    """Every stored revision of every type.

    Loaded when it is first asked. A reader takes its snapshot before that, so the types include
    those of every record in it. One that is not found is looked for in the log once more: outside
    a REPEATABLE READ transaction a later page may have it.
    """

    def __init__(self, source: LogSource) -> None:
        self._source = source
        self._shapes: dict[tuple[str, int], Shape] = {}

    def find_shape(self, type_name: str, revision: int) -> Shape:
        """The shape that a record was written with; `UnknownTypeError` if the log lacks it."""
        found = self._shapes.get((type_name, revision))
        if found is None:
            self._load()
            found = self._shapes.get((type_name, revision))
        if found is None:
            raise UnknownTypeError(
                f"the log has no type {type_name!r} revision {revision}",
                hint="its row in oplog_type is missing; compare with a backup or the archive",
            )
        return found

    def list_revisions(self, type_name: str) -> Sequence[Shape]:
        """Every revision of a type, rising."""
        return [shape for shape in self.shapes if shape.type_name == type_name]

    @property
    def shapes(self) -> Sequence[Shape]:
        """Every revision, revisions of a type rising."""
        if not self._shapes:
            self._load()
        return list(self._shapes.values())

    @property
    def latest(self) -> Mapping[str, Shape]:
        """The newest revision of each type."""
        return {shape.type_name: shape for shape in self.shapes}

    def _load(self) -> None:
        for shape in self._source.list_types():
            # A shape that was handed out stays the same object: a fold finds its routes by it.
            self._shapes.setdefault((shape.type_name, shape.revision), shape)
