"""How every process finds the newest head.

Must not rely on the hint, nor on a listing being complete, nor on time. The hard thing is the
order of the reads: the head, then its successor's absence, then its predecessor. As heads are
deleted from the oldest on, a predecessor that is still there shows that nothing at or after the
head had been deleted when its successor was looked for.
"""

from __future__ import annotations

from oplog.archive.step import Step
from tests.model.values import HINT, MARKER, ROOT, Head, Path
from tests.model.world import Process, Request, World

ATTEMPTS = 12


class Unresolved(Exception):  # noqa: N818 (not an error: heads came and went too fast)
    """The newest head was not found; begin again."""


def resolve(world: World, start: int = 0, *, checked: bool = True) -> Process[Head | None]:
    """The newest head; None while the archive is empty. `start`: a head once seen, or 0.

    Raises `Unresolved` for one that is not believed, unless nothing of that is `checked`.
    """
    began = world.newest
    head = yield from _resolve(world, start)
    if checked and world.rules.check_signature and head is not None and not head.key:
        raise Unresolved
    world.claims.append(("resolved", head, began))
    return head


def _resolve(world: World, start: int) -> Process[Head | None]:
    rules = world.rules
    if rules.root == "overwritten":
        digest = yield Step.RESOLVE_HEAD, Request("get", ROOT)
        return world.table.content(digest) if digest else None
    if rules.root == "epochs":
        return (yield from _list_newest(world))
    if not start:
        digest = yield Step.READ_HINT, Request("get", HINT)
        start = world.table.content(digest) if digest else 0
    for _ in range(ATTEMPTS):
        if not start:
            paths = yield Step.LIST_HEADS, Request("list", Path("HEAD", 0))
            if not paths:
                return None
            start = paths[-1].order
        head = yield from _walk(world, start)
        if head is not None:
            return head
        start = 0
    raise Unresolved


def _list_newest(world: World) -> Process[Head | None]:
    for _ in range(ATTEMPTS):
        paths = yield Step.LIST_HEADS, Request("list", Path("HEAD", 0))
        if not paths:
            return None
        digest = yield Step.RESOLVE_HEAD, Request("get", paths[-1])
        if digest:
            head: Head = world.table.content(digest)
            return head
    raise Unresolved


def _walk(world: World, start: int) -> Process[Head | None]:
    """From one head to the newest; None if what was found does not count."""
    digest = yield Step.RESOLVE_HEAD, Request("get", Path("HEAD", start))
    if not digest:
        return None
    head: Head = world.table.content(digest)
    last = world.rules.predecessor_last
    if not last and not (yield from has_predecessor(world, head)):
        return None
    while True:
        found = yield Step.RESOLVE_HEAD, Request("get", Path("HEAD", head.number + 1))
        if not found:
            break
        following: Head = world.table.content(found)
        if not last and world.rules.check_predecessor and following.previous != digest:
            return None
        head, digest = following, found
    if last and not (yield from has_predecessor(world, head)):
        return None
    return head


def has_predecessor(world: World, head: Head) -> Process[bool]:
    """Does this head count? To be asked after it was read, or created."""
    if not world.rules.check_predecessor:
        return True
    if head.number == 1:
        if not world.rules.mark_collected:
            return True
        marker = yield Step.CHECK_PREDECESSOR, Request("get", MARKER)
        return marker is None
    digest = yield Step.CHECK_PREDECESSOR, Request("get", Path("HEAD", head.number - 1))
    if digest and world.rules.retire_keys and head.key in world.table.content(digest).replaced:
        raise Unresolved
    same: bool = digest == head.previous
    return same
