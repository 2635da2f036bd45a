"""A pruned log read with its archive answers everything as it did before it was pruned."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import LoggedEntry
from oplog.store import records
from tests.postgres.archived import open_memory, reopen
from tests.postgres.keeping import read_row, write_row
from tests.postgres.pruned import (
    ask_everything,
    list_positions,
    open_plain,
    prune_small,
    sync,
    write_random,
)
from tests.postgres.replay_models import Bench, make_bench

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def list_moments(bench: Bench, chance: random.Random) -> list[object]:
    with open_plain(bench.engine).connect() as connection:
        entries = list(bench.log.read(connection))
    chosen = chance.sample(entries, 3)
    return [entry.position for entry in chosen] + [e.recorded_at for e in chosen[:2]]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(5))
def test_all_answers_are_the_same(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    archive = open_memory()
    for _ in range(3):
        write_random(bench, chance, chance.randint(1, 6))
        sync(bench, archive)
        if chance.random() < 0.6:
            before = ask_everything(bench, [], archive=reopen(archive))
            prune_small(bench, archive)
            assert ask_everything(bench, [], archive=reopen(archive)) == before
    write_random(bench, chance, chance.randint(0, 4))
    moments: list[object] = []
    with open_plain(bench.engine).connect() as connection:
        entries = list(bench.log.read(connection, archive=reopen(archive)))
    for entry in chance.sample(entries, 3):
        moments += [entry.position, entry.recorded_at]
    before = ask_everything(bench, moments, archive=reopen(archive))
    known = len(list_positions(bench))
    report = prune_small(bench, archive)
    assert len(list_positions(bench)) == known - report.entries
    assert ask_everything(bench, moments, archive=reopen(archive)) == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(3))
def test_with_and_without_an_archive_before_anything_is_pruned(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    archive = open_memory()
    write_random(bench, chance, 6)
    sync(bench, archive)
    write_random(bench, chance, 4)
    moments = list_moments(bench, chance)
    plain = ask_everything(bench, moments)
    assert ask_everything(bench, moments, archive=reopen(archive)) == plain
    prune_small(bench, archive)
    assert ask_everything(bench, moments, archive=reopen(archive)) == plain


def test_sequences_are_those_of_the_archive(bench: Bench) -> None:
    chance = random.Random(1)
    archive = open_memory()
    write_random(bench, chance, 5)
    sync(bench, archive)
    archived = list_positions(bench)
    prune_small(bench, archive)
    write_random(bench, chance, 2)
    with bench.engine.connect() as connection:
        entries = list(bench.log.read(connection, archive=reopen(archive)))
    # A record has one sequence, and its entries are read together.
    ranks = {position: n for n, position in enumerate(sorted(set(archived)), 1)}
    assert len(ranks) == archive.read_head().sequence
    assert [e.sequence for e in entries[: len(archived)]] == [ranks[one] for one in archived]
    assert {e.sequence for e in entries[len(archived) :]} == {None}


def test_what_is_published_without_a_receipt_is_read_once(bench: Bench) -> None:
    chance = random.Random(3)
    archive = open_memory()
    write_random(bench, chance, 4)
    sync(bench, archive)
    saved = read_row(bench)
    write_random(bench, chance, 4)
    before = ask_everything(bench, [])
    sync(bench, archive)
    # The process died after the head was created, before it could say so.
    write_row(bench, saved)
    assert ask_everything(bench, [], archive=reopen(archive)) == before
    prune_small(bench, archive)
    assert ask_everything(bench, [], archive=reopen(archive)) == before
    sync(bench, archive)
    prune_small(bench, archive)
    assert list_positions(bench) == []
    assert ask_everything(bench, [], archive=reopen(archive)) == before


def test_verify_sees_the_moment_of_its_tables(bench: Bench) -> None:
    chance = random.Random(4)
    archive = open_memory()
    write_random(bench, chance, 4)
    sync(bench, archive)
    engine = open_plain(bench.engine).execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        # Published, and pruned, after the moment that is verified.
        write_random(bench, chance, 4)
        sync(bench, archive)
        prune_small(bench, archive)
        verdict = bench.log.verify(connection, archive=reopen(archive))
    assert verdict.ok


def test_a_low_position_that_was_committed_late(bench: Bench) -> None:
    archive = open_memory()
    with open_plain(bench.engine).connect() as held:
        held.exec_driver_sql("SELECT oplog.oplog_mark(ARRAY['why'], ARRAY['slow'])")
        write_random(bench, random.Random(5), 3)
        sync(bench, archive)
        held.commit()
    before = ask_everything(bench, [])
    assert ask_everything(bench, [], archive=reopen(archive)) == before
    prune_small(bench, archive)
    assert len(list_positions(bench)) == 1
    assert ask_everything(bench, [], archive=reopen(archive)) == before


@pytest.mark.parametrize(
    ("cut", "published", "filtered"),
    [(1, 0, False), (4, 4, False), (7, 0, False), (7, 4, True), (1000, 4, False)],
)
def test_records_pruned_while_they_are_read_come_from_the_archive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, cut: int, published: int, filtered: bool
) -> None:
    """At READ COMMITTED, at any point of the reading: each once, causes first, nothing later."""
    monkeypatch.setattr(records, "PAGE_ENTRIES", 1)
    chance = random.Random(cut)
    archive = open_memory()
    write_random(bench, chance, 1 + published)
    sync(bench, archive)
    write_random(bench, chance, 8)
    only: dict[str, Any] = {"metadata": {"actor": "ann"}} if filtered else {}
    with open_plain(bench.engine).connect() as connection:
        wanted = list(bench.log.read(connection, archive=reopen(archive), **only))
    with open_plain(bench.engine).connect() as connection:
        reading = iter(bench.log.read(connection, archive=reopen(archive), **only))
        found = list(itertools.islice(reading, cut))
        for _ in range(2):
            write_random(bench, chance, 2)
            sync(bench, archive)
            assert prune_small(bench, archive).entries
            found += itertools.islice(reading, 2)
        found += reading
    # Those that came from the archive have a sequence.
    alike = [replace(entry, sequence=None) for entry in sorted(found, key=identify)]
    assert alike == [replace(entry, sequence=None) for entry in sorted(wanted, key=identify)]
    versions: dict[str, int] = {}
    for entry in found:
        if not filtered:
            assert entry.version == versions.get(entry.aggregate, 0) + 1
        versions[entry.aggregate] = entry.version


def identify(entry: LoggedEntry) -> tuple[str, int]:
    return entry.aggregate, entry.version
