"""Test tools for applications that use a log.

Fixtures for pytest are in `oplog.testing.plugin`, the only module that imports pytest, by way of
`pytest_oplog`.
"""

from __future__ import annotations

from oplog.testing.assertion import assert_logged, assert_tracked
from oplog.testing.rolling_back import rolled_back, rolled_back_async
from oplog.testing.server import EmbeddedServer

__all__ = ["EmbeddedServer", "assert_logged", "assert_tracked", "rolled_back", "rolled_back_async"]
