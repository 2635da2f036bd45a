"""A store that asks nothing more once its user is told to stop.

A check, a snapshot or a collection takes hours and is made of requests, each of them short. So it
ends at the next one, wherever it is. Heads and their hint still pass: they are few, and a receipt
is to follow its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from oplog.archive.format.path import HEAD, LATEST
from oplog.archive.objectstore.protocol import ObjectInfo, ObjectStore


class StoppedError(Exception):
    """The work was stopped by its own user: neither an error of the archive nor of the log."""


class StoppableStore:
    """Another store; `StoppedError` for requests after `is_stopped` says so."""

    def __init__(self, inner: ObjectStore, is_stopped: Callable[[], bool]) -> None:
        self._inner = inner
        self._is_stopped = is_stopped

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._inner.url

    def get(self, path: str, *, most: int) -> bytes | None:
        """The object at `path`, or None."""
        self._require_going(path)
        return self._inner.get(path, most=most)

    def head(self, path: str) -> ObjectInfo | None:
        """Size and age of the object at `path`, or None."""
        self._require_going(path)
        return self._inner.head(path)

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        """Write an object if there is none."""
        self._require_going(path)
        return self._inner.create(path, data, once=once)

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        self._require_going(path)
        self._inner.put(path, data)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        self._require_going("")
        self._inner.delete(path)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """The objects below `prefix`."""
        for info in self._inner.list(prefix, after=after):
            self._require_going(prefix)
            yield info

    def _require_going(self, path: str) -> None:
        if self._is_stopped() and path != LATEST and not path.startswith(f"{HEAD}/"):
            raise StoppedError(path)
