"""Judges what a restored row of a build's tables could not do without. Pure.

By the database where it has the table, and by the models for what they have more.
"""

from __future__ import annotations

from collections.abc import Iterator

from oplog.catalog import TypeCatalog
from oplog.doctor.evolution import list_unfillable
from oplog.doctor.restore_risk import find_restore_risks
from oplog.doctor.table_difference import ChangeKind
from oplog.doctor.type_change import TypeChange
from oplog.doctor.type_facts import SchemaFacts


def judge_restoring(facts: SchemaFacts, catalog: TypeCatalog) -> Iterator[TypeChange]:
    """What a restored row could not do without."""
    by_table = {id(one.declared): one for one in facts.types if one.declared is not None}
    said = set()
    for one in facts.types:
        for column in list_unfillable(one) if not one.retired else ():
            said.add((one.type_name, column))
            yield _warn(one.type_name, column, _EXCLUDED, _FILL)
    for reference in facts.references:
        said.add((reference.table, reference.parent))
        yield _warn(
            _find_type(facts, reference.table),
            "",
            f"foreign key {reference.constraint} of {reference.table} refers to "
            f"{reference.parent}, which is not logged: a restore refuses rows whose parents are "
            "missing",
            _spell_parent(reference.parent),
        )
    for risk in find_restore_risks(catalog):
        known = by_table.get(id(risk.declared))
        live = known.live if known is not None else None
        name = known.type_name if known is not None else risk.declared.type_name
        if not risk.parent:
            # What the database has was judged above.
            if live is None or risk.column not in {column.name for column in live.columns}:
                yield _warn(name, risk.column, _EXCLUDED, _FILL)
        elif live is None or not _refers(facts, live.name, risk.parent):
            text = f"{risk.text}: a restore refuses rows whose parents are missing"
            yield _warn(name, risk.column, text, _spell_parent(risk.parent))


_EXCLUDED = (
    "the column is excluded from the log, may not be NULL and has no default: a restore refuses "
    "the table's rows"
)
_FILL = "give the column a server default, let it be NULL, or log it"


def _warn(type_name: str, column: str, message: str, hint: str) -> TypeChange:
    return TypeChange(type_name, ChangeKind.RESTORE, column, message, breaks=True, hint=hint)


def _spell_parent(parent: str) -> str:
    return f"log {parent} too; or see that migrations fill it, before a restore"


def _find_type(facts: SchemaFacts, table: str) -> str:
    for one in facts.types:
        if one.live is not None and f"{one.live.schema}.{one.live.name}" == table:
            return one.type_name
    return table


def _refers(facts: SchemaFacts, table: str, parent: str) -> bool:
    """Whether the database has a foreign key of these tables; models may leave out a schema."""
    return any(
        one.table.endswith(f".{table}") and one.parent.endswith(f".{parent.rpartition('.')[2]}")
        for one in facts.references
    )
