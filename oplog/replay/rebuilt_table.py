"""Rebuilt tables: made like the live ones, then given the live ones' constraints.

A rebuilt table has no triggers, no sequence and no default that is computed, and refers to no
live row, so that nothing done to it reaches the live tables. Constraints are added after the
rows: they check what the log gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oplog.errors import ConfigurationError, ReplayError
from oplog.postgres import driver_errors
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.postgres.work import Driver, read_qualified
from oplog.replay.domain_columns import set_base_types, set_own_types
from oplog.replay.loader import TableLoader
from oplog.replay.table_plan import TablePlan

COMMENT_PREFIX = "oplog replay "
"""Begins the comment of every table made here; a replay drops only tables that have it."""


def make_scratch(
    driver: Driver, plans: Sequence[TablePlan], *, first: int = 0
) -> list[TableLoader]:
    """Temporary tables without domains and NOT NULL, numbered from `first` on.

    Where a comparison uses them, differences are reported, not raised.
    """
    loaders = []
    for number, plan in enumerate(plans, first):
        target = f"pg_temp.oplog_rebuilt_{number}"
        _create_table(driver, plan, target, temporary=True)
        loaders.append(TableLoader(driver, plan, target))
    return loaders


def make_schema(
    driver: Driver, plans: Sequence[TablePlan], *, into: str, log_schema: str
) -> list[TableLoader]:
    """Empty tables in schema `into`, which is created if it is missing.

    Tables of an earlier replay are dropped. `ConfigurationError`, before anything is
    changed, for a system schema, for the log's or a live table's, and if a table that no
    replay made has one of the names.
    """
    _check_schema(plans, into=into, log_schema=log_schema)
    names = _name_tables(plans)
    _check_names(driver, into=into, names=names.values())
    driver.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(into)}")
    _drop_earlier(driver, into=into)
    loaders = []
    for plan, name in names.items():
        target = f"{quote(into)}.{quote(name)}"
        _create_table(driver, plan, target, temporary=False)
        loaders.append(TableLoader(driver, plan, target))
    return loaders


def comment_tables(driver: Driver, loaders: Iterable[TableLoader], *, position: int) -> None:
    """Mark the tables as made by a replay, with the position that they show."""
    for loader in loaders:
        comment = f"{COMMENT_PREFIX}of {loader.plan.live.qualified} through position {position}"
        driver.execute(f"COMMENT ON TABLE {loader.target} IS {quote_literal(comment)}")


def _create_table(driver: Driver, plan: TablePlan, target: str, *, temporary: bool) -> None:
    begin = f"CREATE {'TEMPORARY ' if temporary else ''}TABLE {target.removeprefix('pg_temp.')} "
    end = " ON COMMIT DROP" if temporary else ""
    if plan.stored:
        columns = ", ".join(
            f"{quote(column.name)} {column.pg_type}"
            + (f" DEFAULT {plan.fills[column.name]}" if column.name in plan.fills else "")
            for column in plan.live.columns
        )
        driver.execute(f"{begin}({columns}){end}")
        return
    driver.execute(f"{begin}(LIKE {plan.live.qualified} INCLUDING GENERATED){end}")
    alter = [
        *(f"ALTER {quote(name)} SET DEFAULT {fill}" for name, fill in plan.fills.items()),
        # The log may give a row first, and later what a change of the schema put into it.
        *(
            f"ALTER {quote(column.name)} DROP NOT NULL"
            for column in plan.live.columns
            if column.not_null and not column.primary_key
        ),
    ]
    for clauses in (set_base_types(plan.domains), alter):
        if clauses:
            driver.execute(f"ALTER TABLE {target} {', '.join(clauses)}")


# -- what may be overwritten ----------------------------------------------------------------


def _check_schema(plans: Sequence[TablePlan], *, into: str, log_schema: str) -> None:
    reason = ""
    if not into or "\x00" in into:
        reason = "is not a name"
    elif into.startswith("pg_") or into == "information_schema":
        reason = "belongs to Postgres"
    elif into == log_schema:
        reason = "holds the log"
    elif into in {plan.live.schema for plan in plans}:
        reason = "holds the live tables"
    if reason:
        raise ConfigurationError(
            f"cannot replay into schema {into!r}: it {reason}",
            hint="give the name of a new schema, such as into='replayed'",
        )


def _name_tables(plans: Sequence[TablePlan]) -> dict[TablePlan, str]:
    """The tables' names, prefixed with the schema where two schemas share one."""
    names = [plan.live.name for plan in plans]
    whole = [plan.name for plan in plans]
    return {
        # Two tables that changed names have the same one between the marks of the two changes.
        plan: f"{plan.name} ({plan.types[0]})"
        if whole.count(plan.name) > 1
        else plan.name
        if names.count(plan.live.name) > 1
        else plan.live.name
        for plan in plans
    }


