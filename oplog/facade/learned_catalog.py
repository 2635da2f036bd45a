"""A catalog that an application does not declare: the tables that are guarded in its database.

For programs that cannot be changed, whose models nobody has here. What they write is captured by
the guards; the catalog says under which types. It is learned when an engine writes to a guarded
table for the first time, and anew when a write is refused because the database has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import NotCapturableError
from oplog.facade.learned_columns import ColumnChoice
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import DERIVED, Shape
from oplog.postgres.live_table import LiveTable, read_tables_by_oid
from oplog.postgres.type_evolution import derive_first, evolve_shape, locate_tables
from oplog.store import Store
from oplog.store.guard_state import read_guards
from oplog.store.table_state import read_state
from oplog.type_binding import make_bound

State: TypeAlias = tuple[str, str, str]
"""The log's schema, the key that is sealed with, and which database that is in which state."""
_MOST = 64
"""Databases (and states of them) that are remembered."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The guarded tables of a database in one state, and how they are bound."""

    types: Mapping[str, DeclaredType]
    binding: Binding


@dataclass(frozen=True, slots=True)
class LearnedDatabases:
    """What was learned, by the database's state and the choice of columns: for later engines.

    A program that makes an engine for each call would otherwise read the whole catalog each time.
    Holds names, types and key ids; no connections, no keys, and nothing of an engine. Usable by
    threads without a lock, and by the children of a fork: what is lost is learned again.
    """

    known: dict[tuple[Any, ...], Learned] = field(default_factory=dict)

    def put(self, key: tuple[Any, ...], learned: Learned) -> None:
        """Remember it, and forget the oldest of too many."""
        self.known[key] = learned
        for oldest in list(self.known)[:-_MOST]:
            self.known.pop(oldest, None)


class LearnedCatalog(TypeCatalog):
    """The guarded tables of the one database that an engine is connected to."""

    learns = True

    def __init__(
        self,
        databases: LearnedDatabases,
        types: Mapping[str, DeclaredType] | None = None,
        *,
        choice: ColumnChoice | None = None,
    ) -> None:
        """`choice` says which columns are left out or secret."""
        super().__init__()
        self._databases = databases
        self._choice = choice or ColumnChoice()
        self._take(types or {})

    def find_namesake(self, table: Any) -> None:  # noqa: ARG002 - as the base has it
        """None: the program's own `Table` objects say nothing here, all is left to the guards."""
        return

    @staticmethod
    def read_state(connection: Connection, store: Store, key_id: str) -> State:
        """What a binding depends on; read before it is made, so that it is never too new."""
        store.require_current(connection)
        return store.schema, key_id, read_state(connection, store.schema)

    def recall(self, state: State) -> Binding | None:
        """The binding of another engine to this very database in this state; None without one."""
        found = self._databases.known.get((state, self._choice.key))
        if found is None:
            return None
        self._take(found.types)
        return found.binding

    def keep(self, state: State, found: TypeCatalog, binding: Binding) -> None:
        """Remember what was found for other engines, if nothing of it may be undone yet."""
        if not binding.fresh and not binding.unfinished:
            self._databases.put((state, self._choice.key), Learned(found.types, binding))

    def learn(self, connection: Connection, store: Store) -> TypeCatalog:
        """Read which tables are guarded, and what the log knows of them.

        What was found stays as it is in the returned catalog, whatever other threads learn
        meanwhile. Raises `SchemaVersionError` without a log, `NotCapturableError` for a table
        whose messages another application has compiled, and `ConfigurationError` for a choice of
        columns that a table does not have.
        """
        store.require_current(connection)
        stored = group_shapes(store.list_types(connection))
        located = locate_tables(connection, stored)
        names = {live.oid: name for name, live in located.items()}
        guarded = read_guards(connection, store.schema).tables
        types: dict[str, DeclaredType] = {}
        for oid, live in read_tables_by_oid(connection, sorted(guarded)).items():
            if live.kind not in ("r", "p"):
                continue
            known = names.get(oid)
            name = known or _name_type(live, {*located, *types})
            revisions = stored.get(name, [])
            chosen = self._choice.declare(live, [] if known is None else revisions)
            shape = (
                derive_first(live, chosen, type_name=name, stored=revisions)
                if known is None
                else evolve_shape(live, revisions, chosen)
            )
            types[name] = self._choice.mark(_declare(live, shape, revisions), chosen)
        self._take(types)
        return LearnedCatalog(self._databases, types, choice=self._choice)

    def _take(self, types: Mapping[str, DeclaredType]) -> None:
        # Replaced as a whole: other threads read it meanwhile.
        self._by_table = {declared.table: declared for declared in types.values()}
        self._types = dict(types)


def _name_type(live: LiveTable, taken: set[str]) -> str:
    name = live.name if live.schema == "public" else f"{live.schema}.{live.name}"
    while name in taken:
        # Another table, which was renamed, goes on under this name of a type.
        name = f"{name}~"
    return name


def _declare(live: LiveTable, shape: Shape | None, stored: list[Shape]) -> DeclaredType:
    if shape is None or not shape.message_name.startswith(f"{DERIVED}."):
        raise NotCapturableError(
            f"table {live.qualified} is logged with messages that its application has compiled "
            f"(type {stored[-1].type_name!r}), and this one learns its tables from the database",
            hint="write to it through the application that has the messages; or untrack it",
        )
    return make_bound(shape, live, None).declared
