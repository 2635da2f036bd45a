"""From net rows to entries: which rows form which entry, in which order, under which name."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from oplog.capture.net_row import NetRow
from oplog.capture.recorder import Recorder, RowChange
from oplog.capture.request import Claim
from oplog.capture.writer import (
    EntryWriter,
    is_idle,
    list_effects,
    list_unticketed,
    name_aggregate,
)
from oplog.crypto.hashing import hash_body, hash_metadata
from oplog.crypto.seal import Sealer
from oplog.entry import (
    Entry,
    Operation,
    OpType,
    Ticket,
)
from oplog.errors import (
    EntryError,
    IdempotencyConflictError,
    InvalidMetadataError,
    OplogError,
    TicketConflictError,
    UnknownTypeError,
)
from oplog.events import EntriesDrafted
from oplog.payload.codec import Effect, PayloadCodec
from oplog.receipt import Receipt
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.touched_keys import weigh
from oplog.store import Store
from oplog.store.guard_state import Image
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_KEY = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item")
BY_TEAM = make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member")
AS_ONE = make_bound(COLUMNS, key=["id"], aggregate="all", name="thing")
TYPES = {bound.shape.type_name: bound for bound in (BY_KEY, BY_TEAM, AS_ONE)}
C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE
WHOLE: dict[str, Any] = {"id": 1, "team": "a", "points": 5}


def tell(row: NetRow, *, ordinal: int = 0) -> list[tuple[str, OpType, Any, int]]:
    effects = list_effects(row, ordinal=ordinal)
    assert all(effect.complete == (effect.kind is C) for _, effect in effects)
    assert all(effect.key == row.key and effect.shape is row.bound.shape for _, effect in effects)
    return [(name, effect.kind, effect.values, effect.ordinal) for name, effect in effects]


# -- effects of a row ---------------------------------------------------------------------


def test_a_created_row_is_one_create() -> None:
    row = NetRow(BY_TEAM, (1,), existed=False, values=dict(WHOLE))
    assert tell(row, ordinal=4) == [("team/a", C, WHOLE, 4)]


def test_a_created_row_says_only_logged_columns() -> None:
    row = NetRow(BY_KEY, (1,), existed=False, values={**WHOLE, "computed": 6})
    assert tell(row) == [("item/1", C, WHOLE, 0)]


def test_a_replaced_row_is_deleted_where_it_was_and_created_where_it_is() -> None:
    row = NetRow(
        BY_TEAM, (1,), existed=True, replaced=True, values=dict(WHOLE), group={"team": "b"}
    )
    assert tell(row, ordinal=7) == [("team/b", D, {}, 7), ("team/a", C, WHOLE, 8)]


def test_a_deleted_row_is_named_by_what_it_was() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, exists=False, group={"team": "b"})
    assert tell(row, ordinal=2) == [("team/b", D, {}, 2)]
    assert tell(NetRow(BY_TEAM, (1,), existed=False, exists=False, group={"team": "b"})) == []


def test_an_update_of_nothing_is_nothing() -> None:
    assert tell(NetRow(BY_KEY, (1,), existed=True)) == []


def test_a_changed_row_is_one_update() -> None:
    row = NetRow(BY_KEY, (1,), existed=True, values={"points": 6})
    assert tell(row, ordinal=3) == [("item/1", U, {"points": 6}, 3)]


def test_a_changed_row_that_stays_in_its_aggregate_is_one_update() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, values={"points": 6}, group={"team": "a"})
    assert tell(row, ordinal=3) == [("team/a", U, {"points": 6}, 3)]
    row = NetRow(BY_TEAM, (1,), existed=True, values={"team": "a"}, group={"team": "a"})
    assert tell(row) == [("team/a", U, {"team": "a"}, 0)]


def test_a_row_that_leaves_its_aggregate_is_told_in_both() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, values=dict(WHOLE), group={"team": "b"})
    assert tell(row, ordinal=3) == [("team/b", D, {}, 3), ("team/a", C, WHOLE, 4)]
    assert list(list_effects(row, ordinal=0)[1][1].values) == ["id", "team", "points"]


def test_names_are_made_of_the_stored_texts() -> None:
    row = NetRow(BY_KEY, (1,), existed=True)
    assert name_aggregate(row, None) == "item/1"
    assert name_aggregate(row, {"id": 2}) == "item/1"
    row = NetRow(BY_TEAM, (1,), existed=True)
    assert name_aggregate(row, {"team": None}) == "team/null"
    assert name_aggregate(NetRow(AS_ONE, (1,), existed=True), None) == "all"
    with pytest.raises(EntryError):
        name_aggregate(row, {"team": "x" * 5000})


# -- tickets to take ----------------------------------------------------------------------


def update(bound: Any, id: int, group: dict[str, Any] | None = None, **values: Any) -> RowChange:
    return RowChange(U, bound, (id,), values, (), group)


def test_aggregates_without_a_ticket_in_lock_order() -> None:
    recorder = Recorder()
    recorder.add_ticket(Ticket("item/3", 1))
    recorder.record([update(BY_KEY, 20), update(BY_KEY, 3), update(BY_KEY, 1), update(AS_ONE, 1)])
    root = recorder.frames[0]
    recorder.push("s")
    recorder.record([update(BY_KEY, 1), update(BY_TEAM, 1, {"team": "\U0001f600"}, team="new")])
    recorder.record([update(BY_TEAM, 2, team="\uffff"), update(BY_TEAM, 3)])
    recorder.record([update(BY_TEAM, 4, {"team": "d"}, points=1)])
    names = list_unticketed(recorder)
    teams = ["team/d", "team/\uffff", "team/\U0001f600"]
    assert list(names) == ["all", "item/1", "item/20", *teams]
    assert names["item/1"] is root
    assert names["team/\uffff"] is recorder.frames[1]
    assert list_unticketed(recorder) == {}


# -- drafts -------------------------------------------------------------------------------


class Binding:
    """What a transaction knows of its database."""

    log_id = UUID(int=5)
    key_id = ""

    def find_relation(self, oid: int) -> Any:
        return BY_KEY

    def find_type(self, name: str) -> Any:
        if name not in TYPES:
            raise UnknownTypeError(name)
        return TYPES[name]


class Sealing:
    """A sealer that shows what it is given."""

    format = 3
    key_id = "next"

    def seal(self, payload: bytes, context: Any, *, key_id: str) -> bytes:
        self.context = context
        return b"<" + payload + b">" + key_id.encode()


class Binder:
    """A store that shows what it is given."""

    schema = "log"

    def bind_append(self, entries: Any, **more: Any) -> Any:
        return "append", (entries, more)

    def bind_settle(self, tally: int, *, named: Any) -> Any:
        return "settle", (tally, *named)

    def __init__(self) -> None:
        self.versions = {"item/1": 4}
        self.asked: list[list[str]] = []

    def read_tickets(self, _connection: Any, aggregates: list[str]) -> dict[str, int]:
        self.asked.append(aggregates)
        return self.versions


class Drafting:
    """A writer with everything around it."""

    def __init__(self) -> None:
        self.sealer = Sealing()
        self.binder = Binder()
        self.events: list[Any] = []
        ids = iter(UUID(int=n) for n in range(100, 200))
        self.writer = EntryWriter(
            cast("Store", self.binder),
            cast("Sealer", self.sealer),
            PayloadCodec(),
            draw_id=lambda: next(ids),
            on_event=self.events.append,
        )
        self.recorder = Recorder()
        self.recorder.bind(cast("Any", Binding()))

    def draft(self, *, images: Any = ()) -> Any:
        return self.writer.draft(cast("Any", None), self.recorder, images=images)


@pytest.fixture
def drafting() -> Drafting:
    return Drafting()


def created(bound: Any, id: int, team: str) -> RowChange:
    return RowChange(C, bound, (id,), {"id": id, "team": team, "points": 0}, ())


def unseal(data: bytes) -> list[Effect]:
    types = SimpleNamespace(find_shape=lambda name, _revision: TYPES[name].shape)
    return PayloadCodec().decode(data[1:-1], cast("Any", types))


def test_nothing_recorded_is_no_draft(drafting: Drafting) -> None:
    assert drafting.draft() is None
    drafting.recorder.annotate({"actor": ["ada"]})
    assert drafting.draft() is None
    assert drafting.events == []


def test_nothing_left_is_told_to_the_guards(drafting: Drafting) -> None:
    drafting.recorder.record([], tally=12)
    draft = drafting.draft()
    assert (draft.statement, draft.parameters) == ("settle", (12,))
    assert draft.make_receipts([], []) == []


def test_a_failure_is_raised_instead(drafting: Drafting) -> None:
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    drafting.recorder.fail(OplogError("not captured", hint="h"))
    with pytest.raises(OplogError, match="not captured"):
        drafting.draft()


def test_a_transaction_becomes_entries_sorted_by_aggregate(drafting: Drafting) -> None:
    recorder = drafting.recorder
    ticket = Ticket("team/b", 4)
    recorder.add_ticket(ticket)
    by_hand = Operation.update("thing", key={"id": 9}, fields={"points": 1})
    recorder.add_entry(Entry("team/b", [by_hand, by_hand]), ticket)
    recorder.record([created(BY_TEAM, 1, "b"), created(BY_TEAM, 2, "\U0001f600")], tally=3)
    recorder.record([created(BY_TEAM, 3, "\uffff"), created(BY_TEAM, 4, "b")], tally=2)
    recorder.annotate({"actor": ["ada", "bob"]})
    draft = drafting.draft()
    statement, (entries, more) = draft.statement, draft.parameters
    assert statement == "append"
    assert [entry.aggregate for entry in entries] == ["team/b", "team/\uffff", "team/\U0001f600"]
    assert [entry.expected for entry in entries] == [4, None, None]
    assert [entry.entry_id for entry in entries] == [UUID(int=n) for n in (100, 101, 102)]
    effects = [unseal(entry.data) for entry in entries]
    assert [[e.ordinal for e in part] for part in effects] == [[0, 1, 2, 5], [4], [3]]
    metadata = [("actor", "ada"), ("actor", "bob")]
    assert more == {
        "named": (),
        "format": 3,
        "key_id": "",
        "metadata": metadata,
        "metadata_hash": hash_metadata(metadata),
        "idempotency_key": None,
        "tally": 5,
    }
    first = entries[0]
    assert first.body_hash == hash_body(
        format=3,
        entry_id=first.entry_id,
        aggregate="team/b",
        key_id="",
        metadata_hash=hash_metadata(metadata),
        transaction_size=3,
        idempotency_key=None,
        data=first.data,
    )
    context = drafting.sealer.context
    assert (context.log_id, context.aggregate) == (UUID(int=5), "team/\U0001f600")
    assert context.entry_id == UUID(int=102)
    sealed = sum(len(entry.data) for entry in entries)
    assert drafting.events == [EntriesDrafted(entries=3, operations=6, sealed_bytes=sealed)]
    receipts = draft.make_receipts([5, 1, 1], [memoryview(b"x"), b"y", b"z"])
    assert receipts[0] == Receipt(UUID(int=100), "team/b", 5, b"x")
    assert [receipt.entry_hash for receipt in receipts] == [b"x", b"y", b"z"]


def test_without_metadata_and_guards(drafting: Drafting) -> None:
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    _, more = drafting.draft().parameters
    assert more["metadata_hash"] == hash_metadata([])
    assert (more["metadata"], more["tally"]) == ([], None)


# -- rows that are what they were ---------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "idle"),
    [
        (NetRow(BY_KEY, (1,), existed=True), True),
        (NetRow(BY_KEY, (1,), existed=True, values={"points": 1}), False),
        (NetRow(BY_KEY, (1,), existed=True, exists=False), False),
        (NetRow(BY_KEY, (1,), existed=False), False),
        (NetRow(BY_KEY, (1,), existed=False, exists=False), False),
        (NetRow(BY_KEY, (1,), existed=True, replaced=True), False),
        (NetRow(BY_TEAM, (1,), existed=True), False),
        (NetRow(BY_TEAM, (1,), existed=True, group={"team": "a"}), True),
        (NetRow(AS_ONE, (1,), existed=True), True),
    ],
)
def test_a_row_is_idle_if_nothing_happened_to_it(row: NetRow, idle: bool) -> None:
    assert is_idle(row) is idle


def test_the_ticket_of_an_idle_row_must_hold(drafting: Drafting) -> None:
    recorder, binder = drafting.recorder, drafting.binder
    recorder.record([update(BY_KEY, 2), update(BY_KEY, 1), update(BY_KEY, 3)])
    assert drafting.draft() is None
    assert binder.asked == []
    for number, version in ((1, 4), (2, 0)):
        recorder.add_ticket(Ticket(f"item/{number}", version))
    assert drafting.draft() is None
    assert binder.asked == [["item/1", "item/2"]]
    binder.versions = {"item/1": 5, "item/2": 1}
    with pytest.raises(TicketConflictError, match="'item/1' was changed") as caught:
        drafting.draft()
    assert caught.value.aggregates == ("item/1", "item/2")
    binder.versions = {"item/1": 3}
    with pytest.raises(TicketConflictError):
        drafting.draft()


def test_stale_tickets_are_told_in_order(drafting: Drafting) -> None:
    names = [f"item/{number}" for number in range(1, 10)]
    for number, name in enumerate(names, 1):
        drafting.recorder.record([update(BY_KEY, number)])
        drafting.recorder.add_ticket(Ticket(name, 7))
    with pytest.raises(TicketConflictError) as caught:
        drafting.draft()
    assert caught.value.aggregates == tuple(names)
    assert drafting.binder.asked == [names]


def test_the_ticket_of_an_aggregate_that_is_written_is_redeemed_instead(
    drafting: Drafting,
) -> None:
    drafting.recorder.add_ticket(Ticket("all", 1))
    drafting.recorder.record([update(AS_ONE, 1), created(AS_ONE, 2, "a")])
    (entry,), _ = drafting.draft().parameters
    assert entry.expected == 1
    assert drafting.binder.asked == []


def test_other_tickets_need_not_hold_where_nothing_is_idle(drafting: Drafting) -> None:
    drafting.recorder.add_ticket(Ticket("elsewhere", 1))
    drafting.recorder.record([created(BY_KEY, 2, "a"), update(BY_KEY, 1)])
    assert drafting.draft().aggregates == ["item/2"]
    assert drafting.binder.asked == []


# -- rows and images ----------------------------------------------------------------------


class Completing:
    """Stands for the database that is asked for what it stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[list[Any], bool]] = []
        monkeypatch.setattr("oplog.capture.writer.complete_rows", self.complete)
        monkeypatch.setattr("oplog.capture.merge.read_rows", self.read)
        monkeypatch.setattr("oplog.capture.merge.hides_rows", lambda *_: False)

    def complete(self, _connection: Any, rows: list[NetRow], *, strict: bool) -> None:
        self.asked.append(([row.key for row in rows], strict))
        for row in rows:
            row.values["points"] = 99

    def read(self, _connection: Any, _bound: Any, keys: Any, *, columns: Any) -> Any:
        return [None for _ in keys]


