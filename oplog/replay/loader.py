"""Loads net rows into one table through COPY: deletes, then updates, then creates.

The table is held to what the fold claims: a row said to be there must be found, one said to be new
must not, and an error names the entry that said so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from oplog.errors import ReplayError
from oplog.postgres import driver_errors
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver
from oplog.replay.effect_route import Key
from oplog.replay.fold import Row, TableFold, make_misfit
from oplog.replay.table_plan import TablePlan, list_quoted
from oplog.value import Kind, ValueCodec, Wire, copy_field

_CHUNK_ROWS = 2000
_STAGE = "pg_temp.oplog_stage"
_BOOL_FIELDS: Mapping[Wire | None, str] = {True: "t", False: "f", None: r"\N"}


class TableLoader:
    """Loads batches of net rows into one rebuilt table."""

    def __init__(self, driver: Driver, plan: TablePlan, target: str) -> None:
        """`target` is the rebuilt table's qualified name; it is empty and has no key yet."""
        self.plan = plan
        self.target = target
        self.rows = 0
        """Rows in the table now."""
        self.keyed = False
        """Whether the primary key has been built."""
        self._driver = driver
        self._used = False
        self._on_key = " AND ".join(
            f"t.{quote(name)} = s.k{n}" for n, name in enumerate(plan.key_names)
        )

    def apply(self, net: TableFold) -> None:
        """Load one batch; `ReplayError` where the table is not as the log says."""
        if not net:
            return
        if self._used and not self.keyed:
            # A first batch needs no index: the fold has seen every key. Later ones do, to
            # find rows and to refuse a second row under a key.
            self.build_key()
        self._used = True
        try:
            if net.gone:
                self._delete(net.gone, net.doubtful)
            if net.patched:
                self._update(net.patched, net.doubtful)
            if net.adopted:
                self._upsert(net.adopted)
            if net.created:
                self._create(net.created)
        except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
            raise refuse_rows(self.plan, cause) from cause

    def build_key(self) -> None:
        """Add the primary key."""
        self._driver.execute(
            f"ALTER TABLE {self.target} ADD PRIMARY KEY ({list_quoted(self.plan.key_names)})"
        )
        self.keyed = True

    def _delete(self, gone: Mapping[Key, int], doubtful: Collection[Key]) -> None:
        keys, required = _sort_required(gone, doubtful)
        self._stage(keys)
        done = self._driver.execute(
            f"WITH gone AS (DELETE FROM {self.target} t USING {_STAGE} s WHERE {self._on_key} "
            "RETURNING s.n) SELECT (SELECT count(*) FROM gone), (SELECT min(s.n) "
            f"FROM {_STAGE} s WHERE s.n < {required} AND s.n NOT IN (SELECT g.n FROM gone g))"
        ).fetchone()
        count, missing = done or (0, None)
        if missing is not None:
            found = keys[missing], gone[keys[missing]]
            self._raise_misfit(found, "deletes a row that is not there")
        if count > len(keys):
            self._raise_misfit(None, "deletes a row that is not there")
        self._drop_stage()
        self.rows -= count

    def _update(self, patched: Mapping[Key, Row], doubtful: Collection[Key]) -> None:
        keys, required = _sort_required(patched, doubtful)
        rows = [patched[key] for key in keys]
        sets: dict[frozenset[str], int] = {}
        groups = [sets.setdefault(frozenset(columns), len(sets)) for _, columns, _ in rows]
        columns = [name for name in self.plan.names if any(name in changed for changed in sets)]
        self._stage(keys, rows=rows, groups=groups, columns=columns)
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
        if found != len(rows):
            missing = self._find_staged(keys[:required], "NOT EXISTS", lambda key: patched[key][2])
            if missing is not None or required == len(rows) or found > len(rows):
                self._raise_misfit(missing, "updates a row that is not there")
        self._drop_stage()

    def _upsert(self, adopted: Mapping[Key, Row]) -> None:
        """Insert rows; only if a key is taken, which is rare, delete the rows there first."""
        if not self.keyed:
            # The first batch: the table is empty.
            self._copy_rows(adopted)
            return
        self._driver.execute("SAVEPOINT oplog_load")
        try:
            self._copy_rows(adopted)
        except driver_errors.UniqueViolation:
            self._driver.execute("ROLLBACK TO SAVEPOINT oplog_load")
            self._stage(list(adopted))
            done = self._driver.execute(
                f"DELETE FROM {self.target} t USING {_STAGE} s WHERE {self._on_key}"
            )
            self.rows -= done.rowcount
            self._drop_stage()
            self._copy_rows(adopted)
        self._driver.execute("RELEASE SAVEPOINT oplog_load")

    def _create(self, created: Mapping[Key, Row]) -> None:
        if not self.keyed:
            self._copy_rows(created)
            return
        self._driver.execute("SAVEPOINT oplog_load")
        try:
            self._copy_rows(created)
        except driver_errors.UniqueViolation as cause:
            self._driver.execute("ROLLBACK TO SAVEPOINT oplog_load")
            self._stage(list(created))
            position = self._find_staged(list(created), "EXISTS", lambda k: created[k][2])
            self._raise_misfit(position, "creates a row that is already there", cause)
        self._driver.execute("RELEASE SAVEPOINT oplog_load")

    def _copy_rows(self, whole: Mapping[Key, Row]) -> None:
        origins: dict[tuple[str, ...], list[Mapping[str, Wire | None]]] = {}
        for values, columns, _ in whole.values():
            if columns in origins:
                origins[columns].append(values)
            else:
                origins[columns] = [values]
        for columns, rows in origins.items():
            self._driver.copy(
                f"COPY {self.target} ({list_quoted(columns)}) FROM STDIN",
                self._print_rows(columns, rows),
            )
        self.rows += len(whole)

    def _print_rows(
        self, columns: tuple[str, ...], rows: Sequence[Mapping[str, Wire | None]]
    ) -> Iterator[str]:
        codecs = [self.plan.codecs[name] for name in columns]
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS]
            by_column = zip(*[row.values() for row in part], strict=True)
            fields = [print_column(c, v) for c, v in zip(codecs, by_column, strict=True)]
            yield "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"

    # -- staging ----------------------------------------------------------------------

    def _stage(
        self,
        keys: Sequence[Key],
        *,
        rows: Sequence[Row] = (),
        groups: Sequence[int] = (),
        columns: Sequence[str] = (),
    ) -> None:
        """Copy to a temporary table: n (index in `keys`), g (group), keys k0..., values v0..."""
        selected = [
            "0::integer AS n, 0::integer AS g",
            *(f"t.{quote(name)} AS k{n}" for n, name in enumerate(self.plan.key_names)),
            *(f"t.{quote(name)} AS v{n}" for n, name in enumerate(columns)),
        ]
        self._driver.execute(
            f"CREATE TEMPORARY TABLE oplog_stage ON COMMIT DROP AS "
            f"SELECT {', '.join(selected)} FROM {self.target} t WITH NO DATA"
        )
        self._driver.copy(
            f"COPY {_STAGE} FROM STDIN",
            self._print_stage(keys, rows=rows, groups=groups, columns=columns),
        )

    def _print_stage(
        self,
        keys: Sequence[Key],
        *,
        rows: Sequence[Row],
        groups: Sequence[int],
        columns: Sequence[str],
    ) -> Iterator[str]:
        codecs = self.plan.codecs
        key_codecs = [codecs[name] for name in self.plan.key_names]
        for start in range(0, len(keys), _CHUNK_ROWS):
            end = min(start + _CHUNK_ROWS, len(keys))
            fields: list[Sequence[str]] = [
                [str(place) for place in range(start, end)],
                [str(group) for group in groups[start:end]] or ["0"] * (end - start),
            ]
            by_column = zip(*keys[start:end], strict=True)
            fields += [print_column(c, v) for c, v in zip(key_codecs, by_column, strict=True)]
            fields += [
                print_column(codecs[name], [row[0].get(name) for row in rows[start:end]])
                for name in columns
            ]
            yield "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"

    def _drop_stage(self) -> None:
        self._driver.execute(f"DROP TABLE {_STAGE}")

    # -- errors -----------------------------------------------------------------------

    def _find_staged(
        self, keys: Sequence[Key], condition: str, find_position: Callable[[Key], int]
    ) -> tuple[Key, int] | None:
        """The first of `keys` that satisfies `condition`, and its position; None if none does.

        `keys` are staged from the first on. `condition` is EXISTS or NOT EXISTS (in the table).
        """
        found = self._driver.execute(
            f"SELECT min(s.n) FROM {_STAGE} s WHERE s.n < {len(keys)} AND {condition} "
            f"(SELECT FROM {self.target} t WHERE {self._on_key})"
        ).fetchone()
        if found is None or found[0] is None:
            return None
        key = keys[found[0]]
        return key, find_position(key)

    def _raise_misfit(
        self, found: tuple[Key, int] | None, what: str, cause: driver_errors.Error | None = None
    ) -> NoReturn:
        if found is not None:
            key, position = found
            raise make_misfit(self.plan, key, position=position, what=what) from cause
        # Two keys that Postgres takes for one, such as numeric 1 and 1.00.
        raise ReplayError(
            f"the log does not replay: some entry {what}: {self.plan.name}",
            hint="two keys of the log are equal in Postgres and written differently; report this",
        ) from cause


