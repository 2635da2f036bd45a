"""Pages of the documentation as data: blocks, links, headings.

Knows Markdown as far as these pages use it, and nothing of how a block is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\S*)\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"`([^`]+)`")
_HEADING = re.compile(r"^#+ (.*)$")
_FILE_NAME = re.compile(r"^# ([\w.-]+(?:/[\w.-]+)*\.[a-z]+)$")
_AFTER = re.compile(r"^<!-- after: (\S+) (\S+) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of content, from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file that the block is, as its first line says; None for anything else."""
        if self.language not in {"python", "ini"}:
            return None
        matched = _FILE_NAME.match(self.text.partition("\n")[0])
        return matched[1] if matched else None


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the page shows of its output."""

    text: str
    output: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def list_blocks(page: Path) -> list[Block]:
    blocks = []
    language: str | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if language is None and fence:
            language, start, lines = fence[1], number + 1, []
        elif language is not None and line == "```":
            blocks.append(Block(page, start, language, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{name(page)}: a block that begins at line {start} has no end"
    return blocks


def list_commands(block: Block) -> list[Command]:
    """Commands begin with `$ `; a backslash at the end continues one on the next line."""
    commands: list[Command] = []
    typed: list[str] = []
    shown: list[str] = []
    continued = False
    for line in block.text.splitlines():
        if line.startswith("$ ") and not continued:
            if typed:
                commands.append(Command("\n".join(typed), "\n".join(shown)))
            typed, shown = [line[2:]], []
        elif continued:
            typed.append(line)
        else:
            assert typed, f"{block.where}: output before the first command"
            shown.append(line)
        continued = (line.startswith("$ ") or continued) and line.endswith("\\")
    return [*commands, Command("\n".join(typed), "\n".join(shown))]


def find_beginning(page: Path) -> tuple[Path, str] | None:
    """The page whose files this one goes on from, and the file to run first."""
    matched = _AFTER.search(page.read_text(encoding="utf-8"))
    return (page.parent / matched[1], matched[2]) if matched else None


def iterate_prose(page: Path) -> Iterator[str]:
    """Lines outside of blocks."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield line


def list_links(page: Path) -> list[str]:
    """Targets of links that stay in the repository."""
    found = [
        target for line in iterate_prose(page) for target in _LINK.findall(_CODE_SPAN.sub("", line))
    ]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def list_anchors(page: Path) -> set[str]:
    """What a link can name after `#`: headings as GitHub spells them."""
    anchors = set()
    for line in iterate_prose(page):
        matched = _HEADING.match(line)
        if matched:
            kept = re.sub(r"[^\w\- ]", "", matched[1].lower())
            anchors.add(kept.strip().replace(" ", "-"))
    return anchors


def list_code_words(page: Path) -> set[str]:
    """Words that stand in code spans."""
    spans = " ".join(span for line in iterate_prose(page) for span in _CODE_SPAN.findall(line))
    return set(re.findall(r"\w+", spans))


def split_sections(page: Path) -> dict[str, str]:
    """Text below each heading, by heading without its code marks."""
    sections: dict[str, str] = {}
    title = ""
    for line in iterate_prose(page):
        matched = _HEADING.match(line)
        if matched:
            title = matched[1].replace("`", "")
        sections[title] = sections.get(title, "") + line + "\n"
    return sections
