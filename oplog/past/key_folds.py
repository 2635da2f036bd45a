"""Folds that keep what a question about the past needs: which rows were touched, or some rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from oplog.errors import ConfigurationError
from oplog.replay.effect_route import Key, TableForm
from oplog.replay.fold import Row, TableFold
from oplog.value import Wire


class TouchFold(TableFold):
    """Which rows were touched, and the aggregate that each was in before that."""

    def __init__(self, form: TableForm) -> None:
        super().__init__(form)
        self.first: dict[Key, str | None] = {}
        """By key the aggregate of the first touch; None if that made the row."""
        self.aggregates: dict[Key, set[str]] = {}
        """By key all aggregates in which it was touched."""
        self.aggregate = ""
        """That of the effect that comes next; the scan sets it."""

    def create(self, key: Key, row: Row) -> None:
        """Note a row that was made."""
        del row
        self._touch(key, None)

    def adopt(self, key: Key, row: Row) -> None:
        """Note a row that was logged as it was found."""
        del row
        self._touch(key, self.aggregate)

    def update(
        self,
        key: Key,
        values: Mapping[str, Wire | None],
        position: int,
        *,
        lenient: bool = False,
    ) -> None:
        """Note a row that was changed."""
        del values, position, lenient
        self._touch(key, self.aggregate)

    def delete(self, key: Key, position: int, *, lenient: bool = False) -> None:
        """Note a row that was deleted."""
        del position, lenient
        self._touch(key, self.aggregate)

    def _touch(self, key: Key, first: str | None) -> None:
        self.first.setdefault(key, first)
        self.aggregates.setdefault(key, set()).add(self.aggregate)


class RowFold(TableFold):
    """Rows of a table from the beginning of the log on; with `chosen` only those under these keys.

    A row that was changed and never created is no row: the log did not know it.
    """

    def __init__(self, form: TableForm, chosen: Collection[Key] | None = None) -> None:
        super().__init__(form)
        self._chosen = chosen

    def create(self, key: Key, row: Row) -> None:
        """Add a row if it is one of the chosen."""
        if self._chosen is None or key in self._chosen:
            super().create(key, row)

    def adopt(self, key: Key, row: Row) -> None:
        """Add or replace a row if it is one of the chosen."""
        if self._chosen is None or key in self._chosen:
            super().adopt(key, row)

    def update(
        self,
        key: Key,
        values: Mapping[str, Wire | None],
        position: int,
        *,
        lenient: bool = False,
    ) -> None:
        """Change columns of a row if it is one of the chosen."""
        if self._chosen is None or key in self._chosen:
            super().update(key, values, position, lenient=lenient)

    def delete(self, key: Key, position: int, *, lenient: bool = False) -> None:
        """Delete a row if it is one of the chosen."""
        if self._chosen is None or key in self._chosen:
            super().delete(key, position, lenient=lenient)

    def find_row(self, key: Key) -> Row | None:
        """The whole row under a key; None if there is none, or none that is known."""
        return self.created.get(key) or self.adopted.get(key)

    def list_rows(self) -> list[Mapping[str, Wire | None]]:
        """All whole rows."""
        return [row[0] for rows in (self.created, self.adopted) for row in rows.values()]

    def check_size(self, most: int) -> None:
        """Raise `ConfigurationError` for more rows than may be held in memory."""
        if len(self) > most:
            raise ConfigurationError(
                f"{self.form.name} had more than {most} rows, which cannot be rebuilt here: where "
                "no temporary tables can be made they are held in memory",
                hint="ask on the primary, on a connection of psycopg that is neither asynchronous "
                "nor read-only",
            )
