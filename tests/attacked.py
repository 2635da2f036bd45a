"""Attacks on a bucket by somebody who may write, delete and list there, and has no signing key.

Cases are made from a real archive: any object, changed in any of several ways; heads that are
forged as well as can be without the key; the whole bucket as it was earlier; other archives in its
place. Each is a name and the objects that are in the bucket then.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256

from msgspec.structs import replace as alter

from oplog.archive.archive import Archive
from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.head import (
    Endorsement,
    Head,
    HeadLink,
    SnapshotRef,
    TypesRef,
    decode_head,
)
from oplog.archive.format.index import make_item
from oplog.archive.format.manifest import SnapshotManifest, encode_manifest
from oplog.archive.format.path import (
    BLOB,
    HEAD,
    LATEST,
    LOG,
    PIN,
    SNAPSHOT,
    name_content,
    name_head,
    parse_head,
    write_hint,
)
from oplog.archive.format.segment import encode_segment, start_chain
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.store.rows import StoredRecord, compute_hash

Objects = Mapping[str, bytes]


@dataclass(frozen=True)
class Attack:
    """What the bucket holds, and by what it came to that."""

    kind: str
    name: str
    objects: Objects


@dataclass(frozen=True)
class Contents:
    """All that a restore believes of an archive."""

    log_id: object
    records: Sequence[StoredRecord]
    types: LoggedTypes
    snapshot: object


def fill(objects: Objects) -> MemoryStore:
    """A store in memory with these."""
    store = MemoryStore("test")
    for path, data in objects.items():
        store.put(path, data)
    return store


def read_contents(archive: Archive) -> Contents:
    """Read it all, as a restore does; raises what a reader raises."""
    head = archive.read_head()
    records = _read_records(archive, head)
    types = archive.read_types(head)
    snapshot = head.snapshots[-1] if head.snapshots else None
    held: object = None
    if snapshot is not None:
        manifest = archive.read_manifest(snapshot)
        chunks = [archive.read_content(chunk.path) for chunk in manifest.iterate_chunks()]
        held = (manifest, tuple(chunks))
    return Contents(head.log_id, records, types, held)


def _read_records(archive: Archive, head: Head) -> list[StoredRecord]:
    segments = archive.iterate_segments(head.levels)
    return [record for _, segment in segments for record in segment.records]


def find_newest(objects: Objects) -> Head:
    """The head with the highest number."""
    number = max(number for path in objects if (number := parse_head(path)) is not None)
    return decode_head(objects[name_head(number)], what="newest")


# -- any object, changed ------------------------------------------------------------------


def change_objects(objects: Objects, chance: random.Random) -> Iterator[Attack]:
    """Every object flipped, cut, dropped, renamed, and every one under the name of another."""
    paths = sorted(objects)
    for path in paths:
        data = objects[path]
        yield Attack("drop", path, {p: d for p, d in objects.items() if p != path})
        for _ in range(6):
            place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
            flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            yield Attack("flip", f"{path} byte {place} bit {bit}", {**objects, path: flipped})
        for length in {0, len(data) - 1, chance.randrange(len(data))}:
            yield Attack("truncate", f"{path} to {length}", {**objects, path: data[:length]})
        yield Attack("truncate", f"{path} grown", {**objects, path: data + b"\n"})
        others = [other for other in paths if other != path]
        alike = [other for other in others if other[:4] == path[:4]]
        for other in {*chance.sample(others, 3), *chance.sample(alike, min(4, len(alike)))}:
            swapped = {**objects, path: objects[other], other: data}
            yield Attack("swap", f"{path} and {other}", swapped)
            yield Attack("replay", f"{other} as {path}", {**objects, path: objects[other]})
        for name in _rename(path, chance):
            moved = {p: d for p, d in objects.items() if p != path} | {name: data}
            yield Attack("rename", f"{path} to {name}", moved)


def _rename(path: str, chance: random.Random) -> list[str]:
    kind, _, rest = path.partition("/")
    if len(rest) < 16:
        return [f"{path}x"]
    number = f"{chance.randrange(1, 60):016x}"
    return [f"{kind}/{number}{rest[16:]}", f"{LOG}/{rest}", f"{HEAD}/{number}"]


# -- heads that are forged ----------------------------------------------------------------

Forge = Callable[[Archive, Head, dict[str, bytes]], Head]
"""Changes what a head says; new content goes into the objects."""


def _put(objects: dict[str, bytes], kind: str, number: int, data: bytes) -> str:
    path = name_content(kind, number, data=data)
    objects[path] = data
    return path


def _change_types(
    archive: Archive,
    head: Head,
    objects: dict[str, bytes],
    change: Callable[[LoggedTypes], LoggedTypes],
) -> Head:
    found = change(archive.read_types(head))
    path = _put(objects, BLOB, 1 << 32, encode_types(found))
    return replace(head, types=TypesRef(path, len(found.shapes), len(found.key_checks)))


def swap_columns(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """Two columns of a type exchange their numbers."""

    def change(types: LoggedTypes) -> LoggedTypes:
        shapes = []
        for shape in types.shapes:
            a, b = shape.columns[0], shape.columns[-1]
            first = replace(a, field=b.field, number=b.number)
            last = replace(b, field=a.field, number=a.number)
            inner = shape.columns[1:-1]
            columns = (first, *inner, last) if len(shape.columns) > 1 else shape.columns
            shapes.append(replace(shape, columns=columns))
        return LoggedTypes(shapes, types.key_checks)

    return _change_types(archive, head, objects, change)


def name_other_table(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """A type's rows go into another table."""

    def change(types: LoggedTypes) -> LoggedTypes:
        shapes = [replace(shape, table="keepme") for shape in types.shapes]
        return LoggedTypes(shapes, types.key_checks)

    return _change_types(archive, head, objects, change)


