"""A store that fails at a call of the test's choosing.

    store = FaultyStore(MemoryStore(), {3: KILL_AFTER})
    with pytest.raises(Killed):
        publish(store)              # dies when its third call has been carried out
    assert store.calls[2].operation == "create"
    publish(store.inner)            # a fresh process, the same objects

To try every crash point: run once without a plan, then once for each `number` up to
`len(store.calls)` and each fault. Calls are counted from 1 in the order they begin; where threads
call at once, that order is theirs. A plan may also be a function from `Call` to a fault or None,
to choose by operation and path. A killed store stays dead: whatever runs on in `finally` finds
nothing to talk to, as after a real SIGKILL.

    store = FaultyStore(MemoryStore(), {5: DELAY})
    ...                             # call 5 raised StoreUnavailableError, nothing written yet
    store.land()                    # now the request of call 5 arrives
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from oplog.archive.objectstore.protocol import ObjectInfo, ObjectStore
from oplog.errors import StoreUnavailableError

Result = TypeVar("Result")


class Killed(BaseException):
    """The process is no more. Not an `Exception`: nothing may catch it and go on."""


class Kind(Enum):
    KILL_BEFORE = auto()
    KILL_AFTER = auto()
    LOSE_REQUEST = auto()
    LOSE_ANSWER = auto()
    DELAY = auto()
    FLIP = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    index: int = 0


KILL_BEFORE = Fault(Kind.KILL_BEFORE)
"""Die; the call is not carried out."""
KILL_AFTER = Fault(Kind.KILL_AFTER)
"""Die; the call was carried out."""
LOSE_REQUEST = Fault(Kind.LOSE_REQUEST)
"""`StoreUnavailableError`; the call is not carried out."""
LOSE_ANSWER = Fault(Kind.LOSE_ANSWER)
"""`StoreUnavailableError`; the call was carried out."""
DELAY = Fault(Kind.DELAY)
"""`StoreUnavailableError`; the call is carried out by `land()`, in the order of the calls."""
ABSENT = Fault(Kind.ABSENT)
"""`get` and `head` find nothing, `list` finds nothing; writes are carried out."""


def flip(index: int) -> Fault:
    """Let `get` return the object with byte `index` (modulo its length) inverted."""
    return Fault(Kind.FLIP, index)


@dataclass(frozen=True, slots=True)
class Call:
    number: int
    operation: str
    path: str


Plan = Mapping[int, Fault] | Callable[[Call], Fault | None]


class FaultyStore:
    """Another store, with the faults of `plan`; without a plan it only counts."""

    def __init__(self, inner: ObjectStore, plan: Plan | None = None) -> None:
        self.inner = inner
        self.calls: list[Call] = []
        self.dead = False
        self._plan: Plan = {} if plan is None else plan
        self._late: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self.inner.url

    def get(self, path: str, *, most: int) -> bytes | None:
        fault = self._begin("get", path)
        data = self._finish(fault, lambda: self.inner.get(path, most=most))
        if fault is None or data is None or fault.kind not in {Kind.FLIP, Kind.ABSENT}:
            return data
        return _invert(data, fault.index) if fault.kind is Kind.FLIP else None

    def head(self, path: str) -> ObjectInfo | None:
        fault = self._begin("head", path)
        found = self._finish(fault, lambda: self.inner.head(path))
        return None if fault == ABSENT else found

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        fault = self._begin("create", path)
        return self._finish(fault, lambda: self.inner.create(path, data, once=once))

    def put(self, path: str, data: bytes) -> None:
        fault = self._begin("put", path)
        self._finish(fault, lambda: self.inner.put(path, data))

    def delete(self, path: str) -> None:
        fault = self._begin("delete", path)
        self._finish(fault, lambda: self.inner.delete(path))

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        # Not a generator: the call counts when it is made, not when it is read.
        fault = self._begin("list", prefix)
        found = self._finish(fault, lambda: list(self.inner.list(prefix, after=after)))
        return iter([] if fault == ABSENT else found)

    def land(self) -> int:
        """Let the delayed calls arrive; return how many there were."""
        with self._lock:
            late, self._late = self._late, []
        for work in late:
            work()
        return len(late)

    def _begin(self, operation: str, path: str) -> Fault | None:
        with self._lock:
            if self.dead:
                raise Killed(f"{operation} {path} after the end")
            call = Call(len(self.calls) + 1, operation, path)
            self.calls.append(call)
        return self._plan(call) if callable(self._plan) else self._plan.get(call.number)

    def _finish(self, fault: Fault | None, work: Callable[[], Result]) -> Result:
        kind = fault.kind if fault else None
        if kind is Kind.KILL_BEFORE:
            self._die()
        if kind is Kind.LOSE_REQUEST:
            raise StoreUnavailableError("the request was lost", hint="a planned fault")
        if kind is Kind.DELAY:
            with self._lock:
                self._late.append(work)
            raise StoreUnavailableError("the request is late", hint="a planned fault")
        result = work()
        if kind is Kind.KILL_AFTER:
            self._die()
        if kind is Kind.LOSE_ANSWER:
            raise StoreUnavailableError("the answer was lost", hint="a planned fault")
        return result

    def _die(self) -> None:
        self.dead = True
        raise Killed(f"at call {len(self.calls)}")


def _invert(data: bytes, index: int) -> bytes:
    if not data:
        return data
    index %= len(data)
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]
