"""What makes two logged values of a column the same one, as bytes.

Values under `numeric` without a scale may be stored with different numbers of zeros, and a float
zero with a sign: for who looks for a value they are the same.
"""

from __future__ import annotations

from oplog.value.kind import Wire


def name_value(pg_type: str, wire: Wire | None) -> bytes:
    """Bytes that are equal for the same values of a type, and for no others."""
    if wire is None:
        return b"n"
    if isinstance(wire, bool):
        return b"b1" if wire else b"b0"
    if isinstance(wire, int):
        return b"i%d" % wire
    if isinstance(wire, float):
        # Minus zero is equal to zero.
        return b"f" + repr(wire or 0.0).encode()
    if isinstance(wire, bytes):
        return b"x" + wire
    if pg_type.startswith("numeric") and "." in wire:
        whole = wire.rstrip("0").rstrip(".")
        wire = "0" if whole in ("", "-", "-0") else whole
    return b"t" + wire.encode("utf-8", "surrogatepass")
