"""Idempotency keys: their limits, and the fingerprint of the request that a key stands for.

Pure: no connection and no SQL. If a key is used again for other work, the receipts of the first
must not be returned, because they would say that a write happened which did not. So where the
application does not say what the request is, the work's name and the plain values in it stand
for the request.
"""

from __future__ import annotations

import dis
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from hashlib import sha256
from types import CodeType
from typing import Any
from uuid import UUID

from oplog.entry import (
    check_text,
)
from oplog.errors import ConfigurationError, IdempotencyConflictError, InvalidMetadataError
from oplog.receipt import Receipt

MAX_KEY_BYTES = 1024
"""Longest idempotency key, in UTF-8 bytes: it is in a btree index."""

_PLAIN = (str, int, float, bytes, Decimal, UUID, date, time, timedelta, Enum, type(None))


@dataclass(frozen=True, slots=True)
class Claim:
    """An idempotency key held by a transaction.

    `receipts` are those of the transaction that used the key before; empty if there is none.
    """

    key: str
    fingerprint: str | None
    receipts: tuple[Receipt, ...] = ()


def check_key(key: str) -> str:
    """`key`, if it can be stored; else `InvalidMetadataError`."""
    data = check_text(key, "idempotency key", InvalidMetadataError)
    if not 0 < len(data) <= MAX_KEY_BYTES:
        raise InvalidMetadataError(
            f"idempotency key of {len(data)} bytes", hint=f"use 1 to {MAX_KEY_BYTES} bytes"
        )
    return key


def fingerprint_request(request: Any) -> str:
    """The fingerprint of what the application says the request is.

    `request` is a str, bytes, or what JSON can hold; keys of mappings are sorted. Raises
    `ConfigurationError` for anything else.
    """
    if isinstance(request, bytes):
        return _digest("bytes", [request])
    try:
        text = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise ConfigurationError(
            f"idempotency_request cannot be compared: {cause}",
            hint="give bytes, a str, or numbers, strings, lists and mappings of them",
        ) from cause
    return _digest("json", [text.encode()])


def fingerprint_work(work: Callable[..., Any]) -> str:
    """The fingerprint of work for which the application gave no request.

    Covers its name, and those arguments of a `partial`, defaults and closed-over variables that
    are plain values and not assigned by the function itself. For a lambda, which has no name of
    its own, it covers the code.
    """
    return _digest("work", [part.encode() for part in _describe(work)])


def check_same(claim: Claim, *, stored: str | None) -> None:
    """Raise `IdempotencyConflictError` if the key was used for another request."""
    if None not in (claim.fingerprint, stored) and claim.fingerprint != stored:
        raise IdempotencyConflictError(
            f"idempotency key {claim.key!r} was used for another request",
            hint="draw a new key for each request; if this is the same one, say what makes it "
            "so: idempotency_request=...",
            receipts=claim.receipts,
        )


def refuse_repeat(claim: Claim) -> IdempotencyConflictError:
    """The error for a second transaction under the key that has something to write."""
    return IdempotencyConflictError(
        f"idempotency key {claim.key!r} was used before, and this transaction writes again",
        hint="annotate returns the receipts of the first transaction: return then, or use "
        "log.run(..., idempotency_key=...), which does",
        receipts=claim.receipts,
    )


def _digest(kind: str, parts: list[bytes]) -> str:
    digest = sha256(b"oplog/v1/request/" + kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _describe(work: Any) -> Iterator[str]:
    if isinstance(work, partial):
        yield "partial"
        yield from _describe_values(enumerate(work.args))
        yield from _describe_values(sorted(work.keywords.items()))
        yield from _describe(work.func)
        return
    function = getattr(work, "__func__", work)
    yield f"{getattr(function, '__module__', '')}.{_name(function)}"
    code = getattr(function, "__code__", None)
    if code is None:
        return
    if code.co_name == "<lambda>":
        yield from _describe_code(code)
    yield from _describe_values(enumerate(function.__defaults__ or ()))
    yield from _describe_values(sorted((function.__kwdefaults__ or {}).items()))
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    assigned = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    yield from _describe_values(
        (name, cell.cell_contents)
        for name, cell in cells
        if name not in assigned and _is_filled(cell)
    )


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asking is the only way to know
    except ValueError:
        return False
    return True


def _describe_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    yield from (repr(value) for value in code.co_consts if isinstance(value, _PLAIN))


def _describe_values(values: Any) -> Iterator[str]:
    for name, value in values:
        # Other values have no form that is the same in another process.
        if _is_plain(value):
            yield f"{name}={type(value).__name__}:{value!r}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)
