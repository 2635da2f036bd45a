"""Checking archives made by hand: each byte counts, and no innocent object is accused."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from oplog.archive.archive import Archive
from oplog.archive.format.head import HeadLink, Origin, TypesRef, decode_head, make_first
from oplog.archive.format.index import add_item, make_item
from oplog.archive.format.path import BLOB, HEAD, LATEST, LOG, PIN, name_content, name_head
from oplog.archive.format.segment import encode_segment
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.store.rows import StoredRecord
from oplog.sync.batch import extend_head
from oplog.upkeep.check import check_archive
from tests.archived import make_record, seal_record
from tests.sampling import Sample

pytestmark = pytest.mark.unit

LOG_ID = UUID(int=7)


def build(segments: list[list[StoredRecord]]) -> dict[str, bytes]:
    """A head for each segment."""
    store = MemoryStore("hand")
    head = replace(make_first(UUID(int=8), LOG_ID, Origin("1", 1, 5)), horizon=9)
    link: HeadLink | None = None
    types = LoggedTypes([], {"k": b"\1"})
    blob = name_content(BLOB, 1, data=encode_types(types))
    store.put(blob, encode_types(types))
    for number, records in enumerate(segments, 1):
        data, header = encode_segment(
            records,
            log_id=LOG_ID,
            generation=0,
            first=head.sequence + 1,
            chain_before=head.chain,
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


def make_history(count: int = 3, names: tuple[str, ...] = ("a:1",)) -> list[list[StoredRecord]]:
    """Segments of one record each, of all aggregates in `names`."""
    heads: dict[str, tuple[int, bytes]] = {}
    return [[make_record(n, heads, aggregates=names)] for n in range(1, count + 1)]


def list_problems(objects: dict[str, bytes]) -> list[tuple[str, str]]:
    report = check_archive(open_objects(objects))
    return [(problem.path, problem.what.value) for problem in report.problems]


def test_sound() -> None:
    objects = build(make_history(20))
    assert list_problems(objects) == []
    report = check_archive(open_objects(objects))
    assert (report.entries, report.sequence, report.head) == (20, 20, 20)


def test_what_is_counted_are_entries() -> None:
    report = check_archive(open_objects(build(make_history(4, ("a:1", "b:1", "c:1")))))
    assert (report.ok, report.entries, report.sequence) == (True, 12, 4)


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


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_record_that_does_not_follow_in_one_aggregate_is_named(place: int) -> None:
    history = make_history(3, ("a:1", "b:1", "c:1"))
    [record] = history[2]
    changed = list(record.versions)
    changed[place] += 1
    history[2] = [seal_record(record._replace(versions=tuple(changed)))]
    objects = build(history)
    third = sorted(path for path in objects if path.startswith(LOG))[2]
    assert list_problems(objects) == [(third, "chain")]


def test_records_after_damage_are_not_accused() -> None:
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
