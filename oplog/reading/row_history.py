"""What happened to one row: its changes, and the row as it was at a position or a time.

A row's records are found without reading the whole log where the name of its aggregate follows
from its key, under every template that its type ever had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from oplog.catalog import DeclaredType
from oplog.crypto.aggregate_chain import make_chain
from oplog.entry import Change, Operation, OpType
from oplog.payload.codec import Effect
from oplog.payload.lineage import find_shape_at, is_apart
from oplog.payload.shape import Shape
from oplog.payload.upcast import StepLookup
from oplog.reading.given_place import find_place
from oplog.reading.page import Page, PageWish
from oplog.reading.reader import OpenedRecord, RecordReader, group_pairs
from oplog.reading.row_identity import RowIdentity, find_rows
from oplog.store import EntryFilter
from oplog.store.adopted import Turns
from oplog.store.page_cursor import PageCursor
from oplog.store.rows import StoredRecord, list_aggregates
from oplog.value import Wire


class _Origin(NamedTuple):
    """The record that an effect is in."""

    position: int
    metadata: Mapping[str, list[str]]
    recorded_at: datetime


EVERYTHING = PageWish()
Place: TypeAlias = int | datetime | None
_Touch: TypeAlias = tuple[Effect, Operation, _Origin]


def list_changes(
    reader: RecordReader,
    types: Sequence[DeclaredType],
    *,
    key: Any,
    steps: StepLookup | None = None,
    span: tuple[Place, Place] = (None, None),
    wish: PageWish = EVERYTHING,
) -> Page[Change]:
    """What happened to the row with this key, oldest first unless `wish` says otherwise.

    `types` are those that hold the row (several for joined inheritance; their changes in one
    transaction are one). `key` is the primary key's value, a tuple in the order of the
    model's key columns, or a mapping. A row deleted and written again in one transaction, or
    moved to another aggregate, is one update with every field. With `steps`, columns have the
    names of now; without, those that the reader gives. `span` are places after and through which.

    Reads only the row's aggregate if its name follows from the key, else the whole log, and of
    that no more than `wish` takes. Raises `ConfigurationError` for a key that does not fit.
    """
    # Before the types: those of every record in the snapshot are stored by then.
    snapshot = reader.source.read_snapshot()
    rows = find_rows(reader, types, key, snapshot=snapshot)
    if steps is not None:
        reader.read_as(_list_newest(rows), steps)
    bounds = [find_place(reader, place, snapshot=snapshot) for place in span]
    chosen = _find_filter(rows).narrow(*bounds)
    if wish.plain:
        groups = _iterate_groups(reader, rows, chosen, snapshot=snapshot)
        return Page(_merge(group, rows) for _, group in groups)
    page: Page[Change] = Page()
    place: PageCursor | None = None
    for record, group in _iterate_touched(reader, rows, chosen, snapshot=snapshot, wish=wish):
        if len(page) == wish.limit and place is not None:
            # Behind the last one of the page: what was read to see that there are more is read
            # again.
            page.cursor = place.to_text()
            break
        page.append(_merge(group, rows))
        place = wish.mark(reader.source, record)
    return page


def rebuild_row(
    reader: RecordReader,
    types: Sequence[DeclaredType],
    *,
    key: Any,
    at: int | datetime,
    steps: StepLookup | None = None,
    then: bool = False,
) -> dict[str, Any] | None:
    """The row's logged columns after the last transaction at or before `at`.

    A position or an aware datetime; transactions count whole. None if there was no row, or
    none that the log knew: a row that was not adopted yet may have been changed before. With
    `steps`, columns are those of now, or (`then`) those that the table had at `at`; without, those
    that the reader gives.
    """
    snapshot = reader.source.read_snapshot()
    at = find_place(reader, at, snapshot=snapshot)
    rows = find_rows(reader, types, key, snapshot=snapshot)
    revisions = _list_newest(rows)
    turns = reader.source.find_adoptions(list(revisions), snapshot=snapshot, through=at)
    shapes = _list_then(rows, turns, at)
    if then:
        revisions |= {name: shape.revision for name, shape in shapes.items()}
    if steps is not None:
        reader.read_as(revisions, steps)
    states: list[dict[str, Any] | None] = [None for _ in rows]
    chosen = _find_filter(rows)
    for transaction, group in _iterate_groups(reader, rows, chosen, snapshot=snapshot):
        if transaction > at:
            break
        for touch in group:
            if _counts(touch, rows, turns, shapes):
                _change_state(states, rows, touch)
    wanted = None if steps is None else revisions
    return _join_states(reader, rows, states, wanted=wanted)


def _join_states(
    reader: RecordReader,
    rows: Sequence[RowIdentity],
    states: Sequence[dict[str, Any] | None],
    *,
    wanted: Mapping[str, int] | None,
) -> dict[str, Any] | None:
    """One row; with joined inheritance there is one only where every table has its part of it."""
    row: dict[str, Any] = {}
    for one, state in zip(rows, states, strict=True):
        if state is None:
            return None
        if wanted is not None:
            # What rows of then got when a column was added came with later records.
            name = one.newest.type_name
            row |= dict.fromkeys(reader.types.find_shape(name, wanted[name]).names)
        row.update(state)
    return row or None


def _change_state(
    states: list[dict[str, Any] | None], rows: Sequence[RowIdentity], touch: _Touch
) -> None:
    effect, operation, _ = touch
    place = _find_place(rows, effect)
    before = states[place]
    if effect.kind is OpType.DELETE:
        states[place] = None
    elif effect.kind is OpType.CREATE:
        states[place] = dict(operation.fields)
    elif before is not None:
        before.update(operation.fields)


def _counts(
    touch: _Touch,
    rows: Sequence[RowIdentity],
    turns: Mapping[str, Turns],
    shapes: Mapping[str, Shape],
) -> bool:
    """Whether rows of then are rows of the table that has the revision of `shapes`.

    Not those of a table that was dropped since, or that were logged anew as a whole.
    """
    effect, _, origin = touch
    name = effect.shape.type_name
    if origin.position < (turns.get(name, Turns()).retired or 0):
        return False
    known = rows[_find_place(rows, effect)].revisions[name]
    return name not in shapes or not is_apart(known, effect.shape, shapes[name])


def _list_then(
    rows: Sequence[RowIdentity], turns: Mapping[str, Turns], at: int
) -> dict[str, Shape]:
    """By type, the revision that its table had at a position."""
    return {
        name: shape
        for row in rows
        for name, known in row.revisions.items()
        for shape in [find_shape_at(known, turns.get(name, Turns()).changes, at)]
        if shape is not None
    }


def _list_newest(rows: Sequence[RowIdentity]) -> dict[str, int]:
    return {name: known[-1].revision for row in rows for name, known in row.revisions.items()}


def _find_place(rows: Sequence[RowIdentity], effect: Effect) -> int:
    """Which of the rows the effect is on."""
    return next(place for place, row in enumerate(rows) if row.holds(effect.shape))


def _iterate_groups(
    reader: RecordReader, rows: Sequence[RowIdentity], chosen: EntryFilter, *, snapshot: str
) -> Iterator[tuple[int, list[_Touch]]]:
    """What each transaction did to the row, in order, with the transaction's position."""
    found = {
        record.position: group
        for record, group in _iterate_touched(
            reader, rows, chosen, snapshot=snapshot, wish=EVERYTHING
        )
    }
    # An archive gives them in the order in which they were published.
    for position in sorted(found):
        yield position, found[position]


