"""The pictures of the README, taken of real commands on a terminal.

`python -m tests.docs.screenshots` takes them again; a test compares what they show with what the
commands print.
"""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from oplog import Keyring
from oplog.testing import EmbeddedServer
from tests.docs.pages import DOCS, ROOT, list_blocks
from tests.docs.running import normalise
from website.terminal import draw_terminal

PICTURE = DOCS / "images/first-look.svg"
TITLE = "oplog tail, undo and verify on a terminal"
COMMANDS = (
    ("tail", "--last", "2"),
    ("undo", "--metadata", "actor=bo", "--dry-run"),
    ("verify",),
)
WRITE = """
from decimal import Decimal
from bank import Account, Sessions, log
with Sessions.begin() as session:
    log.annotate(session, actor="ada", reason="opening")
    session.add(Account(id=1, owner="Ada", balance=Decimal("100.00")))
with Sessions.begin() as session:
    log.annotate(session, actor="bo", reason="typing error")
    session.get_one(Account, 1).balance = Decimal("10.00")
"""


def take_text(directory: Path, url: URL) -> str:
    """What a terminal shows: the tutorial's bank in `directory`, two transactions, the commands."""
    for block in list_blocks(DOCS / "tutorial/first-log.md"):
        if block.file_name in {"bank.py", "create.py"}:
            (directory / block.file_name).write_text(block.text + "\n", encoding="utf-8")
    shown = url.render_as_string(hide_password=False)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "LESS"}},
        "DATABASE_URL": shown,
        "OPLOG_APP": "bank:log",
        "OPLOG_DATABASE_URL": shown,
        "OPLOG_KEYRING": Keyring.generate().to_text(),
        "PAGER": "cat",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)]),
        "TERM": "xterm",
    }
    for arguments in (["create.py"], ["-c", WRITE]):
        subprocess.run([sys.executable, *arguments], cwd=directory, env=environment, check=True)
    parts = []
    for command in COMMANDS:
        said = _run_on_terminal(command, directory, environment)
        parts.append(f"$ oplog {' '.join(command)}\n{said.strip()}\n")
    return "\n".join(parts)


def settle(text: str) -> str:
    """`text` as the picture shows it: with times and ids that every run has."""
    return normalise(text).replace("<time>", "2026-01-31T12:00:00.000000Z")


def _run_on_terminal(
    command: tuple[str, ...], directory: Path, environment: Mapping[str, str]
) -> str:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "oplog", *command],
        cwd=directory,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
    )
    os.close(slave)
    shown = b""
    # What a terminal says once nobody has it open.
    with contextlib.suppress(OSError):
        while read := os.read(master, 1 << 16):
            shown += read
    os.close(master)
    process.wait()
    return shown.decode().replace("\r\n", "\n")


def main() -> None:
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as directory:
        text = take_text(Path(directory), make_url(server.url))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw_terminal(settle(text), title=TITLE), encoding="utf-8")


if __name__ == "__main__":
    main()
