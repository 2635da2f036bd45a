"""The judge: what must hold after every request that the store carries out.

Sees everything, decides nothing. The hard thing is to say what is *true* without trusting the
protocol: a head is true if it was the first to have the number after the newest true one. All
else that is called a head is garbage, and whoever takes it for one is wrong.
"""

from __future__ import annotations

from tests.model.collection import GRACE
from tests.model.values import HINT, ROOT, Head, Manifest, Path, Segment, fold
from tests.model.world import Request, World


class Violation(AssertionError):  # noqa: N818 (the word of the domain)
    """An invariant does not hold."""


def demand(holds: bool, text: str) -> None:
    if not holds:
        raise Violation(text)


class Judge:
    """Keeps the true heads and everything that has to exist because of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.table = world.table
        self.everything = world.rules.promise == "all"
        self.heads: list[Head] = []
        self.true: set[int] = set()
        self.pins: list[Head] = []
        self.needed: dict[Path, int] = {}
        self.chains: dict[tuple[int, int], int] = {}
        self.acknowledged: set[int] = set()
        self.retired: set[int] = set()
        self.counts = {"heads": 0, "forks": 0, "snapshots": 0, "garbage heads": 0, "deleted": 0}
        self.counts["hints ahead"] = 0
        self.counts["forged heads"] = 0

    @property
    def newest(self) -> Head | None:
        return self.heads[-1] if self.heads else None

    def look(self) -> None:
        """Judge what happened since the last look."""
        landed, self.world.landed = self.world.landed, []
        for request in landed:
            self._judge_request(request)
        if self.world.claims:
            claims, self.world.claims = self.world.claims, []
            for kind, head, began in claims:
                self._judge_claim(kind, head, began=began)

    # -- requests ---------------------------------------------------------------------------

    def _judge_request(self, request: Request) -> None:
        path = request.path
        if request.verb == "delete":
            self.counts["deleted"] += 1
            demand(path not in self.needed, f"I7 deleted although reachable: {path.kind}")
            return
        if path == HINT:
            ahead = self.table.content(request.digest) > self.world.newest
            # What readers stop at: no publisher may write it, whatever befalls its requests.
            self.counts["hints ahead"] += ahead and not self.world.scribbled
            return
        if path == ROOT or path.kind == "HEAD":
            self._judge_head(self.table.content(request.digest))
            return
        needed = self.needed.get(path, request.digest)
        demand(needed == request.digest, f"I1 torn: {path.kind} now holds other bytes")

    def _judge_head(self, head: Head) -> None:
        root = self.world.rules.root
        last = self.newest
        if self.table.digest(head) in self.world.forged:
            self.counts["forged heads"] += 1
            return
        if root == "numbered":
            counts = head.number == len(self.heads) + 1
            if counts and last is not None:
                follows = head.previous == self.table.digest(last)
                demand(follows, "a head follows one that does not count")
        else:
            counts = root == "overwritten" or last is None or head.number > last.number
        if not counts:
            self.counts["garbage heads"] += 1
            needed = self.needed.get(Path("HEAD", head.number))
            demand(needed in {None, self.table.digest(head)}, "I7 a head was overwritten")
            return
        self.counts["heads"] += 1
        if self.everything:
            if last is not None:
                self._judge_order(last, head)
            self._judge_content(head)
        self.heads.append(head)
        self.true.add(self.table.digest(head))
        self.world.newest = head.number
        self._gather()
        self._judge_acknowledged(head)

    def _judge_order(self, last: Head, head: Head) -> None:
        before, after = (last.generation, last.sequence), (head.generation, head.sequence)
        if head.generation == last.generation:
            demand(before <= after, "I2 the published log went backwards")
            history = self.table.history(head.chain)
            same = self.table.history(last.chain) == history[: last.sequence]
            demand(same, "I5 a head does not extend the one before")
        else:
            self.counts["forks"] += 1
            demand(before < after, "I2 the generation went backwards")
            fork = head.forked_from
            common = self.table.history(last.chain)[:fork]
            kept = self.table.history(head.chain)[:fork] == common
            demand(kept, "I5 a fork does not begin where it says")
        demand(head.first_sequence >= last.first_sequence, "the first sequence went backwards")
        demand(head.horizon >= last.horizon, "the horizon went backwards")

    def _judge_content(self, head: Head) -> None:
        table = self.table
        known = self.chains.setdefault((head.generation, head.sequence), head.chain)
        demand(known == head.chain, "I3 two histories under one generation and sequence")
        history = table.history(head.chain)
        demand(len(set(history)) == len(history), "I5 a record was published twice")
        seen = self.world.seen[head.nonce]
        demand(seen >= set(history), "I5 divergence hidden: the database lacks what is published")
        demand(seen <= set(history), "I5 a record was passed over")
        following = head.first_sequence
        for leaf in table.list_leaves(head):
            segment: Segment = table.content(leaf.path.digest)
            through = leaf.first + len(segment.records) - 1
            fits = leaf.first == following and leaf.last == through
            demand(fits, "I5 segments overlap, or leave a gap")
            same = segment.records == history[leaf.first - 1 : leaf.last]
            demand(same, "I3 a segment has other records than the chain")
            following = leaf.last + 1
        demand(following == head.sequence + 1, "I5 the log ends before the head's sequence")
        for snapshot in head.snapshots:
            manifest: Manifest = table.content(snapshot.path.digest)
            state = fold(history[: snapshot.sequence])
            demand(table.restore(manifest) == state, "I6 a snapshot is not the log's state")
        oldest = head.snapshots[0].sequence if head.snapshots else 0
        demand(head.first_sequence <= oldest + 1, "I6 nothing to restore from")
        if head.snapshots:
            self.counts["snapshots"] += 1

    def _gather(self) -> None:
        """What must exist now, and whether it does."""
        name = self.world.name
        kept = self.heads[-GRACE:] if self.world.rules.numbered else self.heads[-1:]
        self.needed = {
            name(path): path.digest
            for head in (*kept, *self.pins)
            for path in self.table.reach(head)
        }
        if self.world.rules.numbered:
            self.needed |= {Path("HEAD", h.number): self.table.digest(h) for h in kept}
        self.needed |= {
            Path("PIN", h.number, self.table.digest(h)): self.table.digest(h) for h in self.pins
        }
        named = self.world.store.named
        for path, digest in self.needed.items():
            found = named.get(path)
            demand(found is not None, f"I1 missing: {path.kind} is reachable and not there")
            demand(found == digest, f"I1 torn: {path.kind} holds other bytes than the head says")

    def _judge_acknowledged(self, head: Head) -> None:
        history = self.table.history(head.chain)
        self.retired.update(history[: head.first_sequence - 1])
        if self.acknowledged.issubset(history):
            return
        kept = self.retired.union(history)
        for path in head.lost:
            kept.update(self.table.content(path.digest).records)
        demand(self.acknowledged <= kept, "I4 an acknowledged record is no longer published")

    # -- what processes believe -------------------------------------------------------------

    def _judge_claim(self, kind: str, head: Head | None, *, began: int) -> None:
        if head is None:
            demand(began == 0, "I2 an archive was taken to be empty")
            return
        true = self.table.digest(head) in self.true
        if kind == "resolved":
            if self.world.rules.numbered:
                demand(true, "I2 a head was read that does not count")
                demand(head.number >= began, "I2 a reader went backwards")
        elif kind == "created":
            demand(true or not self.everything, "a worker believes in a commit that is none")
        elif kind == "acknowledged":
            demand(true, "I4 acknowledged what is not published")
            self.acknowledged.update(self.table.history(head.chain))
            if not self.everything and self.newest is not None:
                self._judge_acknowledged(self.newest)
        else:
            self.pins.append(head)
            self._gather()
