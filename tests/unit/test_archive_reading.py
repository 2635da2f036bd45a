"""Reading an archive: the newest head whatever hints and lists say, and only verified bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import datetime

import pytest

from oplog.archive import archive as archives
from oplog.archive.archive import Archive
from oplog.archive.claim import decode_item
from oplog.archive.format import index
from oplog.archive.format.head import Head, HeadLink
from oplog.archive.format.path import COLLECTED, LATEST, name_head
from oplog.archive.format.segment import start_chain
from oplog.archive.objectstore.memory import Call, MemoryStore
from oplog.archive.objectstore.protocol import ObjectInfo
from oplog.errors import (
    ArchiveError,
    HeadRolledBackError,
    ManifestInvalidError,
    ObjectTooLargeError,
    SegmentCorruptError,
    SegmentMissingError,
)
from tests.archived import LOG_ID, HandMade, encode_records, make_records

pytestmark = pytest.mark.unit


class ListingStore(MemoryStore):
    """Lists what it is told to: nothing, a part, what is gone, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.edit: Callable[[list[ObjectInfo]], list[ObjectInfo]] = lambda found: found
        self.lists = 0

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self.lists += 1
        yield from self.edit([*super().list(prefix, after=after)])


def make_heads(count: int, *, collected: int = 0) -> HandMade:
    """Heads 1 to `count`, the oldest of them collected."""
    made = HandMade(ListingStore())
    made.publish_many(count)
    if collected:
        made.store.put(COLLECTED, b"")
    for number in range(1, collected + 1):
        made.store.delete(name_head(number))
    return made


def listing(made: HandMade) -> ListingStore:
    assert isinstance(made.store, ListingStore)
    return made.store


