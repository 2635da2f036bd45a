"""Net rows into one table: deletes, then updates, then creates, all through COPY.

Knows SQL and the text of values, not where net rows come from. The hard thing is holding the
table to what the fold claimed: a row said to be there must be found, one said to be new must
not, and when that fails the error names the very entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import psycopg

from oplog.errors import ReplayError
from oplog.replay.fold import Key, NetKind, NetRow, make_misfit
from oplog.replay.plan import TablePlan, list_quoted
from oplog.replay.transaction import Driver
from oplog.tables import quote
from oplog.value import Kind, ValueCodec, Wire, copy_field

_CHUNK_ROWS = 2000
_STAGE = "pg_temp.oplog_stage"
_BOOL_FIELDS: Mapping[Wire | None, str] = {True: "t", False: "f", None: r"\N"}

Item: TypeAlias = tuple[Key, NetRow]


class TableLoader:
    """Loads batches of net rows into one rebuilt table."""

    def __init__(self, driver: Driver, plan: TablePlan, target: str) -> None:
        """`target` is the rebuilt table's qualified name; it is empty and has no key yet."""
        self.plan = plan
        self.target = target
        self.rows = 0
        """Rows in the table now."""
        self.keyed = False
        """The primary key has been built."""
        self._driver = driver
        self._used = False
        self._on_key = " AND ".join(
            f"t.{quote(name)} = s.k{n}" for n, name in enumerate(plan.key_names)
        )

    def apply(self, rows: Mapping[Key, NetRow]) -> None:
        """Load one batch; `ReplayError` where the table is not as the log says."""
        if not rows:
            return
        gone, patches, whole = _split(rows)
        if self._used and not self.keyed:
            # A first batch needs no index: the fold has seen every key. Later ones do, to
            # find rows and to refuse a second row under a key.
            self.build_key()
        self._used = True
        try:
            if gone:
                self._delete(gone)
            if patches:
                self._update(patches)
            if whole:
                self._create(whole)
        except (psycopg.IntegrityError, psycopg.DataError) as cause:
            raise _refused(self.plan, cause) from cause

    def build_key(self) -> None:
        """Add the primary key."""
        self._driver.execute(
            f"ALTER TABLE {self.target} ADD PRIMARY KEY ({list_quoted(self.plan.key_names)})"
        )
        self.keyed = True

    def _delete(self, items: Sequence[Item]) -> None:
        self._stage(items, groups=None, columns=())
        done = self._driver.execute(
            f"DELETE FROM {self.target} t USING {_STAGE} s WHERE {self._on_key}"
        )
        if done.rowcount != len(items):
            self._raise_missing(items, "deletes a row that is not there")
        self._drop_stage()
        self.rows -= len(items)

    def _update(self, items: Sequence[Item]) -> None:
        sets: dict[frozenset[str], int] = {}
        groups = [sets.setdefault(frozenset(row.columns), len(sets)) for _, row in items]
        columns = tuple(
            name for name in self.plan.names if any(name in changed for changed in sets)
        )
        self._stage(items, groups=groups, columns=columns)
        found = 0
        for changed, group in sets.items():
            assignments = ", ".join(
                f"{quote(name)} = s.v{n}" for n, name in enumerate(columns) if name in changed
            )
            done = self._driver.execute(
                f"UPDATE {self.target} t SET {assignments} FROM {_STAGE} s "
                f"WHERE s.g = {group} AND {self._on_key}"
                if changed
                else f"SELECT FROM {self.target} t, {_STAGE} s WHERE s.g = {group} "
                f"AND {self._on_key}"
            )
            found += done.rowcount
        if found != len(items):
            self._raise_missing(items, "updates a row that is not there")
        self._drop_stage()

    def _create(self, items: Sequence[Item]) -> None:
        origins: dict[tuple[str, ...], list[NetRow]] = {}
        for _, row in items:
            origins.setdefault(row.columns, []).append(row)
        if self.keyed:
            self._driver.execute("SAVEPOINT oplog_load")
        try:
            for columns, rows in origins.items():
                self._driver.copy(
                    f"COPY {self.target} ({list_quoted(columns)}) FROM STDIN",
                    self._print_rows(columns, rows),
                )
        except psycopg.errors.UniqueViolation as cause:
            self._driver.execute("ROLLBACK TO SAVEPOINT oplog_load")
            self._raise_existing(items, cause)
        if self.keyed:
            self._driver.execute("RELEASE SAVEPOINT oplog_load")
        self.rows += len(items)

    def _print_rows(self, columns: tuple[str, ...], rows: Sequence[NetRow]) -> Iterator[str]:
        codecs = [self.plan.codecs[name] for name in columns]
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS]
            by_column = zip(*[row.values.values() for row in part], strict=True)
            fields = [print_column(c, v) for c, v in zip(codecs, by_column, strict=True)]
            yield "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"

    # -- staging ----------------------------------------------------------------------

    def _stage(
        self, items: Sequence[Item], *, groups: Sequence[int] | None, columns: Sequence[str]
    ) -> None:
        """Keys and values in a temporary table: n (place in `items`), g, k0..., v0..."""
        live = self.plan.live_columns
        selected = [
            "0::integer AS n, 0::integer AS g",
            *(f"t.{quote(name)} AS k{n}" for n, name in enumerate(self.plan.key_names)),
            # Base types: a domain may refuse the NULL that stands in for "not written".
            *(
                f"t.{quote(name)}::{live[name].pg_type} AS v{n}"
                if name in self.plan.domains
                else f"t.{quote(name)} AS v{n}"
                for n, name in enumerate(columns)
            ),
        ]
        self._driver.execute(
            f"CREATE TEMPORARY TABLE oplog_stage ON COMMIT DROP AS "
            f"SELECT {', '.join(selected)} FROM {self.target} t WITH NO DATA"
        )
        self._driver.copy(
            f"COPY {_STAGE} FROM STDIN", self._print_stage(items, groups or (), columns)
        )

    def _print_stage(
        self, items: Sequence[Item], groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[str]:
        key_codecs = [self.plan.codecs[name] for name in self.plan.key_names]
        for start in range(0, len(items), _CHUNK_ROWS):
            part = items[start : start + _CHUNK_ROWS]
            places = range(start, start + len(part))
            fields: list[Sequence[str]] = [
                [str(place) for place in places],
                [str(groups[place]) for place in places] if groups else ["0"] * len(part),
            ]
            keys = zip(*[key for key, _ in part], strict=True)
            fields += [print_column(c, v) for c, v in zip(key_codecs, keys, strict=True)]
            fields += [
                print_column(self.plan.codecs[name], [row.values.get(name) for _, row in part])
                for name in columns
            ]
            yield "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"

    def _drop_stage(self) -> None:
        self._driver.execute(f"DROP TABLE {_STAGE}")

    # -- alarms -----------------------------------------------------------------------

    def _raise_missing(self, items: Sequence[Item], what: str) -> None:
        self._raise_first(items, "NOT EXISTS", what)

    def _raise_existing(self, items: Sequence[Item], cause: psycopg.Error) -> None:
        self._stage(items, groups=None, columns=())
        try:
            self._raise_first(items, "EXISTS", "creates a row that is already there")
        except ReplayError as error:
            raise error from cause
        raise _refused(self.plan, cause) from cause

    def _raise_first(self, items: Sequence[Item], condition: str, what: str) -> None:
        found = self._driver.execute(
            f"SELECT min(s.n) FROM {_STAGE} s WHERE {condition} "
            f"(SELECT FROM {self.target} t WHERE {self._on_key})"
        ).fetchone()
        if found is not None and found[0] is not None:
            key, row = items[found[0]]
            raise make_misfit(self.plan, key, position=row.position, what=what)


def _split(rows: Mapping[Key, NetRow]) -> tuple[list[Item], list[Item], list[Item]]:
    """Rows to delete, to update, to create; a replaced one is in the first and the last."""
    gone, patches, whole = [], [], []
    for item in rows.items():
        row = item[1]
        if row.kind is NetKind.PATCH:
            patches.append(item)
            continue
        if row.existed:
            gone.append(item)
        if row.kind is NetKind.ROW:
            whole.append(item)
    return gone, patches, whole


def print_column(codec: ValueCodec, values: Sequence[Wire | None]) -> Sequence[str]:
    """COPY fields of one column: what `copy_field(codec.to_text(value))` gives for each."""
    kind = codec.kind
    if kind is Kind.TEXT:
        return _print_texts(values)
    if kind is Kind.BOOL:
        return [_BOOL_FIELDS[value] for value in values]
    if kind is Kind.INT:
        if None in values:
            return [r"\N" if value is None else str(value) for value in values]
        return list(map(str, values))
    write = codec.to_text
    return [copy_field(None if value is None else write(value)) for value in values]


def _print_texts(values: Iterable[Wire | None]) -> Sequence[str]:
    texts: list[str | None] = list(values)  # type: ignore[arg-type]
    if None not in texts:
        # Asked once of all of them together, this costs next to nothing.
        joined = "".join(texts)  # type: ignore[arg-type]
        if joined.isprintable() and "\\" not in joined:
            return texts  # type: ignore[return-value]
    return [copy_field(text) for text in texts]


def _refused(plan: TablePlan, cause: psycopg.Error) -> ReplayError:
    detail = cause.diag.message_detail
    return ReplayError(
        f"the rows that the log gives {plan.name} are refused by a table made like it: "
        f"{cause.diag.message_primary or cause}{f' ({detail})' if detail else ''}",
        hint="the table's definition was changed without logging what became of its rows: adopt "
        "them anew, or replay into the definition it had",
    )
