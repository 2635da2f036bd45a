"""Judges whether an application's models fit the tables that are there. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.doctor.evolution import TABLE_DIFFERS
from oplog.doctor.facts import Facts
from oplog.doctor.type_facts import SchemaFacts
from oplog.errors import NotCapturableError, OplogError
from oplog.finding import Finding, make_notice, make_problem
from oplog.payload.shape import Shape
from oplog.postgres.derivation import resolve_shape
from oplog.postgres.live_table import LiveTable, require_live_table


def list_absent(declared: DeclaredType, live: LiveTable) -> list[str]:
    """Columns that the models log and the table does not have."""
    names = {column.name for column in live.columns}
    return [column.name for column in declared.list_columns() if column.name not in names]


def list_unknown(declared: DeclaredType, live: LiveTable) -> list[str]:
    """Columns of the table that the models neither have nor exclude."""
    known = {column.name for column in declared.table.columns} | set(declared.excluded)
    return [
        column.name for column in live.columns if column.name not in known and not column.generated
    ]


def list_unfit(declared: DeclaredType, shape: Shape) -> list[tuple[str, str]]:
    """Columns whose values are of another kind in the models than in `shape`, with the reason."""
    found = []
    for column in declared.list_columns():
        known = shape.by_name.get(column.name)
        if known is None:
            continue
        try:
            kind = declared.find_kind(column)
        except NotCapturableError:
            continue
        if kind is not known.kind:
            text = f"column {column.name} is {known.pg_type}, and {column.type} in the models"
            found.append((column.name, text))
    return found


def judge_models(
    facts: Facts, catalog: TypeCatalog, schema_facts: SchemaFacts | None
) -> Iterator[Finding]:
    """A finding for each table that models and database do not agree on."""
    for declared in catalog.types.values():
        live = facts.live.get(declared.table)
        if live is None:
            yield _judge_missing(declared, schema_facts)
            continue
        yield from _judge_fit(declared, facts, live, schema_facts)
    for one in () if schema_facts is None else schema_facts.types:
        if one.declared is None and one.live is not None and not one.retired:
            yield make_notice(
                "type-undeclared",
                f"{one.live.schema}.{one.live.name}",
                message=f"the log has the type {one.type_name!r}, and this application's catalog "
                "has not: what this application writes to the table is not logged",
                hint="declare the table, or make sure that another application logs it",
            )


def _judge_missing(declared: DeclaredType, schema_facts: SchemaFacts | None) -> Finding:
    known = () if schema_facts is None else schema_facts.types
    moved = next((o.live for o in known if o.declared is declared and o.live is not None), None)
    if moved is not None:
        return make_problem(
            "models-behind",
            declared.table.fullname,
            message=f"a migration has made it {moved.schema}.{moved.name}: this application does "
            "not log it any more, and fails where it uses it",
            hint="deploy the version whose models have the table's name of now",
        )
    return make_problem(
        "table-missing",
        declared.table.fullname,
        message="the catalog has this table, the database has not",
        hint="run the migrations, or list the table in untracked={...}",
    )


def _judge_fit(
    declared: DeclaredType, facts: Facts, live: LiveTable, schema_facts: SchemaFacts | None
) -> Iterator[Finding]:
    where = f"{live.schema}.{live.name}"
    absent = list_absent(declared, live)
    if absent:
        yield make_problem(
            "models-ahead",
            where,
            message=f"columns are in the models and not in the database: {', '.join(absent)}; "
            "every transaction of this application is refused",
            hint="run the migrations before this version of the application; if a migration has "
            "dropped or renamed them, deploy the version that knows it",
        )
    elif schema_facts is None or schema_facts.find_live(live) is None:
        # What the log knows of a table is judged by what it knows.
        yield from _judge_unstored(declared, facts, live)
    else:
        try:
            require_live_table(facts.live, declared.table)
        except OplogError as error:
            yield make_problem(TABLE_DIFFERS, where, message=str(error.args[0]), hint=error.hint)
    unknown = list_unknown(declared, live)
    if unknown:
        yield make_notice(
            "models-behind",
            where,
            message=f"columns are in the database and not in the models: {', '.join(unknown)}; "
            "they are logged as well",
            hint="deploy the version whose models have them, or exclude them with a reason",
        )


def _judge_unstored(declared: DeclaredType, facts: Facts, live: LiveTable) -> Iterator[Finding]:
    try:
        require_live_table(facts.live, declared.table)
        resolve_shape(declared, live, stored=[])
    except OplogError as error:
        where = f"{live.schema}.{live.name}"
        yield make_problem(TABLE_DIFFERS, where, message=str(error.args[0]), hint=error.hint)
