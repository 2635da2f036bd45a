"""Fixtures for pytest: a database with a log, and a strict log that is verified after each test.

Where the package is installed pytest finds them by itself, by the entry point `oplog`, which is
`pytest_oplog`. Where it is not, such as in a checkout on the path, `pytest_plugins =
["oplog.testing.plugin"]` in the top `conftest.py` or `from oplog.testing.plugin import *` loads
them; with both nothing is different. Tables are guarded and the log is strict: an unlogged write
raises where it happens, or the verification after the test finds it.
"""

from __future__ import annotations

from oplog.testing.opened_log import OpenedLog
from pytest_oplog import (
    open_oplog,
    oplog_databases,
    oplog_engine,
    oplog_server_url,
    oplog_template,
)

__all__ = [
    "OpenedLog",
    "open_oplog",
    "oplog_databases",
    "oplog_engine",
    "oplog_server_url",
    "oplog_template",
]
