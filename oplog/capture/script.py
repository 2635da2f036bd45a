"""Cuts a text of several SQL statements into single ones.

Pure. A semicolon ends a statement unless it is in a string, a quoted name, a comment, a
dollar-quoted text, parentheses or the body of a function in standard SQL (BEGIN ATOMIC).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

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
_COMMENTS = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z))*")
_MARK = re.compile(r"/\*|\*/")


def split_script(text: str) -> list[str]:
    """The statements of a text, without those that are empty; the text itself if it has one.

    What is not understood is not cut: Postgres gets it as it is.
    """
    pieces: list[str] = []
    begin = 0
    for end in _find_ends(text):
        piece = text[begin:end]
        if not _COMMENTS.fullmatch(_strip_blocks(piece)):
            pieces.append(piece)
        begin = end + 1
    return pieces if len(pieces) > 1 else [text]


def _find_ends(text: str) -> Iterator[int]:
    """Where statements end: at semicolons that nothing encloses, and at the end of the text."""
    place = depth = atomic = 0
    while found := _TOKEN.search(text, place):
        place = found.end()
        kind = found.lastgroup
        if kind == "block":
            place = skip_comment(text, found.start())
        elif kind == "dollar":
            closing = text.find(found["dollar"], place)
            place = len(text) if closing < 0 else closing + len(found["dollar"])
        elif kind == "atomic":
            atomic = 1
        elif atomic:
            atomic += {"case": 1, "end": -1}.get(kind or "", 0)
        elif kind == "cut" and not depth:
            yield found.start()
        else:
            depth = max(0, depth + {"open": 1, "close": -1}.get(kind or "", 0))
    yield len(text)


def _strip_blocks(piece: str) -> str:
    """The piece without the comments in `/* */` that it begins with."""
    while (stripped := _COMMENTS.sub("", piece, count=1)).startswith("/*"):
        piece = stripped[skip_comment(stripped, 0) :]
    return piece


def skip_comment(text: str, place: int) -> int:
    """Where the comment ends that begins at `place`; comments may be nested."""
    depth = 0
    for mark in _MARK.finditer(text, place):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)
