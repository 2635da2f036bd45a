"""Reads rows of the application by key, inside the transaction that wrote them.

Values are read as Postgres' own text. Where that depends on settings of the session, the
settings are fixed for the query and set back after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy.engine import Connection

from oplog.capture.net_row import NetRow
from oplog.capture.unseen import describe_hidden, hides_rows
from oplog.errors import CaptureMismatchError, NotCapturableError
from oplog.postgres.namesake import check_names
from oplog.postgres.quoting import double_percent, qualify, quote
from oplog.postgres.text_settings import fix_text_settings, set_back_text_settings
from oplog.store.guard_state import Guard
from oplog.store.written_rows import Texts, read_written
from oplog.type_binding import BoundType
from oplog.value import Wire

_FIXED_TEXT = re.compile(
    r"(boolean|smallint|integer|bigint|numeric|text|character( varying)?|uuid|jsonb?)"
    r"(\([0-9, -]+\))?"
)
"""Types that print and read the same under all settings."""
_NARROW = re.compile(
    r"(boolean|smallint|integer|bigint|real|double precision|uuid|date|time(stamp)?( .*|\(\d\).*)?"
    r"|(numeric|character( varying)?)\(\d{1,2}[),].*)"
)
"""Types whose text is short, whatever is stored."""
_PAGE_BYTES = 4 * 1024 * 1024
"""Text of the rows that are read as columns at once, more only for the last of them."""


def complete_rows(
    connection: Connection,
    rows: Sequence[NetRow],
    *,
    types: Mapping[str, BoundType],
    strict: bool,
) -> None:
    """Fill in what only the database knows; with `strict`, compare everything else too.

    `types` has the bound types by name. A row that a cascade or trigger removed is marked as
    deleted, and one that a trigger put back as existing. Raises `CaptureMismatchError` naming
    table, key, column and both values, or the key of a row that is not there;
    `NotCapturableError` for a row that may be hidden.
    """
    wanted: dict[BoundType, list[NetRow]] = {}
    for row in rows:
        bound = types[row.bound.shape.type_name]
        rewritten = bound.live.rewrites_rows
        if not row.exists and not rewritten:
            continue
        if rewritten or _may_regroup(row):
            row.unknown.update(bound.shape.names)
        if row.unknown or strict or _lacks_group(row):
            wanted.setdefault(bound, []).append(row)
    for bound, group in wanted.items():
        _complete(connection, bound, group, strict=strict)


def _may_regroup(row: NetRow) -> bool:
    # A row that leaves its aggregate is logged whole in the one that it enters.
    if row.complete or not row.bound.regroups:
        return False
    return any(name in row.values or name in row.unknown for name in row.bound.template.columns)


def _lacks_group(row: NetRow) -> bool:
    if row.complete or not row.bound.regroups:
        return False
    return row.group is None


def _complete(
    connection: Connection, bound: BoundType, rows: Sequence[NetRow], *, strict: bool
) -> None:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(bound.shape.names if strict else row.unknown))
    names.update(dict.fromkeys(bound.template.columns))
    found = read_rows(connection, bound, [row.key for row in rows], columns=tuple(names))
    lost = [row for row, stored in zip(rows, found, strict=True) if stored is None and row.exists]
    if lost:
        _check_gone(connection, bound, lost[0], strict=strict)
    for row, stored in zip(rows, found, strict=True):
        if stored is None:
            row.exists = False
            row.values.clear()
            continue
        if not row.exists:
            row.exists, row.replaced = True, row.existed
        if strict:
            _compare(bound, row, stored)
        for name in row.unknown:
            row.values[name] = stored[name]
        if row.group is None and not row.complete:
            row.group = {name: stored[name] for name in bound.template.columns}


def _check_gone(connection: Connection, bound: BoundType, row: NetRow, *, strict: bool) -> None:
    """Raise unless a cascade or trigger may have deleted a row that no statement deleted."""
    if hides_rows(connection, bound):
        raise describe_hidden(bound, f"the row with key {row.key!r} was written")
    if (strict or bound.guard is not None) and not bound.live.rewrites_rows:
        # If a guard had seen a delete, its image would say so, and the row would not be read here.
        table = bound.declared.table
        check_names(connection, [(qualify([table.name], table.schema)[0], bound.live.oid)])
        raise CaptureMismatchError(
            f"{bound.live.qualified} key {row.key!r}: about to log a row that is not there",
            hint="a cascade, trigger or rule of the database removed it or changed its "
            "key (write such rows through objects in the session), or it was written into "
            "another table of that name, if search_path was changed",
        )


def _compare(bound: BoundType, row: NetRow, stored: Mapping[str, Wire | None]) -> None:
    for name, value in row.values.items():
        # With repr, -0.0 differs from 0.0, and NaN equals itself.
        if name not in row.unknown and repr(stored[name]) != repr(value):
            raise CaptureMismatchError(
                f"{bound.live.qualified} key {row.key!r} column {name}: about to log "
                f"{value!r}, the database stored {stored[name]!r}",
                hint="a trigger, rule or type of the database changes what is written; "
                "report this with the column's definition",
            )


def read_rows(
    connection: Connection,
    bound: BoundType,
    keys: Sequence[Sequence[Wire | None]],
    *,
    columns: Sequence[str],
    lock: str = "",
    settings_fixed: bool = False,
) -> list[dict[str, Wire | None] | None]:
    """The named columns of each row in wire values, None where there is no such row.

    `settings_fixed` says that the text settings are set already. Without `lock` the rows are those
    that this transaction wrote.
    """
    shape = bound.shape
    codecs = shape.codecs
    unfixed = () if settings_fixed else (*columns, *shape.key_names)
    if not lock and bound.guard is not None and bound.guard.log_schema:
        with _text_settings(connection, bound, unfixed):
            return _read_by_owner(connection, bound, bound.guard, keys=keys, columns=columns)
    selected = ", ".join(_print_column(codecs[name].pg_type, name) for name in columns)
    texts = _print_keys(bound, list(zip(*keys, strict=True)) or [()] * len(shape.key_names))
    parameters: tuple[object, ...] = texts
    if len(keys) == 1:
        statement = _select_one(bound, double_percent(selected))
        parameters = tuple([only for (only,) in texts])
    else:
        given, joined = _join_keys(bound)
        statement = (
            f"SELECT k.n{', ' if selected else ''}{double_percent(selected)} "
            f"FROM {given} JOIN {double_percent(bound.live.qualified)} t ON {joined}"
        )
    with _text_settings(connection, bound, unfixed):
        rows = connection.exec_driver_sql(statement + lock, parameters).fetchall()
    return _place_rows(bound, len(keys), columns, [(row[0], row[1:]) for row in rows])


def _place_rows(
    bound: BoundType, count: int, columns: Sequence[str], rows: Iterable[tuple[int, Texts]]
) -> list[dict[str, Wire | None] | None]:
    found: list[dict[str, Wire | None] | None] = [None] * count
    parsers = [bound.shape.codecs[name].from_text for name in columns]
    for n, texts in rows:
        found[n - 1] = {
            name: None if text is None else parse(text)
            for name, parse, text in zip(columns, parsers, texts, strict=True)
        }
    return found


def _read_by_owner(
    connection: Connection,
    bound: BoundType,
    guard: Guard,
    *,
    keys: Sequence[Sequence[Wire | None]],
    columns: Sequence[str],
) -> list[dict[str, Wire | None] | None]:
    rows = _read_texts_by_owner(connection, bound, guard, keys=keys, columns=columns)
    return _place_rows(bound, len(keys), columns, rows)


def _read_texts_by_owner(
    connection: Connection,
    bound: BoundType,
    guard: Guard,
    *,
    keys: Sequence[Sequence[Wire | None]],
    columns: Sequence[str],
    most: int | None = None,
) -> list[tuple[int, Texts]]:
    """The texts of the rows that are there, each with its place among the keys."""
    by_column = list(zip(*keys, strict=True)) or [()] * len(bound.shape.key_names)
    return read_written(
        connection,
        guard.log_schema,
        guard.oid,
        key_names=bound.shape.key_names,
        keys=list(zip(*_print_keys(bound, by_column), strict=True)),
        columns=columns,
        most_bytes=most,
    )


def _select_one(bound: BoundType, selected: str) -> str:
    """The query for one key, whose plan the server keeps; that for many it makes each time."""
    given = [
        double_percent(f"t.{quote(column.name)} = ") + f"%s::text::{double_percent(column.pg_type)}"
        for column in bound.shape.key_columns
    ]
    return (
        f"SELECT 1{', ' if selected else ''}{selected} "
        f"FROM {double_percent(bound.live.qualified)} t WHERE {' AND '.join(given)}"
    )


def read_columns(
    connection: Connection,
    bound: BoundType,
    keys: Sequence[Sequence[Wire | None]],
    *,
    columns: Sequence[str],
) -> list[list[Wire | None]]:
    """The named columns of rows in wire values; where there is no row they have None.

    `keys` has a list for each column of the key. Rows come in this order, which nothing but
    their keys proves. Fewer are given if they are large, but one at least.
    """
    codecs = bound.shape.codecs
    if bound.guard is not None and bound.guard.log_schema:
        return _read_columns_by_owner(connection, bound, bound.guard, keys=keys, columns=columns)
    named = [(f"c{n}", codecs[name]) for n, name in enumerate(columns)]
    selected = [
        f"{_print_column(codec.pg_type, name)} AS {alias}"
        for name, (alias, codec) in zip(columns, named, strict=True)
    ]
    lengths = [
        f"coalesce(pg_catalog.octet_length(r.{alias}), 0)"
        for alias, codec in named
        if not _NARROW.fullmatch(codec.pg_type)
    ]
    given, joined = _join_keys(bound)
    # Of all rows of a page a column is one array, which has to stay far below 1 GB.
    before = (
        f"sum({' + '.join(lengths) or 0}) OVER "
        "(ORDER BY r.n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    )
    arrays = ", ".join(f"pg_catalog.array_agg(p.{alias})" for alias, _ in named)
    # OFFSET 0 has the key looked up for each row: a plan for all of them may read the table once
    # for every page.
    found = (
        f"SELECT {double_percent(', '.join(selected))} "
        f"FROM {double_percent(bound.live.qualified)} t WHERE {joined} OFFSET 0"
    )
    statement = (
        f"SELECT {arrays} FROM (SELECT r.*, {before} AS before FROM (SELECT k.n, f.* "
        f"FROM {given} LEFT JOIN LATERAL ({found}) f ON true) r) p "
        f"WHERE coalesce(p.before, 0) < {_PAGE_BYTES}"
    )
    with _text_settings(connection, bound, (*columns, *bound.shape.key_names)):
        row = connection.exec_driver_sql(statement, _print_keys(bound, keys)).one()
    return [
        _read_texts(texts, codec.from_text) for texts, (_, codec) in zip(row, named, strict=True)
    ]


def _read_columns_by_owner(
    connection: Connection,
    bound: BoundType,
    guard: Guard,
    *,
    keys: Sequence[Sequence[Wire | None]],
    columns: Sequence[str],
) -> list[list[Wire | None]]:
    by_row = list(zip(*keys, strict=True))
    with _text_settings(connection, bound, (*columns, *bound.shape.key_names)):
        rows = _read_texts_by_owner(
            connection, bound, guard, keys=by_row, columns=columns, most=_PAGE_BYTES
        )
    return _join_texts(bound, len(by_row), columns, rows)


def _join_texts(
    bound: BoundType, count: int, columns: Sequence[str], rows: Sequence[tuple[int, Texts]]
) -> list[list[Wire | None]]:
    """The columns of the first rows; where there is no row they have None.

    As many as were asked for, unless the last of them were too much.
    """
    found = dict(rows)
    last = count if len(found) == count or not found else max(found)
    nothing: Texts = [None] * len(columns)
    by_row = [found.get(n, nothing) for n in range(1, last + 1)]
    return [
        _read_texts([row[place] for row in by_row], bound.shape.codecs[name].from_text)
        for place, name in enumerate(columns)
    ]


def _read_texts(texts: list[str | None], parse: Callable[[str], Wire]) -> list[Wire | None]:
    if None in texts:
        return [None if text is None else parse(text) for text in texts]
    return list(map(parse, texts))  # type: ignore[arg-type]


def _join_keys(bound: BoundType) -> tuple[str, str]:
    """The given keys `k` in SQL, and the condition that joins table `t` to them."""
    arrays, joined = [], []
    enums = {column.name for column in bound.live.columns if column.category == "E"}
    for place, column in enumerate(bound.shape.key_columns):
        arrays.append("pg_catalog.unnest(%s::text[])")
        # A domain over an enum has no operators of its own.
        cast = f"::{column.pg_type}" if column.name in enums else ""
        joined.append(f"t.{quote(column.name)}{cast} = k.k{place}::{column.pg_type}")
    aliases = ", ".join(f"k{place}" for place in range(len(arrays)))
    return (
        f"ROWS FROM ({', '.join(arrays)}) WITH ORDINALITY AS k({aliases}, n)",
        double_percent(" AND ".join(joined)),
    )


def _print_keys(
    bound: BoundType, keys: Sequence[Sequence[Wire | None]]
) -> tuple[list[str | None], ...]:
    """The parameters of `_join_keys`; `keys` has a list for each column of the key."""
    return tuple(
        [
            [None if part is None else bound.shape.codecs[name].to_text(part) for part in parts]
            for name, parts in zip(bound.shape.key_names, keys, strict=True)
        ]
    )


def _print_column(pg_type: str, name: str) -> str:
    if pg_type == "xml":
        # Postgres may store xml that it refuses to parse. Parsing it here refuses the
        # transaction, instead of every later replay.
        return f"t.{quote(name)}::text::xml::text"
    return f"t.{quote(name)}::text"


def normalise_keys(
    connection: Connection, bound: BoundType, texts: Sequence[str], *, name: str
) -> list[Wire]:
    """The stored form of text given for a key column that `require_fixed_text` accepts."""
    column, codec = bound.shape.by_name[name], bound.shape.codecs[name]
    rows = connection.exec_driver_sql(
        f"SELECT k.v::{double_percent(column.pg_type)}::text "
        "FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS k(v, n) ORDER BY k.n",
        (list(texts),),
    )
    return [codec.from_text(text) for (text,) in rows]


def require_fixed_text(bound: BoundType, name: str) -> None:
    """Raise `NotCapturableError` for a column whose text depends on settings of the session."""
    if not _has_fixed_text(bound, name):
        raise NotCapturableError(
            f"text was given for key column {bound.live.qualified}.{name}, which is "
            f"{bound.shape.by_name[name].pg_type}; what it means depends on the session",
            hint="use the Python type that matches the column for primary keys, or guard the table",
        )


@contextmanager
def _text_settings(
    connection: Connection, bound: BoundType, names: Sequence[str]
) -> Iterator[None]:
    """Fixed settings, if text of these columns depends on any; then the application's own.

    They are set back because the transaction may go on, after a savepoint or in deferred
    triggers, and would read and print values under them.
    """
    if all(_has_fixed_text(bound, name) for name in names):
        yield
        return
    before = fix_text_settings(connection)
    yield
    # After an error there is nothing to set back: the rollback does it.
    set_back_text_settings(connection, before)


def _has_fixed_text(bound: BoundType, name: str) -> bool:
    column = bound.shape.by_name[name]
    return column.category == "E" or _FIXED_TEXT.fullmatch(column.pg_type) is not None
