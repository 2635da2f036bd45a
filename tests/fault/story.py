"""A run in which all went well, for tests of the checker to spoil."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.fault.history import (
    ABORTED,
    ACKNOWLEDGED,
    COMMITTED,
    FAILED,
    INVOKED,
    NO_HASH,
    PENDING,
    RESOLVED,
    UNKNOWN,
    Event,
    KeptEntry,
    Promise,
    State,
    judge,
)


@dataclass
class Story:
    """A run in which all went well, to be spoiled by a test."""

    events: list[Event] = field(default_factory=list)
    entries: list[KeptEntry] = field(default_factory=list)
    tickets: dict[str, int] = field(default_factory=dict)
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Version and hash of the newest record, by aggregate."""
    rows: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    earlier: dict[tuple[str, str], KeptEntry] = field(default_factory=dict)

    def invoke(self, operation: str, *, key: str | None = None, request: str | None = None) -> None:
        self.say(INVOKED, operation, key=key, request=request)

    def say(
        self,
        what: str,
        operation: str,
        *,
        receipts: tuple[Promise, ...] = (),
        key: str | None = None,
        request: str | None = None,
        verdict: str | None = None,
    ) -> None:
        at = len(self.events) * 10
        self.events.append(Event(what, operation, at, receipts, key, request, verdict))

    def store(
        self, operation: str, *aggregates: str, key: str | None = None, record_id: str = ""
    ) -> list[Promise]:
        """One transaction that adds one to each counter, in the database."""
        position = len(self.entries) + 1
        name = record_id or f"{operation}-{position}"
        promises = []
        for aggregate in aggregates:
            version, head = self.heads.get(aggregate, (0, NO_HASH))
            self.entries.append(
                KeptEntry(
                    record_id=name,
                    aggregate=aggregate,
                    version=version + 1,
                    record_hash=f"hash of {name}",
                    prev_hash=head,
                    digest=f"bytes of {name}",
                    position=position,
                    operation=operation,
                    key=key,
                    seen=version,
                    value=version + 1,
                )
            )
            self.heads[aggregate] = (version + 1, f"hash of {name}")
            if version:
                self.tickets[aggregate] = version + 1
            self.rows[aggregate] = version + 1
            promises.append(Promise(name, aggregate, version + 1, f"hash of {name}"))
        return promises

    def change(self, place: int, **values: object) -> None:
        self.entries[place] = replace(self.entries[place], **values)  # type: ignore[arg-type]

    def judge(self) -> list[str]:
        state = State(self.entries, self.tickets, self.rows, self.complaints, self.earlier)
        return [str(violation) for violation in judge(self.events, state)]

    def list_broken_laws(self) -> set[str]:
        return {line.split(":")[0] for line in self.judge()}


def tell_story() -> Story:
    """Three on one counter, one on two, a failure, two unknown outcomes, one key used twice."""
    story = Story()
    for operation in ("a1", "a2", "a3"):
        story.invoke(operation)
        story.say(ACKNOWLEDGED, operation, receipts=tuple(story.store(operation, "counter/1")))
    story.invoke("b1")
    both = tuple(story.store("b1", "counter/1", "counter/2"))
    story.say(ACKNOWLEDGED, "b1", receipts=both)
    story.invoke("c1")
    story.say(FAILED, "c1")
    story.invoke("d1")
    lost = tuple(story.store("d1", "counter/2"))
    story.say(UNKNOWN, "d1", receipts=(replace(lost[0], version=0, record_hash=""),))
    story.say(RESOLVED, "d1", receipts=lost, verdict=PENDING)
    story.say(RESOLVED, "d1", receipts=lost, verdict=COMMITTED)
    story.invoke("d2")
    never = (Promise("d2-0", "counter/2", 0, ""),)
    story.say(UNKNOWN, "d2", receipts=never)
    story.say(RESOLVED, "d2", receipts=never, verdict=ABORTED)
    story.say(RESOLVED, "d2", receipts=never, verdict=ABORTED)
    story.invoke("e1", key="k", request="x")
    keyed = tuple(story.store("e1", "counter/3", key="k"))
    story.say(UNKNOWN, "e1", receipts=keyed)
    story.invoke("e2", key="k", request="x")
    story.say(ACKNOWLEDGED, "e2", receipts=keyed)
    story.say(RESOLVED, "e1", verdict=COMMITTED)
    story.invoke("e3", key="k", request="y")
    story.say(FAILED, "e3")
    story.invoke("f1")  # its client died, and it happened
    story.store("f1", "counter/3")
    story.invoke("f2")  # its client died, and it did not
    return story
