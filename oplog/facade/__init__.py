"""`Oplog`: the one object an application holds, put together from parts."""

from oplog.facade.fork_part import ForkReport
from oplog.facade.oplog import Oplog

__all__ = ["ForkReport", "Oplog"]
