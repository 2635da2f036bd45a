"""`Secret`: key bytes that do not show themselves.

Error trackers and debuggers print the local variables of every frame. A key in one of them must
print as a secret, and must not be pickled into a crash report.
"""

from __future__ import annotations

from typing import NoReturn, SupportsIndex, overload

from oplog.errors import ConfigurationError


class Secret(bytes):
    """Bytes that print as `<secret>`; everything else is as with bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, _specification: str) -> str:
        return "<secret>"

    @overload
    def __getitem__(self, place: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, place: slice, /) -> Secret: ...
    def __getitem__(self, place: SupportsIndex | slice, /) -> int | Secret:
        # What shortens long values before it prints them slices them.
        found = super().__getitem__(place)
        return Secret(found) if isinstance(found, bytes) else found

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise ConfigurationError(
            "a key cannot be pickled or copied: it would leave the process unnoticed",
            hint="give the other process the keyring: Keyring.from_file or Keyring.from_env",
        )
