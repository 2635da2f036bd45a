"""Reads and writes fields in the text format of COPY.

Both functions run once for every value of a replay, so they are written for speed. The reader
accepts only what COPY itself writes: a block may come from a damaged or a forged entry.
"""

from __future__ import annotations

import re

_NULL = r"\N"
_ESCAPES = {
    "\\": "\\",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_UNWRITTEN = re.compile(r"[\b\t\n\v\f\r]")


def copy_field(text: str | None) -> str:
    """Write one field of a COPY row in text format, without its delimiter; None is NULL."""
    if text is None:
        return _NULL
    # All characters that COPY escapes are unprintable, except the backslash. This test is
    # several times cheaper than a search for each of them.
    if text.isprintable() and "\\" not in text:
        return text
    # Seven replacements beat str.translate, which is 20 times slower outside of ASCII.
    return (
        text.replace("\\", r"\\")
        .replace("\n", r"\n")
        .replace("\t", r"\t")
        .replace("\r", r"\r")
        .replace("\b", r"\b")
        .replace("\f", r"\f")
        .replace("\v", r"\v")
    )


def read_copy_field(field: str) -> str | None:
    """Read the text of one field, None for NULL: the inverse of `copy_field`.

    Raises `ValueError` for what COPY does not write: an unknown escape, a backslash at the end,
    or a character that COPY would have escaped.
    """
    if field.isprintable() and "\\" not in field:
        return field
    if field == _NULL:
        return None
    if _UNWRITTEN.search(field):
        raise ValueError(f"a character that COPY escapes is not escaped in {field[:40]!r}")
    return _ESCAPED.sub(_unescape, field)


def _unescape(match: re.Match[str]) -> str:
    found = _ESCAPES.get(match[1])
    if found is None:
        raise ValueError(f"COPY writes no escape {match[0]!r}")
    return found
