"""Compares one live table with what the log says it holds, wherever the log's rows are.

Stored values are compared: where SQL calls two of them equal that print differently, their text is
compared as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from oplog.errors import NotCapturableError, ReplayError
from oplog.json_value import REDACTED, hide, to_json_value
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver
from oplog.replay.rebuild import Applied
from oplog.replay.table_plan import TablePlan
from oplog.value import ValueCodec, codec_for
from oplog.value.kind import make_text_codec

DifferenceKind = Literal["missing", "extra", "changed"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between a live table and the log.

    `changed`: the column has another value in the table than in the log. `missing` (only the
    log has the row) and `extra` (only the table has it) concern a whole row: `column` is empty,
    and the side that has the row holds it as a mapping of columns, the other None.
    """

    table: str
    key: Mapping[str, Any]
    column: str
    live: Any
    logged: Any
    kind: DifferenceKind

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The difference as one JSON object; `redact` hides values, keys stay readable."""
        return {
            "table": self.table,
            "key": to_json_value(self.key),
            "column": self.column or None,
            "kind": self.kind,
            "live": to_json_value(_hide_side(self.live, redact=redact)),
            "logged": to_json_value(_hide_side(self.logged, redact=redact)),
        }


def _hide_side(value: Any, *, redact: bool) -> Any:
    """A value, or a whole row as a mapping; None is a NULL or a row that is not there."""
    if not redact:
        return value
    return hide(value, redact=True) if isinstance(value, Mapping) else REDACTED


@dataclass(slots=True)
class Comparison:
    """All tables compared: the first differences, how many there are, the log's rows."""

    applied: Applied
    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    rows: int = 0


def compare_table(
    driver: Driver,
    plan: TablePlan,
    target: str,
    *,
    limit: int,
    parameters: Sequence[Any] = (),
    condition: str = "",
) -> tuple[list[Difference], int]:
    """The first differences of one table, by key, and the number of all.

    `target` has the rows by the log: a table's name, or a query in parentheses that uses
    `parameters`. `condition` restricts the live rows, called `t`; without it all are compared.
    """
    names = plan.compared
    codecs = _list_codecs(plan)
    # Rows are joined by equal keys, which can still differ in their text.
    # Arrays of a domain and of what is below it are not comparable.
    as_text = {n for n in names if codecs[n].compare_as_text or n in plan.arrays}
    tested = [n for n in names if n not in plan.key_names or n in as_text]
    tests = [_test(plan, name, as_text=name in as_text) for name in tested]
    key = plan.key_names[0]
    # Of a composite value, IS NOT NULL asks whether every field is; this asks for the value.
    here, there = (f"{side}.{quote(key)} IS DISTINCT FROM NULL" for side in "lr")
    both = f"{here} AND {there}"
    order = [f"coalesce({_name(plan, 'l', n)}, {_name(plan, 'r', n)})" for n in plan.key_names]
    live = f"{'ONLY ' if plan.live.kind == 'r' else ''}{plan.live.qualified}"
    if condition:
        live = f"(SELECT * FROM {live} t WHERE {condition})"
    rows = driver.query(
        "SELECT d.here, d.there, d.changed, d.live, d.logged, sum(CASE WHEN d.here AND d.there "
        "THEN pg_catalog.cardinality(pg_catalog.array_positions(d.changed, true)) ELSE 1 END) "
        f"OVER () FROM (SELECT {here} AS here, {there} AS there, "
        f"ARRAY[{', '.join(tests)}]::boolean[] AS changed, "
        f"{_texts('l', names)} AS live, {_texts('r', names)} AS logged, "
        f"{', '.join(f'{place} AS k{n}' for n, place in enumerate(order))} "
        f"FROM {live} l FULL JOIN {target} r ON "
        f"{' AND '.join(' = '.join(_name(plan, s, n) for s in 'lr') for n in plan.key_names)} "
        f"WHERE NOT ({both}){''.join(f' OR {test}' for test in tests)}) d "
        f"ORDER BY {', '.join(f'd.k{n}' for n in range(len(order)))} LIMIT {max(limit, 1)}",
        parameters,
    ).fetchall()
    differences: list[Difference] = []
    for row in rows:
        differences += _describe(plan, codecs, tested=tested, row=row)
    return differences[:limit], int(rows[0][5]) if rows else 0


def _describe(
    plan: TablePlan, codecs: Mapping[str, ValueCodec], *, tested: Sequence[str], row: Any
) -> list[Difference]:
    here, there, changed, live_texts, logged_texts = row[:5]
    names = plan.compared
    live = {
        n: _read_live(plan, n, codec=codecs[n], text=text)
        for n, text in zip(names, live_texts, strict=True)
    }
    logged = {n: _read(codecs[n], text) for n, text in zip(names, logged_texts, strict=True)}
    key = {name: (live if here else logged)[name] for name in plan.key_names}
    if not there:
        return [Difference(plan.name, key, column="", live=live, logged=None, kind="extra")]
    if not here:
        return [Difference(plan.name, key, column="", live=None, logged=logged, kind="missing")]
    return [
        Difference(
            plan.name, key, column=name, live=live[name], logged=logged[name], kind="changed"
        )
        for name, differs in zip(tested, changed, strict=True)
        if differs
    ]


def _list_codecs(plan: TablePlan) -> dict[str, ValueCodec]:
    codecs = dict(plan.codecs)
    for name in plan.compared:
        if name not in codecs:
            column = plan.live_columns[name]
            try:
                codecs[name] = codec_for(column.pg_type, category=column.category)
            except NotCapturableError:
                # Computed, hence never logged: compared as text.
                codecs[name] = make_text_codec(column.pg_type, compare_as_text=True)
    return codecs


def _test(plan: TablePlan, name: str, *, as_text: bool) -> str:
    if as_text:
        return " IS DISTINCT FROM ".join(f'{side}.{quote(name)}::text COLLATE "C"' for side in "lr")
    return f"{_name(plan, 'l', name)} IS DISTINCT FROM {_name(plan, 'r', name)}"


def _name(plan: TablePlan, side: str, name: str) -> str:
    """A column that can be compared.

    Of a domain over an enum PostgreSQL finds no operator, and none for an array of a domain beside
    one of what is below it.
    """
    column = plan.live_columns[name]
    kind = plan.arrays.get(name, "")
    if name in plan.domains and column.category == "E":
        kind = column.pg_type
    return f"{side}.{quote(name)}{f'::{kind}' if kind else ''}"


def _texts(side: str, names: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(f'{side}.{quote(name)}::text' for name in names)}]"


def _read_live(plan: TablePlan, name: str, *, codec: ValueCodec, text: str | None) -> Any:
    """The value, or its text if it cannot be read because the column's type has changed."""
    try:
        return _read(codec, text)
    except ReplayError:
        if plan.live_columns[name].pg_type == codec.pg_type:
            raise
        return text


def _read(codec: ValueCodec, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return codec.to_python(codec.from_text(text))
    except (ValueError, ArithmeticError) as cause:
        raise ReplayError(
            f"a value of type {codec.pg_type} cannot be read: {text[:100]!r}",
            hint="report this with the column's type",
        ) from cause
