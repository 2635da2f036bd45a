"""An operation log in the same SQL transaction as the rows it describes.

Everything importable from here, from `oplog.arrow`, `oplog.asgi`, `oplog.celery`, `oplog.errors`,
`oplog.migration`, `oplog.rq`, `oplog.testing` and `oplog.wsgi` is public; nothing else is.

PYTEST_DONT_REWRITE: pytest would rewrite the assertions of every package with fixtures, and warn
of one that is imported already. There are none here.
"""

from oplog import asgi, wsgi
from oplog.adoption import AdoptedType, AdoptionReport
from oplog.adoption.schema_changes import ChangesReport
from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.opening import open_archive
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust
from oplog.doctor.logged_types import ProtoReport, TypesReport
from oplog.doctor.status import StatusReport
from oplog.doctor.type_change import TypeChange, TypesCheckReport
from oplog.entry import (
    Change,
    Entry,
    LoggedEntry,
    Operation,
    OpType,
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
from oplog.facade.async_target import AsyncMoment
from oplog.facade.sync_worker import SyncWorker
from oplog.finding import Finding
from oplog.metadata_context import carry_context, context, current_context
from oplog.outcome import Blocker, Outcome, Resolution
from oplog.past.look_back import Moment
from oplog.past.row_difference import RowDifference, RowOrigin
from oplog.past.row_versions import RowVersion, VersionRow
from oplog.reading.page import Entries, Page
from oplog.reading.step_check import StepFailure, StepReport
from oplog.reading.subscription import Batch, Subscription
from oplog.receipt import Receipt
from oplog.recovery.follow import FollowReport
from oplog.recovery.incarnation import IncarnationReport
from oplog.recovery.lost import RefusedTransaction, ReplayLostReport
from oplog.recovery.restore_report import RestoreReport
from oplog.replay import Difference, ReplayReport, VerifyReport
from oplog.schema.grants import GrantsReport
from oplog.search.found_change import FoundChange, SearchPage
from oplog.snapshot.policy import SnapshotPolicy
from oplog.snapshot.publishing import SnapshotReport
from oplog.store.quarantined import QuarantinedRecord
from oplog.sync.divergence import LostEntry
from oplog.sync.exporter import SyncReport
from oplog.sync.lag import ArchiveLag
from oplog.undo.undo_conflict import UndoConflict
from oplog.undo.undo_plan import UndoPlan
from oplog.upkeep.garbage import CollectionReport
from oplog.upkeep.maintenance import MaintenanceReport
from oplog.upkeep.pin import Pin
from oplog.upkeep.problem import ArchiveProblem, ArchiveReport
from oplog.upkeep.prune import PruneReport
from oplog.upkeep.quarantine import QuarantineReport
from oplog.upkeep.resync import ResyncReport
from oplog.upkeep.retention import Retention

__all__ = [
    "AdoptedType",
    "AdoptionReport",
    "Archive",
    "ArchiveLag",
    "ArchiveProblem",
    "ArchiveReport",
    "ArchiveStepDone",
    "AsyncMoment",
    "Batch",
    "Blocker",
    "Change",
    "ChangesReport",
    "CollectionReport",
    "Difference",
    "Entries",
    "EntriesAppended",
    "EntriesDrafted",
    "Entry",
    "Event",
    "Expectation",
    "Finding",
    "FollowReport",
    "ForkReport",
    "FoundChange",
    "GrantsReport",
    "IncarnationReport",
    "Keyring",
    "LoggedEntry",
    "LostEntry",
    "MaintenanceReport",
    "Moment",
    "OpType",
    "Operation",
    "Oplog",
    "Outcome",
    "OutcomeLost",
    "OutcomeResolved",
    "Page",
    "Pin",
    "ProtoReport",
    "PruneReport",
    "QuarantineReport",
    "QuarantinedRecord",
    "Receipt",
    "RefusedTransaction",
    "ReplayLostReport",
    "ReplayReport",
    "Resolution",
    "RestoreReport",
    "ResyncReport",
    "Retention",
    "RowDifference",
    "RowOrigin",
    "RowVersion",
    "SearchPage",
    "SigningKeyring",
    "SnapshotPolicy",
    "SnapshotReport",
    "StatusReport",
    "StepFailure",
    "StepReport",
    "Subscription",
    "SyncReport",
    "SyncWorker",
    "Ticket",
    "Trust",
    "TypeCatalog",
    "TypeChange",
    "TypesCheckReport",
    "TypesReport",
    "UndoConflict",
    "UndoPlan",
    "VerifyReport",
    "VersionRow",
    "WorkRetried",
    "asgi",
    "carry_context",
    "context",
    "current_context",
    "open_archive",
    "wsgi",
]

__version__ = "0.1.0"
