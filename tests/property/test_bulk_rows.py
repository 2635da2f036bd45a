"""Rows that are kept as columns come to the same record as rows with an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oplog.capture import bulk_images
from oplog.capture.building import RecordBuilder
from oplog.capture.gathering import gather_work
from oplog.capture.merge import list_group_names
from oplog.capture.record import RecordedWork
from oplog.capture.row_change import RowChange
from oplog.crypto.seal import Packing
from oplog.entry import OpType, Ticket
from oplog.payload import paged_parts
from oplog.payload.codec import PayloadCodec
from oplog.payload.shape import Shape
from oplog.store.guard_state import Image
from oplog.store.rows import CREATED, NOTHING_KNOWN, KnownTables
from oplog.type_binding import BoundType
from tests.bound import make_bound

pytestmark = pytest.mark.property

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer"), ("note", "text")]
BOUND = {
    1: make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item", oid=1),
    2: make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member", oid=2),
    3: make_bound(COLUMNS, key=["id"], aggregate="all", name="thing", oid=3),
    4: make_bound(COLUMNS, key=["id", "team"], aggregate="pair/{team}/{id}", name="pair", oid=4),
    # Its rows may be in aggregates of items.
    5: make_bound(COLUMNS, key=["id"], aggregate="item/{points}", name="part", oid=5),
}
SHAPES = {bound.shape.type_name: bound.shape for bound in BOUND.values()}
NEVER = 10**9
Row = tuple[Any, ...]


class Step(NamedTuple):
    """A statement on rows of a table: what it does, to which ids, and with which value."""

    verb: str
    oid: int
    ids: frozenset[int]
    value: int


OIDS = st.sampled_from(sorted(BOUND))
STEPS = st.builds(
    Step,
    st.sampled_from(["insert", "insert", "delete", "points", "note", "team", "id"]),
    OIDS,
    st.frozensets(st.integers(0, 12), min_size=1),
    st.integers(0, 3),
)


class Known:
    """What a transaction knows of these tables."""

    log_id, key_id = UUID(int=1), ""
    by_stored_name = {bound.shape.type_name: bound for bound in BOUND.values()}  # noqa: RUF012
    latest = SHAPES
    secret_types: frozenset[str] = frozenset()
    epoch: int = 0

    def find_relation(self, oid: int) -> BoundType:
        return BOUND[oid]

    def know(self, _written: object) -> KnownTables:
        return NOTHING_KNOWN

    def find_shape(self, type_name: str, _revision: int) -> Shape:
        return SHAPES[type_name]


class Database:
    """Tables in memory, with guards that keep images as the real ones do."""

    def __init__(self) -> None:
        self.tables: dict[int, dict[Row, Row]] = {oid: {} for oid in BOUND}
        self.images: list[Image] = []
        self.page_rows = 3

    def fill(self, oid: int, ids: frozenset[int]) -> None:
        for number in ids:
            self._put(oid, (number, "a", number % 2, None))

    def _put(self, oid: int, row: Row) -> None:
        self.tables[oid][self._key(oid, row)] = row

    @staticmethod
    def _key(oid: int, row: Row) -> Row:
        return row[: len(BOUND[oid].shape.key_names)]

    def execute(self, step: Step) -> None:
        table, oid = self.tables[step.oid], step.oid
        there = [row for row in table.values() if row[0] in step.ids]
        if step.verb == "insert":
            new = [(n, "ab"[step.value % 2], step.value, None) for n in sorted(step.ids)]
            new = [row for row in new if self._key(oid, row) not in table]
            self._apply(oid, [], new)
        elif step.verb == "delete":
            self._apply(oid, there, [])
        else:
            new = [self._change(row, step) for row in there]
            keys = [self._key(oid, row) for row in new]
            stay = table.keys() - {self._key(oid, row) for row in there}
            if len(set(keys)) == len(keys) and not stay.intersection(keys):
                self._apply(oid, there, new)

    @staticmethod
    def _change(row: Row, step: Step) -> Row:
        number, team, points, note = row
        if step.verb == "points":
            return number, team, step.value, note
        if step.verb == "note":
            return number, team, points, ["x", "", "y", None][step.value]
        return (number + step.value, team, points, note) if step.verb == "id" else (
            number, "abcd"[step.value], points, note
        )  # fmt: skip

    def _apply(self, oid: int, old: Sequence[Row], new: Sequence[Row]) -> None:
        if not old and not new:
            return
        for row in old:
            del self.tables[oid][self._key(oid, row)]
        for row in new:
            self._put(oid, row)
        bound = BOUND[oid]
        kept = {*bound.shape.key_names, *list_group_names(bound)}
        places = [n for n, (name, _) in enumerate(COLUMNS) if name in kept]
        texts = [
            [[None if row[n] is None else str(row[n]) for n in places] for row in rows]
            for rows in (old, new)
        ]
        changed = [
            name
            for n, (name, _) in enumerate(COLUMNS)
            if old and new and any(a[n] != b[n] for a, b in zip(old, new, strict=True))
        ]
        operation = "U" if old and new else "D" if old else "I"
        self.images.append(
            Image(
                oid,
                operation,
                len(old or new),
                kept=[COLUMNS[n][0] for n in places],
                old_rows=texts[0] if operation == "D" or (texts[0] != texts[1] and old) else None,
                new_rows=texts[1] if new else None,
                changed=changed,
            )
        )

    # -- what capture asks ----------------------------------------------------------------

    def _find(self, bound: BoundType, key: Row, columns: Sequence[str]) -> Row | None:
        row = self.tables[bound.live.oid].get(tuple(key))
        names = [name for name, _ in COLUMNS]
        return None if row is None else tuple(row[names.index(name)] for name in columns)

    def read_rows(
        self,
        _connection: Any,
        bound: BoundType,
        keys: Sequence[Row],
        *,
        columns: Sequence[str],
        settings_fixed: bool = False,
    ) -> list[Any]:
        found = [self._find(bound, key, columns) for key in keys]
        return [row if row is None else dict(zip(columns, row, strict=True)) for row in found]

    def read_columns(
        self, _connection: Any, bound: BoundType, keys: Sequence[Any], *, columns: Sequence[str]
    ) -> list[list[Any]]:
        nothing = (None,) * len(columns)
        rows = [self._find(bound, key, columns) or nothing for key in zip(*keys, strict=True)]
        if rows[0] != nothing:
            rows = rows[: self.page_rows]
        return [list(column) for column in zip(*rows, strict=True)]


class Unsealed:
    """Leaves payloads as they are."""

    format = 1

    def seal(self, payload: bytes, _context: Any, *, key_id: str, packing: Packing) -> bytes:
        assert packing is Packing.SMALLEST
        return payload


def tell(database: Database, changes: Sequence[RowChange], tickets: dict[str, Ticket]) -> Any:
    """Everything in the record that somebody could see, except where its parts begin."""
    known = cast("Any", Known())
    work = RecordedWork(known, changes=changes, tickets=tickets)
    gathered = gather_work(
        cast("Any", None),
        work,
        binding=known,
        images=database.images,
        named=(),
        read_tickets=lambda *_: {name: ticket.version for name, ticket in tickets.items()},
        strict=False,
    )
    codec = PayloadCodec()
    draft = RecordBuilder(cast("Any", Unsealed()), codec, draw_id=lambda: UUID(int=7)).build(
        gathered
    )
    if draft is None or draft.record is None:
        return draft and draft.tally
    record = draft.record
    assert list(record.aggregates) == sorted(set(record.aggregates))
    parts = [codec.decode(data, known, first=first) for first, data in record.parts]
    for (first, _), part, after in zip(record.parts, parts, [*parts[1:], parts[-1]], strict=True):
        assert first == min(effect.place for effect in part)
        assert after is part or max(e.place for e in part) <= min(e.place for e in after)
    effects = [effect for part in parts for effect in part]
    assert sorted(effect.ordinal for effect in effects) == list(range(len(effects)))
    assert gathered.operations == len(effects)
    told = [
        (
            record.aggregates[e.place],
            e.shape.type_name,
            e.kind,
            e.key,
            sorted(e.values.items(), key=str),
        )
        for e in effects
    ]
    types: dict[str, set[str]] = {}
    for aggregate, type_name, *_ in told:
        types.setdefault(aggregate, set()).add(type_name)
    expected = [
        # Of tables that share an aggregate, the order tells whether its creation is believed in.
        None if version == CREATED and len(types[name]) > 1 else version
        for name, version in zip(record.aggregates, record.expected, strict=True)
    ]
    return record.aggregates, expected, sorted(told, key=str), draft.tally


@st.composite
def histories(draw: st.DrawFn) -> tuple[Database, list[RowChange]]:
    """Tables after a transaction with these statements, and what was announced of it."""
    database = Database()
    before = st.dictionaries(OIDS, st.frozensets(st.integers(0, 12)))
    for oid, ids in draw(before).items():
        database.fill(oid, ids)
    for step in draw(st.lists(STEPS, min_size=1, max_size=5)):
        database.execute(step)
    changes = []
    for oid, number in draw(st.lists(st.tuples(OIDS, st.integers(20, 22)), unique=True)):
        values: dict[str, Any] = {"id": number, "team": "a", "points": number, "note": None}
        key = tuple(values[name] for name in BOUND[oid].shape.key_names)
        changes.append(RowChange(OpType.CREATE, BOUND[oid], key, values))
        database.tables[oid][key] = tuple(values.values())
    return database, changes


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=histories(),
    tickets=st.frozensets(st.sampled_from(["item/1", "item/20", "team/a", "all", "pair/a/1"])),
    part_bytes=st.sampled_from([30, 100, 10_000]),
)
def test_both_ways_give_the_same_record(
    monkeypatch: pytest.MonkeyPatch,
    history: tuple[Database, list[RowChange]],
    tickets: frozenset[str],
    part_bytes: int,
) -> None:
    database, changes = history
    taken = {name: Ticket(name, 4) for name in tickets}
    with monkeypatch.context() as patch:
        patch.setattr("oplog.capture.merge.read_rows", database.read_rows)
        patch.setattr("oplog.capture.merge.hides_rows", lambda *_: False)
        patch.setattr("oplog.capture.bulk_reading.read_columns", database.read_columns)
        patch.setattr(bulk_images, "LEAST_ROWS", NEVER)
        expected = tell(database, changes, taken)
        patch.setattr(bulk_images, "LEAST_ROWS", 1)
        patch.setattr(paged_parts, "PART_BYTES", part_bytes)
        patch.setattr(paged_parts, "FIRST_PAGE", 2)
        assert tell(database, changes, taken) == expected