def change_key_checks(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """No key of the reader is the right one."""
    return _change_types(
        archive,
        head,
        objects,
        lambda types: LoggedTypes(types.shapes, dict.fromkeys(types.key_checks, bytes(32))),
    )


def _rewrite(
    archive: Archive,
    head: Head,
    objects: dict[str, bytes],
    change: Callable[[list[StoredRecord]], list[StoredRecord]],
) -> Head:
    """All records as one segment, changed, with all hashes that need no key."""
    records = _read_records(archive, head)
    changed = [
        record._replace(record_hash=compute_hash(record) or record.record_hash)
        for record in change(records)
    ]
    data, header = encode_segment(
        changed,
        log_id=head.log_id,
        generation=head.generation,
        first=1,
        chain_before=start_chain(head.log_id),
    )
    item = make_item(header, data)
    objects[item.path] = data
    return replace(
        head,
        levels=((item,),),
        sequence=item.last,
        chain=item.chain,
        position=item.last_position,
        recorded_at=item.last_recorded,
        first_sequence=1,
        snapshots=(),
        branches=(),
    )


def change_actors(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """Somebody else did it."""
    return _rewrite(
        archive,
        head,
        objects,
        lambda records: [one._replace(metadata=(("actor", "mallory"),)) for one in records],
    )


def change_times(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """It was done at another time."""
    return _rewrite(
        archive,
        head,
        objects,
        lambda records: [
            one._replace(recorded_at=one.recorded_at + timedelta(days=1)) for one in records
        ],
    )


def drop_record(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """A record in the middle never was."""
    return _rewrite(archive, head, objects, lambda records: [*records[:3], *records[4:]])


def cut_end(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """The last records never were."""
    return _rewrite(archive, head, objects, lambda records: records[:-2])


def empty_log(_: Archive, head: Head, __: dict[str, bytes]) -> Head:
    """Nothing ever was; an honest collection would delete everything."""
    return replace(
        head,
        levels=((),),
        sequence=0,
        chain=start_chain(head.log_id),
        position=0,
        recorded_at=0,
        first_sequence=1,
        snapshots=(),
        branches=(),
        types=None,
        horizon=(1 << 62),
    )


def reserve_nothing(_: Archive, head: Head, __: dict[str, bytes]) -> Head:
    """All blobs are garbage, and the log begins later."""
    return replace(head, snapshots=(), types=None, horizon=1 << 62)


def _change_manifest(
    archive: Archive,
    head: Head,
    objects: dict[str, bytes],
    *,
    change: Callable[[SnapshotManifest], SnapshotManifest],
) -> Head:
    ref = head.snapshots[-1]
    manifest = change(archive.read_manifest(ref))
    path = _put(objects, SNAPSHOT, manifest.sequence, encode_manifest(manifest))
    found = SnapshotRef(path, ref.sequence, ref.position, ref.recorded_at, ref.size_bytes)
    return replace(head, snapshots=(*head.snapshots[:-1], found))


def end_sequences(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """The next ids are the last ones that there are."""

    def change(manifest: SnapshotManifest) -> SnapshotManifest:
        ended = (alter(one, last_value=(1 << 31) - 1) for one in manifest.sequences)
        return replace(manifest, sequences=tuple(ended))

    return _change_manifest(archive, head, objects, change=change)


def forget_table(archive: Archive, head: Head, objects: dict[str, bytes]) -> Head:
    """The snapshot has no rows of some tables."""

    def change(manifest: SnapshotManifest) -> SnapshotManifest:
        emptied = (replace(one, rows=0, base=(), layers=()) for one in manifest.tables)
        return replace(manifest, tables=tuple(emptied))

    return _change_manifest(archive, head, objects, change=change)


FORGES: Mapping[str, Forge] = {
    forge.__name__: forge
    for forge in (
        swap_columns,
        name_other_table,
        change_key_checks,
        change_actors,
        change_times,
        drop_record,
        cut_end,
        empty_log,
        reserve_nothing,
        end_sequences,
        forget_table,
    )
}

Sign = Callable[[Head, Head], bytes]
"""Makes the bytes of a forged head; the second is the newest that is genuine."""
THIEF = SigningKeyring.generate()


def leave_unsigned(head: Head, _: Head) -> bytes:
    """Without any signature."""
    return replace(head, publisher=None, signature=None, endorsements=()).encode()


def sign_as_thief(head: Head, _: Head) -> bytes:
    """By a key of the forger's own."""
    return HeadTrust(keyring=THIEF).sign(head, base=replace(head, publisher=None)).encode()


def sign_as_successor(head: Head, newest: Head) -> bytes:
    """By a key of the forger's own, for which the publisher seems to vouch."""
    link = Endorsement(
        by=newest.publisher or "", publisher=THIEF.publisher, signature=newest.signature or ""
    )
    base = replace(head, publisher=THIEF.publisher, endorsements=(link,))
    return HeadTrust(keyring=THIEF).sign(base, base=base).encode()


def keep_signature(head: Head, newest: Head) -> bytes:
    """With the signature of the newest head, and the right hash over all of it."""
    signed = sign_as_thief(head, newest)
    document = json.loads(signed) | {
        "publisher": newest.publisher,
        "signature": newest.signature,
        "endorsements": [],
    }
    return fix_hash(document)


def fix_hash(document: dict[str, object]) -> bytes:
    """The document with the hash over itself, which needs no key."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return encode_document(rest | {"sha256": sha256(encode_document(rest)).hexdigest()})


SIGNS: Mapping[str, Sign] = {
    sign.__name__: sign
    for sign in (leave_unsigned, sign_as_thief, sign_as_successor, keep_signature)
}


def forge_heads(objects: Objects) -> Iterator[Attack]:
    """Every change of a head, signed in every way, in every place."""
    newest = find_newest(objects)
    source = Archive(fill(objects), verdict=Verdict.ATOMIC, trust=HeadTrust(unsigned=True))
    for change, forge in FORGES.items():
        made = dict(objects)
        forged = replace(forge(source, newest, made), nonce="forged")
        for sign_name, sign in SIGNS.items():
            for where, placed in _place(forged, newest):
                data = sign(placed, newest)
                there = {**made, name_head(placed.number): data}
                name = f"{change}, {sign_name}, {where}"
                yield Attack("forge", name, there)
                hint = {LATEST: write_hint(0, placed.number)}
                yield Attack("forge", f"{name}, in LATEST", {**there, **hint})


def _place(forged: Head, newest: Head) -> Iterator[tuple[str, Head]]:
    far = (1 << 31) - 2
    yield "next", replace(forged, number=newest.number + 1, previous=newest.link())
    yield "in place", replace(forged, number=newest.number, previous=newest.previous)
    yield "far ahead", replace(forged, number=far << 32 | 1, epoch=far, previous=None)
    link = HeadLink(newest.number, bytes(32))
    yield "on nothing", replace(forged, number=newest.number + 1, previous=link)


# -- whole buckets ------------------------------------------------------------------------


def bring_back_older(states: Sequence[Objects]) -> Iterator[Attack]:
    """The bucket as it was, all of it or its heads alone, with LATEST of then or of now."""
    newest = states[-1]
    for number, older in enumerate(states[:-1]):
        latest = {LATEST: newest[LATEST]}
        yield Attack("older", f"state {number}", older)
        yield Attack("older", f"state {number}, newest LATEST", {**older, **latest})
        content = {p: d for p, d in newest.items() if not p.startswith((f"{HEAD}/", LATEST))}
        heads = {p: d for p, d in older.items() if p.startswith((f"{HEAD}/", LATEST))}
        yield Attack("older", f"heads of state {number}", {**content, **heads})
        yield Attack("older", f"heads of state {number}, newest LATEST", content | heads | latest)


def put_another(objects: Objects, others: Mapping[str, Objects]) -> Iterator[Attack]:
    """Another archive in its place, all of it, or its heads over those that are there."""
    for name, other in others.items():
        yield Attack("another", name, other)
        yield Attack("another", f"{name}, over it", {**objects, **other})
        yield Attack("another", f"{name}, under it", {**other, **objects})
        heads = {p: d for p, d in other.items() if p.startswith((f"{HEAD}/", PIN, LATEST))}
        kept = {p: d for p, d in objects.items() if not p.startswith((f"{HEAD}/", LATEST))}
        yield Attack("another", f"heads of {name}", {**kept, **heads})
