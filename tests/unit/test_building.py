"""From gathered work to a record, without a database: order, seals and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from oplog.capture.building import RecordBuilder
from oplog.capture.draft import Draft
from oplog.capture.grouping import group_effects
from oplog.capture.net_row import fold_changes
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.request import Claim
from oplog.capture.row_change import RowChange, TrackedType
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.entry import PART_BYTES, Entry, Operation, OpType, Ticket
from oplog.errors import EntryTooLargeError, IdempotencyConflictError, InvalidMetadataError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.receipt import Receipt
from oplog.schema.guard import FORMAT_MARK
from oplog.store.rows import CREATED, NewRecord, Part
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_KEY = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item")
BY_TEAM = make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member")
AS_ONE = make_bound(COLUMNS, key=["id"], aggregate="all", name="thing")
LAST = make_bound(COLUMNS, key=["id"], aggregate="last/{id}", name="last")
TYPES = {bound.shape.type_name: bound for bound in (BY_KEY, BY_TEAM, AS_ONE, LAST)}
LOG_ID, KEYRING = UUID(int=5), Keyring.generate()
USED = (Receipt(UUID(int=1), "a", 1, b"h"),)


@dataclass(frozen=True)
class Log:
    """The log that is written to."""

    key_id: str = "key"
    log_id: UUID = LOG_ID
    secret_types: frozenset[str] = frozenset()
    epoch: int = 0

    def find_type(self, type_name: str) -> TrackedType:
        return TYPES[type_name]


class Sealing:
    """A sealer that shows what it is given."""

    format = 3

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.packings: list[Packing] = []

    def seal(self, payload: bytes, context: Any, *, key_id: str, packing: Packing) -> bytes:
        self.contexts.append(context)
        self.packings.append(packing)
        return b"<" + payload + b">" + key_id.encode()


def gather(*changes: RowChange, tally: int | None = None, **recorded: Any) -> GatheredWork:
    """What the gather step hands over where the database adds nothing."""
    work = RecordedWork(**{"log": Log(), "changes": changes, **recorded})
    groups = group_effects(work, fold_changes(work.changes))
    return GatheredWork(
        work, groups.effects, created=groups.created, tally=tally, named=[("account", 7)]
    )


def make_builder(sealer: Any) -> RecordBuilder:
    ids = iter(UUID(int=n) for n in range(100, 200))
    return RecordBuilder(cast("Sealer", sealer), PayloadCodec(), draw_id=lambda: next(ids))


def draft(gathered: GatheredWork, sealer: Any = None) -> Draft:
    made = make_builder(sealer or Sealing()).build(gathered)
    assert made is not None
    return made


def build(gathered: GatheredWork, sealer: Any = None) -> NewRecord:
    record = draft(gathered, sealer).record
    assert record is not None
    return record


def build_nothing(gathered: GatheredWork) -> bool:
    return make_builder(Sealing()).build(gathered) is None


def created(bound: Any, id: int, team: str) -> RowChange:
    return RowChange(OpType.CREATE, bound, (id,), {"id": id, "team": team, "points": 0})


def decode(payload: bytes, *, first: int = 0) -> list[Effect]:
    types = SimpleNamespace(find_shape=lambda name, _revision: TYPES[name].shape)
    return PayloadCodec().decode(payload, cast("Any", types), first=first)


def unseal(record: NewRecord) -> list[Effect]:
    """What `Sealing` was given."""
    return [
        effect
        for part in record.parts
        for effect in decode(part.data[1 : part.data.rindex(b">")], first=part.first)
    ]


# -- records ------------------------------------------------------------------------------


def test_a_transaction_becomes_one_record_sorted_by_aggregate() -> None:
    by_hand = Operation.update("thing", key={"id": 9}, fields={"points": 1})
    metadata = [("actor", "ada"), ("actor", "bob")]
    gathered = gather(
        created(BY_TEAM, 1, "b"),
        created(BY_TEAM, 2, "\U0001f600"),
        created(BY_TEAM, 3, "\uffff"),
        created(BY_TEAM, 4, "b"),
        entries=[Entry("team/b", [by_hand, by_hand])],
        tickets={"team/b": Ticket("team/b", 4), "elsewhere": Ticket("elsewhere", 1)},
        metadata=metadata,
        tally=5,
    )
    sealing = Sealing()
    made = draft(gathered, sealing)
    assert (made.claim, made.named, made.tally) == (None, [("account", 7)], 5)
    assert made.aggregates == ["team/b", "team/\uffff", "team/\U0001f600"]
    record = made.record
    assert record is not None
    assert (list(record.aggregates), list(record.expected)) == (made.aggregates, [4, None, None])
    assert (record.record_id, record.format, record.key_id) == (UUID(int=100), 3, "key")
    assert (record.metadata, record.idempotency_key) == (metadata, None)
    assert [(effect.place, effect.ordinal) for effect in unseal(record)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (2, 3),
        (1, 4),
        (0, 5),
    ]
    (part,) = record.parts
    assert part.first == 0
    assert part.data.endswith(b">key")
    assert sealing.contexts == [name_part(LOG_ID, UUID(int=100), 0)]


def test_a_part_with_a_row_of_a_secret_type_is_padded() -> None:
    """And no other part of the record."""
    rows = [created(BY_KEY, n, "x" * 5000) for n in range(1000, 1100)]
    rows += [created(AS_ONE, n, "y") for n in (1, 2)]
    rows += [created(LAST, n, "z" * 5000) for n in range(1000, 1200)]
    found: dict[str, list[Packing]] = {}
    ways = ("", "thing", "last", "item", "thing last item", "elsewhere")
    for names in ways:
        sealing = Sealing()
        record = build(gather(*rows, log=Log(secret_types=frozenset(names.split()))), sealing)
        found[names] = sealing.packings
    held = [
        {e.shape.type_name for e in decode(part.data[1:-4], first=part.first)}
        for part in record.parts
    ]
    # Sorted by aggregate: all, item/…, last/…
    assert held[0] == {"thing", "item"}
    assert held[-1] == {"last"}
    assert len(held) > 3
    for names in ways:
        assert found[names] == [
            Packing.SMALLEST if types.isdisjoint(names.split()) else Packing.PADDED
            for types in held
        ]


def test_without_metadata_and_guards() -> None:
    made = draft(gather(created(BY_KEY, 1, "a")))
    assert made.tally is None
    assert build(gather(created(BY_KEY, 1, "a"))).metadata == ()


def test_what_is_expected_of_each_aggregate() -> None:
    """The ticket's version, if one was taken; else the belief that it is created; else any."""
    gathered = gather(
        created(BY_KEY, 1, "a"),
        created(BY_KEY, 2, "a"),
        RowChange(OpType.UPDATE, BY_KEY, (3,), {"points": 1}),
        RowChange(OpType.UPDATE, BY_KEY, (4,), {"points": 1}),
        tickets={"item/2": Ticket("item/2", 0), "item/4": Ticket("item/4", 6)},
    )
    assert gathered.created == {"item/1", "item/2"}
    assert list(build(gathered).expected) == [CREATED, 0, None, 6]


