"""Archives made by hand: records, segments and heads as a publisher would write them.

No database: records are hashed and linked as the log's own are. Shared by the tests of the
archive's bytes and of reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from oplog.archive.format.head import Head, Origin, TypesRef, make_first
from oplog.archive.format.index import Item, Levels, add_item, make_item
from oplog.archive.format.path import BLOB, LATEST, name_content, name_head
from oplog.archive.format.segment import SegmentHeader, encode_segment, start_chain
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.memory import MemoryStore
from oplog.crypto.hashing import ZERO_HASH
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.shape import Shape
from oplog.store.rows import Part, StoredRecord, compute_hash, read_microseconds
from oplog.value import Kind

LOG_ID = UUID("0191e0a0-7f5c-7000-8000-0123456789ab")
ARCHIVE_ID = UUID("0191e0a0-7f5c-7000-8000-0123456789ac")
MOMENT = 1_700_000_000_000_000

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)


def seal_record(record: StoredRecord) -> StoredRecord:
    """The record with the hash that its other columns give."""
    return record._replace(record_hash=compute_hash(record) or b"")


def make_record(
    position: int,
    heads: dict[str, tuple[int, bytes]],
    *,
    aggregates: Sequence[str] = ("account/1",),
    **given: Any,
) -> StoredRecord:
    """A record that follows its aggregates' newest ones in `heads`, which are moved on."""
    before = [heads.get(aggregate, (0, ZERO_HASH)) for aggregate in aggregates]
    values: dict[str, Any] = {
        "record_id": UUID(int=position),
        "transaction_id": 700 + position,
        "format": 1,
        "key_id": "k1",
        "parts": (Part(0, b"sealed %d" % position),),
        "metadata": (),
        "recorded_at": read_microseconds(MOMENT + position),
        "idempotency_key": None,
    } | given
    record = seal_record(
        StoredRecord(
            position=position,
            aggregates=tuple(aggregates),
            versions=tuple(version + 1 for version, _ in before),
            prev_hashes=tuple(head for _, head in before),
            record_hash=b"",
            **values,
        )
    )
    for aggregate, (version, _) in zip(aggregates, before, strict=True):
        heads[aggregate] = (version + 1, record.record_hash)
    return record


def make_records(count: int, *, first: int = 1, **given: Any) -> list[StoredRecord]:
    """Plain records of one aggregate, at positions from `first`."""
    heads: dict[str, tuple[int, bytes]] = {}
    return [make_record(position, heads, **given) for position in range(first, first + count)]


NAMES = ("account/1", "account/2", "adopted/account", "b", "\N{SNOWMAN}/\N{PILE OF POO}")


@st.composite
def logs(draw: st.DrawFn) -> list[StoredRecord]:
    """Records as a log may hold them, in order of sequence.

    Of one or several aggregates, in one or several parts, at positions that rise and fall, some
    with columns that were altered in the database.
    """
    positions = draw(
        st.lists(st.integers(1, 1 << 40), min_size=1, max_size=8, unique=True), label="positions"
    )
    # Where the segment begins, aggregates may have records before.
    heads = draw(
        st.dictionaries(
            st.sampled_from(NAMES),
            st.tuples(st.integers(1, 1 << 40), st.binary(min_size=32, max_size=32)),
            max_size=2,
        )
    )
    records = []
    for position in positions:
        record = make_record(position, heads, **draw(_columns()))
        records.append(draw(_altered(record)) if draw(st.booleans()) else record)
    return records


def _parts() -> st.SearchStrategy[tuple[Part, ...]]:
    part = st.builds(Part, st.integers(0, (1 << 31) - 1), st.binary(max_size=40))
    return st.lists(part, min_size=1, max_size=3).map(tuple)


def _pairs() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)


def _columns() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "record_id": st.uuids(),
            "transaction_id": st.integers(3, (1 << 63) - 1),
            "aggregates": st.sets(st.sampled_from(NAMES), min_size=1, max_size=4).map(sorted),
            "format": st.sampled_from((1, 2, 3)),
            "parts": _parts(),
            "key_id": st.sampled_from(("", "k1")),
            "metadata": _pairs(),
            "recorded_at": st.integers(-(1 << 50), 1 << 52).map(read_microseconds),
            "idempotency_key": st.none() | TEXT,
        }
    )


