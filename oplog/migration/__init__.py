"""The log in Alembic migrations: `op.create_oplog`, `op.track_tables`, `op.adopt_table` and others.

`import oplog.migration` in an `env.py` registers the operations.
"""

from oplog.migration.operation import (
    AdoptTableOp,
    CreateOplogOp,
    DropOplogOp,
    RetireTypeOp,
    TrackTablesOp,
    UntrackTablesOp,
    UpgradeOplogOp,
    migrations_path,
)

__all__ = [
    "AdoptTableOp",
    "CreateOplogOp",
    "DropOplogOp",
    "RetireTypeOp",
    "TrackTablesOp",
    "UntrackTablesOp",
    "UpgradeOplogOp",
    "migrations_path",
]