def test_a_large_transaction_has_several_parts_that_are_sealed_by_number() -> None:
    changes = [created(BY_TEAM, n, f"{n % 40:02d}{'x' * 400}") for n in range(2000)]
    sealing = Sealing()
    record = build(gather(*changes), sealing)
    count = len(record.parts)
    assert count > 2
    assert sealing.contexts == [name_part(LOG_ID, UUID(int=100), n) for n in range(count)]
    assert all(len(part.data) <= PART_BYTES + 5 for part in record.parts)
    firsts = [part.first for part in record.parts]
    assert (firsts, firsts[0]) == (sorted(firsts), 0)
    effects = sorted(unseal(record), key=lambda effect: effect.ordinal)
    assert [effect.key for effect in effects] == [change.key for change in changes]
    assert all(effect.place == effect.ordinal % 40 for effect in effects)


def test_a_row_over_the_limit_is_refused_before_anything_is_sealed() -> None:
    large = created(BY_KEY, 1, "x" * (17 << 20))
    sealing = Sealing()
    with pytest.raises(EntryTooLargeError):
        build(gather(created(BY_KEY, 0, "a"), large), sealing)
    assert sealing.contexts == []


def test_too_many_aggregates_are_refused_before_anything_is_sealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oplog.payload.parts._FEW_NAMES", 1)
    monkeypatch.setattr("oplog.payload.parts.MAX_AGGREGATES", 2)
    sealing, changes = Sealing(), [created(BY_KEY, n, "a") for n in range(3)]
    assert len(build(gather(*changes[:2])).aggregates) == 2
    with pytest.raises(EntryTooLargeError, match="changes 3 aggregates"):
        build(gather(*changes), sealing)
    assert sealing.contexts == []


def test_nothing_recorded_is_no_draft() -> None:
    assert build_nothing(gather())
    assert build_nothing(gather(metadata=[("actor", "ada")]))