def test_rows_are_completed_before_they_are_grouped(
    drafting: Drafting, monkeypatch: pytest.MonkeyPatch
) -> None:
    completing = Completing(monkeypatch)
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    (entry,), _ = drafting.draft().parameters
    assert completing.asked == [([(1,)], False)]
    assert unseal(entry.data)[0].values == {"id": 1, "team": "a", "points": 99}


def test_rows_that_images_touched_are_told_by_the_images(
    drafting: Drafting, monkeypatch: pytest.MonkeyPatch
) -> None:
    completing = Completing(monkeypatch)
    drafting.recorder.record([update(BY_KEY, 1, points=3), created(BY_KEY, 2, "a")], tally=4)
    image = Image(7, "D", 1, ("id",), [["1"]], None, ())
    entries, more = drafting.draft(images=[image]).parameters
    assert completing.asked == [([(2,)], False)]
    assert more["tally"] == 4 + weigh("D", 7)
    told = [(effect.kind, effect.key) for e in entries for effect in unseal(e.data)]
    assert told == [(D, (1,)), (C, (2,))]


# -- idempotency keys ---------------------------------------------------------------------

USED = (Receipt(UUID(int=1), "a", 1, b"h"),)


def test_a_key_stands_on_the_first_entry(drafting: Drafting) -> None:
    drafting.recorder.record([created(BY_KEY, 1, "a"), created(BY_KEY, 2, "a")])
    claim = Claim("k", "print")
    drafting.recorder.add_claim(claim)
    drafting.recorder.annotate({"actor": ["ada"]})
    draft = drafting.draft()
    assert draft.claim is claim
    assert draft.aggregates == ["item/1", "item/2"]
    entries, more = draft.parameters
    metadata = [("actor", "ada"), ("oplog.request", "print")]
    assert (more["idempotency_key"], more["metadata"]) == ("k", metadata)
    for entry, key in zip(entries, ["k", None], strict=True):
        assert entry.body_hash == hash_body(
            format=3,
            entry_id=entry.entry_id,
            aggregate=entry.aggregate,
            key_id="",
            metadata_hash=hash_metadata(metadata),
            transaction_size=2,
            idempotency_key=key,
            data=entry.data,
        )


