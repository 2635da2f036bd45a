"""Compares a build's models with what a log knows, and with its tables if they are there. Pure.

For the time before a deploy: what the log would note, what readers of earlier revisions would not
find any more, what a restore would refuse. What is only added breaks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.doctor.evolution import list_rewritten, spell_replace
from oplog.doctor.message_contract import judge_message
from oplog.doctor.model_fit import list_absent, list_unfit, list_unknown
from oplog.doctor.restore_contract import judge_restoring
from oplog.doctor.table_difference import (
    ChangeKind,
    Difference,
    compare_revisions,
)
from oplog.doctor.type_change import TypeChange, TypesCheckReport
from oplog.doctor.type_facts import SchemaFacts, TypeFacts
from oplog.payload.schema_change import FIRST
from oplog.payload.shape import Shape

_SYNC = "oplog types sync notes it; so does the next migration with import oplog.migration"
_REFILL = "run oplog types sync, as the role that owns the log, before this build is started"
_MIGRATE = "run the migrations before this build is started"


def judge_contract(facts: SchemaFacts, catalog: TypeCatalog) -> TypesCheckReport:
    """What the models of `catalog` change for the log, and what of that breaks."""
    found = [
        *(change for one in facts.types for change in _judge_type(one, catalog)),
        *judge_restoring(facts, catalog),
        *_judge_unasked(facts),
    ]
    return TypesCheckReport(tuple(sorted(found, key=lambda change: not change.breaks)))


def _judge_type(facts: TypeFacts, catalog: TypeCatalog) -> Iterator[TypeChange]:
    newest = facts.newest
    if newest is None or facts.retired:
        yield from _judge_new(facts)
    elif facts.live is None:
        yield from _judge_tableless(facts, newest)
    else:
        yield from _judge_noted(facts, newest, catalog)
        yield from _judge_models(facts, newest, catalog)


# -- types without a past, or without a table --------------------------------------------------


def _judge_new(facts: TypeFacts) -> Iterator[TypeChange]:
    declared, name = facts.declared, facts.type_name
    if declared is None:
        return
    table = declared.table.fullname
    if facts.refusal is not None:
        yield _refuse(facts)
        return
    again = ", which was retired, begins anew" if facts.stored else " is new"
    live = facts.live or facts.replacement
    if live is None:
        more, hint = f", and the database does not have its table {table} yet", _MIGRATE
    else:
        more, hint = "", "oplog adopt logs rows that the table has already"
    yield TypeChange(name, ChangeKind.ADDED, "", f"type {name!r}{again}{more}", hint=hint)
    if live is not None:
        yield from _list_ahead(facts, declared, known=())


def _judge_tableless(facts: TypeFacts, newest: Shape) -> Iterator[TypeChange]:
    name, place = facts.type_name, f"{newest.schema}.{newest.table}"
    if facts.replacement is not None:
        filled = facts.filled is not False
        yield TypeChange(
            name,
            ChangeKind.REPLACED,
            "",
            f"another table has taken the place of {place}"
            + ("" if filled else ", and has no rows: the type begins anew"),
            breaks=filled,
            hint=spell_replace(name) if filled else _SYNC,
        )
        return
    if facts.declared is not None:
        yield TypeChange(
            name,
            ChangeKind.MISSING,
            "",
            f"the log has rows of {place}, and the table is not in the database any more, but in "
            "the models"
            if facts.dropped
            else f"the log has rows of {place}, and the table is not in this database",
            breaks=True,
            hint="run the migrations that create it; or, if it was dropped for good, take it out "
            "of the models",
        )
        return
    yield TypeChange(
        name,
        ChangeKind.RETIRED,
        "",
        f"neither the database nor the models have {place}: the type ends",
        breaks=not facts.dropped,
        hint="oplog types sync retires it; what was logged stays readable"
        if facts.dropped
        else "if it was dropped for good, retire the type in a migration: "
        f"op.retire_type({name!r}, reason=...); what was logged stays readable",
    )


def _refuse(facts: TypeFacts) -> TypeChange:
    refusal = facts.refusal
    kind = ChangeKind.WAITING if refusal is not None and refusal.waits else ChangeKind.REFUSED
    message, hint = ("", "") if refusal is None else (refusal.message, refusal.hint)
    return TypeChange(facts.type_name, kind, "", message, breaks=True, hint=hint)


# -- what became of the table ------------------------------------------------------------------


def _judge_noted(facts: TypeFacts, newest: Shape, catalog: TypeCatalog) -> Iterator[TypeChange]:
    """What the log would note of the table as it is."""
    if facts.refusal is not None:
        yield _refuse(facts)
    change = facts.change or FIRST
    renumbered = list(_judge_message(facts))
    yield from renumbered
    # By other numbers every column would be another one.
    if facts.now is not None and not renumbered:
        for one in compare_revisions(newest, facts.now, change):
            yield _weigh(facts, one, newest, catalog)
    rewritten = list_rewritten(facts)
    if rewritten:
        yield TypeChange(
            facts.type_name,
            ChangeKind.REFILL,
            "",
            f"a migration wrote {rewritten} anew for the rows that were there, and the log does "
            "not have all of that yet",
            breaks=True,
            hint=_REFILL,
        )


def _judge_message(facts: TypeFacts) -> Iterator[TypeChange]:
    if facts.declared is None or facts.live is None:
        return
    for column, text in judge_message(facts.declared, facts.stored, facts.live):
        yield TypeChange(
            facts.type_name,
            ChangeKind.MESSAGE,
            column,
            text,
            breaks=True,
            hint="field numbers are for ever: give the column its number again, and a new column a "
            "number that no revision has had",
        )


def _weigh(facts: TypeFacts, one: Difference, newest: Shape, catalog: TypeCatalog) -> TypeChange:
    """A difference, with whether it breaks something."""
    if one.kind is ChangeKind.KEY:
        return TypeChange(
            facts.type_name,
            one.kind,
            "",
            f"{one.message}: which row is which of before is not known",
            breaks=True,
            hint=spell_replace(facts.type_name),
        )
    if one.kind is ChangeKind.REGROUPED and facts.live is not None:
        table = facts.declared.table.fullname if facts.declared is not None else facts.live.name
        hint = f"to keep the names of before: aggregates={{{table!r}: {newest.aggregate!r}}}"
        return TypeChange(facts.type_name, one.kind, "", one.message, hint=hint)
    if not one.lost:
        return TypeChange(facts.type_name, one.kind, one.column, one.message, hint=_SYNC)
    return _lose(facts, one, newest, catalog)


def _lose(
    facts: TypeFacts, one: Difference, newest: Shape, catalog: TypeCatalog, *, when: str = ""
) -> TypeChange:
    """A column that readers of the newest revision lose, unless a step says what they get."""
    name, revision = facts.type_name, newest.revision
    names = {name, facts.declared.type_name} if facts.declared is not None else {name}
    handled = any(
        catalog.find_step(called, revision + 1, to_revision=revision) is not None
        for called in names
    )
    readers = f"readers of revision {revision}"
    converted = one.kind is ChangeKind.CONVERTED
    lost = "cannot read its values" if converted else "do not find it any more"
    if handled:
        message = f"{one.message}; {readers} get what the declared step gives them"
        return TypeChange(name, one.kind, one.column, message, hint=_SYNC)
    return TypeChange(
        name,
        one.kind,
        one.column,
        f"{one.message}: {when}{readers} {lost}",
        breaks=True,
        hint=f"say what they get: catalog.downcast({name!r}, to_revision={revision}, step=...); "
        "or keep it until nobody reads that revision",
    )


# -- what the models say -----------------------------------------------------------------------


def _judge_models(facts: TypeFacts, newest: Shape, catalog: TypeCatalog) -> Iterator[TypeChange]:
    """What models and table do not have in common."""
    declared, live, name = facts.declared, facts.live, facts.type_name
    if live is None:
        return
    place = f"{live.schema}.{live.name}"
    if declared is None:
        reason = catalog.untracked.get(live.name) or catalog.untracked.get(place)
        yield TypeChange(
            name,
            ChangeKind.UNDECLARED,
            "",
            f"the models do not have {place}: what this build writes to it is not logged"
            if reason is None
            else f"{place} is left untracked ({reason}), and the log has its rows: what this build "
            "writes to it is not logged, and verify reports it",
            breaks=reason is not None,
            hint="declare the table, or make sure that another application logs it; a table that a "
            "migration drops is retired by oplog types sync"
            if reason is None
            else "declare the table; or say that the log of it ends here, in a migration: "
            f"op.retire_type({name!r}, reason=...)",
        )
        return
    if not facts.reached:
        yield TypeChange(
            name,
            ChangeKind.BEHIND,
            "",
            f"the models call the table {declared.table.fullname}, and it is {place} now",
            breaks=True,
            hint="deploy a build whose models have the table's name of now",
        )
    yield from _list_ahead(facts, declared, known=newest.names)
    for column, text in list_unfit(declared, facts.now or newest):
        difference = Difference(ChangeKind.CONVERTED, text, column, lost=True)
        yield _lose(facts, difference, newest, catalog)
    for column in list_unknown(declared, live):
        if column in newest.by_name:
            text = f"column {column} is not in the models, and logged as long as the table has it"
            difference = Difference(ChangeKind.DROPPED, text, column, lost=True)
            yield _lose(facts, difference, newest, catalog, when="once it is dropped, ")


def _list_ahead(
    facts: TypeFacts, declared: DeclaredType, *, known: Sequence[str]
) -> Iterator[TypeChange]:
    """What the models have and the table has not: not yet, or not any more."""
    live = facts.live or facts.replacement
    if live is None:
        return
    name, place = facts.type_name, f"{live.schema}.{live.name}"
    for column in list_absent(declared, live):
        gone = column in known
        yield TypeChange(
            name,
            ChangeKind.BEHIND if gone else ChangeKind.ADDED,
            column,
            f"the models have column {column}, and {place} does not have it any more"
            if gone
            else f"column {column} is new, and {place} does not have it yet",
            breaks=gone,
            hint="deploy a build whose models know the migration" if gone else _MIGRATE,
        )
    wanted = tuple(column.name for column in declared.table.primary_key)
    if set(wanted) != set(live.key_names):
        yield TypeChange(
            name,
            ChangeKind.KEY,
            "",
            f"the primary key is ({', '.join(live.key_names)}) in the database, and "
            f"({', '.join(wanted)}) in the models",
            breaks=True,
            hint="change the table's key in a migration, and in the same one "
            + spell_replace(name),
        )


# -- what was not asked ------------------------------------------------------------------------


def _judge_unasked(facts: SchemaFacts) -> Iterator[TypeChange]:
    if facts.unasked and any(one.stored for one in facts.types):
        yield TypeChange(
            "",
            ChangeKind.UNKNOWN,
            "",
            f"this role may not execute {', '.join(facts.unasked)}: whether rows are to be logged "
            "again was not checked",
            hint="`oplog grants auditor ROLE` prints what a role needs that reads the log",
        )
