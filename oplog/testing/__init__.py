"""What tests and demonstrations of an application with a log need."""

from __future__ import annotations

from oplog.testing.server import EmbeddedServer

__all__ = ["EmbeddedServer"]
