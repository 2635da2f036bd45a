"""What tests and demonstrations of an application with a log need.

Fixtures for pytest are in `oplog.testing.plugin`, which alone imports it.
"""

from __future__ import annotations

from oplog.testing.assertion import assert_logged, assert_tracked
from oplog.testing.server import EmbeddedServer

__all__ = ["EmbeddedServer", "assert_logged", "assert_tracked"]
