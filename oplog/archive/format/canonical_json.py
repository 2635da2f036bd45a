"""Canonical JSON: one spelling for each document, and nothing else is accepted.

Pure. Holds the only JSON encoder and decoder of the archive. Must not know what documents
say; `Fields` reads their members with checks of types and ranges. The hard thing is hostile
input: a document that parses in two ways (a name twice, a float, other white space) could say
one thing to the one who checks it and another to the one who uses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from oplog.errors import ManifestInvalidError

MAX_DEPTH = 16
"""Deepest nesting of a document."""
MAX_INTEGER = (1 << 63) - 1
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
"""A string, up to the end if it has none, or a bracket. Possessive: it never tries twice."""
_HASH = re.compile(r"[0-9a-f]{64}")


def encode_document(document: Mapping[str, Any]) -> bytes:
    """The one spelling: names sorted, no white space, UTF-8, integers only."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def decode_document(data: bytes, *, most: int, what: str) -> dict[str, Any]:
    """The document spelled by `data`, which names itself `what` in errors.

    Raises `ManifestInvalidError` for more than `most` bytes and for anything that
    `encode_document` would have spelled otherwise.
    """
    if len(data) > most:
        raise invalid(what, f"it has {len(data)} bytes, over the limit of {most}")
    _check_depth(data, what)
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=lambda pairs: _unite(pairs, what),
            parse_float=lambda text: invalid_number(what, text),
            parse_constant=lambda text: invalid_number(what, text),
            parse_int=lambda text: _parse_integer(text, what),
        )
    except (ValueError, RecursionError) as cause:
        raise invalid(what, f"it is not JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise invalid(what, f"it is a {type(document).__name__}, not an object")
    try:
        same = encode_document(document) == data
    except UnicodeEncodeError as cause:
        raise invalid(what, "it holds half a character") from cause
    if not same:
        raise invalid(what, "it is not in canonical form")
    return document


def invalid(what: str, why: str) -> ManifestInvalidError:
    """The error for a document that is not what this library writes."""
    return ManifestInvalidError(
        f"{what} is not what this library writes: {why}",
        hint="it was altered, or written by a newer version: run oplog check, then oplog resync",
    )


def invalid_number(what: str, text: str) -> NoReturn:
    """Refuse a number that is no integer."""
    raise invalid(what, f"{text[:40]} is not an integer")


def _parse_integer(text: str, what: str) -> int:
    # Long digit strings take quadratic time to convert.
    if len(text) > len(str(MAX_INTEGER)) + 1 or abs(int(text)) > MAX_INTEGER:
        raise invalid(what, f"the number {text[:40]} is out of range")
    return int(text)


def _unite(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(what, f"it has the name {twice[:60]!r} twice")
    return found


def _check_depth(data: bytes, what: str) -> None:
    # Asked before parsing: the parser recurses, and a megabyte of brackets is cheap to send.
    depth = 0
    for token in _TOKEN.finditer(data):
        byte = data[token.start()]
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise invalid(what, f"it is nested over {MAX_DEPTH} deep")
        elif byte in b"]}":
            depth -= 1


class Fields:
    """The members of one object of a document, each taken once and checked."""

    def __init__(self, document: Any, what: str) -> None:
        if not isinstance(document, dict):
            raise invalid(what, f"a {type(document).__name__} stands where an object must")
        self._left = dict(document)
        self._what = what

    def take(self, name: str) -> Any:
        """A member of any kind; `ManifestInvalidError` if it is missing."""
        if name not in self._left:
            raise invalid(self._what, f"it has no {name!r}")
        return self._left.pop(name)

    def take_integer(self, name: str, *, least: int = 0, most: int = MAX_INTEGER) -> int:
        """An integer from `least` to `most`."""
        found = self.take(name)
        if type(found) is not int or not least <= found <= most:
            raise invalid(self._what, f"its {name!r} is {found!r:.60}")
        return found

    def take_text(self, name: str, *, most: int = 4096) -> str:
        """A string of at most `most` characters."""
        found = self.take(name)
        if not isinstance(found, str) or len(found) > most:
            raise invalid(self._what, f"its {name!r} is {found!r:.60}")
        return found

    def take_optional_text(self, name: str, *, most: int = 4096) -> str | None:
        """A string, or null."""
        found = self.take(name)
        if found is not None and (not isinstance(found, str) or len(found) > most):
            raise invalid(self._what, f"its {name!r} is {found!r:.60}")
        return found

    def take_hash(self, name: str) -> bytes:
        """A SHA-256, given as 64 hexadecimal digits."""
        found = self.take(name)
        if not isinstance(found, str) or not _HASH.fullmatch(found):
            raise invalid(self._what, f"its {name!r} is not a SHA-256")
        return bytes.fromhex(found)

    def take_list(self, name: str, *, most: int) -> list[Any]:
        """A list of at most `most` members."""
        found = self.take(name)
        if not isinstance(found, list) or len(found) > most:
            raise invalid(self._what, f"its {name!r} is not a list of at most {most}")
        return found

    def take_format(self, known: int) -> None:
        """The format number, which must be the one that is known."""
        found = self.take_integer("format")
        if found != known:
            raise invalid(self._what, f"its format number is {found}, this library knows {known}")

    def finish(self) -> None:
        """Refuse members that nobody took."""
        if self._left:
            raise invalid(self._what, f"it has the unknown name {min(self._left)[:60]!r}")
