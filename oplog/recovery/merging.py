"""Merges a batch of records into live tables that have rows, without touching other rows.

The rows of the batch are copied into temporary tables, changed there, and written back. Foreign
keys and unique names that hold before and after a batch need not hold between two of its
statements. So statements in a likely order are tried first, with all constraints in force; only if
that fails are foreign keys dropped, rows replaced, and foreign keys added again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from sqlalchemy.engine import Connection

from oplog.errors import ReplayError
from oplog.postgres import driver_errors
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.suspension import list_references, resume_tables, suspend_tables
from oplog.postgres.work import Driver
from oplog.reading.reader import OpenedRecord
from oplog.replay.effect_route import Key
from oplog.replay.fold import Fold, TableFold
from oplog.replay.loader import TableLoader, print_column
from oplog.replay.rebuild import Applied, add_record
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.table_plan import TablePlan, list_quoted
from oplog.replay.validity import FoldRules
from oplog.value import Kind

Extremes = Mapping[tuple[int, str], tuple[int, int]]
"""Lowest and highest whole numbers written, by table's oid and column."""


@dataclass(frozen=True)
class _StagedTable:
    """The rows of one table that a batch changes.

    The temporary table `original` has them as they are, that of `loader` as they shall be.
    """

    loader: TableLoader
    original: str
    before: int
    """Number of rows in `original`."""

    @property
    def plan(self) -> TablePlan:
        return self.loader.plan

    @property
    def live(self) -> str:
        return self.loader.plan.live.qualified

    def match(self, one: str, other: str) -> str:
        """The SQL condition that rows of two tables have the same key."""
        return " AND ".join(
            f"{one}.{quote(name)} = {other}.{quote(name)}" for name in self.plan.key_names
        )


def merge_records(
    driver: Driver,
    plans: Sequence[TablePlan],
    records: Iterable[OpenedRecord],
    *,
    rules: FoldRules,
) -> Applied:
    """Apply the records to the live tables; triggers must be disabled.

    `ReplayError` if rows are not as the log says, or break a constraint after the batch.
    """
    loaders = make_scratch(driver, plans)
    folds = {id(loader): TableFold(loader.plan) for loader in loaders}
    by_type = {name: folds[id(one)] for one in loaders for name in one.plan.types}
    fold = Fold(by_type, rules=rules)
    applied = Applied()
    for record in records:
        add_record(fold, record, applied)
    touched = []
    for number, loader in enumerate(loaders):
        net = folds[id(loader)]
        if net:
            touched.append(_stage_rows(driver, loader, net, number=number))
    _write_back(driver, _sort_by_reference(driver.connection, touched))
    return applied


def _stage_rows(
    driver: Driver, loader: TableLoader, net: TableFold, *, number: int
) -> _StagedTable:
    plan = loader.plan
    keys = f"pg_temp.oplog_keys_{number}"
    names = list_quoted(plan.key_names)
    driver.execute(
        f"CREATE TEMPORARY TABLE oplog_keys_{number} ON COMMIT DROP AS SELECT {names} "
        f"FROM {loader.target} WITH NO DATA"
    )
    driver.copy(f"COPY {keys} FROM STDIN", [_print_keys(plan, net)])
    on_key = " AND ".join(f"l.{quote(n)} = k.{quote(n)}" for n in plan.key_names)
    # Excluded columns too: if a row has to be replaced, they are in no other place.
    stored = list_quoted([c.name for c in plan.live.columns if not c.generated], prefix="l.")
    original = f"pg_temp.oplog_known_{number}"
    driver.execute(
        f"CREATE TEMPORARY TABLE oplog_known_{number} ON COMMIT DROP AS SELECT {stored} "
        f"FROM {plan.live.qualified} l WHERE EXISTS (SELECT FROM {keys} k WHERE {on_key})"
    )
    logged = list_quoted(plan.names)
    done = driver.execute(f"INSERT INTO {loader.target} ({logged}) SELECT {logged} FROM {original}")
    # Read now: the cursor is used again by the next statement.
    before = loader.rows = done.rowcount
    driver.execute(f"DROP TABLE {keys}")
    loader.build_key()
    loader.apply(net)
    return _StagedTable(loader, original, before)


def _print_keys(plan: TablePlan, net: TableFold) -> str:
    keys: list[Key] = list({**net.gone, **net.patched, **net.created, **net.adopted})
    codecs = [plan.codecs[name] for name in plan.key_names]
    by_column = zip(*keys, strict=True)
    fields = [print_column(c, v) for c, v in zip(codecs, by_column, strict=True)]
    return "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"


def _sort_by_reference(
    connection: Connection, touched: Sequence[_StagedTable]
) -> list[_StagedTable]:
    """Tables before those that refer to them; unsorted if references form a cycle."""
    by_oid = {table.plan.live.oid: table for table in touched}
    order: TopologicalSorter[int] = TopologicalSorter({oid: set() for oid in by_oid})
    for child, parent in list_references(connection, list(by_oid)):
        if parent in by_oid:
            order.add(child, parent)
    try:
        return [by_oid[oid] for oid in order.static_order()]
    except CycleError:
        return list(touched)


