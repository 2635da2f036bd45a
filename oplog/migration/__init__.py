"""The log in Alembic migrations: `op.create_oplog`, `op.track_tables`, `op.adopt_table` and others.

`import oplog.migration` in an `env.py` registers the operations, keeps autogenerate away from the
log's own tables, and has what revisions do to rows and tables logged.
"""

from oplog.migration.autogenerate import register_autogenerate
from oplog.migration.door import open_doors
from oplog.migration.guard_operation import TrackTablesOp, UntrackTablesOp
from oplog.migration.operation import (
    CreateOplogOp,
    DropOplogOp,
    RetireTypeOp,
    UpgradeOplogOp,
    migrations_path,
)
from oplog.migration.row_operation import AdoptTableOp, ReplaceTypeOp

__all__ = [
    "AdoptTableOp",
    "CreateOplogOp",
    "DropOplogOp",
    "ReplaceTypeOp",
    "RetireTypeOp",
    "TrackTablesOp",
    "UntrackTablesOp",
    "UpgradeOplogOp",
    "migrations_path",
]

register_autogenerate()
open_doors()
