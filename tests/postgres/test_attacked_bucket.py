"""A bucket's writer that has no signing key cannot change what a restore brings.

2,000 attacks on a real archive: each is refused, or what is read is exactly what was published. A
part of them is restored into a database, which is then empty or equal to the one that published.
Without pinned key and expectation, the same attacks succeed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest
from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.format.path import COLLECTED
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.probe import Verdict
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust
from oplog.errors import ArchiveError, OplogError
from oplog.upkeep.check import check_archive
from oplog.upkeep.retention import Retention
from tests.archived import HandMade
from tests.attacked import (
    FORGES,
    THIEF,
    Attack,
    Contents,
    Objects,
    bring_back_older,
    change_objects,
    fill,
    forge_heads,
    put_another,
    read_contents,
)
from tests.postgres.archived import dump_all, dump_objects, restore_into
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Bench, make_bench, write_history
from tests.postgres.restored import empty, make_target
from tests.published import copy_objects
from tests.sampling import Sample

pytestmark = pytest.mark.postgres

CASES = 2000
"""As many are tried at least; `--whole` tries several rounds of flips, cuts and swaps."""
RESTORED = 16
CHECKED = 100
KEYS = SigningKeyring.generate()


@dataclass
class Published:
    """An archive, signed, with pins, snapshots and a node of the index; and all its past states."""

    bench: Bench
    states: list[Objects]
    expected: str
    contents: Contents
    snapshots: list[object]

    @property
    def objects(self) -> Objects:
        return self.states[-1]

    def open(self, objects: Objects, *, guarded: bool = True) -> Archive:
        """As a reader opens it that has seen nothing before; or one that believes anybody."""
        return Archive(
            fill(objects),
            verdict=Verdict.ATOMIC,
            trust=HeadTrust(trust=Trust({KEYS.publisher: None}))
            if guarded
            else HeadTrust(unsigned=True),
            demand=Expectation.parse(self.expected).require if guarded else None,
        )

    def is_same(self, found: Contents) -> bool:
        """Whether what was read is what was published, by the newest snapshot or an older one."""
        return (
            replace(found, snapshot=None) == replace(self.contents, snapshot=None)
            and found.snapshot in self.snapshots
        )


@pytest.fixture
def published(engine: Engine) -> Published:
    bench = make_bench(engine)
    archive = Archive(
        fill({}), verdict=Verdict.ATOMIC, trust=HeadTrust(keyring=KEYS, unsigned=True)
    )
    write_history(bench)
    states: list[Objects] = []
    snapshots: list[object] = [None]
    report = bench.log.sync(engine, archive)
    for number in range(19):
        bench.write(add_task)
        report = bench.log.sync(engine, archive)
        if number in {5, 17}:
            bench.log.snapshot(engine, archive)
            snapshots.append(read_contents(archive).snapshot)
        if number == 8:
            bench.log.pin(archive, "kept")
        if number == 12:
            bench.log.collect(engine, archive, retention=Retention(), grace_seconds=0)
        states.append(dump_objects(archive))
    assert COLLECTED in states[-1]
    assert any(path.startswith("INDEX/") for path in states[-1])
    return Published(bench, states, report.expect_at_least, read_contents(archive), snapshots)


def make_others(published: Published) -> Mapping[str, Objects]:
    """Archives of other logs, of the thief and of the same publisher."""
    stolen = HandMade(trust=HeadTrust(keyring=THIEF))
    sibling = HandMade(trust=HeadTrust(keyring=KEYS))
    sibling.head = replace(sibling.head, archive_id=uuid4())
    for made in (stolen, sibling):
        made.add_types()
        made.publish_many(30)
    bare = HandMade()
    bare.publish_many(30)
    return {
        name: copy_objects(made.store)
        for name, made in (("of the thief", stolen), ("of a sibling", sibling), ("unsigned", bare))
    }


def make_attacks(published: Published, chance: random.Random, rounds: int) -> Iterator[Attack]:
    yield from forge_heads(published.objects)
    yield from bring_back_older(published.states)
    yield from put_another(published.objects, make_others(published))
    for _ in range(rounds):
        yield from change_objects(published.objects, chance)


@pytest.mark.sampled
def test_every_attack_is_refused_or_changes_nothing(
    published: Published, spare_engine: Engine, sample: Sample
) -> None:
    chance = random.Random(sample.sampling.seed)
    attacks = list(make_attacks(published, chance, 8 if sample.whole else 2))
    assert len(attacks) >= CASES
    tally: Counter[tuple[str, str]] = Counter()
    for attack in attacks if sample.whole else chance.sample(attacks, CASES):
        archive = published.open(attack.objects)
        try:
            found = read_contents(archive)
        except ArchiveError as error:
            tally[attack.kind, type(error).__name__] += 1
            continue
        assert published.is_same(found), f"{attack.kind}: {attack.name}"
        tally[attack.kind, "same"] += 1
    kinds = {kind for kind, _ in tally}
    assert kinds == {
        *("drop", "flip", "truncate", "swap", "replay", "rename"),
        *("forge", "older", "another"),
    }
    # Each kind is found, and is not only something that does not matter.
    for kind in kinds:
        assert any(name != "same" for known, name in tally if known == kind), kind
    _check_all(published, chance.sample(attacks, CHECKED))
    restored = chance.sample(attacks, RESTORED)
    _restore_all(published, spare_engine, restored)


def _check_all(published: Published, attacks: list[Attack]) -> None:
    """What a reader refuses, `check` reports; what is not in an object's bytes, a sample too."""
    for attack in attacks:
        try:
            read_contents(published.open(attack.objects))
        except ArchiveError:
            assert not check_archive(published.open(attack.objects)).ok, attack.name
            if attack.kind in {"forge", "older", "another", "drop"}:
                sampled = check_archive(published.open(attack.objects), sample=0.0)
                assert not sampled.ok, attack.name


