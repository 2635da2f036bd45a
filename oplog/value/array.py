"""Codec of array types: reads and writes Postgres array literals.

The literal itself is the logged value. A predicted literal is therefore quoted exactly as
Postgres quotes it, or it would differ from the one that is read back. Arrays with other lower
bounds than 1 are never predicted; the driver sends none.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from oplog.value.kind import (
    UNSURE,
    Kind,
    Unsure,
    ValueCodec,
    Wire,
    make_text_codec,
    refuse_to_guess,
)

_MAX_DIMENSIONS = 6
_NEEDS_QUOTES = re.compile(r'|null|.*[ \t\n\r\v\f"\\{},].*', re.IGNORECASE | re.ASCII | re.DOTALL)
_ESCAPED = re.compile(r'(["\\])')
_UNESCAPED = re.compile(r"\\(.)", re.DOTALL)
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"\\]+)|([{},])', re.DOTALL)


def make_array_codec(
    pg_type: str,
    element: ValueCodec,
    *,
    predictable: bool,
    readable: bool,
    nests: bool,
    from_text: Callable[[str], Wire],
) -> ValueCodec:
    """Codec of arrays of `element`.

    `predictable`: inside a literal Postgres prints an element as `element.to_text` does.
    `readable`: `to_python` returns a (nested) list; otherwise it returns the literal, as it
    always does for an array whose lower bounds are not 1. `nests`: a list in a list is a dimension
    more, not an element. `from_text` rewrites a literal that Postgres prints but does not read
    back.
    """
    print_list = _make_printer(element, nests=nests)

    def to_wire(value: object) -> Wire | Unsure:
        # Not isinstance: the driver may adapt a subclass in another way.
        return print_list(value, 1) if type(value) is list else UNSURE

    def to_python(text: str) -> object:
        try:
            return _parse_literal(text, element)
        except ValueError:
            return text

    return make_text_codec(
        pg_type,
        compare_as_text=True,
        to_wire=to_wire if predictable else refuse_to_guess,
        to_python=to_python if readable else None,
        from_text=from_text,
    )


def _make_printer(
    element: ValueCodec, *, nests: bool
) -> Callable[[list[object], int], str | Unsure]:
    """What prints a list as a literal; its second parameter is the dimension that it is in."""
    quotes = element.kind is Kind.TEXT or element.kind is Kind.BYTES

    def print_list(items: list[object], dimension: int) -> str | Unsure:
        parts = []
        for item in items:
            if item is None:
                parts.append("NULL")
                continue
            if type(item) is list:
                # Without elements it is left to Postgres how many dimensions there are.
                if not nests or not item or dimension == _MAX_DIMENSIONS:
                    return UNSURE
                inner = print_list(item, dimension + 1)
                if inner is UNSURE:
                    return UNSURE
                parts.append(inner)
                continue
            wire = element.to_wire(item)
            if wire is UNSURE:
                return UNSURE
            text = element.to_text(wire)
            parts.append(_quote(text) if quotes else text)
        return f"{{{','.join(parts)}}}"

    return print_list


def _quote(text: str) -> str:
    # Postgres quotes an element only if it must; a needless pair of quotes would be a difference.
    if _NEEDS_QUOTES.fullmatch(text) is None:
        return text
    return '"' + _ESCAPED.sub(r"\\\1", text) + '"'


def _parse_literal(text: str, element: ValueCodec) -> object:
    """Parse a literal to nested lists; ValueError for '[2:3]={...}' and malformed text."""
    from_text, to_python = element.from_text, element.to_python
    outermost: list[object] = []
    open_lists = [outermost]
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(text)
        position = match.end()
        quoted, bare, mark = match.groups()
        if quoted is not None:
            open_lists[-1].append(to_python(from_text(_UNESCAPED.sub(r"\1", quoted))))
        elif bare is not None:
            # Only an unquoted NULL is one; the string 'NULL' is printed with quotes.
            open_lists[-1].append(None if bare == "NULL" else to_python(from_text(bare)))
        elif mark == "{":
            inner: list[object] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
        elif mark == "}":
            open_lists.pop()
            if not open_lists:
                raise ValueError(text)
    if len(open_lists) != 1 or len(outermost) != 1 or not isinstance(outermost[0], list):
        raise ValueError(text)
    return outermost[0]