def test_nothing_left_is_told_to_the_guards() -> None:
    assert draft(gather(tally=12)) == Draft(None, tally=12, named=[("account", 7)])


def test_too_much_metadata_is_refused() -> None:
    gathered = gather(created(BY_KEY, 1, "a"), metadata=[("k", "v")] * 1000)
    with pytest.raises(InvalidMetadataError):
        build(gathered)


# -- the same again -----------------------------------------------------------------------


SEALED, PLAIN = Sealer(KEYRING, draw_salt=bytes), Sealer(None)


def mix(sealer: Sealer) -> GatheredWork:
    return gather(
        created(BY_TEAM, 2, "b"),
        created(BY_KEY, 1, "a"),
        RowChange(OpType.UPDATE, AS_ONE, (3,), {"points": None}),
        tickets={"all": Ticket("all", 8)},
        metadata=[("actor", "ada"), ("oplog.request", "print")],
        claim=Claim("k", "print"),
        log=Log(sealer.key_id),
        tally=9,
    )


@pytest.mark.parametrize("sealer", [SEALED, PLAIN], ids=["sealed", "plain"])
def test_the_same_work_gives_the_same_draft(sealer: Sealer) -> None:
    record = build(mix(sealer), sealer)
    assert draft(mix(sealer), sealer) == draft(mix(sealer), sealer)
    assert (record.format, record.key_id) == (sealer.format, sealer.key_id)


def test_building_again_gives_the_same_record() -> None:
    gathered = mix(PLAIN)
    assert build(gathered, PLAIN) == build(gathered, PLAIN)


@pytest.mark.parametrize("sealer", [SEALED, PLAIN], ids=["sealed", "plain"])
def test_a_part_opens_where_it_belongs(sealer: Sealer) -> None:
    record = build(mix(sealer), sealer)
    for number, part in enumerate(record.parts):
        context = name_part(LOG_ID, record.record_id, number)
        payload = sealer.open(part.data, context, format=sealer.format, key_id=sealer.key_id)
        assert [effect.place for effect in decode(payload)] == [2, 1, 0]


def test_the_bytes_of_a_plaintext_transaction() -> None:
    """Pinned: what is built differently tomorrow is another record than today's."""
    record = build(mix(PLAIN), PLAIN)
    digest = hashlib.sha256()
    for part in record.parts:
        digest.update(part.data)
    assert digest.hexdigest() == "a9ff8eefa7321bfdcc00fd7498d612250c574fa6a60f49a6fdba2ad24a1e413d"


# -- idempotency keys ---------------------------------------------------------------------


def test_a_key_stands_on_the_record() -> None:
    claim, metadata = Claim("k", "print"), [("oplog.request", "print")]
    gathered = gather(
        created(BY_KEY, 1, "a"), created(BY_KEY, 2, "a"), claim=claim, metadata=metadata
    )
    assert draft(gathered).claim is claim
    record = build(gathered)
    assert record.idempotency_key == "k"


@pytest.mark.parametrize("tally", [None, 4])
def test_a_key_is_used_up_by_a_transaction_that_changes_nothing(tally: int | None) -> None:
    metadata, claim = [("oplog.request", "print")], Claim("k", None)
    made = draft(gather(claim=claim, tally=tally, metadata=metadata))
    assert (made.claim, made.tally, made.named) == (claim, tally, [("account", 7)])
    record = made.record
    assert record is not None
    digest = hashlib.sha256(b"k").hexdigest()[:32]
    assert made.aggregates == [f"oplog/request/{digest}"]
    assert record == NewRecord(
        record_id=UUID(int=100),
        aggregates=made.aggregates,
        expected=[None],
        parts=[Part(0, b"")],
        format=FORMAT_MARK,
        key_id="",
        metadata=metadata,
        idempotency_key="k",
    )


def test_a_mark_with_too_much_metadata_is_refused() -> None:
    with pytest.raises(InvalidMetadataError):
        build(gather(claim=Claim("k", None), metadata=[("k", "v")] * 1000))


def test_a_used_key_writes_nothing_again() -> None:
    assert build_nothing(gather(claim=Claim("k", None, USED)))


@pytest.mark.parametrize(("changes", "tally"), [([], 1), ([created(BY_KEY, 1, "a")], None)])
def test_a_used_key_refuses_rows(changes: Sequence[RowChange], tally: int | None) -> None:
    gathered = gather(*changes, tally=tally, claim=Claim("k", None, USED))
    with pytest.raises(IdempotencyConflictError) as caught:
        build(gathered)
    assert caught.value.receipts == list(USED)
