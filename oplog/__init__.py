"""An operation log in the same SQL transaction as the rows it describes.

Everything importable from here, from `oplog.errors`, `oplog.migration` and `oplog.testing` is
public; nothing else is.
"""

from oplog.adoption import AdoptedType, AdoptionReport
from oplog.archive.archive import Archive
from oplog.archive.collection import CollectionReport
from oplog.archive.export import SyncReport
from oplog.archive.lag import ArchiveLag
from oplog.archive.opening import open_archive
from oplog.archive.pin import Pin
from oplog.archive.problem import ArchiveProblem, ArchiveReport
from oplog.archive.resync import ResyncReport
from oplog.archive.retention import Retention
from oplog.archive.standing import LostEntry
from oplog.catalog import TypeCatalog
from oplog.entry import (
    Change,
    Entry,
    LoggedEntry,
    Operation,
    OpType,
    Receipt,
    Ticket,
)
from oplog.events import (
    ArchiveStepDone,
    EntriesAppended,
    EntriesDrafted,
    Event,
    OutcomeLost,
    OutcomeResolved,
    WorkRetried,
)
from oplog.facade import ForkReport, Oplog
from oplog.facade.worker import SyncWorker
from oplog.finding import Finding
from oplog.keyring import Keyring
from oplog.outcome import Blocker, Outcome, Resolution
from oplog.recovery.follow import FollowReport
from oplog.recovery.incarnation import IncarnationReport
from oplog.recovery.lost import RefusedTransaction, ReplayLostReport
from oplog.recovery.policy import SnapshotPolicy
from oplog.recovery.prune import PruneReport
from oplog.recovery.publishing import SnapshotReport
from oplog.recovery.restore import RestoreReport
from oplog.replay import Difference, ReplayReport, VerifyReport
from oplog.subscription import Batch, Subscription

__all__ = [
    "AdoptedType",
    "AdoptionReport",
    "Archive",
    "ArchiveLag",
    "ArchiveProblem",
    "ArchiveReport",
    "ArchiveStepDone",
    "Batch",
    "Blocker",
    "Change",
    "CollectionReport",
    "Difference",
    "EntriesAppended",
    "EntriesDrafted",
    "Entry",
    "Event",
    "Finding",
    "FollowReport",
    "ForkReport",
    "IncarnationReport",
    "Keyring",
    "LoggedEntry",
    "LostEntry",
    "OpType",
    "Operation",
    "Oplog",
    "Outcome",
    "OutcomeLost",
    "OutcomeResolved",
    "Pin",
    "PruneReport",
    "Receipt",
    "RefusedTransaction",
    "ReplayLostReport",
    "ReplayReport",
    "Resolution",
    "RestoreReport",
    "ResyncReport",
    "Retention",
    "SnapshotPolicy",
    "SnapshotReport",
    "Subscription",
    "SyncReport",
    "SyncWorker",
    "Ticket",
    "TypeCatalog",
    "VerifyReport",
    "WorkRetried",
    "open_archive",
]

__version__ = "0.1.0"