def flip(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << place % 8
    return bytes(changed)


def read(store: MemoryStore, path: str) -> bytes:
    data = store.get(path, most=1 << 26)
    assert data is not None
    return data


# -- the newest head ----------------------------------------------------------------------


def test_no_head_is_no_archive() -> None:
    assert Archive(MemoryStore()).find_head() is None
    with pytest.raises(SegmentMissingError, match="holds no archive"):
        Archive(MemoryStore()).read_head()


@pytest.mark.parametrize("collected", [0, 1, 5, 7])
@pytest.mark.parametrize("hint", [None, 1, 3, 6, 8, 9, 10, 1000, (1 << 63) - 1])
def test_the_newest_head_is_found_whatever_the_hint(hint: int | None, collected: int) -> None:
    made = make_heads(9, collected=collected)
    if hint is not None:
        made.hint(hint)
    # Of one that names more than there is somebody has to say that he has looked.
    archive = Archive(made.store, accept_older=hint in (10, 1000))
    assert archive.find_head() == archive.read_head() == made.head


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"\n\n\n",
        b"x\ny\n",
        b"0\n-5\n",
        b"0\n0x05\n",
        b"0\n 5\n",
        b"0\n00000000_0000005\n",
        f"0\n{chr(0x660) * 15}{chr(0x665)}\n".encode(),
        b"0\n" + b"f" * 16 + b"\n",
        b"0\n" + b"f" * 60 + b"\n",
        b"0\n" + b"0" * 16 + b"\n",
        b"0\n../../etc/passwd\n",
        b"0\n5\0\n",
        b"\xff\xfe\n\xff",
        b"0" * 65,
        b"0" * 100_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_anything_may_stand_in_the_hint(text: bytes) -> None:
    made = make_heads(6, collected=2)
    made.store.put(LATEST, text)
    assert Archive(made.store).find_head() == made.head


def test_every_flipped_byte_of_the_hint_is_harmless_or_refused() -> None:
    made = make_heads(6, collected=2)
    made.hint(5)
    hint = read(made.store, LATEST)
    refused = 0
    for place in range(len(hint)):
        made.store.put(LATEST, flip(hint, place))
        try:
            assert Archive(made.store).find_head() == made.head
        except HeadRolledBackError:
            refused += 1
        assert Archive(made.store, accept_older=True).find_head() == made.head
    assert 0 < refused < 16


def test_a_hint_that_names_more_than_there_is_stops_readers() -> None:
    made = make_heads(6, collected=2)
    made.hint(6)
    made.store.delete(name_head(6))
    archive = Archive(made.store)
    with pytest.raises(
        HeadRolledBackError, match=r"names head 6, and the newest .* is head 5"
    ) as e:
        archive.find_head()
    assert "--accept-older" in e.value.hint
    with pytest.raises(HeadRolledBackError):
        archive.read_head()
    older = Archive(made.store, accept_older=True).read_head()
    assert older.number == 5


def test_what_was_accepted_is_not_accepted_of_another_hint() -> None:
    made = make_heads(6, collected=2)
    made.hint(7)
    archive = Archive(made.store, accept_older=True)
    assert archive.find_head() == made.head
    assert archive.find_head() == made.head
    made.hint(8)
    with pytest.raises(HeadRolledBackError, match="names head 8"):
        archive.find_head()


def test_a_hint_beside_no_head_at_all_is_no_empty_place() -> None:
    made = make_heads(2)
    made.hint(2)
    for number in (1, 2):
        made.store.delete(name_head(number))
    with pytest.raises(HeadRolledBackError, match="names head 2, and there is no head"):
        Archive(made.store).find_head()
    assert Archive(made.store, accept_older=True).find_head() is None


@pytest.mark.parametrize("number", [None, 0, 1, 5, 6])
def test_a_hint_that_is_missing_or_behind_stops_nobody(number: int | None) -> None:
    made = make_heads(6, collected=2)
    if number is not None:
        made.hint(number)
    assert Archive(made.store).find_head() == made.head


def test_a_head_that_is_published_meanwhile_is_no_contradiction() -> None:
    """The hint is read before heads: what it names then was there before it."""
    made = make_heads(5)
    made.hint(5)

    class Racing(MemoryStore):
        def get(self, path: str, *, most: int) -> bytes | None:
            found = made.store.get(path, most=most)
            if path == LATEST and made.head.number == 5:
                made.publish()
                made.hint(6)
            return found

        def head(self, path: str) -> ObjectInfo | None:
            return made.store.head(path)

    assert Archive(Racing("racing")).find_head() == made.head
    assert made.head.number == 6


def test_a_good_hint_needs_no_list() -> None:
    made = make_heads(9, collected=5)
    made.hint(8)
    assert Archive(made.store).find_head() == made.head
    assert listing(made).lists == 0


def test_a_long_walk_asks_for_a_list() -> None:
    made = make_heads(100)
    made.hint(1)
    gets: list[str] = []
    made.store.on_call = lambda call: gets.append(call.path) if not call.done else None
    assert Archive(made.store).find_head() == made.head
    assert (listing(made).lists, len(gets) < 50) == (1, True)


def test_a_walk_of_any_length_arrives() -> None:
    made = make_heads(1500)
    made.hint(1)
    listing(made).edit = lambda _: []
    assert Archive(made.store).find_head() == made.head


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found[::-1],
        lambda found: found[1::2] + found[::2],
        lambda found: found[:1],
        lambda found: found[:2] + found[:2],
        lambda found: [*found, replace(found[0], path="HEAD/zzz")],
        lambda found: [*found, replace(found[0], path="HEAD/" + "f" * 16)],
    ],
    ids=["backwards", "shuffled", "first", "twice", "stranger", "no number"],
)
@pytest.mark.parametrize("hint", [None, 2, 99])
def test_lists_out_of_order_and_incomplete(
    edit: Callable[[list[ObjectInfo]], list[ObjectInfo]], hint: int | None
) -> None:
    made = make_heads(9, collected=4)
    if hint:
        made.hint(hint)
    listing(made).edit = edit
    assert Archive(made.store, accept_older=hint == 99).find_head() == made.head


def test_a_list_without_the_heads_does_not_make_an_archive_new() -> None:
    made = make_heads(9)
    listing(made).edit = lambda _: []
    assert Archive(made.store).find_head() == made.head
    made = make_heads(9, collected=4)
    listing(made).edit = lambda _: []
    with pytest.raises(ManifestInvalidError, match="was an archive, and shows no head"):
        Archive(made.store).find_head()
    made.hint(6)
    assert Archive(made.store).find_head() == made.head


def test_a_list_of_heads_that_are_gone_does_not_make_an_archive_new() -> None:
    made = make_heads(9, collected=5)
    stale = [ObjectInfo(name_head(number), 1, reading_time(made)) for number in (4, 5)]
    answers = [stale, stale]

    def once_stale(found: list[ObjectInfo]) -> list[ObjectInfo]:
        return answers.pop() if answers else found

    listing(made).edit = once_stale
    assert Archive(made.store).find_head() == made.head
    listing(made).edit = lambda _: stale
    with pytest.raises(ManifestInvalidError, match="was an archive"):
        Archive(made.store).find_head()


def reading_time(made: HandMade) -> datetime:
    info = made.store.head(name_head(9))
    assert info is not None
    return info.modified