def _iterate_touched(
    reader: RecordReader,
    rows: Sequence[RowIdentity],
    chosen: EntryFilter,
    *,
    snapshot: str,
    wish: PageWish,
) -> Iterator[tuple[StoredRecord, list[_Touch]]]:
    """The records that did something to the row, and what, in the order of their source."""

    def find_keys(shape: Shape) -> list[tuple[Wire | None, ...]] | None:
        keys = []
        for row in rows:
            key = row.find_key(shape)
            if key is None and row.holds(shape):
                return None
            keys += [] if key is None else [key]
        return keys

    wanted = list_aggregates(chosen)
    chain = make_chain(
        back=wish.newest_first, whole=not chosen.after and (wish.start is None or wish.newest_first)
    )
    pages = (
        reader.source.iterate(chosen, snapshot=snapshot)
        if wish.plain
        else reader.source.iterate_pages(
            chosen,
            snapshot=snapshot,
            newest_first=wish.newest_first,
            expected=wish.expected,
            start=wish.start,
        )
    )
    for page in pages:
        for stored in page:
            opened = reader.open(stored, find_keys=find_keys, aggregates=wanted)
            if wanted is not None:
                links = [link for link in stored.list_links() if link.aggregate in wanted]
                chain.require(links, hint="rows of the log were altered or removed; run verify")
            touched = [e for e in opened.effects if any(row.matches(e) for row in rows)]
            if touched:
                metadata = group_pairs(stored.metadata)
                origin = _Origin(stored.position, metadata, stored.recorded_at)
                told = reader.list_operations(OpenedRecord(stored, touched))
                yield stored, [(*one, origin) for one in told]
    chain.finish(hint="rows of the log were altered or removed; run verify")


def _merge(group: Sequence[_Touch], rows: Sequence[RowIdentity]) -> Change:
    """One transaction's effects on a row, over all tables that hold it."""
    by_table: dict[int, list[OpType]] = {}
    fields: dict[str, Any] = {}
    for effect, operation, _ in group:
        kinds = by_table.setdefault(_find_place(rows, effect), [])
        kinds.append(effect.kind)
        if effect.kind is not OpType.DELETE:
            fields.update(operation.fields)
    net = {_net_kind(kinds) for kinds in by_table.values()}
    kind = next(iter(net)) if len(net) == 1 else OpType.UPDATE
    last = max((origin for _, _, origin in group), key=lambda origin: origin.position)
    return Change(
        position=last.position,
        kind=kind,
        fields={} if kind is OpType.DELETE else fields,
        metadata=last.metadata,
        recorded_at=last.recorded_at,
    )


def _net_kind(kinds: Sequence[OpType]) -> OpType:
    if kinds[-1] is OpType.DELETE:
        return OpType.DELETE
    return OpType.CREATE if kinds[0] is OpType.CREATE else OpType.UPDATE


# -- which records ---------------------------------------------------------------------------


def _find_filter(rows: Sequence[RowIdentity]) -> EntryFilter:
    """What to read: the row's aggregates if their names follow from its key, else all."""
    names: set[str] = set()
    for row in rows:
        listed = row.list_aggregates()
        if listed is None:
            return EntryFilter()
        names |= listed | row.list_adoptions()
    return EntryFilter(aggregates=tuple(sorted(names)))
