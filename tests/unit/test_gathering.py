"""What the database is asked before a record is built, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import pytest
from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.gathering import gather_work
from oplog.capture.net_row import NetRow
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.row_change import RowChange
from oplog.entry import OpType, Ticket
from oplog.errors import TicketConflictError
from oplog.schema.touched_keys import weigh
from oplog.store.guard_state import Image
from oplog.store.rows import KnownTables
from oplog.type_binding import BoundType
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_KEY = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item")
AS_ONE = make_bound(COLUMNS, key=["id"], aggregate="all", name="thing", oid=9)
C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE
CONNECTION = cast("Connection", object())


class Bound:
    """What a transaction knows of its database."""

    by_stored_name: ClassVar = {"item": BY_KEY, "thing": AS_ONE}

    def find_relation(self, _oid: int) -> BoundType:
        return BY_KEY

    def know(self, written: Iterable[BoundType]) -> KnownTables:
        return KnownTables(8, sorted(bound.live.oid for bound in written))


class Database:
    """Stands for the database: notes what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.completed: list[tuple[list[Any], bool]] = []
        self.versions = {"item/1": 4}
        self.asked: list[list[str]] = []
        self.order: list[str] = []
        monkeypatch.setattr("oplog.capture.gathering.complete_rows", self.complete)
        monkeypatch.setattr("oplog.capture.merge.read_rows", self.read)
        monkeypatch.setattr("oplog.capture.merge.hides_rows", lambda *_: False)

    def complete(self, _connection: Any, rows: list[NetRow], *, types: Any, strict: bool) -> None:
        assert types is Bound.by_stored_name
        self.order.append("complete")
        self.completed.append(([row.key for row in rows], strict))
        for row in rows:
            if row.complete:
                row.values["points"] = 99

    def read(
        self, _connection: Any, _bound: Any, keys: Any, *, columns: Any, settings_fixed: bool
    ) -> list[None]:
        assert settings_fixed
        self.order.append("touched")
        return [None for _ in keys]

    def read_tickets(self, connection: Connection, aggregates: list[str]) -> dict[str, int]:
        assert connection is CONNECTION
        self.order.append("tickets")
        self.asked.append(aggregates)
        return self.versions

    def gather(
        self,
        *changes: RowChange,
        images: Any = (),
        tickets: dict[str, int] | None = None,
        tally: int = 0,
        strict: bool = False,
    ) -> GatheredWork:
        held = {name: Ticket(name, version) for name, version in (tickets or {}).items()}
        work = RecordedWork(cast("Any", Bound()), changes=changes, tickets=held, tally=tally)
        gathered = gather_work(
            CONNECTION,
            work,
            binding=cast("Binding", Bound()),
            images=images,
            named=[("item", 7)],
            read_tickets=self.read_tickets,
            strict=strict,
        )
        assert gathered.work is work
        return gathered


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    return Database(monkeypatch)


def update(bound: BoundType, id: int, **values: Any) -> RowChange:
    return RowChange(U, bound, (id,), values)


def create(bound: BoundType, id: int) -> RowChange:
    return RowChange(C, bound, (id,), {"id": id, "team": "a", "points": 0})


# -- rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_rows_are_completed_before_they_are_grouped(database: Database, strict: bool) -> None:
    gathered = database.gather(create(BY_KEY, 1), tally=3, strict=strict)
    assert database.completed == [([(1,)], strict)]
    (effect,) = gathered.effects["item/1"]
    assert effect.values == {"id": 1, "team": "a", "points": 99}
    assert (gathered.tally, gathered.named) == (3, [("item", 7)])
    assert gathered.created == {"item/1"}
    assert gathered.known == KnownTables(8, [7])


def test_rows_that_images_touched_are_told_by_the_images(database: Database) -> None:
    image = Image(7, "D", 1, ("id",), [["1"]], None, ())
    changes = [update(BY_KEY, 1, points=3), create(BY_KEY, 2)]
    gathered = database.gather(*changes, images=[image], tally=4)
    assert database.completed == [([(2,)], False)]
    assert gathered.tally == 4 + weigh("D", 7)
    told = [(e.kind, e.key) for effects in gathered.effects.values() for e in effects]
    assert sorted(told) == [(C, (2,)), (D, (1,))]
    assert database.order == ["complete", "touched"]
    assert gathered.known == KnownTables(8, [7, 7])


def test_nothing_is_no_effect_and_no_tally(database: Database) -> None:
    gathered = database.gather()
    assert (gathered.effects, gathered.tally) == ({}, None)
    assert gathered.created == frozenset()
    assert database.order == ["complete"]


# -- tickets of rows that are what they were ----------------------------------------------


def test_the_ticket_of_an_idle_row_must_hold(database: Database) -> None:
    changes = [update(BY_KEY, 2), update(BY_KEY, 1), update(BY_KEY, 3)]
    database.gather(*changes)
    assert database.asked == []
    tickets = {"item/1": 4, "item/2": 0}
    database.gather(*changes, tickets=tickets)
    assert database.asked == [["item/1", "item/2"]]
    assert database.order[-2:] == ["complete", "tickets"]
    database.versions = {"item/1": 5, "item/2": 1}
    with pytest.raises(TicketConflictError, match="'item/1' was changed") as caught:
        database.gather(*changes, tickets=tickets)
    assert caught.value.aggregates == ("item/1", "item/2")
    database.versions = {"item/1": 3}
    with pytest.raises(TicketConflictError):
        database.gather(*changes, tickets=tickets)


def test_stale_tickets_are_told_in_order(database: Database) -> None:
    names = [f"item/{number}" for number in range(1, 10)]
    changes = [update(BY_KEY, number) for number in range(1, 10)]
    with pytest.raises(TicketConflictError) as caught:
        database.gather(*changes, tickets=dict.fromkeys(names, 7))
    assert caught.value.aggregates == tuple(names)
    assert database.asked == [names]


def test_the_ticket_of_an_aggregate_that_is_written_is_redeemed_instead(
    database: Database,
) -> None:
    database.gather(update(AS_ONE, 1), create(AS_ONE, 2), tickets={"all": 1})
    assert database.asked == []


def test_other_tickets_need_not_hold_where_nothing_is_idle(database: Database) -> None:
    gathered = database.gather(create(BY_KEY, 2), update(BY_KEY, 1), tickets={"elsewhere": 1})
    assert list(gathered.effects) == ["item/2"]
    assert database.asked == []
