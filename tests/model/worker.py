"""The process that publishes: resolve, read, put content, create a head, acknowledge.

Written as the product is: one step, one request. Must not look at ghosts; it leaves behind what
the judge needs. The hard thing is that it may be stopped between any two steps and go on when
the world has moved on by whole generations.
"""

from __future__ import annotations

from collections.abc import Iterable

from oplog.archive.step import Step
from tests.model.comparison import Base, Refused, Stale, compare, list_unseen
from tests.model.draft import Builder, Levels, Mint, Pending, Put, retain
from tests.model.postgres import Image, Record, Server, Session, advance
from tests.model.reading import Unresolved, has_predecessor, resolve
from tests.model.values import HINT, ROOT, Cursor, Head, Path, Row
from tests.model.world import UNANSWERED, Process, Query, Request, World

ATTEMPTS = 6


class Worker:
    """One publisher. `name` stands for the nonce that a process draws when it starts."""

    def __init__(self, world: World, *, name: str, server: Server, eager: float = 0.3) -> None:
        self.world = world
        self.rules = world.rules
        self.name = name
        self.session = Session(server)
        self.mint: Mint | None = None
        self.known = 0
        self.pending: Pending | None = None
        self.eager = eager
        self.refused = False
        self.key = world.key

    def run(self, passes: int) -> Process[None]:
        for _ in range(passes):
            try:
                going = yield from self._publish()
            except Unresolved:
                continue
            if not going:
                return

    def _publish(self) -> Process[bool]:
        """One pass; false when this process must end."""
        if self.rules.epoch_first and not (yield from self._take_epoch(None)):
            return False
        head = yield from resolve(self.world, self.known, checked=self.rules.check_base)
        if head is not None:
            self.known = head.number if self.rules.numbered else 0
            if not self._may_go_on(head):
                return False
        image = yield Step.READ_NEWS, Query(self.session, Server.read)
        if image is UNANSWERED:
            return False
        base = compare(
            head,
            image,
            table=self.world.table,
            rules=self.rules,
            positions=self.session.server.positions,
        )
        if isinstance(base, Stale):
            return True
        superseded = head is not None and head.timeline > image.timeline
        if isinstance(base, Refused) or (superseded and self.rules.check_timeline):
            self.refused = isinstance(base, Refused)
            return False
        if self.rules.cursor in {"before", "after"}:
            base = base._replace(cursor=image.row.cursor, published=frozenset())
        unseen = list_unseen(image, base)
        cursor = advance(base.cursor, unseen, xip=image.xip)
        if unseen and not self.rules.clamp_cursor:
            cursor = Cursor(cursor.xmax + 2, cursor.xip)
        news = tuple(record for record in unseen if record.uid not in base.published)
        base = base._replace(cursor=cursor)
        return (yield from self._make_head(head, base, image=image, news=news))

    def _may_go_on(self, head: Head) -> bool:
        if head.key > self.key:
            # Another process has rotated the key, which this one's keyring does not have.
            return False
        if self.mint is None or not self.rules.check_epoch:
            return True
        return head.epoch < self.mint.epoch or (
            head.epoch == self.mint.epoch and head.writer == self.name
        )

    def _make_head(
        self, head: Head | None, base: Base, *, image: Image, news: tuple[Record, ...]
    ) -> Process[bool]:
        random = self.world.random
        self._drop_pending(head, base)
        ready = self.pending is not None and (
            not self.pending.puts or random.random() < self.eager / 2
        )
        retention = (
            head is not None and len(head.snapshots) > 1 and random.random() < self.eager / 2
        )
        # Without conditional creation an older writer's head may still be under way, with a
        # number above that of a head of somebody's: only a head of mine is safe from it.
        fence = self.rules.root == "epochs" and not base.acknowledged
        if not (news or base.forked or ready or retention or fence):
            if head is not None and not base.acknowledged:
                return (yield from self._acknowledge(head, again=base.cursor))
            return True
        if not (yield from self._take_epoch(head)):
            return False
        assert self.mint is not None
        builder = Builder(self.world.table, self.rules, self.mint)
        made = self._draft(head, base, image=image, news=news, builder=builder)
        if self.pending is not None and ready:
            builder.puts += self.pending.puts
            made = made._replace(snapshots=(*made.snapshots, self.pending.snapshot))
        if retention:
            oldest = random.random() < 0.7
            dropped = 0 if oldest else len(made.snapshots) - 1
            made = retain(made, dropped, table=self.world.table)
        waiting = None if ready else self.pending
        made = made._replace(horizon=waiting.first_mint if waiting else self.mint.following)
        created = yield from self._commit(head, made, puts=builder.puts)
        if not isinstance(created, Head):
            return created
        # The snapshot is of the tables that this head's log makes: both were read at once.
        if not (yield from self._acknowledge_created(created)):
            return False
        yield from self._continue_snapshot(created, waiting)
        return True

    def _commit(self, head: Head | None, made: Head, *, puts: list[Put]) -> Process[Head | bool]:
        """Content, then the head. Without one: whether this process may go on."""
        self.world.random.shuffle(puts)
        if self.rules.content_first and not (yield from self._put_all(head, puts)):
            return True
        if self.rules.cursor == "before" and not (yield from self._write_cursor(made.cursor)):
            return False
        if not self.rules.acknowledge_after_head and not (yield from self._acknowledge(made)):
            return False
        created = yield from self._create(made)
        if created is None:
            # Where heads are put unconditionally, a request that is still under way would
            # replace another head under the same name: a new process takes new names.
            return self.rules.root != "epochs"
        if not self.rules.content_first:
            yield from self._put_all(head, puts)
        return created

    def _acknowledge_created(self, created: Head) -> Process[bool]:
        self.known = created.number if self.rules.numbered else 0
        if self.rules.acknowledge_after_head and not (yield from self._acknowledge(created)):
            return False
        digest = self.world.table.digest(created.number)
        yield Step.WRITE_HINT, Request("put", HINT, digest)
        return True

    def _take_epoch(self, head: Head | None) -> Process[bool]:
        """Lazily: only who has something to publish raises the epoch."""
        if self.mint is not None:
            return True
        newest = head.epoch if head is not None and self.rules.check_epoch else 0

        def take(server: Server) -> int:
            epoch = max(server.row.epoch, newest) + 1
            server.write_row(server.row._replace(epoch=epoch))
            return epoch

        epoch = yield Step.TAKE_EPOCH, Query(self.session, take)
        if epoch is UNANSWERED:
            return False
        self.mint = Mint(epoch)
        return True

    def _draft(
        self,
        head: Head | None,
        base: Base,
        *,
        image: Image,
        news: tuple[Record, ...],
        builder: Builder,
    ) -> Head:
        assert self.mint is not None
        table = self.world.table
        levels: Levels = head.levels if head else ()
        forked_from, lost = (head.forked_from, head.lost) if head else (0, ())
        snapshots = head.snapshots if head else ()
        if head and base.forked:
            levels, above = builder.cut(head, base)
            lost = (*lost, *above)
            forked_from = base.sequence
            if self.rules.drop_lost_snapshots:
                snapshots = tuple(s for s in snapshots if s.sequence <= base.sequence)
        if news:
            levels = builder.grow(levels, base, news=news)
        sequence = base.sequence + len(news)
        history = (*table.history(base.chain), *(record.uid for record in news))
        number = head.number + 1 if head else 1
        if self.rules.root == "epochs":
            number = self.mint.epoch * 1000 + number % 1000
        replaced = head.replaced if head else ()
        if head and head.key != self.key:
            replaced = (*replaced, head.key)
        return Head(
            key=self.key,
            replaced=replaced,
            number=number,
            nonce=self._draw_nonce(image),
            previous=table.digest(head) if head else 0,
            generation=base.generation,
            forked_from=forked_from,
            lost=lost,
            epoch=self.mint.epoch,
            writer=self.name,
            timeline=image.timeline,
            cursor=base.cursor,
            sequence=sequence,
            chain=table.digest(history),
            levels=levels,
            types=builder.put_types(head, sequence=sequence),
            snapshots=snapshots,
            first_sequence=head.first_sequence if head else 1,
            horizon=0,
        )

    def _draw_nonce(self, image: Image) -> int:
        nonce = self.world.draw_nonce()
        self.world.seen[nonce] = frozenset(record.uid for record in image.records)
        return nonce

    # -- requests ---------------------------------------------------------------------------

    def _put_all(self, head: Head | None, puts: Iterable[Put]) -> Process[bool]:
        reachable = self.world.table.reach(head) if head else frozenset()
        for step, path in puts:
            name = self.world.name(path)
            if self.rules.skip == "exists":
                if (yield step, Request("get", name)) is not None:
                    continue
            elif path in reachable and self.rules.hashed_names:
                continue
            for _ in range(ATTEMPTS):
                answer = yield step, Request("put", name, path.digest)
                if answer is not UNANSWERED:
                    break
            else:
                return False
        return True

    def _create(self, made: Head) -> Process[Head | None]:
        """The head as the store has it; None when it is not the one after its predecessor."""
        rules, table = self.rules, self.world.table
        path = ROOT if rules.root == "overwritten" else Path("HEAD", made.number)
        verb = "create" if rules.numbered else "put"
        if rules.root == "epochs" and (yield Step.CONFIRM_HEAD, Request("get", path)) is not None:
            return None
        mine: dict[int, Head] = {}
        for attempt in range(ATTEMPTS):
            if attempt and rules.fresh_ids:
                nonce = self.world.draw_nonce()
                self.world.seen[nonce] = self.world.seen[made.nonce]
                made = made._replace(nonce=nonce)
            digest = table.digest(made)
            mine[digest] = made
            answer = yield Step.CREATE_HEAD, Request(verb, path, digest)
            if answer is not True:
                if verb == "put":
                    continue
                stored = yield Step.CONFIRM_HEAD, Request("get", path)
                if stored is None:
                    continue
                if stored not in mine:
                    return None
                made = mine[stored]
            if rules.numbered and not (yield from has_predecessor(self.world, made)):
                return None
            self.world.claims.append(("created", made, 0))
            return made
        return None

    def _acknowledge(self, head: Head, *, again: Cursor | None = None) -> Process[bool]:
        """Say in Postgres what is published. False: somebody else took over.

        `again`: the head is not of this pass, and its cursor may be another database's.
        """
        if self.mint is None and not (yield from self._take_epoch(head)):
            return False
        assert self.mint is not None
        epoch = self.mint.epoch

        def write(server: Server) -> bool:
            if self.rules.check_epoch and server.row.epoch != epoch:
                return False
            cursor = head.cursor
            if self.rules.cursor == "before":
                cursor = server.row.cursor
            elif again is not None and self.rules.cursor == "row":
                cursor = again
            row = Row(epoch, head.number, head.generation, head.sequence, head.chain, cursor)
            server.write_row(row)
            self.world.claims.append(("acknowledged", head, 0))
            return True

        answer = yield Step.ACKNOWLEDGE, Query(self.session, write)
        return answer is True

    def _write_cursor(self, cursor: Cursor) -> Process[bool]:
        def write(server: Server) -> bool:
            server.write_row(server.row._replace(cursor=cursor))
            return True

        answer = yield Step.ACKNOWLEDGE, Query(self.session, write)
        return answer is True

    # -- snapshots --------------------------------------------------------------------------

    def _drop_pending(self, head: Head | None, base: Base) -> None:
        """Give a snapshot up that the newest head cannot take any more."""
        pending = self.pending
        if pending is None or head is None:
            return
        refs = head.snapshots
        gone = base.forked or pending.generation != base.generation
        if any(ref.sequence >= pending.snapshot.sequence for ref in refs):
            gone = True
        if self.rules.recheck_base and pending.base is not None and pending.base not in refs:
            gone = True
        if gone:
            self.pending = None

    def _continue_snapshot(self, created: Head, waiting: Pending | None) -> Process[None]:
        """Put a few objects of a snapshot, or begin one of the tables as of this head.

        That the tables are those of this head is what reading both in one transaction gives.
        """
        self.pending = waiting
        random = self.world.random
        if waiting is None:
            if self.mint is not None and random.random() < self.eager:
                builder = Builder(self.world.table, self.rules, self.mint)
                base = Base(created.generation, created.sequence, created.chain, created.cursor)
                self.pending = builder.begin_snapshot(created.snapshots, base)
            return
        count = random.randrange(3)
        few, rest = waiting.puts[:count], waiting.puts[count:]
        if (yield from self._put_all(None, few)):
            waiting.puts = rest