def _check_names(driver: Driver, *, into: str, names: Iterable[str]) -> None:
    taken = driver.query(
        "SELECT c.relname FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND NOT (c.relkind = 'r' "
        "AND coalesce(pg_catalog.obj_description(c.oid, 'pg_class'), '') LIKE $3) ORDER BY 1",
        (into, list(names), f"{COMMENT_PREFIX}%"),
    )
    found = [row[0] for row in taken]
    if found:
        raise ConfigurationError(
            f"cannot replay into schema {into!r}: {', '.join(found)} there was not made by a "
            "replay",
            hint="give the name of a new schema, such as into='replayed'",
        )


def _drop_earlier(driver: Driver, *, into: str) -> None:
    # All of them, also those of tables no longer logged: a mix of two replays would mislead.
    found = driver.query(
        "SELECT c.relname FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND c.relkind = 'r' "
        "AND pg_catalog.obj_description(c.oid, 'pg_class') LIKE $2 ORDER BY 1",
        (into, f"{COMMENT_PREFIX}%"),
    )
    names = ", ".join(f"{quote(into)}.{quote(row[0])}" for row in found)
    if not names:
        return
    try:
        driver.execute(f"DROP TABLE {names}")
    except driver_errors.DependentObjectsStillExist as cause:
        raise ConfigurationError(
            f"the tables of an earlier replay in schema {into!r} are in use: "
            f"{cause.diag.message_detail}",
            hint="drop what depends on them, or replay into another schema",
        ) from cause


# -- constraints ----------------------------------------------------------------------------

# Columns by name, so that constraints on columns that are not logged can be left out. Read with
# `read_qualified`, so that definitions qualify every name.
_CONSTRAINTS = """
SELECT c.conrelid::bigint, c.contype::text, c.conname::text,
  pg_catalog.pg_get_constraintdef(c.oid), c.confrelid::bigint,
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)),
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.confrelid AND a.attnum = ANY (c.confkey)),
  CASE WHEN r.oid IS NOT NULL THEN pg_catalog.format('%I.%I', n.nspname, r.relname) END
FROM pg_catalog.pg_constraint c
LEFT JOIN pg_catalog.pg_class r ON r.oid = c.confrelid
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE c.conrelid = ANY($1::bigint[]::oid[])
  AND (c.contype IN ('u', 'c', 'x') OR c.contype = 'f' AND c.conparentid = 0::oid)
UNION ALL
SELECT i.indrelid::bigint, 'i', x.relname::text, pg_catalog.pg_get_indexdef(i.indexrelid), 0,
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_depend p JOIN pg_catalog.pg_attribute a
        ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid
        WHERE p.classid = 'pg_catalog.pg_class'::regclass AND p.objid = i.indexrelid
          AND p.refclassid = 'pg_catalog.pg_class'::regclass AND p.refobjid = i.indrelid),
  ARRAY[]::text[], pg_catalog.format('CREATE UNIQUE INDEX %I ON %s%I.%I ', x.relname,
    CASE r.relkind WHEN 'p' THEN 'ONLY ' END, n.nspname, r.relname)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_class r ON r.oid = i.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE i.indrelid = ANY($1::bigint[]::oid[]) AND i.indisunique AND i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conindid = i.indexrelid
                  AND c.contype IN ('p', 'u', 'x'))
ORDER BY 1, 3
"""
_ORDER = "uxicf"
"""Kinds of constraints in the order they are added: keys before foreign keys."""


def add_constraints(
    driver: Driver, loaders: Sequence[TableLoader], *, into: str, past: bool = False
) -> None:
    """Give loaded tables the live ones' constraints and unique indexes.

    Foreign keys refer to the rebuilt tables. Foreign keys to tables that are not logged, and
    constraints on an excluded column, are left out. `ReplayError` if rows break one; in the `past`
    it is left out: rows of then may be why it was added only later. One that is NOT VALID holds for
    new rows. A column keeps the type below its domain where rows break that.
    """
    by_oid = {loader.plan.live.oid: loader for loader in loaders if not loader.plan.stored}
    for loader in loaders:
        if not loader.keyed:
            loader.build_key()
        _narrow_columns(driver, loader, past=past)
    used = _list_relations(driver, into=into)
    rows = read_qualified(driver, _CONSTRAINTS, (list(by_oid),))
    for row in sorted(rows, key=lambda row: _ORDER.index(row[1])):
        name = row[2]
        statement = _state_constraint(row, by_oid, named=name not in used)
        if statement is None:
            continue
        used.add(name)
        _alter(driver, by_oid[row[0]], statement, lenient=past, name=name)


