"""Give consumers, archives, adoptions, restores and followers tables of their own."""

from __future__ import annotations

from alembic import op

revision = "oplog_0003"
down_revision = "oplog_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move what they saved out of the one table that held all of it; a new log has none."""
    op.upgrade_oplog(version=1)  # type: ignore[attr-defined]


def downgrade() -> None:
    """Leave it: dropping the log drops these tables with it."""