def test_heads_collected_while_looking_are_looked_for_again() -> None:
    made = make_heads(4)
    made.hint(2)
    deleted = False

    def collect(call: Call) -> None:
        nonlocal deleted
        if call == Call("get", name_head(2), done=True) and not deleted:
            deleted = True
            made.publish_many(3)
            made.store.put(COLLECTED, b"")
            for number in range(1, 6):
                made.store.delete(name_head(number))

    made.store.on_call = collect
    assert Archive(made.store).find_head() == made.head
    assert made.head.number == 7


# -- heads that do not count --------------------------------------------------------------


def wake(made: HandMade, number: int, *, before: HeadLink | None = None) -> Head:
    """A head that somebody makes who slept since the one before it was the newest."""
    old = replace(
        made.head,
        number=number,
        nonce="asleep",
        previous=None if number == 1 else before or HeadLink(number - 1, bytes(32)),
    )
    made.store.put(name_head(number), old.encode())
    return old


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("hint", [0, 1, 2, 3, 4, 8])
def test_a_head_made_where_heads_were_collected_does_not_count(number: int, hint: int) -> None:
    made = make_heads(9, collected=5)
    wake(made, number)
    made.hint(hint)
    archive = Archive(made.store)
    assert archive.find_head() == made.head
    assert archive.find_head() == made.head


def test_two_heads_made_where_heads_were_collected_do_not_count() -> None:
    made = make_heads(9, collected=5)
    wake(made, 3)
    wake(made, 4)
    made.hint(3)
    assert Archive(made.store).find_head() == made.head
    listing(made).edit = lambda _: []
    # What can be seen does not fit together, and is not taken for the newest.
    with pytest.raises(ManifestInvalidError, match="was an archive"):
        Archive(made.store).find_head()


def test_a_head_made_there_is_not_taken_for_want_of_another() -> None:
    made = make_heads(9, collected=5)
    wake(made, 3)
    listing(made).edit = lambda found: [i for i in found if i.path == name_head(3)]
    with pytest.raises(ManifestInvalidError, match=f"before {name_head(3)} is missing"):
        Archive(made.store).find_head()


def test_head_1_counts_until_heads_are_collected() -> None:
    made = make_heads(1)
    assert Archive(made.store).find_head() == made.head
    made.store.put(COLLECTED, b"")
    with pytest.raises(ManifestInvalidError, match="again after it was collected"):
        Archive(made.store).find_head()


def test_the_head_before_is_read_after_nothing_newer_was_found() -> None:
    made = make_heads(6)
    made.hint(4)
    calls: list[tuple[str, str]] = []
    made.store.on_call = lambda call: calls.append((call.operation, call.path))
    Archive(made.store).find_head()
    assert calls[-4:-2] == [("get", name_head(7))] * 2
    assert calls[-2:] == [("get", name_head(5))] * 2


def test_a_head_before_that_is_missing_or_another_is_an_error() -> None:
    made = make_heads(6)
    before = read(made.store, name_head(5))
    made.store.put(name_head(5), read(made.store, name_head(4)))
    with pytest.raises(ManifestInvalidError, match=f"{name_head(5)} is not the head that"):
        Archive(made.store).find_head()
    made.store.delete(name_head(5))
    with pytest.raises(ManifestInvalidError, match=f"before {name_head(6)} is missing"):
        Archive(made.store).find_head()
    made.store.put(name_head(5), before)
    assert Archive(made.store).find_head() == made.head


def test_a_head_under_another_number_is_an_error() -> None:
    made = make_heads(6)
    made.store.put(name_head(7), read(made.store, name_head(6)))
    with pytest.raises(ManifestInvalidError, match=f"{name_head(7)} says that it is head 6"):
        Archive(made.store).find_head()


def test_a_head_too_large_is_an_error() -> None:
    made = make_heads(2)
    made.store.put(name_head(3), b"{" * (1 << 20) + b"{")
    with pytest.raises(ObjectTooLargeError, match=name_head(3)):
        Archive(made.store).find_head()


# -- what this object has seen ------------------------------------------------------------


def test_a_reader_does_not_go_back() -> None:
    made = make_heads(6)
    archive = Archive(made.store)
    archive.find_head()
    made.store.delete(name_head(6))
    with pytest.raises(HeadRolledBackError, match="is 5, and head 6 was there before"):
        archive.find_head()
    for number in range(1, 6):
        made.store.delete(name_head(number))
    with pytest.raises(HeadRolledBackError, match="is 0, and head 6 was there before"):
        archive.find_head()
    # Whoever comes anew cannot know.
    assert Archive(made.store).find_head() is None


