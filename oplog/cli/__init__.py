"""The command line, `oplog`: data on stdout, remarks on stderr, an exit code for each outcome.

A command calls methods of `Oplog` and prints their reports. With `--json`, stdout holds exactly one
JSON document, also when the command fails. Only this package imports click.
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
