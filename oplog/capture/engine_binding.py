"""What is known of one engine's database: its binding, and the statement plans made with it.

Looked up at the first write of a transaction and kept for the following ones, until something
shows that the database has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.control import is_text
from oplog.capture.planning import Planned, StatementPlanner
from oplog.capture.recorder import Recorder
from oplog.capture.routing import Router, find_translation
from oplog.errors import NotCapturableError, SchemaChangedError, UnloggedWriteError
from oplog.postgres.namesake import find_name, refuse_other_table, resolve_names
from oplog.postgres.quoting import qualify
from oplog.store.guard_state import Image, lacks_guard
from oplog.type_binding import BoundType

_P = ParamSpec("_P")
_T = TypeVar("_T")


class EngineBinding:
    """The binding that one engine's transactions use."""

    def __init__(
        self,
        planner: StatementPlanner,
        *,
        schema: str,
        bind: Callable[[Connection], Binding],
        bind_altered: Callable[[Connection], Binding],
        find_key_id: Callable[[], str],
    ) -> None:
        self.planner = planner
        self._schema = schema
        self._bind = bind
        self._bind_altered = bind_altered
        self._find_key_id = find_key_id
        self._known: Binding | None = None

    def bind(self, connection: Connection, recorder: Recorder) -> Binding:
        """The binding of a transaction, found out at its first write.

        Not earlier: sessions that only read must not need the log.
        """
        if recorder.has_binding:
            return recorder.binding
        if recorder.live is not None or recorder.alters:
            # Nobody else may see these tables, and they are altered again in a moment.
            with recorder.at_work():
                find = self._bind_altered if recorder.live is None else recorder.live.bind
                recorder.bind(find(connection))
            return recorder.binding
        known = self._known
        # A rotated key has to be known to the log before it is used.
        if known is None or known.key_id != self._find_key_id():
            wrote = recorder.wrote
            known = self._bind(connection)
            # The statements of binding write the log's own tables only.
            recorder.wrote = wrote
            # Types that this very transaction stored may yet be rolled back.
            self._known = None if known.fresh else known
            self.planner.clear()
        recorder.bind(known)
        return known

    def find_plan(self, connection: Connection, recorder: Recorder, context: Any) -> Planned | None:
        """How the statement of an execution is captured; None if it writes no tracked table."""

        def bind() -> Binding:
            return self.bind(connection, recorder)

        def route() -> Router:
            return Router(
                self.planner.catalog, connection, recorder, binding=bind(), context=context
            )

        if recorder.alters:
            # Plans for tables that others do not see yet are not for them.
            return self.planner.make(context.compiled, route)
        return self.planner.find(context, bind, route)

    def require_guards(self, connection: Connection, recorder: Recorder, context: Any) -> None:
        """Raise `NotCapturableError` for a construct that writes a tracked table without a guard.

        In a migration it would not be seen, and on an attached engine, or in an attached session,
        it would be logged outside of one.
        """
        if not recorder.attached or recorder.busy or is_text(context.compiled):
            return
        translated = find_translation(context)
        for table in self.planner.list_tracked(context.compiled):
            schema = translated.get(table.schema, table.schema)
            (name,) = qualify([table.name], schema)
            with recorder.at_work():
                unseen = lacks_guard(connection, self._schema, name)
            if unseen:
                raise NotCapturableError(
                    f"table {name} has no guard, and what a migration writes is captured by guards",
                    hint="guard the table before it is written: "
                    f"op.track_tables({table.name!r}), and adopt the rows that it has",
                )

    def is_here(self, connection: Connection, recorder: Recorder) -> bool:
        """Whether this database has any table of the catalog.

        A session may write several databases, each with a log of its own. Images in one are
        none of the other's: if nobody collects them, the guards refuse the COMMIT.
        """
        catalog = self.planner.catalog
        if self.find(recorder) is not None or recorder.live is not None or catalog.learns:
            return True
        tables = [declared.table for declared in catalog.types.values()]
        names = [name for table in tables for name in qualify([table.name], table.schema)]
        with recorder.at_work():
            return not names or any(found is not None for found in resolve_names(connection, names))

    def find(self, recorder: Recorder) -> Binding | None:
        """The transaction's binding, or the one it would get; asks the database nothing."""
        return recorder.binding if recorder.has_binding else self._known

    def refresh(self) -> None:
        """Forget what is known of the database: types, tables, triggers."""
        self._known = None
        self.planner.clear()

    def watch(self, gather: Callable[_P, _T]) -> Callable[_P, _T]:
        """The same, which forgets what is known if it finds out that tables were changed."""

        def watched(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return gather(*args, **kwargs)
            except SchemaChangedError:
                self.refresh()
                raise

        return watched

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """Forget what is known if an error of another table or column leaves the block.

        The transaction wrote other tables than those that are known, so the next one has to
        look at the database anew.
        """
        try:
            yield
        except (SchemaChangedError, UnloggedWriteError):
            self.refresh()
            raise

    def find_guarded(self, connection: Connection, binding: Binding, image: Image) -> BoundType:
        """The tracked type of a table whose guard kept an image.

        Raises `UnloggedWriteError` for a table that the binding does not have, or has without
        a guard, and `SchemaChangedError` for a column that it does not have: a migration may have
        changed it, and the next transaction looks anew.
        """
        oid = image.relation
        with self.refreshing():
            try:
                bound = binding.find_relation(oid)
            except UnloggedWriteError:
                # A migration may have replaced the table under the same name.
                found = find_name(connection, oid)
                for other in binding.types.values():
                    if found is not None and other.live.name == found[1]:
                        (written,) = qualify([found[1]], found[0])
                        raise refuse_other_table([other.live.qualified], written=written) from None
                if found is None:
                    raise
                raise self._refuse_unknown(*found) from None
            if bound.guard is None:
                raise UnloggedWriteError(
                    f"table {bound.live.qualified} was found guarded, in whole or in part, and "
                    "had no guard when this process looked",
                    hint="run the transaction again; if it stays so, `oplog doctor` says why",
                    retryable=True,
                )
            self._check_columns(bound, image)
            return bound

    @staticmethod
    def _check_columns(bound: BoundType, image: Image) -> None:
        unknown = set(image.changed).difference(
            bound.shape.names, bound.shape.excluded, (column.name for column in bound.live.columns)
        )
        if unknown:
            raise SchemaChangedError(
                f"table {bound.live.qualified} has columns that were not there when this process "
                f"looked: {', '.join(sorted(unknown))}",
                hint="run the transaction again: it looks at the table anew",
            )

    def _refuse_unknown(self, schema: str, name: str) -> UnloggedWriteError:
        (table,) = qualify([name], schema)
        learns = self.planner.catalog.learns
        return UnloggedWriteError(
            f"the guarded table {table} was changed, and this log's catalog does not have it",
            hint="run the transaction again: it was guarded since this process looked"
            if learns
            else "add the table to the catalog, or untrack it in a migration: "
            f"op.untrack_tables({name!r}, reason=...)",
            retryable=learns,
        )
