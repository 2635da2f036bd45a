"""What MkDocs calls while it builds the site. Everything that decides is beside this file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# MkDocs loads this file by its path, so the package it is in is not importable by itself.
sys.path.insert(0, str(ROOT))

from website.links import PROJECT, read_navigation, rewrite_links  # noqa: E402 - after the path
from website.picture import draw  # noqa: E402
from website.reference import list_pages, write_reference  # noqa: E402


def on_config(config: Any) -> Any:
    """The navigation is that of the index page."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {f"{module} (docstrings)": path for module, path in list_pages().items()}
    config["nav"] = read_navigation(index, reference=pages)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository's root, and the API from docstrings."""
    # Only the environment that builds the site has it.
    make_file = importlib.import_module("mkdocs.structure.files").File.generated
    for source, target in PROJECT.items():
        text = rewrite_links(
            (ROOT / source).read_text(encoding="utf-8"), source=source, target=target
        )
        files.append(make_file(config, target, content=text))
    for target, text in write_reference().items():
        files.append(make_file(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite what links out of `docs/`."""
    source = page.file.src_uri
    if page.file.generated_by is not None:
        return markdown
    return rewrite_links(markdown, source=f"docs/{source}", target=source)


def format_diagram(source: str, *_: Any, **__: Any) -> str:
    """A `diagram` block as a picture."""
    return draw(source)