def test_a_reader_that_slept_finds_the_newest() -> None:
    made = make_heads(3)
    archive = Archive(made.store)
    assert archive.find_head() == made.head
    made.publish_many(40)
    made.store.put(COLLECTED, b"")
    for number in range(1, 40):
        made.store.delete(name_head(number))
    assert archive.find_head() == made.head
    assert made.head.number == 43


@pytest.mark.parametrize("told", [True, False])
def test_numbers_of_a_single_writer_have_gaps(told: bool) -> None:
    made = HandMade(ListingStore())
    made.add_segment()
    for number in (2 << 32 | 1, 2 << 32 | 2, 5 << 32 | 1, 5 << 32 | 2, 9 << 32 | 1):
        made.publish(number=number)
    for hint in (None, 5 << 32 | 1, 9 << 32 | 1, 77):
        if hint:
            made.hint(hint)
        archive = Archive(made.store, single_writer=told)
        assert archive.find_head() == made.head
        assert archive.find_head() == made.head
    made.store.delete(name_head(5 << 32 | 2))
    with pytest.raises(ManifestInvalidError, match="is missing"):
        Archive(made.store, single_writer=told).find_head()


# -- verified content ---------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> HandMade:
    """Five segments, nodes of the index on two levels, types, three heads."""
    monkeypatch.setattr(index, "FANOUT", 2)
    made = HandMade()
    made.add_types()
    for _ in range(5):
        made.add_segment(1)
        if made.head.sequence > 2:
            made.publish()
    made.hint(3)
    return made


def read_everything(store: MemoryStore) -> None:
    archive = Archive(store, read_ahead=1)
    head = archive.read_head()
    assert len(list(archive.iterate_segments(head.levels))) == 5
    archive.read_types(head)


def test_every_flipped_byte_of_content_is_found_and_named(small: HandMade) -> None:
    read_everything(small.store)
    kinds = set()
    for info in [*small.store.list("")]:
        kind = info.path.split("/", maxsplit=1)[0]
        if kind not in ("LOG", "INDEX", "BLOB"):
            continue
        kinds.add(kind)
        good = read(small.store, info.path)
        archive = Archive(small.store)
        for place in range(len(good)):
            small.store.put(info.path, flip(good, place))
            with pytest.raises(SegmentCorruptError, match=info.path):
                archive.read_content(info.path)
        # Once through all that is read, for the places where it is asked for.
        with pytest.raises(SegmentCorruptError, match=info.path):
            read_everything(small.store)
        small.store.put(info.path, good)
    assert kinds == {"LOG", "INDEX", "BLOB"}
    read_everything(small.store)


@pytest.mark.parametrize("number", [2, 3])
def test_every_flipped_byte_of_the_last_two_heads_is_found_and_named(
    small: HandMade, number: int
) -> None:
    good = read(small.store, name_head(number))
    for place in range(len(good)):
        small.store.put(name_head(number), flip(good, place))
        with pytest.raises(ManifestInvalidError, match=name_head(number)):
            Archive(small.store).find_head()


def test_missing_and_oversized_content_is_named(small: HandMade) -> None:
    for info in [*small.store.list("")]:
        if info.path.startswith(("LOG/", "INDEX/", "BLOB/")):
            good = read(small.store, info.path)
            small.store.delete(info.path)
            # Of the nodes only those that the newest head leads to are needed.
            try:
                read_everything(small.store)
            except SegmentMissingError as error:
                assert info.path in str(error)  # noqa: PT017 - or it was not needed
            else:
                assert info.path.startswith("INDEX/")
            small.store.put(info.path, good)
    item = small.items[0]
    with pytest.raises(ObjectTooLargeError, match=item.path):
        Archive(small.store).read_content(item.path, most=10)
    for path in ("../x", "LATEST", "HEAD/0000000000000001", "LOG/x"):
        with pytest.raises(ManifestInvalidError, match="cannot name content"):
            Archive(small.store).read_content(path)


