"""Bring the log's tables to the present definition of schema version 1."""

from __future__ import annotations

from alembic import op

revision = "oplog_0002"
down_revision = "oplog_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace what a log has that an earlier release created; a new one is so already."""
    op.upgrade_oplog(version=1)  # type: ignore[attr-defined]


def downgrade() -> None:
    """Leave it: an earlier release works with this definition, and rights were taken back."""
