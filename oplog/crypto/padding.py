"""Size classes: what is padded has one of a few sizes, so that its size tells little of it.

Powers of two up to 4 KiB, from 256 bytes on; above that each doubling has eight classes, so that
padding adds an eighth at most. Every version pads in this way: readers know the size.
"""

from __future__ import annotations

_LEAST, _POWERS = 256, 4096
_CLASSES = 8
"""In each doubling above `_POWERS`."""


def find_size_class(size: int) -> int:
    """The size to which `size` bytes are padded; a power of two is its own class."""
    if size <= _LEAST:
        return _LEAST
    power: int = 1 << (size - 1).bit_length()
    if power <= _POWERS:
        return power
    step = power // 2 // _CLASSES
    return -(-size // step) * step


def pad(data: bytes) -> bytes:
    """`data` with zeros behind it, up to its size class."""
    return data.ljust(find_size_class(len(data)), b"\0")


def strip_padding(data: bytes, *, size: int) -> bytes:
    """The `size` bytes that were padded; `ValueError` for what `pad` has not made of so many."""
    wanted = find_size_class(size)
    if len(data) != wanted:
        raise ValueError(f"{size} bytes are padded to {wanted}, and it has {len(data)}")
    if data.count(b"\0", size) != wanted - size:
        raise ValueError(f"something other than zeros is behind its {size} bytes")
    return data[:size]
