"""An archive repaired from its database: what is damaged or missing is written again.

Content comes first and a head last; nothing is deleted and nothing set back. This is the one place
where an object is overwritten: a name that holds a hash has only one right content, and that is
what is put. What cannot be made again is left as it is and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, TypesRef
from oplog.archive.format.index import Item
from oplog.archive.format.path import (
    BLOB,
    COLLECTED,
    HEAD,
    INDEX,
    LATEST,
    LOG,
    PIN,
    SNAPSHOT,
    name_content,
    name_head,
    parse_content,
    parse_head,
)
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.ownership import require_owner
from oplog.archive.step import Step
from oplog.errors import ArchiveError
from oplog.store.cursor import Cursor
from oplog.store.feed import Feed
from oplog.sync.exporter import Exporter
from oplog.sync.head_update import publish_update
from oplog.sync.publish_context import Base
from oplog.sync.publisher import Publisher, make_hint
from oplog.upkeep.check import check_archive, check_with_log
from oplog.upkeep.head_repair import Put, find_base, publish_over
from oplog.upkeep.head_survey import COLLECTED_BYTES
from oplog.upkeep.new_beginning import begin_anew
from oplog.upkeep.problem import ArchiveProblem, ArchiveReport
from oplog.upkeep.remake import Remade, SegmentMaker, remake_node
from oplog.upkeep.rewrite import drop_snapshots, replace_items
from oplog.upkeep.tree_walk import walk_tree

_ROUNDS = 16
"""Each brings back at least one object that hid others: a level of the index, mostly."""


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """What was repaired.

    `found` had problems before, `repaired` are the objects that were written again, `dropped` the
    snapshots that a new head no longer has since they cannot be made again, `head` its number, or
    None if none was needed. `left` are the problems that stay, `ok` says whether none of those
    does harm. With `dry_run` all this is what would be done.
    """

    found: tuple[ArchiveProblem, ...]
    repaired: tuple[str, ...]
    dropped: tuple[str, ...]
    head: int | None
    left: tuple[ArchiveProblem, ...]
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more that does harm."""
        return all(problem.harmless for problem in self.left)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(slots=True)
class _Plan:
    """What one look at the archive leads to; `readable` says whether readers find a head."""

    readable: bool = True
    objects: list[Remade] = field(default_factory=list)
    replaced: dict[str, Item] = field(default_factory=dict)
    new_types: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def needs_head(self) -> bool:
        return bool(self.replaced or self.new_types or self.dropped)


def renew_archive(exporter: Exporter, engine: Engine) -> ResyncReport:
    """Begin the archive anew where no head is left; raises as `begin_anew`."""
    found = check_archive(exporter.archive)
    begin_anew(exporter, engine)
    report = check_with_log(exporter.archive, engine, schema=exporter.log.schema)
    return ResyncReport(
        found=found.problems,
        repaired=(name_head(report.head),),
        dropped=(),
        head=report.head,
        left=report.problems,
    )


def resync_archive(exporter: Exporter, engine: Engine, *, dry_run: bool = False) -> ResyncReport:
    """Check the archive, and write again what the database, or the archive itself, can give.

    Raises as `publish_update`, for what needs a new head. Interrupted, it may be run again.
    """
    require_owner(engine, exporter.archive, schema=exporter.log.schema)
    resync = _Resync(exporter, engine)
    found = resync.check()
    return _describe(resync, found) if dry_run else _repair(resync, found)


def _describe(resync: _Resync, found: ArchiveReport) -> ResyncReport:
    """What a repair would do first; the rest shows once that is done."""
    plan = resync.plan(found) if found.problems else _Plan()
    repaired = {one.path for one in plan.objects}
    head: int | None = None
    if not plan.readable and not repaired:
        unwritten: list[str] = []
        base = resync.find_base(put=lambda path, _: unwritten.append(path))
        if base is not None:
            head = base.head.number + 1
            # Readers do without the heads below the newest two, and with the next one also this.
            repaired |= {one.path for one in found.problems if parse_head(one.path)}
            if not unwritten:
                plan = resync.plan(found, head=base.head)
                repaired |= {one.path for one in plan.objects}
    return ResyncReport(
        found=found.problems,
        repaired=tuple(sorted(repaired)),
        dropped=plan.dropped,
        head=head,
        left=tuple(one for one in found.problems if one.path not in repaired),
        dry_run=True,
    )


