"""Create the log's tables."""

from __future__ import annotations

from alembic import op

# Not a bare number: an application may list this directory among its own version locations.
revision = "oplog_0001"
down_revision = None
branch_labels = ("oplog",)
depends_on = None

# Alembic's type information cannot know operations that are registered at run time.


def upgrade() -> None:
    """Create them at schema version 1."""
    op.create_oplog(version=1)  # type: ignore[attr-defined]


def downgrade() -> None:
    """Remove them, with everything that was logged."""
    op.drop_oplog()  # type: ignore[attr-defined]
