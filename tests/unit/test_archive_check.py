"""Checking archives made by hand: each byte counts, and no innocent object is accused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from oplog.archive.archive import Archive
from oplog.archive.format.body import compute_hash
from oplog.archive.format.head import HeadLink, Origin, TypesRef, decode_head, make_first
from oplog.archive.format.index import add_item, make_item
from oplog.archive.format.path import BLOB, HEAD, LATEST, LOG, PIN, name_content, name_head
from oplog.archive.format.segment import encode_segment
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.crypto.hashing import ZERO_HASH, hash_metadata
from oplog.store.rows import StoredEntry
from oplog.sync.batch import extend_head
from oplog.upkeep.check import check_archive
from tests.sampling import Sample

pytestmark = pytest.mark.unit

LOG_ID = UUID(int=7)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def make_entry(
    position: int, aggregate: str, version: int, *, prev: bytes, size: int = 1, group: int = 0
) -> StoredEntry:
    entry = StoredEntry(
        position=position,
        entry_id=UUID(int=position),
        transaction_id=3,
        transaction_position=group or position,
        transaction_size=size,
        aggregate=aggregate,
        version=version,
        format=1,
        data=b"payload",
        key_id="",
        metadata_hash=hash_metadata([]),
        prev_hash=prev,
        entry_hash=b"",
        recorded_at=MOMENT,
        idempotency_key=None,
    )
    return entry._replace(entry_hash=compute_hash(entry) or b"")


def build(entries: list[list[StoredEntry]], missing: tuple[int, ...] = ()) -> dict[str, bytes]:
    """A head for each segment."""
    store = MemoryStore("hand")
    head = replace(make_first(UUID(int=8), LOG_ID, Origin("1", 1, 5)), horizon=9)
    link: HeadLink | None = None
    types = LoggedTypes([], {"k": b"\1"})
    blob = name_content(BLOB, 1, data=encode_types(types))
    store.put(blob, encode_types(types))
    for number, group in enumerate(entries, 1):
        data, header = encode_segment(
            group,
            {},
            log_id=LOG_ID,
            generation=0,
            first=head.sequence + 1,
            chain_before=head.chain,
            missing=missing[number - 1] if missing else 0,
        )
        item = make_item(header, data)
        store.put(item.path, data)
        levels = add_item(head.levels, item, put=store.put)
        head = replace(
            extend_head(head, header, levels),
            number=number,
            previous=link,
            nonce=f"{number}",
            types=TypesRef(blob, 0, 1),
        )
        if not item.missing:
            store.put(name_head(number), head.encode())
            link = head.link()
    store.put(f"{PIN}/p-{head.number:016x}", head.encode())
    store.put(LATEST, f"{0:016x}\n{head.number:016x}\n".encode())
    return {info.path: store.get(info.path, most=1 << 20) or b"" for info in store.list("")}


def open_objects(objects: dict[str, bytes]) -> Archive:
    store = MemoryStore("hand")
    for path, data in objects.items():
        store.put(path, data)
    return Archive(store, verdict=Verdict.ATOMIC)


def make_history(count: int = 3) -> list[list[StoredEntry]]:
    entries: list[list[StoredEntry]] = []
    prev = ZERO_HASH
    for version in range(1, count + 1):
        entry = make_entry(version, "a:1", version, prev=prev)
        entries.append([entry])
        prev = entry.entry_hash
    return entries


def list_problems(objects: dict[str, bytes]) -> list[tuple[str, str]]:
    report = check_archive(open_objects(objects))
    return [(problem.path, problem.what.value) for problem in report.problems]


def test_sound() -> None:
    objects = build(make_history(20))
    assert list_problems(objects) == []
    report = check_archive(open_objects(objects))
    assert (report.entries, report.sequence, report.head) == (20, 20, 20)


@pytest.mark.sampled
def test_every_byte_of_every_object(sample: Sample) -> None:
    objects = build(make_history(2))
    assert {path.split("/")[0] for path in objects} == {BLOB, HEAD, LATEST, LOG, PIN}
    refused = 0
    for path, data in objects.items():
        for place in sample(range(len(data)), 100, what=path):
            altered = data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]
            found = check_archive(open_objects({**objects, path: altered}))
            if path == LATEST:
                # A hint may name any head that was there, and none that was not.
                behind = {problem.what for problem in found.problems} == {"behind"}
                assert found.ok != behind
                refused += behind
                continue
            assert path in {problem.path for problem in found.problems}, (path, place)
            assert not found.ok, (path, place)
    assert refused > 0


def test_an_entry_that_does_not_follow_is_named() -> None:
    history = make_history(3)
    history[2] = [make_entry(3, "a:1", 4, prev=history[1][0].entry_hash)]
    objects = build(history)
    third = sorted(path for path in objects if path.startswith(LOG))[2]
    assert list_problems(objects) == [(third, "chain")]


def test_an_incomplete_transaction_is_named() -> None:
    history = make_history(2)
    history[1] = [make_entry(2, "b:1", 1, prev=ZERO_HASH, size=2)]
    objects = build(history)
    second = sorted(path for path in objects if path.startswith(LOG))[1]
    assert list_problems(objects) == [(second, "count")]


def test_a_transaction_may_go_on_in_the_next_segment() -> None:
    begun = make_entry(2, "b:1", 1, prev=ZERO_HASH, size=2)
    ended = make_entry(3, "c:1", 1, prev=ZERO_HASH, size=2, group=2)
    history = [*make_history(1), [begun], [ended]]
    objects = build(history, missing=(0, 1, 0))
    heads = sorted(path for path in objects if path.startswith(HEAD))
    # No head ends inside it: the last is numbered after the first.
    last = decode_head(objects.pop(heads[1]), what="the last")
    objects = {path: data for path, data in objects.items() if not path.startswith(PIN)}
    objects[name_head(2)] = replace(last, number=2).encode()
    objects[LATEST] = f"{0:016x}\n{2:016x}\n".encode()
    assert list_problems(objects) == []


def test_entries_after_damage_are_not_accused() -> None:
    objects = build(make_history(5))
    second = sorted(path for path in objects if path.startswith(LOG))[1]
    assert list_problems({**objects, second: b"?"}) == [(second, "corrupt")]


def test_an_object_of_another_log_is_named() -> None:
    objects = build(make_history(3))
    other = {**objects}
    path = sorted(path for path in objects if path.startswith(LOG))[1]
    head = decode_head(objects[name_head(3)], what="h")
    data, header = encode_segment(
        make_history(2)[1],
        {},
        log_id=UUID(int=99),
        generation=0,
        first=2,
        chain_before=head.levels[0][0].chain,
    )
    item = make_item(header, data)
    levels = (tuple(item if one.path == path else one for one in head.levels[0]),)
    other[item.path] = data
    other[name_head(3)] = replace(head, levels=levels).encode()
    assert (item.path, "invalid") in list_problems(other)


def test_an_empty_place_is_no_archive() -> None:
    assert list_problems({}) == [(f"{HEAD}/", "missing")]


def test_missing_types_are_named() -> None:
    objects = build(make_history(1))
    types = next(path for path in objects if path.startswith(BLOB))
    assert list_problems({one: data for one, data in objects.items() if one != types}) == [
        (types, "missing")
    ]
