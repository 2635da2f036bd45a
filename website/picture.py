"""A diagram that is drawn with characters, as a picture.

Box-drawing characters become lines, so that they meet on every screen; the rest stays text, which
can be selected, searched and read aloud.
"""

from __future__ import annotations

from html import escape

_WIDTH, _HEIGHT = 8.4, 20.0
"""Of a character cell, in pixels."""
_LINES = {
    "─": "ew",
    "│": "ns",
    "┌": "es",
    "┐": "ws",
    "└": "en",
    "┘": "wn",
    "├": "nse",
    "┤": "nsw",
    "┬": "ews",
    "┴": "ewn",
    "┼": "ewns",
}
"""Which ways a line leaves the middle of its cell."""


def draw(text: str) -> str:
    """The picture of `text` as SVG, in the colour of the text around it."""
    rows = text.rstrip("\n").split("\n")
    width = max((len(row) for row in rows), default=0) * _WIDTH
    body = "".join(_draw_row(row, number) for number, row in enumerate(rows))
    return (
        f'<svg class="diagram" role="img" viewBox="0 0 {width:.1f} {len(rows) * _HEIGHT:.1f}" '
        f'style="max-width: {width:.1f}px" xmlns="http://www.w3.org/2000/svg" '
        'fill="currentColor" stroke="none" font-family="monospace" font-size="14">'
        f"<title>{escape(_describe(rows))}</title>{body}</svg>"
    )


def _draw_row(row: str, number: int) -> str:
    middle = number * _HEIGHT + _HEIGHT / 2
    parts = []
    for column, character in enumerate(row):
        at = column * _WIDTH + _WIDTH / 2
        ends = {
            "e": (at + _WIDTH / 2, middle),
            "w": (at - _WIDTH / 2, middle),
            "n": (at, middle - _HEIGHT / 2),
            "s": (at, middle + _HEIGHT / 2),
        }
        parts += [
            f'<path d="M{at:.1f} {middle:.1f}L{ends[way][0]:.1f} {ends[way][1]:.1f}" '
            'stroke="currentColor"/>'
            for way in _LINES.get(character, "")
        ]
    return "".join(parts) + "".join(_write_words(row, number))


def _write_words(row: str, number: int) -> list[str]:
    """Runs of text between lines and wide gaps, each where its first character is."""
    found: list[str] = []
    start, run = 0, ""
    for column, character in enumerate([*row, "  "]):
        ends = character in _LINES or character == "  " or (run.endswith(" ") and character == " ")
        if ends and run.strip():
            length = len(run.rstrip()) * _WIDTH
            found.append(
                f'<text x="{start * _WIDTH:.1f}" y="{number * _HEIGHT + 15:.1f}" '
                f'textLength="{length:.1f}">{escape(run.rstrip())}</text>'
            )
        if ends:
            run = ""
        elif run or character != " ":
            start = start if run else column
            run += character
    return found


def _describe(rows: list[str]) -> str:
    words = (word for row in rows for word in row.split())
    return " ".join(word for word in words if any(c.isalnum() for c in word))
