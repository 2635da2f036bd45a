"""The protocol's rules, each of which a variant may break.

Knows no process. The defaults are the rules that the product follows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """What the processes of a run obey, and what the adversary may do to them."""

    # -- the commit point
    root: str = "numbered"
    """`numbered` heads created if absent, one `overwritten` root, or heads of `epochs`."""
    hashed_names: bool = True
    content_first: bool = True
    check_predecessor: bool = True
    predecessor_last: bool = True
    """Read the predecessor after the head, and after the next one was seen to be absent."""
    mark_collected: bool = True
    """Leave a marker before head 1 is deleted: without it head 1 has no predecessor to miss."""
    fresh_ids: bool = True
    """Another id in every request to create a head, and none sent twice."""
    # -- epochs and Postgres
    check_epoch: bool = True
    epoch_first: bool = False
    """Take the epoch before reading, or when there is something to publish."""
    check_timeline: bool = True
    generations: bool = True
    one_session: bool = True
    """Read, compare and acknowledge in one session; a lost one ends the pass."""
    compare_hashes: bool = True
    acknowledge_after_head: bool = True
    cursor: str = "row"
    """News are read from the cursor of the acknowledgement's `row`, or of the `head`, or from one
    in Postgres alone that is advanced `before` or `after` the head is created."""
    clamp_cursor: bool = True
    # -- content
    skip: str = "reachable"
    """Skip an upload when it is `reachable` from the head built on, or when it `exists`."""
    recheck_base: bool = True
    drop_lost_snapshots: bool = True
    # -- garbage collection
    collect: str = "horizon"
    """`horizon`; all that is unreachable `now`, or once it is `aged`; or `never`."""
    index_by_last: bool = True
    heads_ascending: bool = True
    confirm_deletes: bool = True
    pins_after_head: bool = True
    confirm_pins: bool = True
    pin_by_copy: bool = True
    """Keep an old head by a copy under PIN/, or by leaving it in its place."""
    # -- signatures
    check_signature: bool = True
    """Believe no head that the publisher has not signed."""
    check_base: bool = True
    """Publishers, too: they build on no head that they do not believe."""
    retire_keys: bool = True
    """A key that another one has replaced signs nothing that follows."""
    # -- the adversary
    forgers: bool = False
    """Somebody without the newest key creates heads; keys are rotated, and one of old is stolen."""
    failovers: bool = True
    pressure: str = ""
    """What the adversary does most, for orders that are seldom reached otherwise."""
    promise: str = "all"
    """`all`, or only that what was `acknowledged` is never lost."""

    @property
    def numbered(self) -> bool:
        return self.root == "numbered"


SOUND = Rules()
