"""What a terminal showed, as a picture: text in a window, with the colours that it had."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

_WIDTH, _HEIGHT, _MARGIN = 8.2, 19.0, 14.0
"""Of a character cell and of the window's edge, in pixels."""
_STYLE = re.compile(r"\x1b\[([0-9;]*)m")
_COLOURS = {"31": "#e06c75", "32": "#98c379", "33": "#e5c07b"}
_BLANK = "\N{NO-BREAK SPACE}"
_TEXT, _WINDOW = "#d7dae0", "#22252b"


def draw_terminal(text: str, *, title: str) -> str:
    """The picture of `text`, which may have escape sequences for colours and bold, as SVG."""
    rows = text.rstrip("\n").split("\n")
    longest = max(len(_STYLE.sub("", row)) for row in rows)
    width, height = longest * _WIDTH + 2 * _MARGIN, len(rows) * _HEIGHT + 2 * _MARGIN
    body = "\n".join(
        f'<text x="{_MARGIN}" y="{_MARGIN + number * _HEIGHT + 14:.0f}">'
        f"{''.join(_draw_runs(row))}</text>"
        for number, row in enumerate(rows)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13.5" fill="{_TEXT}">'
        f"\n<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{_WINDOW}"/>\n{body}\n</svg>\n'
    )


def _draw_runs(row: str) -> Iterator[str]:
    styles: list[str] = []
    for place, part in enumerate(_STYLE.split(row)):
        if place % 2:
            styles = [] if part in {"", "0"} else [*styles, *part.split(";")]
        elif part:
            yield _draw_run(part, styles)


def _draw_run(text: str, styles: list[str]) -> str:
    given = [f'fill="{_COLOURS[style]}"' for style in styles if style in _COLOURS]
    given += ['font-weight="bold"'] if "1" in styles else []
    if text.startswith("$ "):
        given = ['fill="#61afef"']
    # Of several blanks a browser shows one, whatever the picture says of it.
    shown = escape(text).replace(" ", _BLANK)
    return f"<tspan {' '.join(given)}>{shown}</tspan>" if given else shown
