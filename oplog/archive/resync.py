"""stub"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from oplog.archive.export import Exporter


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """x"""

    ok: bool = True


def resync_archive(exporter: Exporter, engine: Engine, *, dry_run: bool = False) -> ResyncReport:
    """X"""
    return ResyncReport()