def _repair(resync: _Resync, found: ArchiveReport) -> ResyncReport:
    report, repaired, dropped, number = found, dict[str, None](), dict[str, None](), None
    for _ in range(_ROUNDS):
        if not report.problems:
            break
        plan = resync.plan(report)
        if not plan.readable and not plan.objects:
            head = resync.publish_over_damaged()
            if head is None:
                break
            number, report = head.number, resync.check()
            continue
        if not (plan.objects or plan.needs_head):
            break
        for one in plan.objects:
            resync.write(one)
            repaired[one.path] = None
        if plan.needs_head:
            head = resync.publish(plan)
            number = number if head is None else head.number
            dropped |= dict.fromkeys(plan.dropped)
        before, report = report, resync.check()
        if report.problems == before.problems:
            break
    return ResyncReport(
        found=found.problems,
        repaired=tuple(repaired),
        dropped=tuple(dropped),
        head=number,
        left=report.problems,
    )


class _Resync:
    """One repair under way."""

    def __init__(self, exporter: Exporter, engine: Engine) -> None:
        self._exporter = exporter
        self._archive = Archive(
            exporter.archive.store,
            single_writer=exporter.archive.single_writer,
            accept_older=exporter.archive.accept_older,
            trust=exporter.archive.trust,
        )
        self._engine = engine
        self._log = exporter.log
        self._feed = Feed(exporter.log.schema)

    def check(self) -> ArchiveReport:
        """How the archive is, by itself and against the log."""
        return check_with_log(self._exporter.archive, self._engine, schema=self._log.schema)

    def find_base(self, *, put: Put) -> Base | None:
        """As the function of this name."""
        return find_base(self._exporter, self._engine, put=put)

    def publish_over_damaged(self) -> Head | None:
        """Publish a head where readers refuse the newest one; None if there is no safe way."""
        base = self.find_base(put=self._exporter.archive.store.put)
        return None if base is None else publish_over(self._exporter, self._engine, base)

    def write(self, one: Remade) -> None:
        """Put an object of which nothing but its name is needed; others come with a head."""
        if one.item is None:
            # Not `create`: something stands there, and it is wrong.
            self._exporter.archive.store.put(one.path, one.data)

    def plan(self, report: ArchiveReport, *, head: Head | None = None) -> _Plan:
        """What can be done about the problems of a report, if `head` is the newest one."""
        plan = _Plan()
        damaged = {one.path for one in report.problems}
        head = head or self._find_head(plan, damaged)
        if head is None:
            plan.readable = False
            return plan
        if COLLECTED in damaged:
            plan.objects.append(Remade(COLLECTED, COLLECTED_BYTES))
        if LATEST in damaged:
            plan.objects.append(Remade(LATEST, make_hint(head)))
        plan.objects += self._remake_nodes(head, damaged)
        with self._engine.connect() as connection, connection.begin():
            self._exporter.store.begin(connection)
            self._plan_segments(connection, head, damaged, plan)
            self._plan_types(connection, head, damaged, plan)
        if any(path.startswith((f"{SNAPSHOT}/", f"{BLOB}/")) for path in damaged):
            kept = set(drop_snapshots(self._archive, head, damaged).snapshots)
            plan.dropped = tuple(one.path for one in head.snapshots if one not in kept)
        return plan

    def publish(self, plan: _Plan) -> Head | None:
        """Publish a head that does without what cannot be made again."""

        def update(connection: Connection, head: Head, publisher: Publisher) -> Head | None:
            for one in plan.objects:
                if one.item is not None:
                    publisher.put_content(one.item.path, one.data, step=Step.PUT_SEGMENT)
            levels = replace_items(
                self._archive,
                head.levels,
                plan.replaced,
                put=lambda path, data: publisher.put_content(path, data, step=Step.PUT_INDEX),
            )
            changed = replace(
                head,
                levels=levels,
                snapshots=tuple(one for one in head.snapshots if one.path not in plan.dropped),
            )
            if plan.new_types:
                types = self._read_types(connection)
                path = publisher.put_blob(encode_types(types), step=Step.PUT_TYPES)
                ref = TypesRef(path, len(types.shapes), len(types.key_checks))
                changed = replace(changed, types=ref)
            return changed

        return publish_update(self._exporter, self._engine, update)

    # -- heads ----------------------------------------------------------------------------

    def _find_head(self, plan: _Plan, damaged: set[str]) -> Head | None:
        """The newest head; None where readers refuse, with what brings it back in the plan."""
        copies = {
            pin.number: data
            for pin, data in self._iterate_pins()
            if name_head(pin.number) in damaged
        }
        for number, data in copies.items():
            if self._is_wanted(number, data):
                plan.objects.append(Remade(name_head(number), data))
        try:
            return self._archive.find_head()
        except ArchiveError:
            return None

    def _is_wanted(self, number: int, data: bytes) -> bool:
        """Whether a pin's copy is the very head that was there."""
        above = self._archive.store.get(name_head(number + 1), most=MAX_HEAD_BYTES)
        if above is None:
            return True
        try:
            link = self._archive.decode_head(above, number=number + 1).previous
        except ArchiveError:
            return False
        return link == self._archive.decode_head(data, number=number).link()

    def _iterate_pins(self) -> Iterator[tuple[Head, bytes]]:
        store = self._archive.store
        for info in store.list(f"{PIN}/"):
            try:
                data = store.get(info.path, most=MAX_HEAD_BYTES)
                if data is not None:
                    yield self._archive.decode_as(data, what=info.path), data
            except ArchiveError:
                continue

    # -- the log --------------------------------------------------------------------------

    def _remake_nodes(self, head: Head, damaged: set[str]) -> list[Remade]:
        if not any(path.startswith(f"{INDEX}/") for path in damaged):
            return []
        nodes: dict[str, tuple[Item, int]] = {}
        trees = [(head.levels, head.first_sequence - 1)]
        trees += [(branch.levels, branch.sequence) for branch in head.branches]
        trees += [(pin.levels, pin.first_sequence - 1) for pin, _ in self._iterate_pins()]
        for levels, after in trees:
            for item, level in walk_tree(self._archive, levels, after=after, note=lambda _: None):
                if level:
                    nodes[item.path] = (item, level)
        known = self._list_known()
        made = [
            (path, remake_node(self._archive, item, level, known=known))
            for path, (item, level) in nodes.items()
        ]
        return [Remade(path, data) for path, data in made if data is not None]

    def _list_known(self) -> set[Item]:
        """Segments that older heads still name themselves."""
        known: set[Item] = set()
        store = self._archive.store
        for info in store.list(f"{HEAD}/"):
            number = parse_head(info.path)
            try:
                data = None if number is None else store.get(info.path, most=MAX_HEAD_BYTES)
                if data is not None:
                    known.update(*self._archive.decode_as(data, what=info.path).levels[:1])
            except ArchiveError:
                continue
        return known

    def _plan_segments(
        self, connection: Connection, head: Head, damaged: set[str], plan: _Plan
    ) -> None:
        if not any(path.startswith(f"{LOG}/") for path in damaged):
            return
        maker = SegmentMaker(
            connection,
            self._archive,
            head,
            store=self._exporter.store,
            snapshot=self._find_snapshot(connection, head),
            damaged=damaged,
        )
        for made in maker.make_all():
            plan.objects.append(made)
            if made.item is not None:
                plan.replaced[made.path] = made.item

    def _find_snapshot(self, connection: Connection, head: Head) -> str:
        """What was published, as nearly as the database knows."""
        row = self._exporter.store.read_row(connection, head.archive_id)
        if row is not None and row.cursor is not None and row.head >= head.number:
            cursor = Cursor.from_json(row.cursor)
            found = cursor.target or cursor.snapshot
            if found is not None:
                return found
        return self._feed.read_snapshot(connection)

    # -- types ----------------------------------------------------------------------------

    def _read_types(self, connection: Connection) -> LoggedTypes:
        return LoggedTypes(self._log.list_types(connection), self._log.list_keys(connection))

    def _plan_types(
        self, connection: Connection, head: Head, damaged: set[str], plan: _Plan
    ) -> None:
        if head.types is None or head.types.path not in damaged:
            return
        data = encode_types(self._read_types(connection))
        mint = parse_content(head.types.path).number
        if name_content(BLOB, mint, data=data) == head.types.path:
            plan.objects.append(Remade(head.types.path, data))
        else:
            plan.new_types = True
