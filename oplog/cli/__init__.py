"""The command line, `oplog`: data on stdout, talk on stderr, an exit code that says which.

The only door that imports click and, with `Keyring.from_env`, the only place that reads the
environment. Must not hold logic of the log: every command is one call of `Oplog` and its
presentation. The hard thing is the promise to scripts: with `--json` there is exactly one
JSON document on stdout, whatever happens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from oplog.cli.command import program
from oplog.cli.exit_code import run_program

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` as in `sys.argv[1:]`."""
    return run_program(program, list(sys.argv[1:] if arguments is None else arguments))
