"""Pages with the public names of a module, whose texts are the docstrings."""

from __future__ import annotations

import importlib

MODULES = ("oplog", "oplog.errors", "oplog.migration", "oplog.testing")
"""The public modules."""


def list_pages() -> dict[str, str]:
    """The path of each module's page."""
    return {module: f"reference/{module.replace('.', '-')}.md" for module in MODULES}


def write_reference() -> dict[str, str]:
    """Markdown by the path of its page; what `:::` names is filled in by mkdocstrings."""
    pages = {}
    for module, path in list_pages().items():
        names = sorted(importlib.import_module(module).__all__)
        parts = [f"# {module}\n", f"Public names of `{module}`, with their docstrings.\n"]
        parts += [f"## {name}\n\n::: {module}.{name}\n" for name in names if name[0] != "_"]
        pages[path] = "\n".join(parts)
    return pages