def _sort_required(keys: Iterable[Key], doubtful: Collection[Key]) -> tuple[list[Key], int]:
    """The keys, those of rows that must exist first, and the number of these."""
    if not doubtful:
        whole = list(keys)
        return whole, len(whole)
    required = [key for key in keys if key not in doubtful]
    return required + [key for key in keys if key in doubtful], len(required)


def print_column(codec: ValueCodec, values: Sequence[Wire | None]) -> Sequence[str]:
    """COPY fields of one column: what `copy_field(codec.to_text(value))` gives for each."""
    kind = codec.kind
    if kind is Kind.TEXT:
        return _print_texts(values)
    if kind is Kind.BOOL:
        return list(map(_BOOL_FIELDS.__getitem__, values))
    if kind is Kind.INT:
        if None in values:
            return [r"\N" if value is None else str(value) for value in values]
        return list(map(str, values))
    write = codec.to_text
    return [copy_field(None if value is None else write(value)) for value in values]


def _print_texts(values: Iterable[Wire | None]) -> Sequence[str]:
    texts: list[str | None] = list(values)  # type: ignore[arg-type]
    if None not in texts:
        # One check of the joined text is much cheaper than one of each.
        joined = "".join(texts)  # type: ignore[arg-type]
        if joined.isprintable() and "\\" not in joined:
            return texts  # type: ignore[return-value]
    return [copy_field(text) for text in texts]


def refuse_rows(plan: TablePlan, cause: driver_errors.Error) -> ReplayError:
    """The error for logged rows that a table made like the live one refuses."""
    detail = cause.diag.message_detail
    return ReplayError(
        f"the rows that the log gives {plan.name} are refused by a table made like it: "
        f"{cause.diag.message_primary or cause}{f' ({detail})' if detail else ''}",
        hint="the table's definition was changed without logging what became of its rows: adopt "
        "them anew, or replay into the definition it had",
    )
