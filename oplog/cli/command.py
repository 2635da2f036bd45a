"""The program `oplog` with its options and commands."""

from __future__ import annotations

import click

from oplog import __version__
from oplog.cli.actor import actor_option, enter_context
from oplog.cli.adopt_command import adopt
from oplog.cli.as_of_command import as_of
from oplog.cli.check_command import check
from oplog.cli.collect_command import collect
from oplog.cli.diff_command import diff
from oplog.cli.doctor_command import doctor
from oplog.cli.follow_command import follow
from oplog.cli.fork_command import fork
from oplog.cli.grants_command import grants
from oplog.cli.history_command import history
from oplog.cli.incarnate_command import incarnate
from oplog.cli.init_command import init
from oplog.cli.invocation import REFLECTED, Invocation
from oplog.cli.keys_command import keys
from oplog.cli.maintain_command import maintain
from oplog.cli.option import (
    accept_older_option,
    debug_option,
    json_option,
    remember_as,
    single_writer_option,
    store_deadline_option,
)
from oplog.cli.pin_command import pin, pins, unpin
from oplog.cli.program_options import accept_everywhere
from oplog.cli.prune_command import prune
from oplog.cli.publisher_command import publisher
from oplog.cli.quarantine_command import quarantine
from oplog.cli.replay_command import replay
from oplog.cli.resolve_command import resolve
from oplog.cli.restore_command import recover, restore
from oplog.cli.resync_command import resync
from oplog.cli.search_command import search
from oplog.cli.snapshot_command import snapshot
from oplog.cli.status_command import status
from oplog.cli.sync_command import sync
from oplog.cli.tail_command import tail
from oplog.cli.trust_command import trust
from oplog.cli.trust_option import (
    expect_option,
    replace_publisher_option,
    signing_keyring_option,
    trust_option,
    unsigned_option,
)
from oplog.cli.types_command import types
from oplog.cli.undo_command import undo
from oplog.cli.verify_command import verify
from oplog.outside.program_settings import VARIABLES

_EPILOG = """\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 differences, corruption or a
fork, 4 lag, 10 the log's tables are missing or of another version, 11 lease,
12 keys, 13 the archive's store does not answer or refuses, 130 interrupted,
141 nobody reads the output any more.

\b
Documentation: docs/index.md of the source; make docs builds it as a site.
Begin with oplog init.
"""


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option(
    "--app",
    metavar="MODULE:ATTR",
    expose_value=False,
    callback=remember_as("app"),
    envvar=VARIABLES["app"],
    show_envvar=True,
    help="The application's Oplog, or a function that returns it. The current directory is "
    f"importable. {REFLECTED!r}: the tables that are guarded in the database.",
)
@click.option(
    "--database",
    metavar="URL",
    expose_value=False,
    callback=remember_as("database"),
    envvar=VARIABLES["database-url"],
    show_envvar=True,
    help="postgresql://user:password@host/database",
)
@click.option(
    "--archive",
    metavar="URL",
    expose_value=False,
    callback=remember_as("archive"),
    envvar=VARIABLES["archive-url"],
    show_envvar=True,
    help="s3://bucket/prefix, gs://, az:// or file:///path; credentials as its client finds them.",
)
@single_writer_option
@accept_older_option
@store_deadline_option
@signing_keyring_option
@trust_option
@expect_option
@unsigned_option
@replace_publisher_option
@actor_option
@json_option
@debug_option
@click.version_option(__version__, prog_name="oplog")
@click.pass_context
def program(context: click.Context) -> None:
    """Look into an operation log, rebuild tables from it, and prove them equal.

    Options may stand before and after the name of a command.
    """
    enter_context(context, context.ensure_object(Invocation))


for _command in (
    *(init, status, doctor, tail, history, search, as_of, diff, replay, verify, resolve, adopt),
    *(keys, types),
    *(sync, snapshot, restore, recover, follow, check, resync, collect, pin, unpin, pins),
    *(fork, grants, incarnate, prune, maintain, quarantine, publisher, trust, undo),
):
    program.add_command(_command)
accept_everywhere(program)