def _write_back(driver: Driver, touched: Sequence[_StagedTable]) -> None:
    driver.execute("SAVEPOINT oplog_merge")
    try:
        _change_in_place(driver, touched)
    except (driver_errors.IntegrityError, driver_errors.GeneratedAlways, _UnexpectedError):
        driver.execute("ROLLBACK TO SAVEPOINT oplog_merge")
        _replace(driver, touched)
    driver.execute("RELEASE SAVEPOINT oplog_merge")


class _UnexpectedError(Exception):
    """A statement found other rows than expected: a foreign key's action had changed them."""


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise _UnexpectedError


def _change_in_place(driver: Driver, touched: Sequence[_StagedTable]) -> None:
    """Insert, update, delete, with all constraints in force."""
    inserted = [_insert_new(driver, table) for table in touched]
    pairs = list(zip(touched, inserted, strict=True))
    for table, new in pairs:
        values = [name for name in table.plan.names if name not in table.plan.key_names]
        if not values:
            continue
        done = driver.execute(
            f"UPDATE {table.live} l SET "
            f"{', '.join(f'{quote(name)} = t.{quote(name)}' for name in values)} "
            f"FROM {table.loader.target} t, {table.original} b "
            f"WHERE {table.match('l', 't')} AND {table.match('l', 'b')}"
        )
        _expect(done.rowcount, table.loader.rows - new)
    for table, new in reversed(pairs):
        done = driver.execute(
            f"DELETE FROM {table.live} l USING {table.original} b WHERE {table.match('l', 'b')} "
            f"AND NOT EXISTS (SELECT FROM {table.loader.target} t WHERE {table.match('l', 't')})"
        )
        _expect(done.rowcount, table.before + new - table.loader.rows)
    driver.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _replace(driver: Driver, touched: Sequence[_StagedTable]) -> None:
    """Delete and insert all rows of the batch, with foreign keys dropped."""
    oids = [table.plan.live.oid for table in touched]
    suspended = suspend_tables(driver, oids, referring=True)
    for table in touched:
        driver.execute(
            f"DELETE FROM {table.live} l USING {table.original} b WHERE {table.match('l', 'b')}"
        )
    for table in touched:
        try:
            _insert_known(driver, table)
            _insert_new(driver, table)
        except driver_errors.IntegrityError as cause:
            raise ReplayError(
                f"the rows that the log gives {table.plan.name} do not fit it: "
                f"{cause.diag.message_primary} ({cause.diag.message_detail})",
                hint="the table was migrated further than the log knows, or somebody else wrote "
                "into it",
            ) from cause
    resume_tables(driver, suspended)


def _insert_known(driver: Driver, table: _StagedTable) -> None:
    """Insert the rows that existed before, with their values of excluded columns."""
    plan = table.plan
    excluded = [c.name for c in plan.live.columns if not c.generated and c.name not in plan.names]
    logged = list_quoted(plan.names, prefix="t.")
    kept = "".join(f", b.{quote(name)}" for name in excluded)
    driver.execute(
        f"INSERT INTO {table.live} ({list_quoted([*plan.names, *excluded])}) "
        f"OVERRIDING SYSTEM VALUE SELECT {logged}{kept} "
        f"FROM {table.loader.target} t JOIN {table.original} b ON {table.match('t', 'b')}"
    )


def _insert_new(driver: Driver, table: _StagedTable) -> int:
    """Insert the rows that did not exist; excluded columns get their defaults."""
    columns = list_quoted(table.plan.names)
    done = driver.execute(
        f"INSERT INTO {table.live} ({columns}) OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM {table.loader.target} t "
        f"WHERE NOT EXISTS (SELECT FROM {table.original} b WHERE {table.match('t', 'b')})"
    )
    return done.rowcount


def find_extremes(plans: Sequence[TablePlan], records: Iterable[OpenedRecord]) -> Extremes:
    """The lowest and the highest whole number that the records wrote, by column."""
    places = {name: plan for plan in plans for name in plan.types}
    names: dict[int, Mapping[str, str]] = {}
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for record in records:
        for effect in record.effects:
            shape, plan = effect.shape, places.get(effect.shape.type_name)
            if plan is None:
                # A retired type has no table.
                continue
            if id(shape) not in names:
                routes = plan.targets[shape.type_name].map_from(shape)
                names[id(shape)] = {route.source: route.target for route in routes}
            for name, value in effect.values.items():
                now = names[id(shape)].get(name)
                if shape.codecs[name].kind is Kind.INT and isinstance(value, int) and now:
                    place = (plan.live.oid, now)
                    low, high = found.get(place, (value, value))
                    found[place] = (min(low, value), max(high, value))
    return found