def test_a_key_without_a_fingerprint_adds_no_metadata(drafting: Drafting) -> None:
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    drafting.recorder.add_claim(Claim("k", None))
    _, more = drafting.draft().parameters
    assert (more["idempotency_key"], more["metadata"]) == ("k", [])


@pytest.mark.parametrize("tally", [0, 4])
def test_a_key_is_used_up_by_a_transaction_that_changes_nothing(
    drafting: Drafting, tally: int
) -> None:
    drafting.recorder.add_claim(Claim("k", None))
    drafting.recorder.record([], tally=tally)
    (entry,), more = drafting.draft().parameters
    digest = hashlib.sha256(b"k").hexdigest()[:32]
    assert (entry.aggregate, entry.expected, entry.data) == (f"oplog/request/{digest}", None, b"")
    assert (more["format"], more["key_id"], more["tally"]) == (FORMAT_MARK, "", tally or None)
    assert entry.body_hash == hash_body(
        format=FORMAT_MARK,
        entry_id=UUID(int=100),
        aggregate=entry.aggregate,
        key_id="",
        metadata_hash=hash_metadata([]),
        transaction_size=1,
        idempotency_key="k",
        data=b"",
    )


def test_a_used_key_writes_nothing_again(drafting: Drafting) -> None:
    drafting.recorder.add_claim(Claim("k", None, USED))
    assert drafting.draft() is None
    drafting.recorder.record([], tally=1)
    with pytest.raises(IdempotencyConflictError) as caught:
        drafting.draft()
    assert caught.value.receipts == list(USED)


