"""Garbage collection, pins, and readers.

A collector may run anywhere, at any time, several at once, and stall for ages between what it
chose and what it deletes. The hard thing is that nothing it chose may ever be wanted again: that
follows from the horizon and the first sequence of the newest head, not from anything's age.
"""

from __future__ import annotations

from oplog.archive.step import Step
from tests.model.reading import Unresolved, resolve
from tests.model.values import HINT, MARKER, Head, Manifest, Path
from tests.model.world import Process, Request, World

AGE = 25
"""After how many writes to the store an object is `aged`."""
GRACE = 3
"""The newest heads that are kept for readers; never less than two."""
DELETES = {
    "BLOB": Step.DELETE_BLOB,
    "LOG": Step.DELETE_LOG,
    "INDEX": Step.DELETE_INDEX,
    "SNAPSHOT": Step.DELETE_MANIFEST,
}


def collect(world: World) -> Process[None]:
    """One collection: of content by kind in any order, and of heads."""
    early: list[Head] | None = None
    if not world.rules.pins_after_head:
        early = yield from _read_pins(world)
    try:
        newest = yield from resolve(world)
    except Unresolved:
        return
    if newest is None:
        return
    pins = early if early is not None else (yield from _read_pins(world))
    roots = [newest, *pins, *(yield from _read_grace(world, newest))]
    reachable = {world.name(path) for root in roots for path in world.table.reach(root)}
    kinds = [*DELETES, "HEAD"] if world.rules.numbered else [*DELETES]
    world.random.shuffle(kinds)
    for kind in kinds:
        if kind == "HEAD":
            yield from _collect_heads(world, newest)
            continue
        names = yield Step.LIST_GARBAGE, Request("list", Path(kind, 0))
        garbage = [
            name for name in names if name not in reachable and _may_go(world, name, newest=newest)
        ]
        for name in garbage:
            yield DELETES[kind], Request("delete", name)


def _may_go(world: World, name: Path, *, newest: Head) -> bool:
    if world.rules.collect == "now":
        return True
    if world.rules.collect == "aged":
        return world.store.mutations - world.store.put_at[name] > AGE
    if name.kind == "BLOB":
        return name.order < newest.horizon
    if name.kind == "SNAPSHOT":
        manifest: Manifest = world.table.content(name.digest)
        return manifest.mint < newest.horizon
    return name.order < newest.first_sequence


def _read_pins(world: World) -> Process[list[Head]]:
    heads = []
    names = yield Step.LIST_PINS, Request("list", Path("PIN", 0))
    for name in names:
        digest = yield Step.READ_OBJECT, Request("get", name)
        if digest:
            heads.append(world.table.content(digest))
    return heads


def _read_grace(world: World, newest: Head) -> Process[list[Head]]:
    """The heads before the newest that readers may still be at."""
    heads: list[Head] = []
    if not world.rules.numbered:
        return heads
    for number in range(newest.number - 1, max(0, newest.number - GRACE), -1):
        digest = yield Step.READ_OBJECT, Request("get", Path("HEAD", number))
        if digest:
            heads.append(world.table.content(digest))
    return heads


def _collect_heads(world: World, newest: Head) -> Process[None]:
    """From the oldest on; each is seen to be gone before the next one goes."""
    rules = world.rules
    names = yield Step.LIST_HEADS, Request("list", Path("HEAD", 0))
    old = [name for name in names if name.order <= newest.number - GRACE]
    if not rules.pin_by_copy:
        old = [name for name in old if name.order % 4 != 1]
    if not rules.heads_ascending:
        old.reverse()
    for name in old:
        if name.order == 1 and rules.mark_collected and not (yield from _mark(world)):
            return
        for _ in range(4):
            yield Step.DELETE_HEAD, Request("delete", name)
            if not rules.confirm_deletes:
                break
            if (yield Step.CONFIRM_DELETED, Request("get", name)) is None:
                break
        else:
            return


def _mark(world: World) -> Process[bool]:
    """Leave the marker that stands in for the predecessor which head 1 never had."""
    yield Step.DELETE_HEAD, Request("put", MARKER, world.table.digest("collected"))
    return (yield Step.CONFIRM_DELETED, Request("get", MARKER)) is not None


def pin(world: World) -> Process[None]:
    """Keep a head for ever: a copy, which holds once the head was newest after it was put."""
    try:
        head = yield from resolve(world)
        if head is None or not world.rules.numbered:
            return
        path = Path("PIN", head.number, world.table.digest(head))
        answer = yield Step.PUT_PIN, Request("put", path, path.digest)
        if answer is not True:
            return
        if world.rules.confirm_pins:
            newest = yield from resolve(world, head.number)
            if newest != head:
                return
    except Unresolved:
        return
    world.claims.append(("pinned", head, 0))


def read(world: World) -> Process[None]:
    """Resolve again and again, remembering the number; sometimes from a useless hint."""
    known = 0
    for _ in range(world.random.randrange(1, 5)):
        if world.random.random() < 0.3:
            known = 0
        try:
            head = yield from resolve(world, known)
        except Unresolved:
            continue
        if head is not None and world.rules.numbered:
            known = head.number


def scribble(world: World) -> Process[None]:
    """Write a hint that is stale, or nonsense."""
    world.scribbled = True
    digest = world.table.digest(world.random.randrange(1, world.newest + 4))
    yield Step.WRITE_HINT, Request("put", HINT, digest)
