"""Heads: one spelling, members that agree with each other, and a hash over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.head import (
    Branch,
    Head,
    HeadLink,
    Origin,
    SnapshotRef,
    TypesRef,
    decode_head,
    make_first,
)
from oplog.archive.format.path import BLOB, SNAPSHOT, name_content
from oplog.archive.format.segment import start_chain
from oplog.errors import ManifestInvalidError
from tests.archived import ARCHIVE_ID, LOG_ID, TEXT, HandMade

pytestmark = pytest.mark.unit

PATHS = st.binary(max_size=2).map(lambda data: name_content(BLOB, 1 << 32, data=data))
NUMBERS = st.integers(0, (1 << 63) - 1)


def make_archive() -> HandMade:
    made = HandMade()
    for _ in range(20):
        made.add_segment(2)
    made.publish()
    return made


ARCHIVE = make_archive()
HEAD = replace(
    ARCHIVE.head,
    number=2,
    previous=ARCHIVE.head.link(),
    cursor='{"snapshot": "4:4:"}',
    types=TypesRef(name_content(BLOB, 1 << 32, data=b""), 3, 1),
    snapshots=(
        SnapshotRef(name_content(SNAPSHOT, 0, data=b"a"), 0, 0, 0, 0),
        SnapshotRef(name_content(SNAPSHOT, 8, data=b"b"), 8, 8, -5, 100),
    ),
    branches=(Branch(0, 4, bytes(32), 40, 1, ARCHIVE.head.levels),),
)


def refused(data: bytes) -> str:
    with pytest.raises(ManifestInvalidError, match="HEAD/x") as caught:
        decode_head(data, what="HEAD/x")
    return str(caught.value)


def spell(document: dict[str, Any]) -> bytes:
    """A document in the form of a head, with the right hash for what it says."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return encode_document(rest | {"sha256": sha256(encode_document(rest)).hexdigest()})


@st.composite
def heads(draw: st.DrawFn) -> Head:
    number, epoch = draw(st.integers(1, (1 << 63) - 2)), draw(st.integers(1, (1 << 31) - 1))
    before = number - 1
    if draw(st.booleans()):
        # The first of an epoch, where no store keeps two writers apart.
        number, before = epoch << 32 | 1, draw(st.integers(0, (epoch << 32) - 1))
    levels = draw(st.sampled_from((ARCHIVE.head.levels, ((),), ((), ()))))
    items = [item for row in levels for item in row]
    sequence = ARCHIVE.head.sequence if items else draw(NUMBERS)
    first = 1 if items else min(sequence + 1, (1 << 63) - 1)
    chain = ARCHIVE.head.chain if items or sequence else start_chain(LOG_ID)
    places = sorted(draw(st.sets(st.integers(0, sequence), max_size=3)))
    return Head(
        number=number,
        nonce=draw(TEXT),
        previous=HeadLink(before, draw(st.binary(min_size=32, max_size=32))) if before else None,
        archive_id=draw(st.uuids()),
        log_id=LOG_ID,
        generation=draw(NUMBERS),
        epoch=epoch,
        writer=draw(TEXT),
        origin=Origin(draw(TEXT), draw(NUMBERS), draw(NUMBERS)),
        cursor=draw(st.none() | TEXT),
        sequence=sequence if first > sequence or items else sequence - 1,
        chain=chain,
        position=draw(NUMBERS),
        recorded_at=draw(st.integers(-(1 << 62), (1 << 63) - 1)),
        first_sequence=first,
        horizon=draw(NUMBERS),
        created_at=draw(NUMBERS),
        levels=levels,
        types=draw(st.none() | st.builds(TypesRef, PATHS, NUMBERS, NUMBERS)),
        snapshots=tuple(
            SnapshotRef(name_content(SNAPSHOT, n, data=b""), n, draw(NUMBERS), 0, 1)
            for n in places
            if n < first or items
        ),
        branches=tuple(
            draw(
                st.lists(
                    st.builds(
                        Branch,
                        NUMBERS,
                        NUMBERS,
                        st.binary(min_size=32, max_size=32),
                        NUMBERS,
                        st.integers(1, 99),
                        st.just(ARCHIVE.head.levels),
                    ),
                    max_size=2,
                )
            )
        ),
    )


@given(heads())
@settings(deadline=None)
def test_heads_come_back_as_they_were(head: Head) -> None:
    data = head.encode()
    found = decode_head(data, what="it")
    assert found == head
    assert found.encode() == data
    assert found.link() == HeadLink(head.number, sha256(data).digest())
    assert encode_document(json.loads(data)) == data


def test_the_head_used_below_is_right() -> None:
    assert decode_head(HEAD.encode(), what="it") == HEAD
    assert spell(json.loads(HEAD.encode())) == HEAD.encode()
    assert HEAD.fork == HEAD.branches[0]
    assert ARCHIVE.head.fork is None