def test_segments_come_in_order_and_within_bounds() -> None:
    made = HandMade()
    for _ in range(40):
        made.add_segment(3)
    levels = made.head.levels
    archive = Archive(made.store)
    found = list(archive.iterate_segments(levels))
    assert [item for item, _ in found] == made.items
    assert [segment.header.first for _, segment in found] == list(range(1, 121, 3))
    between = [item for item, _ in archive.iterate_segments(levels, after=6, through=31)]
    assert between == made.items[2:11]
    assert list(archive.iterate_segments(levels, after=120)) == []
    assert [*archive.iterate_newest(levels, after=114)] == made.items[:-3:-1]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_segments_are_not_fetched_ahead_of_the_memory_for_them(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = HandMade()
    for _ in range(9):
        made.add_segment(1)
    most = max(item.size_bytes for item in made.items)
    # Less than one, which is fetched all the same; or so many, beside the one that is given.
    monkeypatch.setattr(archives, "_READ_AHEAD_BYTES", most * (1 + ahead) if ahead else 1)
    fetched: set[str] = set()

    def note(call: Call) -> None:
        if not call.done:
            fetched.add(call.path)

    made.store.on_call = note
    for place, (item, _) in enumerate(Archive(made.store).iterate_segments(made.head.levels)):
        assert item == made.items[place]
        assert len(fetched) <= place + 1 + ahead
    assert fetched == {item.path for item in made.items}


def test_what_is_beyond_the_bound_is_not_read() -> None:
    made = HandMade()
    for _ in range(40):
        made.add_segment(1)
    levels = made.head.levels
    for path in (made.items[20].path, levels[1][1].path):
        made.store.delete(path)
    found = list(Archive(made.store).iterate_segments(levels, through=16))
    assert [item for item, _ in found] == made.items[:16]


@pytest.mark.parametrize("lost", [0, 3, 5, 19])
def test_an_error_met_while_reading_ahead_comes_in_its_place(lost: int) -> None:
    made = HandMade()
    for _ in range(20):
        made.add_segment(1)
    data = read(made.store, made.items[lost].path)
    made.store.put(made.items[lost].path, flip(data, 40))
    seen = []
    with pytest.raises(SegmentCorruptError, match=made.items[lost].path):  # noqa: PT012 - what comes before is looked at
        for item, _ in Archive(made.store).iterate_segments(made.head.levels):
            seen.append(item)
    assert seen == made.items[:lost]


def test_whoever_stops_early_leaves_no_thread_behind() -> None:
    made = HandMade()
    for _ in range(9):
        made.add_segment(1)
    segments = Archive(made.store).iterate_segments(made.head.levels)
    assert next(segments)[0] == made.items[0]
    assert isinstance(segments, Generator)
    segments.close()
    assert list(segments) == []


def test_a_segment_of_another_chain_is_refused_between_others() -> None:
    made = HandMade()
    made.add_segment(1)
    # As a writer would that lost its place: names and ranges fit, the chain does not.
    made.add_segment(1, chain_before=start_chain(LOG_ID))
    made.publish()
    archive = Archive(made.store)
    head = archive.read_head()
    with pytest.raises(ManifestInvalidError, match="does not continue the chain"):
        list(archive.iterate_segments(head.levels))


def test_a_segment_that_is_not_what_its_item_says_is_refused() -> None:
    made = HandMade()
    item = made.add_segment(2)
    data = read(made.store, item.path)
    assert decode_item(data, item).header.last == 2
    for change in (
        {"last": 3},
        {"chain": bytes(32)},
        {"first_position": 2},
        {"last_position": 9},
        {"first_recorded": 1},
        {"last_recorded": 1},
        {"size_bytes": 1},
        {"adopted": True},
    ):
        with pytest.raises(ManifestInvalidError, match=item.path):
            decode_item(data, replace(item, **change))


def test_a_node_is_read_again_for_another_claim() -> None:
    made = HandMade()
    for _ in range(16):
        made.add_segment(1)
    node = made.head.levels[1][0]
    archive = Archive(made.store)
    assert list(archive.read_node(node, 1)) == made.items
    with pytest.raises(ManifestInvalidError, match=node.path):
        archive.read_node(replace(node, chain=bytes(32)), 1)
    with pytest.raises(ManifestInvalidError, match=node.path):
        archive.read_node(node, 2)


def test_without_types_there_are_none() -> None:
    made = make_heads(1)
    assert not Archive(made.store).read_types(made.head).shapes


def test_errors_of_the_store_pass() -> None:
    made = make_heads(3)

    def fail(call: Call) -> None:
        raise ArchiveError(f"no {call.operation}", hint="try again")

    made.store.on_call = fail
    with pytest.raises(ArchiveError, match="no get"):
        Archive(made.store).find_head()


def test_records_are_those_that_were_written() -> None:
    made = HandMade()
    item = made.add_segment(4)
    records = make_records(4, metadata=(("actor", "ada"),))
    assert list(Archive(made.store).read_segment(item).records) == records
    assert read(made.store, item.path) == encode_records(records)[0]
