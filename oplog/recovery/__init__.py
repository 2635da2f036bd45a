"""Restores a database from a log elsewhere, keeps a second one up to date, and adopts copies.

Puts together what reads a log (`oplog.store.LogSource`) and what folds it (`oplog.replay`).
Triggers, rules and foreign keys are out of force for one transaction, and put back as they were.
"""

from oplog.recovery.follow import FollowReport, follow_log
from oplog.recovery.restore import restore_log
from oplog.recovery.restore_report import RestoreReport

__all__ = [
    "FollowReport",
    "RestoreReport",
    "follow_log",
    "restore_log",
]
