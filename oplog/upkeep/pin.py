"""Pins: copies of heads whose content garbage collection keeps, whatever retention says.

A collection under way may have looked for pins before this one was there. So a pin counts only
once the newest head, looked for after it was put, still has all that the pinned one has; a
collection that looks later finds the pin.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.format.path import PIN, name_pin
from oplog.archive.step import Step
from oplog.errors import ConfigurationError, LeaseLostError
from oplog.sync.publisher import Emit

_TRIES = 8
_PIN = re.compile(rf"{PIN}/(.+)-([0-9a-f]{{16}})")


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin by its name, the number of the head that it is a copy of, and its object."""

    name: str
    head: int
    path: str

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def put_pin(archive: Archive, name: str, *, emit: Emit) -> Pin:
    """Keep what the newest head holds until `remove_pin`.

    Raises `ManifestInvalidError` for a name that is no plain word of at most 83 characters, and
    `LeaseLostError` if retention kept taking things away meanwhile.
    """
    archive.require_writable()
    for _ in range(_TRIES):
        head = archive.read_head()
        path = name_pin(f"{name}-{head.number:016x}")
        data = head.encode()
        archive.store.put(path, data)
        emit(Step.PUT_PIN, path, len(data))
        if _keeps(archive.read_head(), head):
            return Pin(name, head.number, path)
        archive.store.delete(path)
    raise LeaseLostError(
        f"{archive.url} changed whenever it was about to be pinned",
        hint="nothing was pinned: try again when retention or a change of types is over",
    )


def _keeps(newest: Head, pinned: Head) -> bool:
    """Whether nothing that `pinned` needs can have been garbage so far."""
    return (
        (newest.generation, newest.first_sequence, newest.types)
        == (pinned.generation, pinned.first_sequence, pinned.types)
        and set(newest.snapshots) >= set(pinned.snapshots)
        and newest.branches[: len(pinned.branches)] == pinned.branches
    )


def list_pins(archive: Archive) -> tuple[Pin, ...]:
    """All pins, by name."""
    found = [
        Pin(match[1], int(match[2], 16), info.path)
        for info in archive.store.list(f"{PIN}/")
        if (match := _PIN.fullmatch(info.path))
    ]
    return tuple(sorted(found, key=lambda pin: (pin.name, pin.head)))


def remove_pin(archive: Archive, name: str) -> tuple[Pin, ...]:
    """Keep it no longer; what was pinned under the name. `ConfigurationError` if nothing was."""
    found = tuple(pin for pin in list_pins(archive) if pin.name == name)
    if not found:
        raise ConfigurationError(
            f"{archive.url} has no pin {name!r:.100}",
            hint="list the pins that there are; a name is that given when it was pinned",
        )
    for pin in found:
        archive.store.delete(pin.path)
    return found
