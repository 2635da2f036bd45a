"""Test tools for applications that use a log.

Fixtures for pytest are in `oplog.testing.plugin`, which is the only module that imports pytest.
"""

from __future__ import annotations

from oplog.testing.assertion import assert_logged, assert_tracked
from oplog.testing.server import EmbeddedServer

__all__ = ["EmbeddedServer", "assert_logged", "assert_tracked"]
