"""Archives made by hand: entries, segments and heads as a publisher would write them.

No database: entries are hashed and linked as the log's own are. Shared by the tests of the
archive's bytes and of reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from oplog.archive.format.body import Pairs, compute_hash
from oplog.archive.format.head import Head, Origin, TypesRef, make_first
from oplog.archive.format.index import Item, Levels, add_item, make_item
from oplog.archive.format.path import BLOB, LATEST, name_content, name_head
from oplog.archive.format.segment import SegmentHeader, encode_segment, start_chain
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.objectstore.memory import MemoryStore
from oplog.crypto.hashing import ZERO_HASH, hash_metadata
from oplog.payload.shape import DeclaredColumn, Shape, derive_shape
from oplog.store.rows import StoredEntry, read_microseconds
from oplog.value import Kind

LOG_ID = UUID("0191e0a0-7f5c-7000-8000-0123456789ab")
ARCHIVE_ID = UUID("0191e0a0-7f5c-7000-8000-0123456789ac")
MOMENT = 1_700_000_000_000_000

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)


def seal_entry(entry: StoredEntry) -> StoredEntry:
    """The entry with the hash that its other columns give."""
    return entry._replace(entry_hash=compute_hash(entry) or b"")


def make_entry(
    position: int, heads: dict[str, tuple[int, bytes]], *, pairs: Pairs, **given: Any
) -> StoredEntry:
    """An entry that follows its aggregate's newest one in `heads`, which is moved on."""
    aggregate = given.pop("aggregate", "account/1")
    version, head = heads.get(aggregate, (0, ZERO_HASH))
    values: dict[str, Any] = {
        "entry_id": UUID(int=position),
        "transaction_id": 700 + position,
        "transaction_position": position,
        "transaction_size": 1,
        "format": 1,
        "data": b"sealed %d" % position,
        "key_id": "k1",
        "recorded_at": read_microseconds(MOMENT + position),
        "idempotency_key": None,
    } | given
    entry = StoredEntry(
        position=position,
        aggregate=aggregate,
        version=version + 1,
        metadata_hash=hash_metadata(pairs),
        prev_hash=head,
        entry_hash=b"",
        **values,
    )
    entry = seal_entry(entry)
    heads[aggregate] = (entry.version, entry.entry_hash)
    return entry


def make_entries(count: int, *, first: int = 1) -> list[StoredEntry]:
    """Plain entries of transactions of their own, at positions from `first`."""
    heads: dict[str, tuple[int, bytes]] = {}
    return [make_entry(position, heads, pairs=[]) for position in range(first, first + count)]


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[StoredEntry], dict[int, Pairs]]:
    """Entries as a log may hold them, in order of sequence, and their metadata.

    Transactions of several entries whose positions interleave, some begun in an earlier
    segment, some with columns that were altered in the database.
    """
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    owners = draw(st.permutations([n for n, size in enumerate(sizes) for _ in range(size)]))
    start = draw(st.integers(1, 1 << 40))
    gaps = draw(st.lists(st.integers(1, 1000), min_size=len(owners), max_size=len(owners)))
    places: dict[int, list[int]] = {}
    position = start
    for owner, gap in zip(owners, gaps, strict=True):
        places.setdefault(owner, []).append(position)
        position += gap
    metadata: dict[int, Pairs] = {}
    heads: dict[str, tuple[int, bytes]] = {}
    entries: list[StoredEntry] = []
    for number, owner in enumerate(sorted(places, key=places.__getitem__)):
        pairs = draw(st.lists(st.tuples(TEXT, TEXT), max_size=3))
        begun = number == 0 and draw(st.booleans())
        began = places[owner][0] - begun
        if pairs and not begun:
            metadata[began] = pairs
        transaction = {
            "transaction_id": draw(st.integers(3, (1 << 63) - 1)),
            "transaction_position": began,
            "transaction_size": sizes[owner] + begun,
        }
        for place in places[owner]:
            given = draw(_columns()) | transaction
            entry = make_entry(place, heads, pairs=pairs, **given)
            entries.append(draw(_altered(entry)) if draw(st.booleans()) else entry)
    return entries, metadata


def _columns() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "entry_id": st.uuids(),
            "aggregate": st.sampled_from(("account/1", "account/2", "\N{SNOWMAN}/\N{PILE OF POO}")),
            "format": st.sampled_from((1, 2, 3)),
            "data": st.binary(max_size=40),
            "key_id": st.sampled_from(("", "k1")),
            "recorded_at": st.integers(-(1 << 50), 1 << 52).map(read_microseconds),
            "idempotency_key": st.none() | TEXT,
        }
    )


def _altered(entry: StoredEntry) -> st.SearchStrategy[StoredEntry]:
    """One column is not what the hashes say."""
    hashes = st.binary(min_size=32, max_size=32)
    columns: Mapping[str, st.SearchStrategy[Any]] = {
        "data": st.binary(max_size=4),
        "version": st.integers(1, (1 << 63) - 1),
        "transaction_id": st.integers(3, 1 << 40),
        "transaction_size": st.integers(1, 1 << 20),
        "format": st.integers(0, 32767),
        "metadata_hash": hashes,
        "prev_hash": hashes,
        "entry_hash": hashes,
    }
    return st.sampled_from(sorted(columns)).flatmap(
        lambda name: columns[name].map(lambda value: entry._replace(**{name: value}))
    )


def encode_entries(
    entries: Sequence[StoredEntry], metadata: Mapping[int, Pairs] | None = None, **given: Any
) -> tuple[bytes, SegmentHeader]:
    """A segment of this archive."""
    values: dict[str, Any] = {
        "log_id": LOG_ID,
        "generation": 0,
        "first": 1,
        "chain_before": start_chain(LOG_ID),
    }
    return encode_segment(entries, metadata or {}, **values | given)


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

    def add_segment(self, count: int = 2, **given: Any) -> Item:
        """One more segment of `count` entries, in the levels of the head that comes next."""
        first = self.head.sequence + 1
        entries = make_entries(count, first=first)
        given = {"first": first, "chain_before": self.head.chain} | given
        data, header = encode_entries(entries, {first: [("actor", "ada")]}, **given)
        item = make_item(header, data)
        self.store.put(item.path, data)
        self.items.append(item)
        self.head = replace(
            self.head,
            levels=add_item(self.head.levels, item, put=self.store.put),
            sequence=item.last,
            chain=item.chain,
            position=item.last_position,
            recorded_at=item.last_recorded,
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
        self.head = self.published = replace(
            before,
            number=number,
            nonce=f"n{number}",
            previous=self.published.link() if self.published else None,
            epoch=1,
            writer="hand",
            created_at=MOMENT,
            **given,
        )
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
