"""The model's object store, with requests that are late, lost, repeated or refused for nothing.

Knows no protocol. The hard thing is what a caller may conclude: a request without an answer may
have been carried out, may be carried out at any later time, or never.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from oplog.archive.step import Step
from tests.model.postgres import Server, Session
from tests.model.rules import Rules
from tests.model.values import Cursor, Head, Path, Row, Table


class Request(NamedTuple):
    """One request to the store; `digest` stands for the body."""

    verb: str
    path: Path
    digest: int = 0


class Query(NamedTuple):
    """One transaction in Postgres."""

    session: Session
    run: Callable[[Server], Any]


class Unanswered:
    """The answer to a request that timed out, and to a query whose session was cut."""


UNANSWERED = Unanswered()

_PARTS = {0: 0, 1: 1, "layer": 2, "types": 3}

T = TypeVar("T")
Process = Generator[tuple[Step, Request | Query], Any, T]


@dataclass(slots=True)
class Faults:
    """How likely each fault of a request is, of 1."""

    late: float = 0.0
    unanswered: float = 0.0
    repeated: float = 0.0
    refused: float = 0.0
    heads_only: bool = False


@dataclass(slots=True)
class Store:
    """Names and digests of what they hold."""

    named: dict[Path, int] = field(default_factory=dict)
    put_at: dict[Path, int] = field(default_factory=dict)
    mutations: int = 0

    def get(self, path: Path) -> int | None:
        return self.named.get(path)

    def list(self, kind: str) -> list[Path]:
        return sorted(path for path in self.named if path.kind == kind)


class World:
    """Everything that processes share, and ghosts that only the judge looks at."""

    def __init__(self, rules: Rules, seed: int) -> None:
        self.rules = rules
        self.random = random.Random(seed)
        self.table = Table()
        self.store = Store()
        self.faults = Faults()
        self.late: list[Request] = []
        self.nonces = 0
        empty = Row(0, 0, 1, 0, self.table.empty_chain, Cursor())
        self.primary = Server(empty, [])
        self.servers = [self.primary]
        self.seen: dict[int, frozenset[int]] = {}
        """Ghost: what the database held when the head with this nonce was made."""
        self.landed: list[Request] = []
        """What the store carried out and the judge has not looked at."""
        self.key = 1
        """The publisher's newest key; a process has that of when it started."""
        self.forged: set[int] = set()
        """Ghost: heads that no publisher has made."""
        self.newest = 0
        """Ghost: the number of the newest head."""
        self.scribbled = False
        """Ghost: somebody else than a publisher has written a hint."""
        self.claims: list[tuple[str, Head | None, int]] = []
        """Ghost: what processes believe; judged at once and emptied."""

    def draw_nonce(self) -> int:
        self.nonces += 1
        return self.nonces

    def name(self, path: Path) -> Path:
        """Where this content is stored."""
        if self.rules.hashed_names or path.kind == "PIN":
            return path
        order = path.order
        if path.kind == "BLOB":
            order = _PARTS[self.table.content(path.digest)[0]]
        return Path(path.kind, 0 if path.kind == "SNAPSHOT" else order)

    def answer(self, operation: Request | Query) -> Any:
        """Carry an operation out, or not; what the caller is told."""
        if isinstance(operation, Query):
            return self._answer_query(operation)
        if operation.verb == "get":
            return self.store.get(operation.path)
        if operation.verb == "list":
            return self.store.list(operation.path.kind)
        return self._answer_mutation(operation)

    def _answer_mutation(self, operation: Request) -> Any:
        draw = self.random.random()
        faults = self.faults
        if faults.heads_only and operation.path.kind != "HEAD":
            return self.land(operation)
        if draw < faults.late:
            self.late.append(operation)
            return UNANSWERED
        draw -= faults.late
        if draw < faults.refused and operation.verb == "create":
            return False
        draw -= faults.refused
        if draw < faults.repeated and not (
            self.rules.fresh_ids and operation.path.kind == "HEAD" and operation.verb == "create"
        ):
            self.late.append(operation)
        answer = self.land(operation)
        return UNANSWERED if draw < faults.repeated + faults.unanswered else answer

    def land(self, request: Request) -> bool:
        """The store carries a request out; what it would answer."""
        named = self.store.named
        if request.verb == "delete":
            self.store.mutations += 1
            named.pop(request.path, None)
            self.landed.append(request)
            return True
        if request.verb == "create" and request.path in named:
            return False
        self.store.mutations += 1
        named[request.path] = request.digest
        self.store.put_at[request.path] = self.store.mutations
        self.landed.append(request)
        return True

    def _answer_query(self, query: Query) -> Any:
        session = query.session
        if session.lost or (session.server is not self.primary and not self.rules.one_session):
            if self.rules.one_session:
                return UNANSWERED
            session.reconnect(self.primary)
        return query.run(session.server)