def _restore_all(published: Published, engine: Engine, attacks: list[Attack]) -> None:
    target = make_target(engine, published.bench)
    before, expected = dump_all(target), dump_all(published.bench)
    for attack in attacks:
        try:
            restore_into(target, published.open(attack.objects))
        except OplogError:
            assert dump_all(target) == before, attack.name
        else:
            assert dump_all(target) == expected, attack.name
            empty(target)
            before = dump_all(target)


def test_without_pins_and_expectation_the_attacks_succeed(published: Published) -> None:
    """The control: what stops them is the signature, and what is expected."""
    succeeded = set()
    for attack in forge_heads(published.objects):
        change, sign, where = attack.name.split(", ")[:3]
        if sign == "keep_signature" or where != "next":
            continue
        try:
            found = read_contents(published.open(attack.objects, guarded=False))
        except ArchiveError:
            continue
        if not published.is_same(found):
            succeeded.add(change)
    assert succeeded == set(FORGES)
    older = [
        read_contents(published.open(attack.objects, guarded=False))
        for attack in bring_back_older(published.states)
        if attack.name.startswith("state") and "LATEST" not in attack.name
    ]
    assert all(not published.is_same(found) for found in older)
    others = make_others(published)
    assert all(
        not published.is_same(read_contents(published.open(other, guarded=False)))
        for other in others.values()
    )
    _require_pin_of_log(published, others["of a sibling"])


def _require_pin_of_log(published: Published, sibling: Objects) -> None:
    """Against another archive of the same publisher helps a pin of the log, without expectation."""
    pins = Trust({KEYS.publisher: published.open(published.objects).read_head().log_id})
    with pytest.raises(ArchiveError, match="pinned for the log"):
        Archive(fill(sibling), trust=HeadTrust(trust=pins)).read_head()
    Archive(fill(published.objects), trust=HeadTrust(trust=pins)).read_head()