# -- the hash over itself -----------------------------------------------------------------


def test_every_flipped_byte_is_found() -> None:
    small = replace(HEAD, branches=(), levels=((),), sequence=0, chain=start_chain(LOG_ID))
    data = replace(small, snapshots=small.snapshots[:1]).encode()
    for place in range(len(data)):
        for bit in (0x01, 0x20):
            flipped = bytearray(data)
            flipped[place] ^= bit
            refused(bytes(flipped))


def test_every_truncation_is_refused() -> None:
    data = HEAD.encode()
    for length in range(0, len(data), 7):
        refused(data[:length])
    refused(data + b"\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("created_at", 0),
        ("writer", "somebody"),
        ("id", "another"),
        ("epoch", 2),
        ("cursor", None),
        ("horizon", 7),
        ("sha256", "00" * 32),
    ],
)
def test_what_is_bound_by_nothing_else_is_bound_by_its_hash(name: str, value: Any) -> None:
    document = json.loads(HEAD.encode()) | {name: value}
    assert "the SHA-256 that it gives for itself" in refused(encode_document(document))


# -- every member -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(json.loads(HEAD.encode())) - {"sha256"}))
@pytest.mark.parametrize(
    "value",
    [[], {}, 1.5, True, -(1 << 63) + 1, "\N{SNOWMAN}" * 40_000, [[]], [None]],
    ids=lambda value: repr(value)[:9],
)
def test_no_member_takes_anything(name: str, value: Any) -> None:
    allowed: dict[str, list[Any]] = {"snapshots": [[]], "branches": [[]], "endorsements": [[]]}
    if value in allowed.get(name, ()):
        return
    refused(spell(json.loads(HEAD.encode()) | {name: value}))


@pytest.mark.parametrize("name", sorted(json.loads(HEAD.encode())))
def test_no_member_may_be_missing(name: str) -> None:
    document = json.loads(HEAD.encode())
    del document[name]
    refused(encode_document(document) if name == "sha256" else spell(document))


@pytest.mark.parametrize("inside", ["previous", "origin", "types"])
def test_no_member_of_a_member_may_be_missing_or_new(inside: str) -> None:
    document = json.loads(HEAD.encode())
    told = refused(spell(document | {inside: document[inside] | {"new": 1}}))
    assert f"unknown field `new` - at `$.{inside}`" in told
    for name in document[inside]:
        less = {key: value for key, value in document[inside].items() if key != name}
        refused(spell(document | {inside: less}))
    refused(spell(document | {"new": 1}))


@pytest.mark.parametrize("inside", ["snapshots", "branches"])
def test_no_member_of_an_item_may_be_missing_or_new(inside: str) -> None:
    document = json.loads(HEAD.encode())
    first, *rest = document[inside]
    told = refused(spell(document | {inside: [first | {"new": 1}, *rest]}))
    assert f"unknown field `new` - at `$.{inside}[" in told
    for name in first:
        less = {key: value for key, value in first.items() if key != name}
        refused(spell(document | {inside: [less, *rest]}))