def test_a_used_key_refuses_rows_without_guards(drafting: Drafting) -> None:
    drafting.recorder.add_claim(Claim("k", None, USED))
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    with pytest.raises(IdempotencyConflictError):
        drafting.draft()


def test_what_is_known_of_receipts_when_the_answer_is_lost(drafting: Drafting) -> None:
    drafting.recorder.add_ticket(Ticket("item/1", 4))
    drafting.recorder.record([created(BY_KEY, 1, "a"), created(BY_KEY, 2, "a")])
    receipts = drafting.draft().guess_receipts(77)
    assert receipts == [
        Receipt(UUID(int=100), "item/1", 5, b""),
        Receipt(UUID(int=101), "item/2", 0, b""),
    ]
    assert [receipt.process_id for receipt in receipts] == [77, 77]


# -- the rest -----------------------------------------------------------------------------


def test_too_much_metadata_is_refused(drafting: Drafting) -> None:
    drafting.recorder.record([created(BY_KEY, 1, "a")])
    drafting.recorder.annotate({"k": ["v"] * 100_000})
    with pytest.raises(InvalidMetadataError):
        drafting.draft()


def test_an_entry_by_hand_is_checked_when_it_is_given(drafting: Drafting) -> None:
    good = Operation.update("item", key={"id": 9}, fields={"points": 1})
    drafting.writer.check_entry(drafting.recorder, Entry("a", [good]))
    for bad in (replace(good, type_name="unknown"), replace(good, fields={})):
        with pytest.raises(OplogError):
            drafting.writer.check_entry(drafting.recorder, Entry("a", [good, bad]))


def test_what_is_the_same_for_every_transaction(drafting: Drafting) -> None:
    assert drafting.writer.schema == "log"
    assert drafting.writer.key_id == "next"
