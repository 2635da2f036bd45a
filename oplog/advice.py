"""Warnings that the library gives through Python's `warnings`: what is done, and worth knowing.

Plain values, public by way of `oplog.errors`. Must not raise anything. A warning says that
nothing is wrong yet: what is wrong is an error.
"""

from __future__ import annotations


class DurabilityNotConfirmedWarning(UserWarning):
    """A COMMIT happened, and a wait for its standby was cut short: a failover may lose it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class RestoreWarning(UserWarning):
    """Rows are logged that a restore from the log will refuse."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