def _alter(
    driver: Driver, loader: TableLoader, statement: str, *, lenient: bool, name: str = ""
) -> bool:
    """Whether the rows allow it; `ReplayError` if they do not, unless `lenient`."""
    if lenient:
        driver.execute("SAVEPOINT oplog_constraint")
    try:
        driver.execute(statement)
    except (driver_errors.IntegrityError, driver_errors.DataError) as cause:
        if not lenient:
            raise _broken(loader, name, cause) from cause
        driver.execute("ROLLBACK TO SAVEPOINT oplog_constraint")
        driver.execute("RELEASE SAVEPOINT oplog_constraint")
        return False
    if lenient:
        driver.execute("RELEASE SAVEPOINT oplog_constraint")
    return True


def _narrow_columns(driver: Driver, loader: TableLoader, *, past: bool) -> None:
    """Take back what the table could not have before it had its rows: domains, and no NULLs."""
    plan = loader.plan
    if plan.stored:
        return
    # Computed columns last: others that they are made of may have to make them anew.
    domains = sorted(
        (n for n, c in plan.domains.items() if n in plan.compared and c.base != c.own),
        key=lambda name: bool(plan.domains[name].formula),
    )
    filled = [
        column.name
        for column in plan.live.columns
        if column.not_null and not column.primary_key and column.name in plan.compared
    ]
    steps = [
        *((name, set_own_types(plan.domains, [name])) for name in domains),
        *((name, [_refuse_null(name)]) for name in filled),
    ]
    if not steps:
        return
    whole = [*set_own_types(plan.domains, domains), *map(_refuse_null, filled)]
    # At once if the rows allow it: a new type may write the table anew.
    lenient = past or any(name in plan.unproved for name, _ in steps)
    if _alter(driver, loader, f"ALTER TABLE {loader.target} {', '.join(whole)}", lenient=lenient):
        return
    for name, clauses in steps:
        statement = f"ALTER TABLE {loader.target} {', '.join(clauses)}"
        _alter(driver, loader, statement, lenient=past or name in plan.unproved)


def _refuse_null(name: str) -> str:
    return f"ALTER {quote(name)} SET NOT NULL"


def _list_relations(driver: Driver, *, into: str) -> set[str]:
    rows = driver.query(
        "SELECT c.relname::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1",
        (into,),
    )
    return {row[0] for row in rows}


def _state_constraint(row: Any, by_oid: Mapping[int, TableLoader], *, named: bool) -> str | None:
    """The statement for one constraint or index; None to leave it out."""
    oid, kind, name, definition, parent_oid, columns, parent_columns, text = row
    loader = by_oid[oid]
    if not set(columns) <= set(loader.plan.compared):
        return None
    if kind == "i":
        # If a relation in the schema has the name, Postgres chooses another.
        return (
            f"CREATE UNIQUE INDEX {quote(name) if named else ''} ON {loader.target} "
            f"{definition.removeprefix(text)}"
        )
    if kind == "f":
        parent = by_oid.get(parent_oid)
        if parent is None or not set(parent_columns) <= set(parent.plan.compared):
            return None
        head, _, rest = definition.partition(f") REFERENCES {text}(")
        definition = f"{head}) REFERENCES {parent.target}({rest}"
    label = f"CONSTRAINT {quote(name)} " if named or kind in "cf" else ""
    return f"ALTER TABLE {loader.target} ADD {label}{definition}"


def _broken(loader: TableLoader, constraint: str, cause: driver_errors.Error) -> ReplayError:
    detail = cause.diag.message_detail
    if not constraint:
        on_null = isinstance(cause, driver_errors.NotNullViolation)
        constraint = "on NULL" if on_null else "of a domain"
    return ReplayError(
        f"the rows that the log gives {loader.plan.name} break its constraint {constraint}: "
        f"{cause.diag.message_primary or cause}{f' ({detail})' if detail else ''}",
        hint="the log lacks a change: run verify to see which rows differ from the live ones",
    )
