"""What the names of tables mean in a transaction: compared before they can mean another table.

A model without a schema names whatever table the search path finds first. Usually the append
compares the names, at no extra cost. Where a name may change its meaning before that, it is
compared earlier, with a query. Only PostgreSQL 18 and newer report a change of the search path:
on older servers a function that changes it unseen and changes it back is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.engine_binding import EngineBinding
from oplog.capture.frame import NamedTable
from oplog.capture.recorder import Recorder
from oplog.capture.sending import is_failed
from oplog.postgres.namesake import Named, check_names
from oplog.postgres.search_path import find_path, under_path


class NameChecks:
    """Compares names for the transactions of one engine."""

    def __init__(self, database: EngineBinding) -> None:
        self._database = database

    def note(
        self, connection: Connection, recorder: Recorder, tables: Sequence[NamedTable]
    ) -> None:
        """Tables are about to be written by name, which has to be compared before COMMIT."""
        if tables:
            path = find_path(connection)
            if any(before != path for before in recorder.unchecked.values()):
                self.check_now(connection, recorder)
            recorder.note_names(tables, path)

    def check_now(self, connection: Connection, recorder: Recorder) -> None:
        """Compare the names of what was written with what they mean, now.

        Raises `UnloggedWriteError`, and the next transaction looks at the database anew.
        """
        unchecked = recorder.unchecked
        if not unchecked or is_failed(connection):
            return
        recorder.checking_names = True
        try:
            with self._database.refreshing():
                binding = self._database.bind(connection, recorder)
                now = find_path(connection)
                for path in dict.fromkeys(unchecked.values()):
                    tables = [table for table, at in unchecked.items() if at == path]
                    with under_path(connection, None if path == now else path):
                        check_names(connection, name_tables(binding, tables))
        finally:
            recorder.checking_names = False
        # Not after an error: if the application swallows it, it must still stop the COMMIT.
        recorder.mark_checked()

    def list_named(self, connection: Connection, recorder: Recorder) -> Named:
        """The names that the append has to compare.

        It compares them under the search path of that moment. Names that were written under
        another one are compared here, and none are left for the append.
        """
        unchecked = recorder.unchecked
        if not unchecked:
            return ()
        now = find_path(connection)
        if any(path != now for path in unchecked.values()):
            self.check_now(connection, recorder)
            return ()
        return name_tables(self._database.bind(connection, recorder), unchecked)


def name_tables(binding: Binding, tables: Iterable[NamedTable]) -> Named:
    """The names that statements give these tables, and the tables that they have to mean."""
    return [(one.name, binding.types[one.table].live.oid) for one in tables]