Change = Callable[[Head], Head]
LEVELS = HEAD.levels
LAST = LEVELS[0][-1]
WRONG: dict[str, Change] = {
    "number 0": lambda h: replace(h, number=0),
    "format": lambda h: replace(h, types=TypesRef("BLOB/x", 1, 1)),
    "types elsewhere": lambda h: replace(h, types=TypesRef(LAST.path, 1, 1)),
    "no segments": lambda h: replace(h, levels=((),)),
    "one record and no segments": lambda h: replace(h, levels=((),), sequence=1, snapshots=()),
    "ends early": lambda h: replace(h, levels=(LEVELS[0][:-1], *LEVELS[1:])),
    "ends late": lambda h: replace(h, sequence=h.sequence - 1),
    "other chain": lambda h: replace(h, chain=bytes(32)),
    "begins late": lambda h: replace(h, levels=(LEVELS[0], ())),
    "hole": lambda h: replace(h, levels=((LEVELS[0][0], *LEVELS[0][2:]), *LEVELS[1:])),
    "twice": lambda h: replace(h, levels=((LEVELS[0][0], *LEVELS[0]), *LEVELS[1:])),
    "wrong level": lambda h: replace(h, levels=(*LEVELS, ())[1:]),
    "no predecessor": lambda h: replace(h, previous=None),
    "no predecessor at all": lambda h: replace(h, previous=None, number=(1 << 32) - 1),
    "a predecessor": lambda h: replace(h, number=1),
    "a gap before": lambda h: replace(h, number=3, previous=HeadLink(1, bytes(32))),
    "far ahead": lambda h: replace(h, number=(1 << 63) - 2, previous=None),
    "of another epoch": lambda h: replace(h, number=(h.epoch + 1) << 32 | 1),
    "late in its epoch": lambda h: replace(h, number=h.epoch << 32 | 2),
    "itself before": lambda h: replace(h, previous=HeadLink(2, bytes(32))),
    "later before": lambda h: replace(h, previous=HeadLink(3, bytes(32))),
    "snapshots unsorted": lambda h: replace(h, snapshots=h.snapshots[::-1]),
    "snapshot twice": lambda h: replace(h, snapshots=h.snapshots[:1] * 2),
    "snapshot ahead": lambda h: replace(
        h, snapshots=(SnapshotRef(name_content(SNAPSHOT, 41, data=b""), 41, 1, 1, 1),)
    ),
    "snapshot elsewhere": lambda h: replace(
        h, snapshots=(SnapshotRef(name_content(SNAPSHOT, 7, data=b""), 8, 1, 1, 1),)
    ),
    "empty with a chain": lambda h: replace(
        h, levels=((),), sequence=0, chain=bytes(32), snapshots=()
    ),
    "too many snapshots": lambda h: replace(
        h,
        levels=((),),
        sequence=5000,
        first_sequence=5001,
        snapshots=tuple(
            SnapshotRef(name_content(SNAPSHOT, n, data=b""), n, 1, 1, 1) for n in range(1001)
        ),
    ),
    "too many branches": lambda h: replace(h, branches=h.branches * 101),
    "out of range": lambda h: replace(h, position=1 << 63),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_members_that_contradict_each_other_are_neither_written_nor_read(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = change(HEAD)
    with pytest.raises(ManifestInvalidError, match="to be written"):
        wrong.encode()
    # As a writer that does not look would write it.
    monkeypatch.setattr("oplog.archive.format.head.decode_head", lambda *_, **__: wrong)
    data = wrong.encode()
    monkeypatch.undo()
    refused(data)


def test_the_first_head_of_a_later_epoch_may_have_no_predecessor() -> None:
    # Heads are numbered by epoch where the store does not keep two writers apart.
    for epoch in (0, 1, 2, (1 << 31) - 1):
        head = replace(HEAD, number=epoch << 32 | 1, epoch=epoch, previous=None)
        assert decode_head(head.encode(), what="it") == head


def test_a_head_that_reads_back_as_another_is_not_written() -> None:
    wrong: Any = list(HEAD.snapshots)
    with pytest.raises(ManifestInvalidError, match="does not read back as it was written"):
        replace(HEAD, snapshots=wrong).encode()


@pytest.mark.parametrize(
    "text", ["", "x", ARCHIVE_ID.hex, str(ARCHIVE_ID).upper(), f"{{{ARCHIVE_ID}}}"]
)
@pytest.mark.parametrize("name", ["archive", "log"])
def test_a_uuid_has_one_spelling(name: str, text: str) -> None:
    refused(spell(json.loads(HEAD.encode()) | {name: text}))


@given(st.binary(max_size=100))
def test_random_bytes_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "data",
    [b"{" * (1 << 20), b"[" * ((1 << 20) + 1), b'{"format":1,"format":1}', b"1.5", b"9" * 99_999],
    ids=lambda data: repr(data[:8]),
)
def test_hostile_documents_are_refused(data: bytes) -> None:
    refused(data)


def test_a_head_that_is_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oplog.archive.format.head.MAX_HEAD_BYTES", len(HEAD.encode()) - 1)
    with pytest.raises(ManifestInvalidError, match=r"to be written, .* over the limit"):
        HEAD.encode()


@pytest.mark.parametrize("value", [None, 7, "00" * 31, "0" * 64 + "\n"])
def test_its_hash_is_one(value: Any) -> None:
    assert "`$.sha256`" in refused(encode_document(json.loads(HEAD.encode()) | {"sha256": value}))


def test_a_head_of_an_unknown_format_is_refused_by_its_number() -> None:
    told = refused(spell(json.loads(HEAD.encode()) | {"format": 2}))
    assert "its format number is 2, this library knows 1" in told


def test_an_archive_without_a_head_holds_nothing() -> None:
    log_id, origin = UUID(int=1), Origin("1", 1, 5)
    first = make_first(ARCHIVE_ID, log_id, origin)
    assert first == Head(
        number=0,
        nonce="",
        previous=None,
        archive_id=ARCHIVE_ID,
        log_id=log_id,
        generation=0,
        epoch=0,
        writer="",
        origin=origin,
        cursor=None,
        sequence=0,
        chain=start_chain(log_id),
        position=0,
        recorded_at=0,
        first_sequence=1,
        horizon=0,
        created_at=0,
        levels=((),),
        types=None,
        snapshots=(),
        branches=(),
    )
    with pytest.raises(ManifestInvalidError, match="to be written"):
        first.encode()
