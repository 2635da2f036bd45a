"""Content put into the store, then a head that names it.

Every answer of a store may be lost: a refusal can mean that an earlier request of this writer
succeeded, and an error may hide a success. So after anything but a plain yes the object itself
is looked at.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from oplog.archive.archive import Archive
from oplog.archive.format.container import MAX_OBJECT_BYTES
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, HeadLink, decode_head
from oplog.archive.format.path import BLOB, LATEST, make_mint, name_content, name_head, write_hint
from oplog.archive.step import Step
from oplog.backoff import Backoff
from oplog.errors import ArchiveError, LeaseLostError, ObjectConflictError, StoreUnavailableError

Emit: TypeAlias = Callable[[Step, str, int], None]
"""Called after each step: the step, the object's path, its bytes."""

_TRIES = 8
_BACKOFF = Backoff()

_logger = logging.getLogger("oplog.archive")


class Publisher:
    """One writer of one archive, under one epoch. Not shared between threads."""

    def __init__(self, archive: Archive, *, writer: str, epoch: int, emit: Emit) -> None:
        self.archive = archive
        self.epoch = epoch
        self._store = archive.store
        self._writer = writer
        self._emit = emit
        self._counter = 0
        self._written = 0

    @property
    def written_bytes(self) -> int:
        """Bytes of content put so far."""
        return self._written

    @property
    def horizon(self) -> int:
        """The lowest mint that this writer may still give to something."""
        return make_mint(self.epoch, self._counter + 1)

    # -- content --------------------------------------------------------------------------

    def mint(self) -> int:
        """A number that nothing else has, now or ever."""
        self._counter += 1
        return make_mint(self.epoch, self._counter)

    def put_blob(self, data: bytes, *, step: Step = Step.PUT_CHUNK) -> str:
        """Put content under a name that no other writer gives, now or ever; its path."""
        path = name_content(BLOB, self.mint(), data=data)
        self.put_content(path, data, step=step)
        return path

    def put_content(self, path: str, data: bytes, *, step: Step) -> None:
        """Put content whose name holds its hash; there already, it is compared.

        Raises `ObjectConflictError` if other bytes stand under the name, and
        `StoreUnavailableError`.
        """
        for _ in range(_TRIES):
            if self._create(path, data, once=False):
                break
            found = self._store.get(path, most=MAX_OBJECT_BYTES)
            if found == data:
                break
            if found is not None:
                raise ObjectConflictError(
                    f"{path} in {self.archive.url} holds other bytes than its name says",
                    hint="it was altered: oplog resync puts the right bytes in its place",
                )
        else:
            raise self._unavailable(path)
        self._written += len(data)
        self._emit(step, path, len(data))

    def _create(self, path: str, data: bytes, *, once: bool) -> bool:
        if self.archive.single_writer:
            # Such a store would overwrite; looking first is all that can be done.
            if self._store.head(path) is not None:
                return False
            self._store.put(path, data)
            return True
        return self._store.create(path, data, once=once)

    def _unavailable(self, path: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.archive.url} keeps refusing to write {path}, and it is not there",
            hint="see what else writes there; nothing was published, so try again later",
        )

    # -- the head -------------------------------------------------------------------------

    def create_head(
        self, base: Head, head: Head, *, link: HeadLink | None = None, settled: bool = True
    ) -> Head:
        """Publish `head` as the one after `base`; the head as it is there.

        It names `base` by `link`, or else by the bytes that `base` encodes to. Unless everything
        below this writer's own numbers is `settled`, it reserves what `base` reserves. Raises
        `LeaseLostError` when another writer has published, or has done so long ago and cleaned
        up, and `ManifestInvalidError` for a head that could not be read, before it is written.
        `StoreUnavailableError` leaves open whether it is there: the next pass sees.
        """
        number = base.number + 1
        if self.archive.single_writer:
            number = max(number, make_mint(self.epoch, 1))
        if link is None and base.number:
            link = base.link()
        tried: set[str] = set()
        nonce = ""
        for attempt in range(_TRIES):
            if attempt:
                _BACKOFF.sleep(_BACKOFF.pause_seconds(attempt))
            # Named anew each time: an old request that arrives late must not be taken for a
            # newer one, nor be what a later head was built on.
            # Where nothing keeps writers apart there is one writer of this name: the same bytes.
            if not tried or not self.archive.single_writer:
                nonce = secrets.token_hex(16)
            tried.add(nonce)
            candidate = replace(
                head,
                number=number,
                nonce=nonce,
                previous=link,
                epoch=self.epoch,
                writer=self._writer,
                # Never back: what was below may have been collected.
                horizon=max(base.horizon, self.horizon) if settled else base.horizon,
                created_at=time.time_ns() // 1000,
            )
            candidate = self.archive.trust.sign(candidate, base=base)
            # One that nobody could read would be the end of the archive: none comes after it.
            decode_head(candidate.encode(), what=f"the next head of {self.archive.url}")
            published = self._try_head(candidate, tried)
            if published is None:
                continue
            self._emit(Step.CREATE_HEAD, name_head(number), len(published.encode()))
            if not self.archive.counts(published):
                raise self._overtaken(f"head {base.number} was collected before head {number}")
            self._emit(Step.CHECK_PREDECESSOR, name_head(base.number), 0)
            return published
        raise self._unavailable(name_head(number))

    def _try_head(self, candidate: Head, tried: set[str]) -> Head | None:
        """The head that is there now, if it is one of ours; None if there is none."""
        path = name_head(candidate.number)
        try:
            # A store that asked again by itself would send the same name twice.
            if self._create(path, candidate.encode(), once=True):
                return candidate
        except StoreUnavailableError:
            # It may have arrived all the same.
            self._emit(Step.CONFIRM_HEAD, path, 0)
        data = self._store.get(path, most=MAX_HEAD_BYTES)
        if data is None:
            return None
        found = self.archive.decode_as(data, what=path)
        if found.nonce in tried:
            return found
        raise self._overtaken(f"{found.writer!r} published {path} under epoch {found.epoch}")

    def _overtaken(self, what: str) -> LeaseLostError:
        return LeaseLostError(
            f"this worker (epoch {self.epoch}) has lost the archive {self.archive.url}: {what}",
            hint="another worker took over; nothing is lost, and this one may be started again",
        )

    def write_hint(self, head: Head) -> None:
        """Say in LATEST where to look first, and what there must be at least."""
        text = make_hint(head)
        try:
            self._store.put(LATEST, text)
        except ArchiveError as error:
            # Published it is: the receipt for that must not fail because of a hint.
            _logger.warning("%s was not written: %s", LATEST, error)
            return
        self._emit(Step.WRITE_HINT, LATEST, len(text))


def make_hint(head: Head) -> bytes:
    """What `LATEST` says of a head."""
    return write_hint(head.snapshots[-1].sequence if head.snapshots else 0, head.number)
