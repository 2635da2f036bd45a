"""What need not run a second time on other versions of SQLAlchemy and protobuf.

`--affected`, as in `make test-sqlalchemy-20`, leaves it out. A module that is not listed runs in
both environments, so a new one does. Writing through the ORM is in every test of capture; what
is listed here writes a few plain rows that way and then works with SQL of its own, files,
processes or nothing of the kind. `make soak` runs all of it on both.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTION = "--affected"

UNAFFECTED: dict[str, tuple[str, ...]] = {
    "no SQLAlchemy and no protobuf, or not under test": (
        "architecture/*",
        "contract/*",
        "demo/*",
        "docs/*",
        "model/*",
        "property/test_blocks.py",
        "unit/test_archive_check.py",
        "unit/test_archive_document.py",
        "unit/test_archive_head.py",
        "unit/test_archive_index.py",
        "unit/test_archive_path.py",
        "unit/test_archive_reading.py",
        "unit/test_benchmark_*.py",
        "unit/test_binary_message.py",
        "unit/test_chain.py",
        "unit/test_cli_usage.py",
        "unit/test_first_log.py",
        "unit/test_cursor.py",
        "unit/test_keyring*.py",
        "unit/test_mutants.py",
        "unit/test_ordered_id.py",
        "unit/test_resolution.py",
        "unit/test_seal*.py",
        "unit/test_snapshot_*.py",
        "unit/test_store_*.py",
        "unit/test_value*.py",
    ),
    "its packages are in the first environment only": ("examples/*",),
    "the log's own SQL, sent as text": (
        "concurrency/test_adoption.py",
        "concurrency/test_cursor.py",
        "concurrency/test_locks.py",
        "concurrency/test_subscription.py",
        "postgres/test_append_*.py",
        "postgres/test_consumer_names.py",
        "postgres/test_diagnosis*.py",
        "postgres/test_exchange.py",
        "postgres/test_inspection.py",
        "postgres/test_odd_schema_names.py",
        "postgres/test_open_transactions.py",
        "postgres/test_planted_holes.py",
        "postgres/test_portions.py",
        "postgres/test_re[ps]*.py",
        "postgres/test_rights.py",
        "postgres/test_row_history.py",
        "postgres/test_schema_version.py",
        "postgres/test_sessions.py",
        "postgres/test_store_records.py",
        "postgres/test_strange_triggers.py",
        "postgres/test_subscription_guard.py",
        "postgres/test_verify.py",
    ),
    "archives: objects, and tables filled from them": (
        "fault/test_publishing_crashes.py",
        "fault/test_s[ito]*.py",
        "fault/test_upload_order.py",
        "postgres/test_archive_without_database.py",
        "postgres/test_archived_history.py",
        "postgres/test_change.py",
        "postgres/test_check.py",
        "postgres/test_collection.py",
        "postgres/test_follow.py",
        "postgres/test_joined_log.py",
        "postgres/test_kept_log.py",
        "postgres/test_lost*.py",
        "postgres/test_older_archive.py",
        "postgres/test_prune.py",
        "postgres/test_renamed_columns.py",
        "postgres/test_snapshot*.py",
        "postgres/test_sync.py",
        "postgres/test_worker.py",
    ),
    "servers and processes that are killed, copied or followed": (
        "fault/test_cutter.py",
        "fault/test_failover.py",
        "fault/test_full_disk.py",
        "fault/test_history.py",
        "fault/test_killed_*.py",
        "fault/test_promotion.py",
        "fault/test_proxy.py",
        "fault/test_worker_process.py",
        "postgres/test_copied_database.py",
        "postgres/test_dumped_database.py",
        "postgres/test_foreign_server.py",
        "postgres/test_server.py",
        "postgres/test_standby.py",
    ),
    "the command line, which calls what others test": ("postgres/test_cli*.py",),
}


def add_options(parser: pytest.Parser) -> None:
    parser.getgroup("oplog").addoption(
        OPTION, action="store_true", help="only what SQLAlchemy or protobuf can change"
    )


def is_unaffected(path: Path) -> bool:
    """Whether another version of SQLAlchemy or protobuf changes nothing for a test module."""
    inside = path.relative_to(ROOT / "tests").as_posix()
    return any(fnmatch(inside, pattern) for group in UNAFFECTED.values() for pattern in group)


def deselect_unaffected(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption(OPTION):
        return
    left_out = [item for item in items if is_unaffected(item.path)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not is_unaffected(item.path)]
