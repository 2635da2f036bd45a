"""The rows of tables at one position: the live ones where nothing touched them since, else the log.

Rows that were touched since are read from the log by their aggregates, and replace the live ones.
Where live rows do not serve, the table's rows are folded from the beginning of the log: into a
temporary table where one can be made, else in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from oplog.crypto.aggregate_chain import ChainCheck
from oplog.past.key_folds import RowFold
from oplog.past.moment_plans import PastTypes, list_types
from oplog.past.one_snapshot import OneSnapshot
from oplog.past.touch_scan import choose_effects, scan_touched
from oplog.payload.codec import FindKeys
from oplog.payload.shape import Shape
from oplog.postgres.standby import is_standby
from oplog.postgres.work import Driver, is_blocking
from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.replay.effect_route import Key, make_route
from oplog.replay.fold import Fold
from oplog.replay.rebuild import fold_records
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.rules import make_rules
from oplog.replay.table_plan import TablePlan
from oplog.store import EntryFilter
from oplog.store.adopted import Turns, name_adoption
from oplog.store.removal import PruningStore
from oplog.value import Wire

MOST_TOUCHED = 200_000
"""Rows that are taken back one by one; for more, the log is folded from its beginning."""
MOST_HELD = 200_000
"""Rows of tables that are held in memory, where temporary tables cannot be made."""
_ALTERED = "rows of the log were altered or removed; run verify"


@dataclass(frozen=True, slots=True)
class PastTable:
    """A table's rows: `rows`, and the live ones but those under the keys `replaced`.

    Without `replaced` no live row counts. With `scratch` a temporary table has all of them.
    """

    plan: TablePlan
    rows: Sequence[Mapping[str, Wire | None]] = ()
    replaced: Collection[Key] | None = None
    scratch: str = ""


class PastRows:
    """Finds the rows of tables as of one position, in one snapshot."""

    def __init__(
        self,
        types: PastTypes,
        inside: OneSnapshot | None,
        *,
        snapshot: str,
        scratches: list[str] | None = None,
    ) -> None:
        """`inside` is None for an archive without a database.

        Names of temporary tables that are made are added to `scratches`.
        """
        self._types = types
        self._reader = types.reader
        self._inside = inside
        self._snapshot = snapshot
        self._scratches = [] if scratches is None else scratches
        self._aimed: dict[str, int] = {}

    def aim(self, plans: Sequence[TablePlan]) -> None:
        """Let declared steps lead to the revisions of these tables."""
        self._aimed |= {name: one.shape.revision for p in plans for name, one in p.targets.items()}
        self._reader.aim_steps(self._aimed)

    def find(self, plans: Sequence[TablePlan]) -> list[PastTable]:
        """The rows of these tables."""
        self.aim(plans)
        found: dict[TablePlan, PastTable] = {}
        if self._inside is not None and not self._inside.has_written():
            live = [plan for plan in plans if self._types.may_take_live(plan)]
            found = self._take_back(live) if live else {}
        rest = [plan for plan in plans if plan not in found]
        return [*found.values(), *(self._fold_whole(rest) if rest else ())]

    # -- live rows, and those that were touched since ----------------------------------------

    def _take_back(self, plans: Sequence[TablePlan]) -> dict[TablePlan, PastTable]:
        """Tables made of live rows; none if something says that they cannot be."""
        self.require_present()
        touched = scan_touched(
            self._reader,
            plans,
            snapshot=self._snapshot,
            after=self._types.at,
            most=MOST_TOUCHED,
        )
        if touched.anew or touched.too_many:
            return {}
        folds = self.read_chosen(
            {
                plan: {key: name for key, name in fold.first.items() if name is not None}
                for plan, fold in touched.folds.items()
            }
        )
        if self._reader.skipped.met:
            # Nobody knows which rows a quarantined record touched.
            return {}
        return {
            plan: PastTable(plan, folds[plan].list_rows(), replaced=tuple(fold.first))
            for plan, fold in touched.folds.items()
        }

    def read_chosen(
        self, chosen: Mapping[TablePlan, Mapping[Key, str]]
    ) -> dict[TablePlan, RowFold]:
        """The rows under these keys at the position; with each the aggregate that it was in."""
        names = {name for known in chosen.values() for name in known.values()}
        folds = self.fold_chosen(chosen, names, through=self._types.at)
        lacking = {
            plan: {key for key in known if folds[plan].find_row(key) is None}
            for plan, known in chosen.items()
        }
        if any(lacking.values()):
            # Rows that were adopted are in an aggregate of their own, or in none that is left.
            self._require_whole()
            adoptions = {
                name_adoption(name)
                for plan in lacking
                for name in plan.types
                if self._types.then.get(name, Turns()).began
            }
            if adoptions:
                return self.fold_chosen(chosen, names | adoptions, through=self._types.at)
        return folds

    def fold_chosen(
        self,
        chosen: Mapping[TablePlan, Collection[Key]],
        names: Collection[str] | None,
        *,
        through: int,
    ) -> dict[TablePlan, RowFold]:
        """The rows under these keys, by all records of these aggregates, None for all."""
        folds = {plan: RowFold(plan, keys) for plan, keys in chosen.items()}
        by_type = {name: folds[plan] for name, plan in list_types(list(chosen)).items()}
        fold = Fold(by_type, rules=make_rules(list(chosen), self._types.then))
        if names is not None and not names:
            return folds
        for record in read_aggregates(
            self._reader,
            names,
            snapshot=self._snapshot,
            through=through,
            whole=self._is_whole(),
            find_keys=_make_finder(by_type, chosen),
        ):
            fold.add(choose_effects(record, by_type), position=record.stored.position)
        return folds

    # -- the log from its beginning -----------------------------------------------------------

    def _fold_whole(self, plans: Sequence[TablePlan]) -> list[PastTable]:
        self._require_whole()
        types = list_types(plans)
        rules = make_rules(plans, self._types.then)
        records = (
            replace(record, effects=list(choose_effects(record, types)))
            for record in self._reader.iterate_records(self._snapshot, through=self._types.at)
        )
        connection = self._find_scratch_connection()
        with self._reader.skipped.name_in_misfits():
            if connection is None:
                return self._hold_whole(plans, records)
            driver = Driver(connection, doing="looking back")
            loaders = make_scratch(driver, plans, first=len(self._scratches))
            self._scratches += [loader.target for loader in loaders]
            fold_records(records, loaders, rules=rules, report=lambda _: None)
            for loader in loaders:
                if not loader.keyed:
                    loader.build_key()
            return [PastTable(loader.plan, scratch=loader.target) for loader in loaders]

    def _hold_whole(
        self, plans: Sequence[TablePlan], records: Iterator[OpenedRecord]
    ) -> list[PastTable]:
        folds = {plan: RowFold(plan) for plan in plans}
        by_type = {name: folds[plan] for name, plan in list_types(plans).items()}
        fold = Fold(by_type, rules=make_rules(plans, self._types.then))
        for record in records:
            fold.add(record.effects, position=record.stored.position)
            if self._inside is not None:
                for one in folds.values():
                    one.check_size(MOST_HELD)
        return [PastTable(plan, folds[plan].list_rows()) for plan in plans]

    def _find_scratch_connection(self) -> Connection | None:
        """The connection, if temporary tables can be made and filled on it."""
        inside = self._inside
        if inside is None or inside.read_only or is_standby(inside.connection):
            return None
        return inside.connection if is_blocking(inside.connection) else None

    def require_present(self) -> None:
        """Raise `PrunedError` if records after the position are in an archive only."""
        if self._inside is None or self._types.log.archive is not None:
            return
        store = PruningStore(self._types.log.store.schema)
        pruned = store.read_watermark(self._inside.connection)
        if pruned is not None and pruned.position > self._types.at:
            store.require_whole(self._inside.connection)

    def _is_whole(self) -> bool:
        if self._inside is None or self._types.log.archive is not None:
            return True
        store = PruningStore(self._types.log.store.schema)
        return store.read_watermark(self._inside.connection) is None

    def _require_whole(self) -> None:
        """Raise `PrunedError` if the beginning of the log is in an archive only."""
        if self._inside is not None and self._types.log.archive is None:
            PruningStore(self._types.log.store.schema).require_whole(self._inside.connection)


def read_aggregates(
    reader: RecordReader,
    names: Collection[str] | None,
    *,
    snapshot: str,
    after: int = 0,
    through: int | None,
    whole: bool = True,
    find_keys: FindKeys | None = None,
) -> Iterator[OpenedRecord]:
    """Records of aggregates, whose links are checked, with what they did to these alone.

    Without `names` all records. `whole` is whether the beginning of the log is there, and asked
    for.
    """
    if names is None:
        yield from reader.iterate_records(snapshot, after=after, through=through)
        return
    wanted = frozenset(names)
    chain = ChainCheck(whole=whole)
    chosen = EntryFilter(aggregates=tuple(sorted(wanted)), after=after, through=through)
    for page in reader.source.iterate(chosen, snapshot=snapshot):
        for stored in page:
            chain.require(stored.list_links(wanted), hint=_ALTERED)
            yield reader.open(stored, find_keys=find_keys, aggregates=wanted)


def _make_finder(
    by_type: Mapping[str, RowFold], chosen: Mapping[TablePlan, Collection[Key]]
) -> FindKeys:
    """Which keys are wanted of blocks and runs: those chosen, where they are logged as they are."""
    plans = list_types(list(chosen))

    def find_keys(shape: Shape) -> Collection[Key] | None:
        if shape.type_name not in by_type:
            return ()
        plan = plans[shape.type_name]
        if plan.targets[shape.type_name].is_apart_from(shape):
            return ()
        route = make_route(shape, plan, lenient_until=0)
        return chosen[plan] if route.key_conversions is None else None

    return find_keys
