"""Judges whether the log knows what its tables are by now, and what a restore would refuse. Pure.

A change that nobody noted, rows that are still to be logged again, tables that are gone or were
replaced, columns and references that a restored row cannot do without: they are reported when the
migration has run, not on the day of the restore.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oplog.doctor.table_difference import compare_revisions, is_same_key
from oplog.doctor.type_facts import SchemaFacts, TypeFacts
from oplog.finding import Finding, make_notice, make_problem
from oplog.payload.schema_change import FIRST, SchemaChange
from oplog.payload.shape import Shape

TABLE_DIFFERS = "table-differs"
"""Code of the finding that the log does not know yet what a table is."""
TABLE_GONE = "type-table-missing"
"""Code of the finding that the table of a type is missing."""
TABLE_REPLACED = "table-replaced"
"""Code of the finding that another table has the name of a type's, or another key."""
ROWS_PENDING = "change-unfinished"
"""Code of the finding that rows which a migration wrote anew are not in the log yet."""
_SYNC = "run `oplog types sync`, as the role that owns the log"


def judge_evolution(facts: SchemaFacts) -> list[Finding]:
    """A finding for all that the log does not know of its tables, or that a restore refuses."""
    stored = [one for one in facts.types if one.newest is not None and not one.retired]
    return [
        *(finding for one in stored for finding in _judge_type(one)),
        *(finding for one in stored for finding in _judge_excluded(one)),
        *_judge_references(facts),
        *_judge_unasked(facts),
    ]


def _judge_type(facts: TypeFacts) -> Iterator[Finding]:
    newest = facts.newest
    if newest is None:
        return
    if facts.live is None:
        yield _judge_missing(facts, newest)
        return
    where = f"{facts.live.schema}.{facts.live.name}"
    yield from _judge_unlogged(facts, newest, where)
    if facts.refusal is not None:
        yield make_problem(
            "message-waiting" if facts.refusal.waits else TABLE_DIFFERS,
            where,
            message=facts.refusal.message,
            hint=facts.refusal.hint,
        )
    elif facts.now is not None and not is_same_key(newest, facts.now):
        yield make_problem(
            TABLE_REPLACED,
            where,
            message=f"the primary key is ({', '.join(facts.now.key_names)}), and "
            f"({', '.join(newest.key_names)}) in the log (type {newest.type_name!r}): which row "
            "is which of before is not known",
            hint=spell_replace(newest.type_name),
        )
    elif facts.is_unnoted and facts.now is not None:
        found = list(compare_revisions(newest, facts.now, facts.change or FIRST))
        if found:
            yield make_problem(
                TABLE_DIFFERS,
                where,
                message=f"the table is not what the log's newest type {newest.type_name!r} "
                f"revision {newest.revision} says: {'; '.join(one.message for one in found)}",
                hint=f"{_SYNC}, or let the next migration note it: import oplog.migration in "
                "env.py",
            )


def _judge_unlogged(facts: TypeFacts, newest: Shape, where: str) -> Iterator[Finding]:
    rewritten = list_rewritten(facts)
    if rewritten:
        yield make_problem(
            ROWS_PENDING,
            where,
            message=f"a migration wrote {rewritten} anew for the rows that were there (type "
            f"{newest.type_name!r}), and the log does not have all of that yet",
            hint=_SYNC,
        )


def list_rewritten(facts: TypeFacts) -> str:
    """Columns whose values are still to be logged again; empty if there are none."""
    newest = facts.newest
    if newest is None:
        return ""
    if facts.is_unnoted and facts.change is not None and facts.change.logs_rows:
        shape, change = facts.now or newest, facts.change
    elif facts.pending:
        shape, change = newest, newest.change
    else:
        return ""
    return name_rewritten(shape, change)


def name_rewritten(shape: Shape, change: SchemaChange) -> str:
    """The columns that a change wrote anew, for messages."""
    numbers = [n for n in sorted(change.rewritten) if n in shape.by_number]
    names = ", ".join(shape.by_number[number].name for number in numbers)
    return names if names and not change.readopted else "all columns"


def spell_replace(type_name: str) -> str:
    """The hint for a table or a key that was replaced."""
    return (
        "log all rows as they are now, in the migration or in one after it: "
        f"op.replace_type({type_name!r}, reason=...)"
    )


def _judge_missing(facts: TypeFacts, newest: Shape) -> Finding:
    where = f"{newest.schema}.{newest.table}"
    if facts.replacement is not None and facts.filled is not False:
        rows = "and has rows" if facts.filled else "and this role may not see if it has rows"
        return make_problem(
            TABLE_REPLACED,
            where,
            message=f"another table has taken the place of the one that the log knows (type "
            f"{newest.type_name!r}), {rows}: what became of the old rows is not known",
            hint=spell_replace(newest.type_name),
        )
    if facts.dropped:
        anew = ", and begins anew with the table that has its name" if facts.replacement else ""
        return make_problem(
            TABLE_GONE,
            where,
            message=f"the log has the type {newest.type_name!r}, and its table was dropped",
            hint=f"{_SYNC}: it retires the type{anew}",
        )
    return make_problem(
        TABLE_GONE,
        where,
        message=f"the log has the type {newest.type_name!r}, and its table is not in this "
        "database, which never had it under another name: replay, verify and restore refuse the "
        "whole log",
        hint="run the migrations that create it; if one of them dropped it for good, say so in a "
        f"migration: op.retire_type({newest.type_name!r}, reason=...)",
    )


def list_unfillable(facts: TypeFacts) -> list[str]:
    """Excluded columns of the table that a restored row cannot do without."""
    if facts.live is None:
        return []
    return [
        column.name
        for column in facts.live.columns
        if column.name in facts.excluded and column.not_null and not column.has_default
    ]


def _judge_excluded(facts: TypeFacts) -> Iterator[Finding]:
    for column in list_unfillable(facts):
        place = "" if facts.live is None else f"{facts.live.schema}.{facts.live.name}"
        yield make_problem(
            "restore-excluded",
            f"{place}.{column}",
            message="the column is excluded from the log, may not be NULL and has no "
            "default: a restore refuses the table's rows",
            hint="give the column a server default, let it be NULL, or log it",
        )


def _judge_references(facts: SchemaFacts) -> Iterator[Finding]:
    for one in facts.references:
        yield make_problem(
            "restore-reference",
            one.table,
            message=f"foreign key {one.constraint} refers to {one.parent}, which is not logged: a "
            "restore refuses rows whose parents are not in the new database",
            hint=f"log {one.parent} too; or see that migrations fill it, before a restore",
        )


def _judge_unasked(facts: SchemaFacts) -> Iterator[Finding]:
    if facts.unasked and any(one.stored for one in facts.types):
        yield make_notice(
            "change-unknown",
            f"function {', '.join(facts.unasked)}",
            message="this role may not ask the log what became of rows, so it was not checked "
            "whether some are to be logged again",
            hint="`oplog grants auditor ROLE` prints what a role needs that reads the log",
        )


def select_unfinished(findings: Sequence[Finding]) -> list[Finding]:
    """Those that somebody has to act on before the archive can be restored as it is."""
    return [one for one in findings if one.what in (TABLE_GONE, TABLE_REPLACED, ROWS_PENDING)]
