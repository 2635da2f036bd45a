"""Cuts a text of several SQL statements into single ones.

Pure. A semicolon ends a statement unless it is in a string, a quoted name, a comment, a
dollar-quoted text, parentheses or the body of a function in standard SQL (BEGIN ATOMIC).
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"(?P<line>--[^\n]*)"
    r"|(?P<block>/\*)"
    r"|(?P<escape>\b[eE]'(?:[^'\\]|\\.|'')*')"
    r"|(?P<text>'(?:[^']|'')*')"
    r"|(?P<name>\"(?:[^\"]|\"\")*\")"
    r"|(?P<dollar>(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$)"
    r"|(?P<atomic>\bbegin\s+atomic\b)"
    r"|(?P<case>\bcase\b)|(?P<end>\bend\b)"
    r"|(?P<open>[(\[])|(?P<close>[)\]])"
    r"|(?P<cut>;)",
    re.IGNORECASE | re.DOTALL,
)
_MARK = re.compile(r"/\*|\*/")


def split_script(text: str) -> list[str]:
    """The statements of a text, without those that are empty; the text itself if it has one.

    What is not understood is not cut: Postgres gets it as it is.
    """
    pieces: list[str] = []
    begin = place = parentheses = atomic = 0
    blank = True
    while found := _TOKEN.search(text, place):
        blank = blank and not text[place : found.start()].strip()
        place = found.end()
        kind = found.lastgroup
        if kind == "cut":
            if parentheses or atomic:
                continue
            if not blank:
                pieces.append(text[begin : found.start()])
            begin, blank = place, True
            continue
        if kind == "block":
            place = skip_comment(text, found.start())
            continue
        if kind == "line":
            continue
        blank = False
        if kind == "dollar":
            closing = text.find(found["dollar"], place)
            place = len(text) if closing < 0 else closing + len(found["dollar"])
        elif kind in ("open", "close"):
            parentheses = max(0, parentheses + (1 if kind == "open" else -1))
        elif kind == "atomic":
            atomic = 1
        elif atomic and kind in ("case", "end"):
            atomic += 1 if kind == "case" else -1
    if not blank or text[place:].strip():
        pieces.append(text[begin:])
    return pieces if len(pieces) > 1 else [text]


def skip_comment(text: str, place: int) -> int:
    """Where the comment ends that begins at `place`; comments may be nested."""
    depth = 0
    for mark in _MARK.finditer(text, place):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)