def _altered(record: StoredRecord) -> st.SearchStrategy[StoredRecord]:
    """One column is not what the hashes say."""
    count = len(record.aggregates)

    def each(one: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.lists(one, min_size=count, max_size=count).map(tuple)

    hashes = st.binary(min_size=32, max_size=32) | st.binary(max_size=40)
    columns: Mapping[str, st.SearchStrategy[Any]] = {
        "parts": _parts() | st.just(()),
        "aggregates": each(st.sampled_from(NAMES)),
        "versions": each(st.sampled_from((1, 2)) | st.integers(0, (1 << 63) - 1)),
        "prev_hashes": each(hashes | st.just(ZERO_HASH)),
        "metadata": _pairs(),
        "record_id": st.uuids(),
        "transaction_id": st.integers(0, 1 << 40),
        "format": st.integers(0, 32767),
        "record_hash": hashes,
    }
    return st.sampled_from(sorted(columns)).flatmap(
        lambda name: columns[name].map(lambda value: record._replace(**{name: value}))
    )


def encode_records(records: Sequence[StoredRecord], **given: Any) -> tuple[bytes, SegmentHeader]:
    """A segment of this archive."""
    values: dict[str, Any] = {
        "log_id": LOG_ID,
        "generation": 0,
        "first": 1,
        "chain_before": start_chain(LOG_ID),
    }
    return encode_segment(records, **values | given)


def make_shape(name: str = "account", revision: int = 1) -> Shape:
    """A type with two columns."""
    shape = derive_shape(
        name,
        [
            DeclaredColumn("id", "bigint", Kind.INT, primary_key=True),
            DeclaredColumn("owner", "text", Kind.TEXT, primary_key=False),
        ],
        schema="public",
        table=name,
        aggregate=name,
        excluded={"cache": "rebuilt at start"},
        stored=[],
    )
    return replace(shape, revision=revision)


@dataclass
class HandMade:
    """An archive that is written head by head."""

    store: MemoryStore = field(default_factory=MemoryStore)
    head: Head = field(
        default_factory=lambda: make_first(
            ARCHIVE_ID, LOG_ID, Origin("7312345678901234567", 1, 16384)
        )
    )
    items: list[Item] = field(default_factory=list)
    published: Head | None = None
    trust: HeadTrust = field(default_factory=HeadTrust)
    """What signs its heads; by default nothing does."""

    def add_segment(self, count: int = 2, **given: Any) -> Item:
        """One more segment of `count` records, in the levels of the head that comes next."""
        first = self.head.sequence + 1
        records = make_records(count, first=first, metadata=(("actor", "ada"),))
        return self.add_records(records, **given)

    def add_records(self, records: Sequence[StoredRecord], **given: Any) -> Item:
        """One more segment, in the levels of the head that comes next."""
        given = {"first": self.head.sequence + 1, "chain_before": self.head.chain} | given
        data, header = encode_records(records, **given)
        item = make_item(header, data)
        self.store.put(item.path, data)
        self.items.append(item)
        self.head = replace(
            self.head,
            levels=add_item(self.head.levels, item, put=self.store.put),
            sequence=item.last,
            chain=item.chain,
            position=max(self.head.position, item.last_position),
            recorded_at=max(self.head.recorded_at, item.last_recorded),
        )
        return item

    def add_types(self) -> str:
        """An object with one type and one check value."""
        data = encode_types(LoggedTypes([make_shape()], {"k1": bytes(range(16))}))
        path = name_content(BLOB, 1 << 32, data=data)
        self.store.put(path, data)
        self.head = replace(self.head, types=TypesRef(path, 1, 1))
        return path

    def publish(self, *, number: int | None = None, **given: Any) -> Head:
        """The next head, over what was added since; a head of `number` leaves a gap."""
        before = self.head
        number = number or before.number + 1
        head = replace(
            before,
            number=number,
            nonce=f"n{number}",
            previous=self.published.link() if self.published else None,
            epoch=max(1, number >> 32),
            writer="hand",
            created_at=MOMENT,
            **given,
        )
        self.head = self.published = self.trust.sign(head, base=before)
        self.store.put(name_head(number), self.head.encode())
        return self.head

    def publish_many(self, count: int) -> list[Head]:
        """So many heads, the first with a segment."""
        if not self.items:
            self.add_segment()
        return [self.publish() for _ in range(count)]

    def hint(self, number: int) -> None:
        """What LATEST says."""
        self.store.put(LATEST, f"{0:016x}\n{number:016x}\n".encode())


def build_levels(items: Iterable[Item], put: Callable[[str, bytes], None]) -> Levels:
    """The levels with all of `items`."""
    levels: Levels = ((),)
    for item in items:
        levels = add_item(levels, item, put=put)
    return levels
