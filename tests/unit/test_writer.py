"""The three steps of COMMIT as one log offers them: what each hands to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast
from uuid import UUID

import pytest
from sqlalchemy.engine import Connection

from oplog.capture import writer as writing
from oplog.capture.draft import Draft
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.recorder import Recorder
from oplog.capture.request import Claim
from oplog.capture.sending import Append, bind_draft
from oplog.capture.writer import RecordWriter
from oplog.crypto.seal import Packing, Sealer
from oplog.entry import Entry, Operation, OpType
from oplog.errors import KeyRetiredError, OplogError, UnknownTypeError
from oplog.events import EntriesDrafted
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.receipt import Receipt
from oplog.store import NewRecord, Store
from oplog.store.rows import Part
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_KEY = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item")
CONNECTION = cast("Connection", object())


class Binding:
    """What a transaction knows of its database."""

    log_id = UUID(int=5)
    key_id = ""
    epoch = 0
    secret_types: frozenset[str] = frozenset()
    by_name: ClassVar = {"item": BY_KEY}

    def find_type(self, name: str) -> Any:
        if name != "item":
            raise UnknownTypeError(name)
        return BY_KEY


class Sealing:
    """A sealer that does not seal."""

    format = 3
    key_id = "next"

    def seal(self, payload: bytes, _context: Any, *, key_id: str, packing: Packing) -> bytes:
        return payload

    def renew_key(self, retired: str) -> str:
        return f"no longer {retired}"


class Binder:
    """A store that shows what it is given."""

    schema = "log"

    def bind_append(self, record: Any, **more: Any) -> Any:
        return "append", (record, more)

    def bind_settle(self, tally: int, *, named: Any) -> Any:
        return "settle", (tally, *named)

    def read_tickets(self, connection: Any, aggregates: list[str]) -> dict[str, int]:
        assert connection is CONNECTION
        return dict.fromkeys(aggregates, 7)


STORE = cast("Store", Binder())


class Bench:
    """A writer with everything around it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        ids = iter(UUID(int=n) for n in range(100, 200))
        self.writer = RecordWriter(
            STORE,
            cast("Sealer", Sealing()),
            PayloadCodec(),
            strict=True,
            draw_id=lambda: next(ids),
            on_event=self.events.append,
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def work(**recorded: Any) -> RecordedWork:
    return RecordedWork(cast("Any", Binding()), **recorded)


def test_a_writer_is_not_strict_unless_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def gather(*given: Any, strict: bool, **_: Any) -> GatheredWork:
        asked.append(strict)
        return GatheredWork(given[1], {})

    monkeypatch.setattr(writing, "gather_work", gather)
    ways: list[dict[str, Any]] = [{}, {"strict": False}, {"strict": True}]
    for told in ways:
        writer = RecordWriter(STORE, cast("Sealer", Sealing()), PayloadCodec(), **told)
        writer.gather(CONNECTION, work(), binding=cast("Any", Binding()))
    assert asked == [False, False, True]


def test_gather_asks_what_the_writer_is_set_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def gather(*given: Any, **more: Any) -> GatheredWork:
        asked.append((given, more))
        return GatheredWork(given[1], {})

    monkeypatch.setattr(writing, "gather_work", gather)
    recorded, binding = work(), cast("Any", Binding())
    images, named = cast("Any", ["image"]), [("item", 7)]
    gathered = bench.writer.gather(
        CONNECTION, recorded, binding=binding, images=images, named=named
    )
    assert gathered.work is recorded
    assert asked == [
        (
            (CONNECTION, recorded),
            {
                "binding": binding,
                "images": images,
                "named": named,
                "read_tickets": bench.writer.read_tickets,
                "strict": True,
            },
        )
    ]


def make_effect(number: int) -> Effect:
    return Effect(OpType.DELETE, BY_KEY.shape, (number,), {}, complete=False, ordinal=number)


def test_build_tells_what_it_built(bench: Bench) -> None:
    effects = {"item/1": [make_effect(0), make_effect(1)], "item/2": [make_effect(2)]}
    draft = bench.writer.build(GatheredWork(work(), effects))
    assert draft is not None
    assert draft.record is not None
    assert draft.record.record_id == UUID(int=100)
    sealed = sum(len(part.data) for part in draft.record.parts)
    assert sealed > 0
    assert bench.events == [EntriesDrafted(entries=2, operations=3, sealed_bytes=sealed)]


def test_nothing_built_is_told_to_nobody(bench: Bench) -> None:
    assert bench.writer.build(GatheredWork(work(), {})) is None
    settled = bench.writer.build(GatheredWork(work(), {}, tally=3))
    assert settled == Draft(None, tally=3)
    assert bench.events == []


@pytest.mark.parametrize("commit", [False, True])
def test_send_appends_with_commit_or_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, commit: bool
) -> None:
    sent: list[Any] = []
    receipts = [Receipt(UUID(int=1), "a", 1, b"h")]

    def send(*given: Any, commit: bool) -> list[Receipt]:
        sent.append((*given, commit))
        return receipts

    monkeypatch.setattr(writing, "send", send)
    assert bench.writer.send(CONNECTION, Draft(None, tally=3), commit=commit) is receipts
    assert sent == [(CONNECTION, bind_draft(STORE, Draft(None, tally=3)), commit)]


RECORD = NewRecord(
    record_id=UUID(int=1),
    aggregates=["a"],
    expected=[4],
    parts=[Part(0, b"data")],
    format=3,
    key_id="key",
    metadata=[("actor", "ada")],
    idempotency_key="k",
)


@pytest.mark.parametrize(
    ("record", "hint"), [(RECORD, "no longer key"), (None, "as the server said")]
)
def test_a_refused_key_is_renewed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, record: NewRecord | None, hint: str
) -> None:
    def send(*_given: Any, commit: bool) -> list[Receipt]:
        raise KeyRetiredError("retired", hint="as the server said")

    monkeypatch.setattr(writing, "send", send)
    with pytest.raises(KeyRetiredError) as refused:
        bench.writer.send(CONNECTION, Draft(record), commit=True)
    assert refused.value.hint == hint


def test_a_draft_becomes_one_statement() -> None:
    draft = Draft(RECORD, claim=Claim("k", None), tally=5, named=[("item", 7)])
    more = {"tally": 5, "named": [("item", 7)]}
    assert bind_draft(STORE, draft) == Append(draft, cast("Any", ("append", (RECORD, more))))


def test_a_draft_without_a_record_is_told_to_the_guards() -> None:
    draft = Draft(None, tally=12, named=[("item", 7)])
    assert bind_draft(STORE, draft) == Append(draft, cast("Any", ("settle", (12, ("item", 7)))))


def test_an_entry_by_hand_is_checked_when_it_is_given(bench: Bench) -> None:
    recorder = Recorder()
    recorder.bind(cast("Any", Binding()))
    good = Operation.update("item", key={"id": 9}, fields={"points": 1})
    bench.writer.check_entry(recorder, Entry("a", [good]))
    for bad in (replace(good, type_name="unknown"), replace(good, fields={})):
        with pytest.raises(OplogError):
            bench.writer.check_entry(recorder, Entry("a", [good, bad]))


def test_what_is_the_same_for_every_transaction(bench: Bench) -> None:
    assert bench.writer.schema == "log"
    assert bench.writer.key_id == "next"
    assert bench.writer.read_tickets(CONNECTION, ["a"]) == {"a": 7}
