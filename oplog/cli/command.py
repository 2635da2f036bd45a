"""The program and its options; the commands themselves are in the modules beside.

Must not do any work. The hard thing is one spelling for everything: `--json` and `--debug`
are understood before and after the command's name.
"""

from __future__ import annotations

from typing import Any

import click

from oplog import __version__
from oplog.cli.adopting import adopt
from oplog.cli.examining import doctor
from oplog.cli.inspecting import history, status, tail
from oplog.cli.invocation import Invocation
from oplog.cli.keys import keys
from oplog.cli.option import debug_option, json_option
from oplog.cli.rebuilding import replay, verify
from oplog.cli.resolving import resolve
from oplog.cli.types import types

_EPILOG = """\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 differences or corruption,
10 the log's tables are missing or of another version, 12 keys,
130 interrupted, 141 nobody reads the output any more.
"""


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option(
    "--app",
    metavar="MODULE:ATTR",
    envvar="OPLOG_APP",
    show_envvar=True,
    help="The application's Oplog, or a function that returns it. The current directory is "
    "importable.",
)
@click.option(
    "--database",
    metavar="URL",
    envvar="OPLOG_DATABASE_URL",
    show_envvar=True,
    help="postgresql://user:password@host/database",
)
@json_option
@debug_option
@click.version_option(__version__, prog_name="oplog")
@click.pass_context
def program(context: click.Context, /, **options: Any) -> None:
    """Look into an operation log, rebuild tables from it, and prove them equal."""
    invocation = context.ensure_object(Invocation)
    invocation.app = options["app"]
    invocation.database = options["database"]


for _command in (status, doctor, tail, history, replay, verify, resolve, adopt, keys, types):
    program.add_command(_command)
