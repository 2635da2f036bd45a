"""Objects in memory, for tests and for trying the archive out.

The hook is called before and after every call, outside the lock, so that a test can stop, fail
or overtake at any of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from oplog.archive.objectstore.protocol import ObjectInfo, check_path, check_prefix
from oplog.errors import ObjectTooLargeError

BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a method of the store; `done` once it has been carried out."""

    operation: str
    path: str
    done: bool


def _ignore(_: Call) -> None:
    pass


class MemoryStore:
    """A store that is gone with the process: every instance is a place of its own.

    `on_call` is called before and after each operation and may raise. Without a `clock`, time
    is counted in writes: one second each.
    """

    def __init__(
        self,
        name: str = "",
        *,
        on_call: Callable[[Call], None] = _ignore,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.url = f"memory://{name}"
        self.on_call = on_call
        self._clock = clock or self._count
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._writes = 0

    def get(self, path: str, *, most: int) -> bytes | None:
        """Return the object at `path`, or None."""
        with self._called("get", path), self._lock:
            data, _ = self._objects.get(path, (None, None))
        if data is not None and len(data) > most:
            raise ObjectTooLargeError(
                f"{path} has {len(data)} bytes, at most {most} are expected",
                hint="nothing of this size is ever written there: it was altered",
            )
        return data

    def head(self, path: str) -> ObjectInfo | None:
        """Return size and age of the object at `path`, or None."""
        with self._called("head", path), self._lock:
            return self._describe(path) if path in self._objects else None

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        """Write an object if there is none; always one request."""
        del once
        with self._called("create", path), self._lock:
            if absent := path not in self._objects:
                self._write(path, data)
        return absent

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        with self._called("put", path), self._lock:
            self._write(path, data)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        with self._called("delete", path), self._lock:
            self._objects.pop(path, None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`, in the order in which they were first written."""
        check_prefix(prefix)
        self.on_call(Call("list", prefix, done=False))
        with self._lock:
            found = [
                self._describe(path)
                for path in self._objects
                if path.startswith(prefix) and path > after
            ]
        self.on_call(Call("list", prefix, done=True))
        yield from found

    @contextmanager
    def _called(self, operation: str, path: str) -> Iterator[None]:
        check_path(path)
        self.on_call(Call(operation, path, done=False))
        yield
        self.on_call(Call(operation, path, done=True))

    def _write(self, path: str, data: bytes) -> None:
        self._writes += 1
        self._objects[path] = (bytes(data), self._clock())

    def _describe(self, path: str) -> ObjectInfo:
        data, modified = self._objects[path]
        return ObjectInfo(path, len(data), modified)

    def _count(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._writes)
