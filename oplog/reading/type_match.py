"""Which stored type a declared one is: the one of its table, whatever the log calls it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.payload.shape import Shape


def match_type(
    newest: Mapping[str, Shape], declared: DeclaredType, *, retired: Collection[str] = ()
) -> Shape | None:
    """The newest revision of the type; None if the log has none.

    `newest` are those of all types. A type keeps its name when its table is renamed, so the name
    that the application declares may be another one. One that is not among the `retired` goes
    first: it has the table now.
    """
    table = declared.table
    candidates = {
        name: shape
        for name, shape in newest.items()
        if shape.table == table.name and table.schema in (None, shape.schema)
    }
    present = {name: shape for name, shape in candidates.items() if name not in retired}
    candidates = present or candidates
    if declared.type_name in candidates or len(candidates) != 1:
        return newest.get(declared.type_name)
    return next(iter(candidates.values()))


def list_secret_types(catalog: TypeCatalog, shapes: Iterable[Shape]) -> frozenset[str]:
    """The log's names of types whose sizes must not tell what they hold, and the declared ones.

    `shapes` are all revisions, rising.
    """
    newest = {shape.type_name: shape for shape in shapes}
    found = [match_type(newest, one) for one in catalog.types.values() if one.secret]
    return catalog.secret_types | {shape.type_name for shape in found if shape is not None}


class StoredSteps:
    """The steps that a catalog declares, by the log's names of its types."""

    def __init__(self, catalog: TypeCatalog, read: Callable[[], Mapping[str, Shape]]) -> None:
        """`read` gives the newest revisions of all types. It is called when they are needed."""
        self._catalog = catalog
        self._read = read

    @cached_property
    def _names(self) -> Mapping[str, str]:
        newest, names = self._read(), dict[str, str]()
        for name, declared in self._catalog.types.items():
            found = match_type(newest, declared)
            if found is not None and found.type_name not in self._catalog.types:
                names[found.type_name] = name
        return names

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> object | None:
        """Return the declared step between two adjacent revisions, or None."""
        name = self._names.get(type_name, type_name)
        return self._catalog.find_step(name, from_revision, to_revision=to_revision)

    def name_stored(self, revisions: Mapping[str, int]) -> dict[str, int]:
        """The same wanted revisions by the log's names, given by declared or stored ones."""
        stored = {declared: name for name, declared in self._names.items()}
        return {stored.get(name, name): wanted for name, wanted in revisions.items()}
