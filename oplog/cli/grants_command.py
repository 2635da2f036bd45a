"""`oplog grants`.

The output is SQL and nothing else, because people run it as another role.
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
    help="Grant SELECT on logged tables and sequences too, for snapshots and verify.",
)
@standard_options
@pass_invocation
def grants(invocation: Invocation, *, kind: str, role: str, tables: bool) -> None:
    """Print the SQL that grants ROLE its privileges.

    An application writes the log with its tables, a worker publishes it, an auditor reads. Run
    it as the owner of the log's tables, after the migrations. Needs no database.
    """
    log = invocation.load_log()
    report = log.grants(kind, role, tables=tables)
    invocation.emit(report.to_json, lambda: report.statements)
