"""A batch of entries merged into live tables that have rows, without touching other rows.

Rows that the batch concerns are copied aside, changed there, and put back. The hard thing is
foreign keys and unique names: what holds before and after a batch need not hold between two of
its statements. So statements in a likely order are tried first, with everything in force; only
where that fails are foreign keys dropped, rows replaced, and foreign keys checked anew.
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
from oplog.reading.reader import OpenedEntry
from oplog.replay.fold import Fold, Key, TableFold
from oplog.replay.loader import TableLoader, print_column
from oplog.replay.rebuild import Applied, add_transaction
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.table_plan import TablePlan, list_quoted
from oplog.replay.validity import FoldRules
from oplog.value import Kind

Extremes = Mapping[tuple[int, str], tuple[int, int]]
"""Lowest and highest whole numbers written, by table's oid and column."""


@dataclass(frozen=True)
class _Aside:
    """One table's rows that a batch concerns: as they are in `known`, to be in `loader`."""

    loader: TableLoader
    known: str
    before: int
    """Rows in `known`."""

    @property
    def plan(self) -> TablePlan:
        return self.loader.plan

    @property
    def live(self) -> str:
        return self.loader.plan.live.qualified

    def match(self, one: str, other: str) -> str:
        """The condition that two tables have the same key."""
        return " AND ".join(
            f"{one}.{quote(name)} = {other}.{quote(name)}" for name in self.plan.key_names
        )


def merge_transactions(
    driver: Driver,
    plans: Sequence[TablePlan],
    transactions: Iterable[Sequence[OpenedEntry]],
    *,
    rules: FoldRules,
) -> Applied:
    """Do to the live tables what the transactions did; triggers must be disabled.

    `ReplayError` where rows are not as the log says, or break a constraint in the end.
    """
    loaders = make_scratch(driver, plans)
    folds = {id(loader): TableFold(loader.plan) for loader in loaders}
    by_type = {name: folds[id(one)] for one in loaders for name in one.plan.types}
    fold = Fold(by_type, rules=rules)
    applied = Applied()
    for entries in transactions:
        add_transaction(fold, entries, applied)
    touched = []
    for number, loader in enumerate(loaders):
        net = folds[id(loader)]
        if net:
            touched.append(_set_aside(driver, loader, net, number=number))
    _put_back(driver, _sort_by_reference(driver.connection, touched))
    return applied


def _set_aside(driver: Driver, loader: TableLoader, net: TableFold, *, number: int) -> _Aside:
    plan = loader.plan
    keys = f"pg_temp.oplog_keys_{number}"
    names = list_quoted(plan.key_names)
    driver.execute(
        f"CREATE TEMPORARY TABLE oplog_keys_{number} ON COMMIT DROP AS SELECT {names} "
        f"FROM {loader.target} WITH NO DATA"
    )
    driver.copy(f"COPY {keys} FROM STDIN", [_print_keys(plan, net)])
    on_key = " AND ".join(f"l.{quote(n)} = k.{quote(n)}" for n in plan.key_names)
    # Excluded columns too: where a row has to be replaced, only this still knows them.
    stored = list_quoted([c.name for c in plan.live.columns if not c.generated], prefix="l.")
    known = f"pg_temp.oplog_known_{number}"
    driver.execute(
        f"CREATE TEMPORARY TABLE oplog_known_{number} ON COMMIT DROP AS SELECT {stored} "
        f"FROM {plan.live.qualified} l WHERE EXISTS (SELECT FROM {keys} k WHERE {on_key})"
    )
    logged = list_quoted(plan.names)
    done = driver.execute(f"INSERT INTO {loader.target} ({logged}) SELECT {logged} FROM {known}")
    # At once: the next statement is the same cursor's.
    before = loader.rows = done.rowcount
    driver.execute(f"DROP TABLE {keys}")
    loader.build_key()
    loader.apply(net)
    return _Aside(loader, known, before)


def _print_keys(plan: TablePlan, net: TableFold) -> str:
    keys: list[Key] = list({**net.gone, **net.patched, **net.created, **net.adopted})
    codecs = [plan.codecs[name] for name in plan.key_names]
    by_column = zip(*keys, strict=True)
    fields = [print_column(c, v) for c, v in zip(codecs, by_column, strict=True)]
    return "\n".join(map("\t".join, zip(*fields, strict=True))) + "\n"


def _sort_by_reference(connection: Connection, touched: Sequence[_Aside]) -> list[_Aside]:
    """Tables before those that refer to them, as far as there is such an order."""
    by_oid = {aside.plan.live.oid: aside for aside in touched}
    order: TopologicalSorter[int] = TopologicalSorter({oid: set() for oid in by_oid})
    for child, parent in list_references(connection, list(by_oid)):
        if parent in by_oid:
            order.add(child, parent)
    try:
        return [by_oid[oid] for oid in order.static_order()]
    except CycleError:
        return list(touched)


