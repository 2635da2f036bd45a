"""Which modules are mutated, and the fast tests that judge each.

Unit tests come first, and of the others those that fail soonest: a mutant dies of the first.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A module and its judge."""

    name: str
    module: str
    tests: tuple[str, ...]
    by_hand: bool = False
    """Its mutants are those of `sql.py`, under its name."""


LIMITS = "tests/golden/test_archive_limits.py"

HASHES = "tests/postgres/test_sql_hashing.py"
_FUNCTIONS = "tests/postgres/test_append_functions.py"
_RETIREMENT = "tests/postgres/test_key_retirement.py"
_KEYS = (
    f"{_RETIREMENT}::test_a_retired_key_seals_no_more",
    f"{_RETIREMENT}::test_only_sealed_records_have_a_key_to_look_at",
    f"{_RETIREMENT}::test_a_key_that_is_not_registered_seals_nothing",
    f"{_RETIREMENT}::test_an_old_snapshot_is_no_way_round",
    f"{_RETIREMENT}::test_a_key_that_is_newer_than_the_snapshot_seals",
)
APPENDS = (
    _FUNCTIONS,
    "tests/postgres/test_append_created.py",
    "tests/postgres/test_record_ids.py::test_a_record_is_accepted_once",
    "tests/postgres/test_partitions.py::test_an_append_makes_the_next_one",
    *_KEYS,
)
CHECKS = (
    f"{_FUNCTIONS}::test_nothing_is_stored_that_nobody_could_read",
    f"{_FUNCTIONS}::test_the_log_writes_marks_of_its_own",
    f"{_FUNCTIONS}::test_how_long_a_key_id_is",
    f"{_FUNCTIONS}::test_what_the_log_says_of_itself_is_not_appended_by_others",
    f"{_FUNCTIONS}::test_only_formats_that_readers_read",
    f"{_FUNCTIONS}::test_aggregates_out_of_order_are_refused",
    f"{_FUNCTIONS}::test_a_record_has_parts",
    f"{_FUNCTIONS}::test_the_largest_that_is_accepted",
    f"{_FUNCTIONS}::test_what_is_stored_is_what_was_given",
    f"{_FUNCTIONS}::test_a_transaction_must_wait_for_its_durability",
    *_KEYS,
)
"""Those of `APPENDS` that are about arguments: the others would only take time."""

TARGETS = (
    Target("chain", "oplog.crypto.hashing", ("tests/unit/test_chain.py",)),
    Target("cursor", "oplog.store.cursor", ("tests/unit/test_cursor.py",)),
    Target(
        "codec",
        "oplog.payload.codec",
        ("tests/unit/test_codec.py", "tests/unit/test_block.py", "tests/unit/test_row_run.py"),
    ),
    Target("row", "oplog.payload.row_codec", ("tests/unit/test_codec.py",)),
    Target("parts", "oplog.payload.parts", ("tests/unit/test_parts.py",)),
    Target(
        "runs",
        "oplog.payload.row_run",
        ("tests/unit/test_row_run.py", "tests/golden/test_run_bytes.py"),
    ),
    Target("binary", "oplog.postgres.binary_message", ("tests/unit/test_binary_message.py",)),
    Target("effect", "oplog.payload.effect", ("tests/unit/test_effect.py",)),
    Target("recorder", "oplog.capture.recorder", ("tests/unit/test_recorder.py",)),
    Target("net", "oplog.capture.net_row", ("tests/unit/test_net_rows.py",)),
    Target("merge", "oplog.capture.merge", ("tests/unit/test_merge.py",)),
    Target("grouping", "oplog.capture.grouping", ("tests/unit/test_grouping.py",)),
    Target("gathering", "oplog.capture.gathering", ("tests/unit/test_gathering.py",)),
    Target("building", "oplog.capture.building", ("tests/unit/test_building.py",)),
    Target("draft", "oplog.capture.draft", ("tests/unit/test_draft.py",)),
    Target("writer", "oplog.capture.writer", ("tests/unit/test_writer.py",)),
    Target("retry", "oplog.capture.retry", ("tests/unit/test_retryable.py",)),
    Target(
        "request",
        "oplog.capture.request",
        ("tests/unit/test_fingerprint.py", "tests/unit/test_request.py"),
    ),
    Target("resolution", "oplog.reading.resolution", ("tests/unit/test_resolution.py",)),
    Target("path", "oplog.archive.format.path", ("tests/unit/test_archive_path.py",)),
    Target(
        "document",
        "oplog.archive.format.canonical_json",
        (LIMITS, "tests/unit/test_archive_document.py"),
    ),
    Target(
        "container",
        "oplog.archive.format.container",
        (LIMITS, "tests/unit/test_archive_container.py"),
    ),
    Target(
        "head",
        "oplog.archive.format.head",
        (LIMITS, "tests/golden/test_archive_bytes.py", "tests/unit/test_archive_head.py"),
    ),
    Target(
        "index",
        "oplog.archive.format.index",
        (LIMITS, "tests/golden/test_archive_bytes.py", "tests/unit/test_archive_index.py"),
    ),
    Target(
        "body",
        "oplog.archive.format.body",
        (LIMITS, "tests/golden/test_archive_bytes.py", "tests/unit/test_archive_body.py"),
    ),
    Target(
        "segment",
        "oplog.archive.format.segment",
        (LIMITS, "tests/golden/test_archive_bytes.py", "tests/unit/test_archive_segment.py"),
    ),
    Target(
        "records",
        "oplog.store.records",
        ("tests/unit/test_store_binding.py", "tests/postgres/test_store_records.py"),
    ),
    Target("sql", "oplog.schema.append", (*APPENDS, HASHES), by_hand=True),
    Target("sql_checks", "oplog.schema.append_checks", CHECKS, by_hand=True),
    Target("sql_hashes", "oplog.crypto.sql_hashing", (HASHES, *APPENDS), by_hand=True),
)
