"""The command that prints what the roles around a log need: grants.

Must not grant: a role that may grant is not the one that runs this. The hard thing is that its
output is run by hand, so it is SQL and nothing else.
"""

from __future__ import annotations

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.schema.grants import RoleKind


@click.command()
@click.argument("kind", type=click.Choice([kind.value for kind in RoleKind]))
@click.argument("role")
@click.option(
    "--tables",
    is_flag=True,
    help="Also SELECT on logged tables and sequences: for a worker's snapshots, for verify.",
)
@standard_options
@pass_invocation
def grants(invocation: Invocation, *, kind: str, role: str, tables: bool) -> None:
    """Print the SQL that gives ROLE what it needs.

    An application writes the log with its tables, a worker publishes it, an auditor reads. Run
    it as the owner of the log's tables, after the migrations. Needs no database.
    """
    log = invocation.load_log()
    report = log.grants(kind, role, tables=tables)
    invocation.emit(report.to_json, lambda: report.statements)