def _put_back(driver: Driver, touched: Sequence[_Aside]) -> None:
    driver.execute("SAVEPOINT oplog_merge")
    try:
        _change_in_place(driver, touched)
    except (driver_errors.IntegrityError, driver_errors.GeneratedAlways, _UnexpectedError):
        driver.execute("ROLLBACK TO SAVEPOINT oplog_merge")
        _replace(driver, touched)
    driver.execute("RELEASE SAVEPOINT oplog_merge")


class _UnexpectedError(Exception):
    """A foreign key's action changed rows before their turn came."""


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise _UnexpectedError


def _change_in_place(driver: Driver, touched: Sequence[_Aside]) -> None:
    """Insert, update, delete, with all constraints in force."""
    inserted = [_insert_new(driver, aside) for aside in touched]
    pairs = list(zip(touched, inserted, strict=True))
    for aside, new in pairs:
        values = [name for name in aside.plan.names if name not in aside.plan.key_names]
        if not values:
            continue
        done = driver.execute(
            f"UPDATE {aside.live} l SET "
            f"{', '.join(f'{quote(name)} = t.{quote(name)}' for name in values)} "
            f"FROM {aside.loader.target} t, {aside.known} b "
            f"WHERE {aside.match('l', 't')} AND {aside.match('l', 'b')}"
        )
        _expect(done.rowcount, aside.loader.rows - new)
    for aside, new in reversed(pairs):
        done = driver.execute(
            f"DELETE FROM {aside.live} l USING {aside.known} b WHERE {aside.match('l', 'b')} "
            f"AND NOT EXISTS (SELECT FROM {aside.loader.target} t WHERE {aside.match('l', 't')})"
        )
        _expect(done.rowcount, aside.before + new - aside.loader.rows)
    driver.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _replace(driver: Driver, touched: Sequence[_Aside]) -> None:
    """Take all concerned rows out and put them in as they are now, past foreign keys."""
    oids = [aside.plan.live.oid for aside in touched]
    taken = suspend_tables(driver, oids, referring=True)
    for aside in touched:
        driver.execute(
            f"DELETE FROM {aside.live} l USING {aside.known} b WHERE {aside.match('l', 'b')}"
        )
    for aside in touched:
        try:
            _insert_known(driver, aside)
            _insert_new(driver, aside)
        except driver_errors.IntegrityError as cause:
            raise ReplayError(
                f"the rows that the log gives {aside.plan.name} do not fit it: "
                f"{cause.diag.message_primary} ({cause.diag.message_detail})",
                hint="the table was migrated further than the log knows, or somebody else wrote "
                "into it",
            ) from cause
    resume_tables(driver, taken)


def _insert_known(driver: Driver, aside: _Aside) -> None:
    """Rows that had been there, with what the log does not know of them."""
    plan = aside.plan
    excluded = [c.name for c in plan.live.columns if not c.generated and c.name not in plan.names]
    logged = list_quoted(plan.names, prefix="t.")
    kept = "".join(f", b.{quote(name)}" for name in excluded)
    driver.execute(
        f"INSERT INTO {aside.live} ({list_quoted([*plan.names, *excluded])}) "
        f"OVERRIDING SYSTEM VALUE SELECT {logged}{kept} "
        f"FROM {aside.loader.target} t JOIN {aside.known} b ON {aside.match('t', 'b')}"
    )


def _insert_new(driver: Driver, aside: _Aside) -> int:
    """Rows that had not been there; columns that the log does not know get their defaults."""
    columns = list_quoted(aside.plan.names)
    done = driver.execute(
        f"INSERT INTO {aside.live} ({columns}) OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM {aside.loader.target} t "
        f"WHERE NOT EXISTS (SELECT FROM {aside.known} b WHERE {aside.match('t', 'b')})"
    )
    return done.rowcount


def find_extremes(
    plans: Sequence[TablePlan], transactions: Iterable[Sequence[OpenedEntry]]
) -> Extremes:
    """Of whole numbers that the transactions wrote, the lowest and the highest, by column."""
    oids = {name: plan.live.oid for plan in plans for name in plan.types}
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for entries in transactions:
        for entry in entries:
            for effect in entry.effects:
                oid = oids.get(effect.shape.type_name)
                if oid is None:
                    # Retired: its table is gone.
                    continue
                for name, value in effect.values.items():
                    if effect.shape.codecs[name].kind is Kind.INT and isinstance(value, int):
                        place = (oid, name)
                        low, high = found.get(place, (value, value))
                        found[place] = (min(low, value), max(high, value))
    return found
